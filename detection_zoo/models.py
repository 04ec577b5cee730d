"""Models by name or by parts, and their detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detection_zoo.benchmarks.run.subject import Subject, build_subject, identify_weights, take_path
from detection_zoo.predictions import Prediction
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.errors import DatasetError, ManifestError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests

if TYPE_CHECKING:
    from PIL import Image

    from detection_zoo.benchmarks.spec import BenchmarkSpec, WeightsIdentity

    ImageLike = str | PathLike[str] | Image.Image | np.ndarray | torch.Tensor

MOST_BYTES = 256 << 20  # of an image from an address
DEADLINE_S = 60.0  # of one download


def list_models(
    pattern: str = "*",
    *,
    source: str | None = None,
    backbone: str | None = None,
    detector: str | None = None,
    dataset: str | None = None,
) -> list[str]:
    """List the names of the rows of the manifests.

    Args:
        pattern: part of a name, a shell pattern, or a source.
        source: only rows of this manifest, for example "vovnet".
        backbone: only rows of this backbone.
        detector: only rows of this detector.
        dataset: only rows trained on this dataset.

    Examples:
        >>> list_models("ssd512", backbone="hardnet68", dataset="coco")
        ['ssd512_hardnet68_coco.hardnet']
    """
    wanted = {"source": source, "backbone": backbone, "detector": detector, "dataset": dataset}
    return [
        entry.name
        for entry in load_manifests().find(pattern)
        if all(value is None or _field(entry, name) == value for name, value in wanted.items())
    ]


def _field(entry: ModelEntry, name: str) -> str | None:
    value = getattr(entry, name)
    return value if isinstance(value, str) or value is None else value.name


class Model:
    """A detector with its weights, its own pre-processing and its classes.

    `entry` is the manifest row, `module` the torch module, `weights` the loaded weights (kind, file,
    SHA-256), `class_names` its classes by label, `device` its device, `spec` its path and dtype, `notes` the
    path's comparison with eager.
    """

    def __init__(
        self,
        subject: Subject,
        weights: WeightsIdentity,
        class_names: Sequence[str] = (),
        spec: BenchmarkSpec | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.subject, self.weights, self.notes = subject, weights, list(notes)
        self.spec = spec or _spec(device=subject.device.type)
        self.class_names = tuple(class_names) or getattr(subject.model, "class_names", ())
        self.module.eval()

    @property
    def entry(self) -> ModelEntry:
        """The manifest row."""
        return self.subject.entry

    @property
    def module(self) -> torch.nn.Module:
        """The torch module: losses in training mode, detections in evaluation mode."""
        return self.subject.model

    @property
    def device(self) -> torch.device:
        """Where the module runs."""
        return self.subject.device

    def detect(
        self, images: ImageLike | Sequence[ImageLike], *, min_score: float = 0.0
    ) -> Prediction | list[Prediction]:
        """Find objects.

        Args:
            images: one image or a list: a path, a URL (http, https), a PIL image, an (H, W, 3) uint8 RGB
                array, or a (3, H, W) tensor, uint8 or float from 0 to 1.
            min_score: leave out detections below it, 0 to 1.

        Returns:
            A `Prediction` for one image, a list of them for a list.

        Raises:
            DatasetError: a file is not an image, or the model is a classifier.

        Examples:
            >>> import numpy as np, detection_zoo as dz
            >>> model = dz.load("faster_rcnn_resnet14_slim_fpn.demo", weights="random")
            >>> model.detect(np.zeros((120, 160, 3), np.uint8), min_score=0.9)
            Prediction(0 detections in 160x120)
        """
        if self.subject.is_classifier:
            raise DatasetError(f"row {self.entry.name} is a classifier; detect needs a detector")
        many = isinstance(images, (list, tuple))
        found = [self._detect_one(image, min_score) for image in (images if many else [images])]
        return found if many else found[0]

    def with_path(
        self, path: str, images: ImageLike | Sequence[ImageLike], *, dtype: str = "float32"
    ) -> Model:
        """Return this model on another path, for inference; this one is not changed.

        Args:
            path: as `--path` of `bench.py run`: fast, onnxruntime, openvino, or eager.
            images: as in `detect`; the detections in the first two are compared with this model's.
            dtype: float32, bfloat16 or float16; of the eager path by torch.autocast.

        Raises:
            ManifestError: the model has no such path, or its detections differ by more than the tolerance.
            ValueError: an unknown path or dtype, or one that the path or the device does not support.

        Examples:
            >>> import numpy as np, detection_zoo as dz
            >>> model = dz.load("faster_rcnn_resnet14_slim_fpn.demo", device="cpu")
            >>> fast = model.with_path("fast", np.zeros((120, 160, 3), np.uint8), dtype="bfloat16")
            >>> fast.spec.path, fast.notes[0][:35]
            ('fast', 'fast path: 1 images compared with e')
        """
        from detection_zoo.zoo.export.kinds import engine_problem

        spec = _spec(device=self.device.type, path=path, dtype=dtype)
        if self.spec.path != "eager":
            raise ValueError(f"this model is on the {self.spec.path} path; use the one that `load` returned")
        if problem := engine_problem(path, spec.device, dtype):
            raise ValueError(problem)
        subject = replace(self.subject)
        many = images if isinstance(images, (list, tuple)) else [images]
        notes = take_path(subject, spec, (read_image(image)[0] for image in many))
        return Model(subject, self.weights, self.class_names, spec, notes)

    def _detect_one(self, image: ImageLike, min_score: float) -> Prediction:
        from detection_zoo.benchmarks.run.drawing import detect_pixels

        pixels, path = read_image(image)
        found = detect_pixels(self.subject, self.spec, pixels, min_score)
        return Prediction(pixels, found, self.class_names, self.category_ids, self.subject.inclusive, path)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's ids of the classes by label; 1 to K for other datasets."""
        from detection_zoo.benchmarks.run.saving import category_ids_of

        return category_ids_of(self.entry)

    def __repr__(self) -> str:
        about = f"{self.weights.kind} weights, {self.entry.classes} classes, {self.device}"
        return f"Model({self.entry.name}, {about})"


