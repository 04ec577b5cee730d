"""Training images: which split --data selects, and whether its classes are the row's. Does not import
torch."""

from __future__ import annotations

from detection_zoo.benchmarks.run.subject import open_data
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.class_choice import ClassChoice
from detection_zoo.zoo.data.datasets import FORMS, open_dataset
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.home import expanded
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


def training_split(data: str) -> str:
    """Return the data as given if it names a split; otherwise the training split next to it, if there is
    one."""
    data, choice = ClassChoice.split(data)
    return choice.attach(_training_split(data))


def _training_split(data: str) -> str:
    kind, _, rest = data.partition(":")
    if kind == "shapes":
        return data if rest else "shapes:train"
    if kind == "imagenet" and (expanded(rest) / "train").is_dir():
        return f"{data}/train"
    if kind == "coco" and expanded(rest).is_dir():
        for split in ("train2017", "train"):
            if (expanded(rest) / "annotations" / f"instances_{split}.json").is_file():
                return f"{data}:{split}"
    return data


def validation_split(data: str) -> str | None:
    """Return the `open_dataset` argument of the validation split next to training data; None if there is
    none."""
    data, choice = ClassChoice.split(data)
    found = _validation_split(data)
    return found and choice.attach(found)


def _validation_split(data: str) -> str | None:
    kind, _, rest = data.partition(":")
    if kind not in FORMS:  # own data: the evaluation split
        return data if expanded(data).exists() else data.rpartition(":")[0] or None
    if kind == "shapes":
        return "shapes:val"
    if kind == "imagenet":
        return f"imagenet:{rest}/val" if (expanded(rest) / "val").is_dir() else None
    if kind == "voc":
        return f"voc:{rest.rpartition(':')[0]}:test"
    if kind == "coco":
        folder = rest if expanded(rest).is_dir() or ":" not in rest else rest.rpartition(":")[0]
        for split in ("val2017", "val"):
            if (expanded(folder) / "annotations" / f"instances_{split}.json").is_file():
                return f"coco:{folder}:{split}"
    return None
