"""PASCAL VOC: a devkit folder with ImageSets, JPEGImages and one XML file per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from detection_zoo.zoo.data.base import Dataset, GroundTruth, label_order
from detection_zoo.zoo.data.fields import dataset_text
from detection_zoo.zoo.data.xml_file import Element, read_xml
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import did_you_mean


@cache
def voc_classes() -> tuple[str, ...]:
    """PASCAL VOC's classes in the devkit's order, from datasets.toml."""
    return tuple(load_manifests().datasets["voc"].classes)


@dataclass(frozen=True)
class VocObject:
    """One object: box (xmin, ymin, xmax, ymax) as in the file, 1-based and inclusive."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    line: int


@dataclass(frozen=True)
class VocAnnotation:
    """One XML file: image size in pixels and its objects."""

    height: int
    width: int
    objects: tuple[VocObject, ...]


def read_voc_xml(path: Path, classes: Sequence[str] | None) -> VocAnnotation:
    """Read and check one annotation file.

    Args:
        path: the XML file.
        classes: the names that may occur (compared in lower case); None: any, as they are written.

    Raises:
        DatasetError: names file and line: malformed XML, an object without a box, a class not in the list.
    """
    root = read_xml(path)
    size = root.child("size")
    if size is None:
        raise DatasetError(f"{path}: line {root.line}: no <size>; the image's width and height are needed")
    height, width = (int(_number(size, name, path)) for name in ("height", "width"))
    if not (0 < height < 2**31 and 0 < width < 2**31):
        raise DatasetError(
            f"{path}: line {size.line}: <size> is {width:g}x{height:g}, expected the image's width and"
            " height in pixels"
        )
    return VocAnnotation(
        height, width, tuple(_read_object(o, path, classes) for o in root.children if o.name == "object")
    )