def read_image(image: ImageLike) -> tuple[np.ndarray, str | None]:
    """The pixels (H, W, 3) uint8 RGB of an argument of `Model.detect`, and its path or URL.

    Raises:
        DatasetError: a file or URL is not an image.
        TypeError: another type.
        ValueError: another shape.
    """
    from detection_zoo.zoo.data.images import decode_image

    if isinstance(image, (str, PathLike)):
        text = str(image)
        if text.startswith(("http://", "https://")):
            return decode_image(_download(text), text), text
        path = Path(text).expanduser()
        if not path.is_file():
            raise DatasetError(f"{path}: no such image file")
        return decode_image(path.read_bytes(), str(path)), str(path)
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise ValueError(f"expected a tensor of shape (3, H, W), not {tuple(image.shape)}")
        image = image.detach().cpu()
        if image.is_floating_point():
            image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy()), None
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"expected an (H, W, 3) uint8 RGB array, not {image.shape} {image.dtype}")
        return image, None
    if hasattr(image, "convert"):
        return np.array(image.convert("RGB")), getattr(image, "filename", None) or None
    raise TypeError(f"expected an image path, URL, PIL image, array or tensor, not {type(image).__name__}")


def _download(address: str) -> bytes:
    import time

    import requests

    start, data = time.monotonic(), bytearray()
    try:
        with requests.get(address, timeout=DEADLINE_S / 4, stream=True) as answer:
            answer.raise_for_status()
            for block in answer.iter_content(1 << 16):
                data += block
                if len(data) > MOST_BYTES or time.monotonic() - start > DEADLINE_S:
                    raise DatasetError(f"{address}: more than {MOST_BYTES >> 20} MiB, or {DEADLINE_S:g} s")
    except requests.RequestException as error:
        raise DatasetError(f"{address}: cannot be fetched ({type(error).__name__})") from None
    return bytes(data)


def load(row: str, weights: str | Path = "published", *, device: str = "auto") -> Model:
    """Load a model of the manifests with its weights.

    Args:
        row: its name; `list_models` has them.
        weights: "published" (fetched if it is missing here), "random", or a checkpoint's path in any format
            that the project reads, for example of `bench.py train`.
        device: "cpu", "cuda", "cuda:1" ..., or "auto" for a GPU where there is one.

    Raises:
        ManifestError: no such row, or it publishes no weights.
        DownloadError: they cannot be fetched.
        CheckpointError: they do not fit.
        RuntimeError: there is no GPU.

    Examples:
        >>> load("faster_rcnn_resnet14_slim_fpn.demo", weights="random", device="cpu")
        Model(faster_rcnn_resnet14_slim_fpn.demo, random weights, 8 classes, cpu)
    """
    entry = row_named(row)
    identity, argument = identify_weights(entry, str(weights))
    return Model(build_subject(entry, argument, _device(device)), identity)


