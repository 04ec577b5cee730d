"""The training batches of a row: order, augmentation and targets by the rules of its source."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from detection_zoo.zoo.conventions import BoxConventions
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.classifier_images import ClassifierBatches
from detection_zoo.zoo.data.loading import start_worker
from detection_zoo.zoo.data.ssd_augmentation import SSDAugmentation
from detection_zoo.zoo.data.targets import TargetRules
from detection_zoo.zoo.data.training_images import TrainingBatches
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.errors import DatasetError, ManifestError, ZooError
from detection_zoo.zoo.manifest import ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import load_manifests

if TYPE_CHECKING:
    from detection_zoo.zoo.records import Target

Batch = tuple[Tensor, Tensor, "list[Target]"]
QUEUED_BATCHES = 4  # that each loader process prepares ahead
Batches = TrainingBatches | ClassifierBatches
MIN_VISIBLE_KEYPOINTS = 10  # required of an image for keypoint training, in every source


def target_rules(entry: ModelEntry, dataset: Dataset) -> TargetRules:
    """Which objects and images a row trains on."""
    keypoints = MIN_VISIBLE_KEYPOINTS if dataset.keypoint_names else 0
    if entry.conventions is not None and entry.conventions.targets is not None:
        return TargetRules.from_conventions(entry.conventions.targets, min_visible_keypoints=keypoints)
    boxes = (entry.conventions.boxes if entry.conventions is not None else None) or BoxConventions()
    return TargetRules(inclusive=boxes.offset == 1.0, min_visible_keypoints=keypoints)


def rules_of_batches(entry: ModelEntry) -> dict[str, Any]:
    """How a row's images are ordered and augmented, as arguments of TrainingBatches."""
    targets = entry.conventions.targets if entry.conventions is not None else None
    if targets is None:
        return {}
    return targets.model_dump(include={"batching", "aspect_cropping", "vertical_flip", "jitter"})


def training_batches(
    entry: ModelEntry,
    dataset: Dataset,
    *,
    batch: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    schedule: Schedule | None = None,
) -> Batches:
    """The epochs of a row's training: order, augmentation and targets.

    Args:
        entry: a row with conventions.
        dataset: what to read.
        batch: images of one forward pass of this process.
        seed, rank, world_size: of order and augmentation; this process's share.
        schedule: None: the row's own.

    Raises:
        ManifestError: the row has no conventions. DatasetError: no image can be trained on.
    """
    if entry.conventions is None:
        raise ManifestError(f"row {entry.name} has no conventions, so its pre-processing is unknown")
    if schedule is None and entry.schedule is not None:
        schedule = load_manifests().schedules[entry.schedule]
    share = {"images_per_batch": batch, "seed": seed, "rank": rank, "world_size": world_size}
    if entry.task == "classification":
        return ClassifierBatches(dataset, entry.conventions.image, **share)
    preprocess = Preprocess.from_conventions(entry.conventions.image)
    targets = entry.conventions.targets
    batches = TrainingBatches(
        dataset,
        preprocess,
        target_rules(entry, dataset),
        short_sides=schedule.short_sides if schedule is not None else (),
        **rules_of_batches(entry),
        augmentation=(
            SSDAugmentation(preprocess) if targets is not None and targets.augmentation == "ssd" else None
        ),
        **share,
    )
    if not batches.indices:
        raise DatasetError(
            f"{dataset.name}: none of its {len(dataset)} images has an object that row {entry.name} trains"
            " on; check the annotations, or give another --data"
        )
    return batches


class TrainingLoader:
    """Batches of images (N, 3, H, W), sizes (N, 2) and N targets, endlessly, epoch by epoch.

    Each batch depends only on the seed and its position in the stream, so that training can resume within an
    epoch, with any number of workers. `images` is the number of images of an epoch, flipped copies counted.

    Args:
        batches: of `training_batches`.
        workers: processes that decode ahead; 0 decodes in this one.
        start: batches of this process that were used already.
        pin_memory: page-locked batches, for copies to a GPU.
    """

    def __init__(
        self, batches: Batches, *, workers: int = 0, start: int = 0, pin_memory: bool = False
    ) -> None:
        self.batches, self.workers, self.start, self.pin_memory = batches, workers, start, pin_memory
        self.images = batches.entries

    def __iter__(self) -> Iterator[Batch]:
        items = _Items(self.batches)
        loader = DataLoader(
            items,
            batch_sampler=_order(self.batches, self.start),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            collate_fn=items.collate,
            prefetch_factor=QUEUED_BATCHES if self.workers else None,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # the workers' seed is not drawn from torch's global generator
        )
        for batch in loader:
            if isinstance(batch, ZooError):
                raise batch
            yield batch


def is_lost_worker(error: Exception) -> bool:
    """Whether an error means that a data loader process has ended; torch raises it from a signal handler, in
    any code that runs then."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _order(batches: Batches, start: int) -> Iterator[list[tuple[int, Any]]]:
    """Endless lists of (epoch, entry), epoch by epoch, from a position in the stream."""
    for epoch in itertools.count():
        order = batches.order(epoch)
        for batch in order[start:]:
            yield [(epoch, entry) for entry in batch]
        start = max(0, start - len(order))


class _Items(TorchDataset):
    """Images and targets by (epoch, entry); the same workers load all epochs."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, key: tuple[int, Any]) -> object:
        epoch, entry = key
        try:
            return self.batches.item(epoch, entry)
        except ZooError as error:  # a worker's exception would become a traceback in the message
            return error

    def collate(self, items: list[Any]) -> object:
        """A batch of the items, or the first error among them."""
        failed = next((item for item in items if isinstance(item, ZooError)), None)
        return self.batches.collate(items) if failed is None else failed
