"""The subject of a measurement: a row's model with its weights and pre-processing, and the data."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection_zoo.benchmarks.run.splits import split_beside
from detection_zoo.benchmarks.spec import BenchmarkSpec, DataIdentity, WeightsIdentity
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.errors import CheckpointError, DatasetError, ManifestError
from detection_zoo.zoo.home import expanded, home_folder
from detection_zoo.zoo.manifest import DatasetSpec, ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.settings import with_value
from detection_zoo.zoo.weights.fetch.cache import sha256_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from detection_zoo.zoo.data.transforms import Preprocess

STAND_IN = "stand-in:"
RANDOM_DIGEST = "seed:0"  # the seed that build_model uses for random weights
CHECKED_IMAGES = 2  # on which a model on another path is compared with the eager one
CHECKED_QUANTISED = 20  # the same of one in 8 bits, for a share of more detections


@dataclass(frozen=True)
class Sources:
    """Where data and weights come from, as given on the command line.

    data, train_data: arguments of `open_dataset`; train_data None: the training split next to `data`, or
        `data` itself.
    weights: "random", "published", "stand-in:FOLDER" (a folder of recorded parity outputs), or a file.
    checkpoint_format: format of a file, if it differs from the row's.
    exported: the file that an engine runs, where `BenchmarkSpec.exported` describes one.
    """

    data: str
    weights: str = "random"
    train_data: str | None = None
    checkpoint_format: str | None = None
    exported: Path | None = None


@dataclass
class Subject:
    """A model ready to be measured.

    sources: source of the data, for training images. folder: output folder of detections.
    timed: indices of the images of each batch that was timed.
    """

    entry: ModelEntry
    model: nn.Module
    preprocess: Preprocess
    device: torch.device
    dataset: Dataset | None = None
    sources: Sources | None = None
    folder: Path | None = None
    timed: list[list[int]] = field(default_factory=list)

    @property
    def is_classifier(self) -> bool:
        """Whether the model predicts one label per image."""
        return self.entry.task == "classification"

    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> Any:
        """Run the forward phase on images (N, 3, H, W) with sizes (N, 2): raw detector outputs,
        or class logits (N, K)."""
        return self.model(images) if self.is_classifier else self.model.raw(images, sizes)

    @property
    def inclusive(self) -> bool:
        """Whether x2 and y2 of its boxes are inclusive (the "+1" convention)."""
        return inclusive_boxes(self.entry)


def open_data(entry: ModelEntry, argument: str, images: int | None = None, training: bool = False) -> Dataset:
    """Open the dataset, with classes in the order of the row's labels.

    Args:
        entry: row whose classes must match the data's.
        argument: argument of `open_dataset`.
        images: keep only the first N.
        training: if the argument names no split, use the training split.

    Raises:
        DatasetError: the argument is unknown, files are missing or malformed, or the classes differ from the
        row's.
    """
    spec = load_manifests().datasets[entry.dataset]
    classes = entry.classes if spec.layout == "imagenet" else entry.class_names or spec.classes or None
    return open_dataset(
        argument, classes=classes, keypoints=entry.has_keypoints, images=images, training=training
    )


def inclusive_boxes(entry: ModelEntry) -> bool:
    """Return whether a row's boxes have inclusive ends: as in its training boxes, otherwise by its
    box-coding offset."""
    from detection_zoo.zoo.build import DETECTORS, rules_of

    if entry.conventions is not None and entry.conventions.targets is not None:
        return entry.conventions.targets.inclusive
    if entry.conventions is None or entry.detector is None:
        return False
    usual = getattr(rules_of(DETECTORS[entry.detector.name]), "boxes", None)
    return usual is not None and (entry.conventions.boxes or usual).offset == 1.0


def identify_data(dataset: Dataset) -> DataIdentity:
    """Return the name and hash of a dataset: image IDs, file sizes, boxes and labels of the images used."""
    digest = hashlib.sha256(repr(dataset.classes).encode())
    for index in range(len(dataset)):
        truth = dataset.target(index)
        path = dataset.image_path(index)
        # a missing image raises an error when it is read
        size = path.stat().st_size if path.is_file() else -1
        digest.update(
            f"{dataset.image_id(index)} {size} ".encode()
            + truth.boxes_xywh.tobytes()
            + truth.labels.tobytes()
        )
    return DataIdentity(
        name=dataset.name,
        digest=digest.hexdigest(),
        images=len(dataset),
        images_of_split=dataset.full_size,
        made_up=dataset.name.startswith("shapes"),
    )


def identify_weights(entry: ModelEntry, argument: str) -> tuple[WeightsIdentity, str]:
    """Resolve a --weights argument: the identity of the weights and the argument for `build_model`; missing
    published files are downloaded.

    Raises:
        DownloadError: the published file cannot be downloaded.
        CheckpointError: the file, or the description of a stand-in, is missing.
        ManifestError: the row has no published weights.
    """
    if argument == "random":
        return (
            WeightsIdentity(kind="random", digest=RANDOM_DIGEST, note="initial values, untrained"),
            "random",
        )
    if argument == "published":
        return _published(entry)
    if argument.startswith(STAND_IN):
        return _stand_in(Path(argument.removeprefix(STAND_IN)))
    path = weights_file(argument)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; --weights must be random, published, {STAND_IN}FOLDER, or the path"
            " of a checkpoint"
        )
    return WeightsIdentity(kind="file", digest=sha256_of(path), file=path.name), str(path)


def weights_file(argument: str) -> Path:
    """Return the file of a --weights argument; DIR/last and DIR/best of a training run may be given without
    suffix."""
    path = expanded(argument)
    trained = path.with_name(f"{path.name}.pth")
    return trained if not path.is_file() and trained.is_file() else path


def _published(entry: ModelEntry) -> tuple[WeightsIdentity, str]:
    from detection_zoo.zoo.weights.fetch.one import fetch_weights

    spec = next(iter(entry.trained_weights), None)
    if spec is None:
        part = next(
            (f" of the whole model, but {spec.partial}" for spec in entry.weights if spec.partial), ""
        )
        raise ManifestError(
            f"{entry.where} has no published weights{part}; use --weights random or your own file"
        )
    found = fetch_weights(spec, entry.name)
    return WeightsIdentity(kind="published", digest=found.sha256, file=found.path.name), "published"


def _stand_in(folder: Path) -> tuple[WeightsIdentity, str]:
    from detection_zoo.zoo.parity.standin import CHECKPOINT_FILE, write_standin_checkpoint

    description = expanded(folder) / CHECKPOINT_FILE
    if not description.is_file():
        raise CheckpointError(
            f"{description}: no such file; {STAND_IN}FOLDER needs a folder of recorded outputs with the"
            " description of a checkpoint"
        )
    digest = sha256_of(description)
    path = home_folder() / "stand-in" / f"{folder.name}-{digest[:12]}.pth"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_standin_checkpoint(expanded(folder), path)
    return WeightsIdentity(
        kind="stand-in",
        digest=digest,
        file=path.name,
        note="generated from tensor names; the digest is of the description",
    ), str(path)


def training_data(entry: ModelEntry, sources: Sources) -> tuple[Dataset, str]:
    """Return the training images and a note on them; the evaluation images if there is no training
    split."""
    if sources.train_data is not None:
        dataset = open_data(entry, sources.train_data)
        return dataset, f"training images {dataset.name}"
    if (beside := split_beside(sources.data, "train")) is not None:
        with suppress(DatasetError):
            dataset = open_data(entry, beside, training=True)
            return dataset, f"training images {dataset.name}"
    dataset = open_data(entry, sources.data)
    return dataset, (
        f"training images {dataset.name}, because there is no training split next to it:"
        " for memory and time only"
    )


def images_in_epoch(entry: ModelEntry, dataset: Dataset) -> tuple[int, str]:
    """Return the number of images per training epoch, and which dataset it is counted on: the row's,
    unless the data is of another kind."""
    spec: DatasetSpec = load_manifests().datasets[entry.dataset]
    if entry.train_split and entry.train_split in spec.splits and not dataset.name.startswith("shapes"):
        return spec.splits[entry.train_split], f"{spec.title} {entry.train_split}"
    return dataset.full_size, dataset.name


def prepare(
    entry: ModelEntry,
    spec: BenchmarkSpec,
    dataset: Dataset,
    weights: str,
    checkpoint_format: str | None = None,
) -> Subject:
    """Build the model on its device.

    Args:
        entry: a row with conventions.
        spec: device, seed.
        dataset: dataset to measure on.
        weights: argument of `build_model`.
        checkpoint_format: format of a checkpoint file; default: the row's.
    """
    import torch

    torch.manual_seed(spec.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = spec.tf32
    subject = build_subject(with_soft_nms(entry, spec.soft_nms), weights, spec.device, checkpoint_format)
    subject.dataset = dataset
    return subject


def with_soft_nms(entry: ModelEntry, kind: str) -> ModelEntry:
    """Return the row with soft-NMS ("linear" or "gaussian") instead of its NMS; "none" returns it unchanged.

    Raises:
        ManifestError: the row's conventions have no table [detections].
    """
    if kind == "none":
        return entry
    if entry.conventions is None or entry.conventions.detections is None:
        raise ManifestError(
            f"row {entry.name}: soft-NMS works only for rows whose conventions have a table [detections]"
            " (the R-CNN families)"
        )
    return with_value(entry, "detections.soft", kind)


def build_subject(
    entry: ModelEntry, weights: str, device: str, checkpoint_format: str | None = None
) -> Subject:
    """Build a row's model on a device ("cpu" or "cuda") with its pre-processing, without data; `weights` is
    the argument of `build_model`."""
    import torch

    from detection_zoo.zoo.build import build_model, load_row_weights
    from detection_zoo.zoo.data.transforms import Preprocess

    if entry.conventions is None:
        raise ManifestError(f"{entry.where} has no conventions, so its pre-processing is unknown")
    model = build_model(entry, weights=weights if checkpoint_format is None else "random", device=device)
    if checkpoint_format is not None:
        load_row_weights(model, entry, weights, checkpoint_format)
    return Subject(entry, model, Preprocess.from_conventions(entry.conventions.image), torch.device(device))


def take_path(subject: Subject, spec: BenchmarkSpec, images: Iterable[np.ndarray] | None = None) -> list[str]:
    """Replace a subject's model by its version for the specification's path; return notes
    on the comparison of both.

    Args:
        subject: with the eager model. spec: path, dtype, and the exported file.
        images: (H, W, 3) uint8 RGB, the first of which are compared on; default: of the subject's dataset.

    Raises:
        ManifestError: the model has no such path, or differs by more than the tolerance on the first images.
    """
    if spec.path == "eager":
        return []
    import torch

    from detection_zoo.zoo.cuda_capture import with_graphs
    from detection_zoo.zoo.data.loading import pad_batch
    from detection_zoo.zoo.fast import compare_detections, fast_model, map_error

    dtype, batches, notes = getattr(torch, spec.dtype), [], list[str]()
    quantised = spec.exported is not None and spec.exported.bits == 8
    count = CHECKED_QUANTISED if quantised else CHECKED_IMAGES
    if images is None:
        images = (subject.dataset.load_image(index) for index in range(len(subject.dataset or ())))
    for image in itertools.islice(images, count):
        item = subject.preprocess(image)
        pixels = pad_batch([item.tensor], subject.preprocess.size_divisor)
        batches.append((pixels.to(subject.device), torch.tensor([item.size])))
    try:
        if spec.path == "fast":
            fast = fast_model(subject.model, dtype)
            error = map_error(subject.model, fast, [pixels for pixels, _ in batches])
            other, notes = with_graphs(fast, subject.device)
            report = compare_detections(subject.model, other, batches, dtype, error)
        else:
            from detection_zoo.zoo.export.engines import EngineDetector, FileDetector
            from detection_zoo.zoo.export.files import QUANTISED

            model, file = subject.model.eval(), subject.sources.exported if subject.sources else None
            if file is None:
                other = EngineDetector(model, spec.path, dtype)
            else:
                other = FileDetector(model, spec.path, file, dtype)
                batches = [(other.fitted(pixels), sizes) for pixels, sizes in batches]
            bound = QUANTISED if quantised else None
            report = compare_detections(model, other, batches, dtype, path=spec.path, bound=bound)
    except ValueError as error:
        raise ManifestError(f"row {subject.entry.name}: {error}") from error
    subject.model = other
    return [f"{spec.path} path: {report}", *notes]


def path_notes(subject: Subject) -> list[str]:
    """What a record says of a model's path after it ran: which CUDA graphs were captured and replayed."""
    note = getattr(subject.model, "note", None)
    return [] if note is None else [note]


def autocast(spec: BenchmarkSpec) -> AbstractContextManager:
    """Return torch.autocast in the specification's type; no effect for float32, or on paths other
    than eager."""
    import torch

    return (
        nullcontext()
        if spec.path != "eager" or spec.dtype == "float32"
        else torch.autocast(spec.device, getattr(torch, spec.dtype))
    )
