"""Interface of datasets: images in a fixed order, each with its ground truth in a common format."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detection_zoo.zoo.data.fields import dataset_bytes
from detection_zoo.zoo.data.images import decode_image, is_turned
from detection_zoo.zoo.errors import DatasetError

SHOWN = 5  # classes in a message


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of one image, in pixels of the original image.

    boxes_xywh (R, 4) float64: left, top, width, height, measured between pixel edges; labels (R,) int64 in
    0..K-1; crowd, difficult (R,) bool; area (R,) float64 square pixels; masks: for each object a list of flat
    [x, y, ...] polygons, an RLE mapping, or None; keypoints (R, P, 3) float32 with x, y, visibility (0, 1 or
    2), or None.
    """

    boxes_xywh: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    area: np.ndarray
    masks: list[list[list[float]] | dict[str, Any] | None] | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def boxes(self) -> np.ndarray:
        """(R, 4) float32 x1, y1, x2, y2 between pixel edges: x2 = x1 + width, without - 1."""
        xywh = self.boxes_xywh
        return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)


class Dataset(ABC):
    """Images in a fixed order with their ground truth; `subset` restricts it to the first images.

    layout: how accuracy is measured on it; name: as in records, "coco:val2017"; classes: K names by label;
        category_ids: the
    dataset's own id of each label, None for a class of the model that the data lacks; notes: the recognised
    layout, and which classes are measured.
    """

    layout: Literal["coco", "voc", "imagenet"]
    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int | str | None, ...]
    keypoint_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    annotation_file: Path | None = None
    full_size: int
    decoder: Literal["pil", "cv2"] = "pil"

    def __init__(self) -> None:
        self._rows: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_subset(self) -> bool:
        """Whether fewer images than the whole split are left."""
        return len(self) < self.full_size

    @property
    def image_ids(self) -> list[int | str]:
        """The id of every image, in order."""
        return [self.image_id(index) for index in range(len(self))]

    @property
    def all_image_ids(self) -> list[int | str]:
        """The ids of the whole split, whether or not this is a subset."""
        whole = copy.copy(self)
        whole._rows = range(self.full_size)
        return whole.image_ids

    @abstractmethod
    def image_id(self, index: int) -> int | str:
        """The dataset's own id of an image."""

    @abstractmethod
    def image_path(self, index: int) -> Path:
        """The file of an image."""

    @abstractmethod
    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels, from the annotations."""

    @abstractmethod
    def target(self, index: int) -> GroundTruth:
        """The objects of an image."""

    def images_with_objects(self) -> set[int | str]:
        """Ids of the images with objects."""
        return {self.image_id(index) for index in range(len(self)) if len(self.target(index).labels)}

    def load_image(self, index: int) -> np.ndarray:
        """Decode an image to (H, W, 3) uint8 RGB.

        Raises:
            DatasetError: the file is missing, no image, cut short, or not of the annotated size.
        """
        path = self.image_path(index)
        data = self.read_bytes(index)
        image = decode_image(data, str(path), self.decoder)
        height, width = self.image_size(index)
        if image.shape[:2] != (height, width):
            advice = "replace the image with the original"
            if image.shape[:2] == (width, height) and is_turned(data):
                advice = (
                    "its EXIF tag rotates it, and its annotation was made on the rotated image:"
                    " rotate the file's own pixels"
                )
            raise DatasetError(
                f"{path}: the image is {image.shape[1]}x{image.shape[0]} pixels (width x height), its"
                f" annotation says {width}x{height}; {advice}"
            )
        return image

    def read_bytes(self, index: int) -> bytes:
        """The encoded bytes of an image file; raises DatasetError where it is missing."""
        path = self.image_path(index)
        try:
            return dataset_bytes(path)
        except FileNotFoundError:
            raise DatasetError(
                f"{path}: this image is listed but absent ({self.listed_at(index)}); "
                "download it, or restrict the run to images that are there"
            ) from None

    def listed_at(self, index: int) -> str:
        """Where an image is listed, for error messages."""
        return f"image {self.image_id(index)} of {self.annotation_file or self.name}"

    def subset(self, images: int | Sequence[int | str]) -> Dataset:
        """The same dataset with its first `images` images, or with those of the given ids, in dataset order.

        Raises:
            DatasetError: a count below one, or an id that the dataset does not have.
        """
        if isinstance(images, int):
            if images < 1:
                raise DatasetError(f"{self.name}: a subset needs at least one image, not {images}")
            rows = self._rows[:images]
        else:
            wanted, known = set(images), set(self.image_ids)
            if missing := wanted - known:
                raise DatasetError(
                    f"{self.name}: no image has the id {sorted(missing, key=str)[0]!r} ({len(missing)}"
                    f" unknown of {len(wanted)})"
                )
            rows = [row for index, row in enumerate(self._rows) if self.image_id(index) in wanted]
        smaller = copy.copy(self)
        smaller._rows = rows
        return smaller

    def describe(self) -> dict[str, Any]:
        """Description of the data for a record: name, images measured, images of the whole split."""
        return {
            "dataset": self.name,
            "images": len(self),
            "images_of_split": self.full_size,
            "subset": self.is_subset,
        }


def label_order(
    file_classes: Sequence[str], classes: Sequence[str] | None, where: str, may_lack: bool = False
) -> list[int]:
    """For each class of a dataset file, its label; `classes` is the order a model was trained with, None
    keeps the file's own; may_lack: the file may lack some of them.

    Raises:
        DatasetError: the file has a class unknown to the model, or lacks one of its classes.
    """
    if classes is None:
        return list(range(len(file_classes)))
    place = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in file_classes if name not in place]
    missing = [name for name in classes if name not in file_classes]
    if unknown or (missing and not may_lack):
        problems = []
        if unknown:
            problems.append(f"class {unknown[0]!r} is unknown to the model (unknown: {some(unknown)})")
        if missing:
            problems.append(
                f"the model predicts {missing[0]!r}, which is not a class of this dataset (missing:"
                f" {some(missing)})"
            )
        shared = len(classes) - len(missing)
        limit = f"--classes common measures the {shared} classes in common, " if shared else ""
        raise DatasetError(
            f"{where}: {'; '.join(problems)}. {limit}--map \"A=B\" treats the data's A as the model's B; or"
            " use a row trained on this dataset"
        )
    return [place[name] for name in file_classes]


def some(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more
