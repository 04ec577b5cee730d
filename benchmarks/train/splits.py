"""Training images, and whether their classes are the row's. Does not import torch."""

from __future__ import annotations

from detection_zoo.benchmarks.run.splits import training_split
from detection_zoo.benchmarks.run.subject import open_data
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.class_choice import ClassChoice
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.trained_row import row_classes


def open_training_data(entry: ModelEntry, data: str, images: int | None) -> tuple[Dataset, list[str], bool]:
    """Return the training dataset, notes on it, and whether its classes differ from the row's."""
    data, own, names = training_split(data), False, row_classes(entry)
    if entry.task == "classification":
        dataset, own = _open_labelled(entry, data)
    else:
        if not (names and ClassChoice.split(data)[1].common):
            dataset = open_dataset(data, keypoints=entry.has_keypoints, training=True)
            own = set(dataset.classes) != set(names)
        if not own:
            dataset = open_data(entry, data, training=True)
    if images is not None:
        dataset = dataset.subset(images)
    lines = [f"data: {note}" for note in dataset.notes]
    if own:
        shown = ", ".join(dataset.classes[:8]) + (", ..." if len(dataset.classes) > 8 else "")
        lines.append(f"classes: {entry.classes} of {entry.dataset} -> {len(dataset.classes)} ({shown})")
    return dataset, lines, own


def _open_labelled(entry: ModelEntry, data: str) -> tuple[Dataset, bool]:
    """Return a classifier's dataset, and whether its number of classes differs from the row's; raises
    DatasetError."""
    try:
        return open_data(entry, data, training=True), False
    except DatasetError:
        dataset = open_dataset(data, training=True)
    if dataset.layout != "imagenet":
        raise DatasetError(f"--data {data}: row {entry.name} is a classifier; give imagenet:DIR")
    return dataset, True