def _number(parent: Element, name: str, path: Path) -> float:
    element = parent.child(name)
    if element is None:
        raise DatasetError(f"{path}: line {parent.line}: <{parent.name}> has no <{name}>")
    try:
        value = float(element.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(
            f"{path}: line {element.line}: <{name}> is {element.text.strip()!r:.60}, expected a number"
        )
    return value


def _read_object(element: Element, path: Path, classes: Sequence[str] | None) -> VocObject:
    where = f"{path}: line {element.line}"
    name = element.child("name")
    if name is None:
        raise DatasetError(f"{where}: an object without <name>")
    label = name.text.strip() if classes is None else name.text.strip().lower()
    if not label or (classes is not None and label not in classes):
        raise DatasetError(
            f"{path}: line {name.line}: class {name.text.strip()!r:.60} is not in the list of classes;"
            f" {did_you_mean(label, classes or ())}"
        )
    box = element.child("bndbox")
    if box is None:
        raise DatasetError(f"{where}: object {label!r:.60} without a box: <bndbox> is missing")
    corners = tuple(_number(box, corner, path) for corner in ("xmin", "ymin", "xmax", "ymax"))
    if corners[2] < corners[0] or corners[3] < corners[1]:
        raise DatasetError(f"{path}: line {box.line}: box {corners} has its far corner before its near one")
    difficult = element.child("difficult")
    return VocObject(
        label, corners, difficult is not None and int(_number(element, "difficult", path)) == 1, element.line
    )


@dataclass(frozen=True)
class ListedImage:
    """One line of an image set."""

    name: str
    year_folder: Path
    image_set: Path
    line: int

    @cached_property
    def annotation(self) -> VocAnnotation:
        """The image's XML file, read once."""
        return read_voc_xml(self.year_folder / "Annotations" / f"{self.name}.xml", voc_classes())


def read_image_set(path: Path, year_folder: Path) -> list[ListedImage]:
    """Read an image set file: one image name per line; a flag after it is ignored unless it is -1 (class
    files: no such object).

    Raises:
        DatasetError: the file is missing, empty, or lists an image twice.
    """
    try:
        lines = dataset_text(path).splitlines()
    except FileNotFoundError:
        there = (
            sorted(p.stem for p in path.parent.glob("*.txt") if "_" not in p.stem)
            if path.parent.is_dir()
            else []
        )
        raise DatasetError(f"{path}: no such image set; {did_you_mean(path.stem, there)}") from None
    listed: dict[str, ListedImage] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[1:2] == ["-1"]:
            continue
        if words[0] in listed:
            raise DatasetError(
                f"{path}: line {number}: image {words[0]:.100} is listed twice, first on line"
                f" {listed[words[0]].line}"
            )
        listed[words[0]] = ListedImage(words[0], year_folder, path, number)
    if not listed:
        raise DatasetError(f"{path}: line 1: the image set is empty; restore the file from the devkit")
    return list(listed.values())


class VocDataset(Dataset):
    """One split of one or several years of PASCAL VOC.

    Args:
        devkit: the VOCdevkit folder, with VOC2007/ ...
        years: ("2007",), or ("2007", "2012") for the union.
        split: an image set of ImageSets/Main, such as "test" or "trainval".
        classes: class names in the order of a model's labels; None: the devkit's order.
        decoder: see `decode_image`.

    Raises:
        DatasetError: a folder or image set is missing or empty, or a listed image is absent (with file and
            line).
    """

    layout: Literal["voc"] = "voc"

    def __init__(
        self,
        devkit: Path,
        years: Sequence[str],
        split: str,
        *,
        classes: Sequence[str] | None = None,
        decoder: Literal["pil", "cv2"] = "pil",
    ) -> None:
        super().__init__()
        self.years, self.split, self.decoder = tuple(years), split, decoder
        self.name = f"voc:{'+'.join(years)}:{split}"
        self._images = [image for year in years for image in _list_year(devkit, year, split)]
        self._rows, self.full_size = range(len(self._images)), len(self._images)
        order = label_order(voc_classes(), classes, f"{devkit} (PASCAL VOC)")
        self.classes = self.category_ids = tuple(
            name for _, name in sorted(zip(order, voc_classes(), strict=True))
        )
        self._label = {name: label for label, name in enumerate(self.classes)}

    def image_id(self, index: int) -> str:
        """The image's name, such as "000001"."""
        return self._images[self._rows[index]].name

    def image_path(self, index: int) -> Path:
        """The image's JPEG file."""
        image = self._images[self._rows[index]]
        return image.year_folder / "JPEGImages" / f"{image.name}.jpg"

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        annotation = self.annotation(index)
        return annotation.height, annotation.width

    def annotation(self, index: int) -> VocAnnotation:
        """The XML file of an image, as read."""
        return self._images[self._rows[index]].annotation

    def listed_at(self, index: int) -> str:
        """The line of the image set that lists an image."""
        image = self._images[self._rows[index]]
        return f"{image.image_set}: line {image.line}"

    def target(self, index: int) -> GroundTruth:
        """The objects of an image, difficult ones included; xmin..xmax inclusive becomes width xmax - xmin +
        1 from edge xmin - 1."""
        objects = self.annotation(index).objects
        corners = np.array([o.box for o in objects], np.float64).reshape(len(objects), 4)
        xywh = np.concatenate([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2] + 1], axis=1)
        return GroundTruth(
            boxes_xywh=xywh,
            labels=np.array([self._label[o.name] for o in objects], np.int64),
            crowd=np.zeros(len(objects), bool),
            difficult=np.array([o.difficult for o in objects], bool),
            area=xywh[:, 2] * xywh[:, 3],
        )


def _list_year(devkit: Path, year: str, split: str) -> list[ListedImage]:
    folder = devkit / f"VOC{year}"
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder; give the VOCdevkit folder with VOC{year}/, as in"
            f" voc:VOCDEVKIT:{year}:{split}"
        )
    listed = read_image_set(folder / "ImageSets" / "Main" / f"{split}.txt", folder)
    there = {path.stem for path in (folder / "JPEGImages").glob("*.jpg")}
    for image in listed:
        if image.name not in there:
            raise DatasetError(
                f"{image.image_set}: line {image.line}: image {image.name:.100} is listed but absent from"
                f" {folder / 'JPEGImages'}; unpack the images again, or remove the line"
            )
    return listed