def create(
    backbone: str = "resnet50",
    detector: str = "faster_rcnn",
    classes: int | Sequence[str] = 80,
    *,
    pretrained: bool = False,
    device: str = "auto",
    **options: Any,
) -> Model:
    """Create a detector on any backbone, to train on your own classes.

    Args:
        backbone: a registered backbone, or "timm.NAME".
        detector: a registered detector, such as faster_rcnn or ssd.
        classes: their names, or how many.
        pretrained: start from the backbone's ImageNet weights: timm's own, or those of a manifest row.
        device: as in `load`.
        **options: arguments of the detector's builder.

    Raises:
        ManifestError: a name is unknown, or the parts are incompatible.
        ValueError: no classes, or a class twice.

    Examples:
        >>> create("resnet14_slim", classes=["cat", "dog"], device="cpu").class_names
        ('cat', 'dog')
    """
    from detection_zoo.benchmarks.run.subject import RANDOM_DIGEST
    from detection_zoo.benchmarks.spec import WeightsIdentity
    from detection_zoo.zoo.build import create_entry

    names = () if isinstance(classes, int) else tuple(classes)
    if isinstance(classes, str) or len(set(names)) != len(names) or not (names or (classes and classes > 0)):
        raise ValueError(f"classes is {classes!r}; give different names in a list, or a number above 0")
    if pretrained and backbone.startswith("timm."):
        options = {**options, "backbone_options": {"pretrained": True, **options.get("backbone_options", {})}}
    entry = create_entry(backbone, detector, len(names) or classes, **options)
    if pretrained and backbone.startswith("timm."):
        from detection_zoo.zoo.backbones.timm_adapter import timm_images
        from detection_zoo.zoo.settings import with_value

        for field, value in timm_images(backbone.removeprefix("timm.")).items():
            entry = with_value(entry, f"image.{field}", value)
    model = Model(
        build_subject(entry, "random", _device(device)),
        WeightsIdentity(kind="random", digest=RANDOM_DIGEST),
        names,
    )
    if pretrained and not backbone.startswith("timm."):
        _load_imagenet(model, backbone)
    return model


def _load_imagenet(model: Model, backbone: str) -> None:
    """Load the first ImageNet file of the manifests that is of this backbone."""
    from detection_zoo.zoo.weights.fetch.one import fetch_weights
    from detection_zoo.zoo.weights.load import load_backbone

    for entry in load_manifests().entries.values():
        if entry.backbone.name == backbone and entry.task == "classification" and entry.trained_weights:
            spec = entry.trained_weights[0]
            load_backbone(model.module, fetch_weights(spec, entry.name).path, spec.format, row=entry.name)
            return
    raise ManifestError(f"no row has ImageNet weights of {backbone}; pass pretrained=False")


def _device(name: str | torch.device) -> str:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means.

    Raises:
        ValueError: another name.
        RuntimeError: there is no GPU.
    """
    from detection_zoo.benchmarks.environment import choose_device

    kind, colon, number = str(name).partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"device is {str(name)!r}; it may be auto, cpu, cuda or cuda:N")
    return choose_device(kind) + colon + number


def _spec(**fields: Any) -> BenchmarkSpec:
    """A BenchmarkSpec; an invalid field raises one sentence instead of pydantic's report."""
    from pydantic import ValidationError

    from detection_zoo.benchmarks.spec import METRIC_GROUPS, BenchmarkSpec
    from detection_zoo.zoo.registry import did_you_mean

    for name in fields.get("groups", ()):
        if name not in METRIC_GROUPS:
            raise ValueError(f"unknown metric group {name!r}: {did_you_mean(name, METRIC_GROUPS)}")
    if unknown := fields.keys() - BenchmarkSpec.model_fields.keys():
        name = sorted(unknown)[0]
        raise ValueError(f"unknown option {name!r}: {did_you_mean(name, BenchmarkSpec.model_fields)}")
    try:
        return BenchmarkSpec(**fields)
    except ValidationError as error:
        detail = error.errors()[0]
        raise ValueError(f"{detail['loc'][0]} is {detail['input']!r}: {detail['msg']}") from None
