"""ImageNet-style folders: one label per image, from labels.csv or from folders named by wnid."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np

from detection_zoo.zoo.data.base import Dataset, GroundTruth
from detection_zoo.zoo.data.fields import dataset_text
from detection_zoo.zoo.data.images import decode_image
from detection_zoo.zoo.errors import DatasetError

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
MOST_CLASSES = 100_000  # limit without a model; ImageNet-21k has 21,841


class ImageNetDataset(Dataset):
    """Images with one class each; labels are positions in the sorted wnids of all classes (0..999 for
    ImageNet-1k).

    Args:
        folder: with labels.csv (file, wnid, class_index, name), or one folder of images per wnid, or val/
            with such folders. Where not all classes have a folder, wnids.txt lists all of them, one a line in
            label order.
        classes: how many classes the model has; if given, the folder must define the labels of that many.

    Raises:
        DatasetError: names file and line, or the folder, and what is expected.
    """

    layout: Literal["imagenet"] = "imagenet"

    def __init__(
        self, folder: Path, *, classes: int | None = None, decoder: Literal["pil", "cv2"] = "pil"
    ) -> None:
        super().__init__()
        if not folder.is_dir():
            raise DatasetError(
                f"{folder}: no such folder; give a folder with labels.csv, or with one folder of images per"
                " wnid"
            )
        self.name, self.decoder = "imagenet", decoder
        if (folder / "labels.csv").is_file():
            self.annotation_file = folder / "labels.csv"
            self._images, names = _read_labels(self.annotation_file, classes)
        else:
            self._images, names = _list_folders(folder, classes)
        self.classes = self.category_ids = tuple(names)
        self._rows, self.full_size = range(len(self._images)), len(self._images)

    def image_id(self, index: int) -> str:
        """The image's path below the dataset folder."""
        return self._images[self._rows[index]][1]

    def image_path(self, index: int) -> Path:
        """The image's file."""
        return self._images[self._rows[index]][0]

    def label(self, index: int) -> int:
        """The image's class, 0..K-1."""
        return self._images[self._rows[index]][2]

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels, read from the image itself."""
        return self.load_image(index).shape[:2]

    def load_image(self, index: int) -> np.ndarray:
        """Decode an image to (H, W, 3) uint8 RGB; raises DatasetError where it is missing or no image."""
        return decode_image(self.read_bytes(index), str(self.image_path(index)), self.decoder)

    def target(self, index: int) -> GroundTruth:
        """No boxes: the label alone, as the only entry of `labels`."""
        return GroundTruth(
            boxes_xywh=np.zeros((0, 4)),
            labels=np.array([self.label(index)], np.int64),
            crowd=np.zeros(0, bool),
            difficult=np.zeros(0, bool),
            area=np.zeros(0),
        )


def _read_labels(path: Path, classes: int | None) -> tuple[list[tuple[Path, str, int]], list[str]]:
    rows = csv.DictReader(io.StringIO(dataset_text(path), newline=""))
    images, names = [], {}
    try:
        missing = {"file", "class_index"} - set(rows.fieldnames or ())
        if missing:
            raise DatasetError(
                f"{path}: line 1: no column {sorted(missing)[0]!r}; expected are file, wnid, class_index,"
                f" name"
            )
        for row in rows:
            where = f"{path}: line {rows.line_num}"
            if not row["file"]:
                raise DatasetError(f"{where}: names no file")
            label = _class_index(row["class_index"], classes, where)
            names[label] = row.get("name") or row.get("wnid") or str(label)
            images.append((path.parent / row["file"], row["file"], label))
    except csv.Error as error:
        raise DatasetError(f"{path}: line {rows.line_num}: no valid CSV ({error})") from None
    if not images:
        raise DatasetError(f"{path}: line 2: the list of images is empty")
    return images, [names.get(label, f"class {label}") for label in range(max(1000, max(names) + 1))]


def _class_index(text: str | None, classes: int | None, where: str) -> int:
    if not (text and text.isascii() and text.isdecimal() and len(text) < 19):
        raise DatasetError(f"{where}: class_index is {text!r:.60}, expected an integer")
    label, count = int(text), MOST_CLASSES if classes is None else classes
    if label >= count:
        whose, advice = (
            ("the model's", "; take a row trained on this dataset") if classes is not None else ("the", "")
        )
        raise DatasetError(
            f"{where}: class_index is {label}, {whose} {count} classes are 0 to {count - 1}{advice}"
        )
    return label


def _list_folders(folder: Path, classes: int | None) -> tuple[list[tuple[Path, str, int]], list[str]]:
    root = folder / "val" if (folder / "val").is_dir() else folder
    found = sorted(p.name for p in root.iterdir() if p.is_dir())
    if not found:
        raise DatasetError(f"{root}: contains neither labels.csv nor a folder of images per wnid")
    listed = folder / "wnids.txt"
    wnids = dataset_text(listed).split() if listed.is_file() else found
    if classes is not None and len(wnids) != classes:
        raise DatasetError(
            f"{listed if listed.is_file() else root}: gives the order of {len(wnids)} classes, the model has"
            f" {classes}; list all of them in {listed}, one wnid per line in label order, or write labels.csv"
        )
    label = {name: place for place, name in enumerate(wnids)}
    if unknown := [name for name in found if name not in label]:
        raise DatasetError(
            f"{root / unknown[0]}: {unknown[0]!r} is not among the {len(label)} wnids of {listed}"
        )
    images = [
        (path, str(path.relative_to(folder)), label[name])
        for name in found
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not images:
        raise DatasetError(f"{root}: its {len(found)} folders contain no image ({', '.join(IMAGE_SUFFIXES)})")
    return images, wnids
