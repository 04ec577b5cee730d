"""YOLO datasets: data.yaml, images/ and labels/ with one text file an image, boxes or polygons."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from detection_zoo.zoo.data.coco_reader import CocoAnnotations, by_id
from detection_zoo.zoo.data.fields import FieldError, dataset_text, identity
from detection_zoo.zoo.data.images import image_size
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.registry import did_you_mean

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SPLITS = ("val", "valid", "validation", "test", "train")  # the first one present is used for evaluation
DIGITS = 1e-6  # of a side: label files have six decimals


@dataclass(frozen=True)
class YoloSplit:
    """One split: image files in order of their names, class names by number; name: train, val or test."""

    name: str
    images: list[Path]
    classes: list[str]
    keypoints: bool
    where: Path


def find_yolo(path: Path, split: str | None = None, order: Sequence[str] = SPLITS) -> YoloSplit:
    """Locate a split of a YOLO dataset.

    Args:
        path: data.yaml, its folder, or a folder of images/, labels/ and classes.txt.
        split: "train", "val", "test"; None takes the first of `order` that is there.
        order: names of splits; default: those to evaluate on first.

    Raises:
        DatasetError: names file and field of what is missing.
    """
    file = path if path.is_file() else next(iter(sorted(path.glob("*.y*ml"))), None)
    if file is None:
        names = [line.strip() for line in _text(path / "classes.txt").splitlines() if line.strip()]
        return YoloSplit(path.name, _images_in([path / "images"]), names, False, path)
    described = _yaml(file)
    classes = described.get("names")
    if isinstance(classes, dict) and all(type(key) is int for key in classes):
        classes = [classes[key] for key in sorted(classes)]
    if not (isinstance(classes, list) and classes and all(map(_is_word, classes))):
        raise DatasetError(f"{file}: field 'names' is missing or no list of names, expected class names")
    there = [name for name in order if described.get(name)]
    if not there or (split is not None and split not in there):
        raise DatasetError(
            f"{file}: names no images for the split {split or 'val, test or train'};"
            f" {did_you_mean(split or 'val', there)}"
        )
    name = split or there[0]
    given = described[name] if isinstance(described[name], list) else [described[name]]
    below = described.get("path") or ""
    if not all(map(_is_word, [below, *given])):
        raise DatasetError(f"{file}: the fields 'path' and {name!r} have paths of folders or lists of images")
    root = file.parent / str(below)
    images = _images_in([_resolved(str(part), root, file) for part in given])
    return YoloSplit(name, images, [str(c) for c in classes], bool(described.get("kpt_shape")), file)


def _is_word(value: Any) -> bool:
    return isinstance(value, str | int | float | date)


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(_text(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: no valid YAML ({' '.join(str(error).split()):.150})") from None
    if not isinstance(found, dict):
        raise DatasetError(f"{file}: a data.yaml has the fields names and train, val or test; this has none")
    return found


def _text(file: Path) -> str:
    try:
        return dataset_text(file)
    except FileNotFoundError:
        raise DatasetError(f"{file}: no such file; it lists the class names, one a line") from None


def _resolved(part: str, root: Path, file: Path) -> Path:
    """Resolve a path of data.yaml; some exports write "../valid/images" for a folder next to data.yaml."""
    inside = part
    while inside.startswith("../"):
        inside = inside[3:]
    for candidate in (root / part, file.parent / part, file.parent / inside):
        if os.path.exists(candidate):  # False for names that no file can have, too
            return candidate
    raise DatasetError(
        f"{file}: names {part!r:.100}, which is not there; unpack the images, or correct the path"
    )


def _images_in(places: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if place.is_file():  # a list of image files
            found += [place.parent / line.strip() for line in _text(place).splitlines() if line.strip()]
        elif place.is_dir():
            found += [p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES]
    if not found:
        raise DatasetError(f"{places[0]}: contains no image ({', '.join(SUFFIXES)})")
    return sorted(found)


def read_yolo(split: YoloSplit) -> CocoAnnotations:
    """Read the labels of a split; an image without a label file has no objects.

    Raises:
        DatasetError: names file and line of what is wrong.
    """
    rows: list[tuple[int, int, list[float], list[list[float]] | None]] = []
    sizes, ids = [], ids_of(split.images)
    for place, image in enumerate(split.images):
        sizes.append(image_size(image))
        labels = _label_file(image)
        if labels.is_file():
            for number, line in enumerate(_text(labels).splitlines(), start=1):
                if line.strip():
                    rows.append((place, *_object(line, sizes[-1], split, f"{labels}: line {number}")))
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    order = by_id(ids)
    moved = np.argsort(order)
    return CocoAnnotations(
        where=str(split.where),
        image_ids=[ids[place] for place in order],
        file_names=[str(split.images[place]) for place in order],
        sizes=np.array([sizes[place] for place in order], np.int64).reshape(-1, 2),
        category_ids=list(range(len(split.classes))),
        category_names=split.classes,
        image=moved[np.array([row[0] for row in rows], np.int64)],
        category=np.array([row[1] for row in rows], np.int64),
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(len(rows), bool),
        outlines=[row[3] for row in rows],
        keypoints=[None] * len(rows),
    )


def ids_of(images: Sequence[Path]) -> list[int | str]:
    """The stem of each file, as a number where it is one; where stems occur twice, the whole path."""
    stems: list[int | str] = []
    for image in images:
        try:
            stems.append(identity(image.stem))
        except FieldError:
            stems.append(image.name)
    return stems if len(set(stems)) == len(stems) else [str(image) for image in images]


def _label_file(image: Path) -> Path:
    """labels/x.txt for images/x.jpg; in the image's folder if no parent folder is named images."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            return Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
    return image.with_suffix(".txt")


def _object(
    line: str, size: tuple[int, int], split: YoloSplit, where: str
) -> tuple[int, list[float], list[list[float]] | None]:
    """Class, box x, y, width, height and polygons of a line: class and four numbers, or three points or
    more."""
    words = line.split()
    try:
        values = np.array([float(word) for word in words[1:]])
        kind = int(float(words[0]))
    except (ValueError, OverflowError):
        raise DatasetError(f"{where}: {line!r:.60} is not a class and numbers") from None
    if not 0 <= kind < len(split.classes):
        raise DatasetError(f"{where}: class {words[0]:.20} is not among the {len(split.classes)} classes")
    if split.keypoints:
        values = values[:4]
    if not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)):
        raise DatasetError(
            f"{where}: has {len(values)} numbers after the class; 4 are a box (centre, width, height), 6"
            " and more"
            " the points of a polygon, all as fractions of the image"
        )
    if not (np.isfinite(values).all() and (values >= -0.01).all() and (values <= 1.01).all()):
        raise DatasetError(f"{where}: {line!r:.60}: expected fractions of the image from 0 to 1, not pixels")
    sides = np.array([size[1], size[0]], np.float64)
    if len(values) == 4:
        half = values[2:] / 2
        return kind, _box((values[:2] - half) * sides, (values[:2] + half) * sides, sides), None
    points = _whole(values.reshape(-1, 2) * sides, sides)
    return kind, _box(points.min(axis=0), points.max(axis=0), sides), [points.reshape(-1).tolist()]


def _whole(places: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Round to whole pixels within the precision of the file: six decimals of a fraction are
    rounded."""
    whole = np.round(places)
    return np.where(np.abs(places - whole) <= DIGITS * sides, whole, places)


def _box(low: np.ndarray, high: np.ndarray, sides: np.ndarray) -> list[float]:
    low, high = _whole(low, sides), _whole(high, sides)
    return [*low.tolist(), *np.maximum(high - low, 0).tolist()]
