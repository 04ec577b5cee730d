"""Which classes of a dataset are measured, and under which names: `--classes common` and `--map`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from detection_zoo.zoo.data.base import some
from detection_zoo.zoo.data.coco_reader import CocoAnnotations
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.registry import did_you_mean

_MARK = "?classes="  # suffix of a --data argument with the choice


@dataclass(frozen=True)
class ClassChoice:
    """common: measure the classes that data and model have in common; names: class of the data -> class of
    the model, several may become one."""

    common: bool = False
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, common: bool, names: str) -> ClassChoice:
        """From the options of a command; names as in "car=vehicle,lorry=vehicle".

        Raises:
            DatasetError: a part of names is no pair.
        """
        pairs = [part.partition("=") for part in names.split(",") if part.strip()]
        for old, _, new in pairs:
            if not (old.strip() and new.strip()):
                raise DatasetError(f"--map {names!r}: each part is DATA_CLASS=MODEL_CLASS, as in car=vehicle")
        return cls(common, {old.strip(): new.strip() for old, _, new in pairs})

    @classmethod
    def split(cls, argument: str) -> tuple[str, ClassChoice]:
        """Split a --data argument from the choice in its suffix."""
        data, mark, rest = argument.partition(_MARK)
        kind, _, names = rest.partition("&map=")
        return (data, cls.parse(kind == "common", names)) if mark else (argument, cls())

    def attach(self, argument: str) -> str:
        """A --data argument with the choice as suffix, to pass it to other processes."""
        if not (self.common or self.names):
            return argument
        names = ",".join(f"{old}={new}" for old, new in self.names.items())
        return f"{argument}{_MARK}{'common' if self.common else 'all'}&map={names}"

    def apply(self, read: CocoAnnotations, classes: Sequence[str] | None) -> CocoAnnotations:
        """Rename and leave out categories; `classes` are the model's; None without a model.

        Raises:
            DatasetError: a name to be mapped does not exist, or no class is in common.
        """
        if unknown := [name for name in self.names if name not in read.category_names]:
            raise DatasetError(
                f"{read.where}: --map names the class {unknown[0]!r}, which is not there;"
                f" {did_you_mean(unknown[0], read.category_names)}"
            )
        named = [self.names.get(name, name) for name in read.category_names]
        kept = [
            name for name in dict.fromkeys(named) if not self.common or classes is None or name in classes
        ]
        if not kept:
            raise DatasetError(
                f"{read.where}: has no class in common with the model; its own are"
                f" {some(read.category_names)}, the model's {some(classes or ())}. --map renames classes"
            )
        if named == read.category_names == kept:
            return read
        place = {name: place for place, name in enumerate(kept)}
        moved = np.array([place.get(name, -1) for name in named], np.int64)[read.category]
        rows = np.flatnonzero(moved >= 0)
        return replace(
            read,
            category_ids=[read.category_ids[named.index(name)] for name in kept],
            category_names=kept,
            image=read.image[rows],
            category=moved[rows],
            boxes=read.boxes[rows],
            areas=read.areas[rows],
            crowd=read.crowd[rows],
            outlines=[read.outlines[row] for row in rows],
            keypoints=[read.keypoints[row] for row in rows],
        )
