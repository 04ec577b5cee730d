"""Arguments of `open_dataset` of the splits next to given data. Does not import torch."""

from __future__ import annotations

from typing import Literal

from detection_zoo.zoo.data.class_choice import ClassChoice
from detection_zoo.zoo.data.datasets import FORMS
from detection_zoo.zoo.home import expanded


def split_beside(data: str, split: Literal["train", "val"]) -> str | None:
    """Return the `open_dataset` argument of the training or validation split next to given data; None if
    there is none."""
    data, choice = ClassChoice.split(data)
    found = _split_beside(data, split)
    return found and choice.attach(found)


def _split_beside(data: str, split: str) -> str | None:
    kind, _, rest = data.partition(":")
    if kind not in FORMS:  # own data: without a split in the argument, `open_dataset` selects it
        return data if expanded(data).exists() else data.rpartition(":")[0] or None
    if kind == "shapes":
        return f"shapes:{split}"
    if kind == "imagenet":
        return f"imagenet:{rest}/{split}" if (expanded(rest) / split).is_dir() else None
    if kind == "voc":
        return f"voc:{rest.rpartition(':')[0]}:{'trainval' if split == 'train' else 'test'}"
    folder = rest if expanded(rest).is_dir() or ":" not in rest else rest.rpartition(":")[0]
    for name in (f"{split}2017", split):
        for objects in ("instances", "person_keypoints"):
            if (expanded(folder) / "annotations" / f"{objects}_{name}.json").is_file():
                return f"coco:{folder}:{name}"
    return None


def training_split(data: str) -> str:
    """Return the data as given if it names a split; otherwise the training split next to it, if there is
    one."""
    kind, _, rest = ClassChoice.split(data)[0].partition(":")
    whole = {"shapes": not rest, "imagenet": True, "coco": expanded(rest).is_dir()}
    return (split_beside(data, "train") if whole.get(kind) else None) or data
