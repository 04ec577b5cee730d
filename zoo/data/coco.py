"""COCO: images and one JSON annotation file per split, in the official folder layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from detection_zoo.zoo.data.base import Dataset, GroundTruth, label_order, some
from detection_zoo.zoo.data.class_choice import ClassChoice
from detection_zoo.zoo.data.coco_reader import CocoAnnotations, read_coco
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.registry import did_you_mean

ANNOTATION_FOLDERS = ("annotations", "original_annotations")  # the second is used by HarDNet's repository


class CocoDataset(Dataset):
    """One split of a COCO-format dataset; labels follow rising category id unless `classes` gives an order.

    Args:
        images_folder: with the image files.
        annotations: instances_*.json, person_keypoints_*.json or image_info_*.json, or CocoAnnotations.
        classes: class names in the order of a model's labels.
        name: as in records.
        decoder: see `decode_image`.
        choice: classes that are renamed or left out.

    Raises:
        DatasetError: names file, record and field of what is wrong.
    """

    layout: Literal["coco"] = "coco"

    def __init__(
        self,
        images_folder: Path,
        annotations: Path | CocoAnnotations,
        *,
        classes: Sequence[str] | None = None,
        name: str = "coco",
        decoder: Literal["pil", "cv2"] = "pil",
        choice: ClassChoice | None = None,
    ) -> None:
        super().__init__()
        self.images_folder, self.name, self.decoder = images_folder, name, decoder
        choice = choice or ClassChoice()
        read = read_coco(annotations) if isinstance(annotations, Path) else annotations
        self.annotations = choice.apply(read, classes)
        self.annotation_file = Path(self.annotations.where)
        self.has_annotations = self.annotations.annotated
        self.keypoint_names = self.annotations.keypoint_names
        self.full_size = len(self.annotations.image_ids)
        self._rows = range(self.full_size)
        names, ids = self.annotations.category_names, self.annotations.category_ids
        labels = label_order(names, classes, self.annotations.where, choice.common)
        self._label = np.array(labels, np.int64)
        own = dict(zip(labels, zip(names, ids, strict=True), strict=True))
        self.classes = tuple(own[label][0] for label in sorted(own)) if classes is None else tuple(classes)
        self.category_ids = tuple(
            own[label][1] if label in own else None for label in range(len(self.classes))
        )
        if choice.common and classes is not None:
            self.name += f" ({len(names)} of {len(classes)} classes)"
            self.notes = (_left_out(read.category_names, names, choice, classes),)

    @property
    def places(self) -> Sequence[int]:
        """Places of the dataset's images in the lists of `annotations`."""
        return self._rows

    def images_with_objects(self) -> set[int | str]:
        """Ids of the images with objects."""
        ids = self.annotations.image_ids
        return {ids[place] for place in np.intersect1d(self.annotations.image, self._rows).tolist()}

    def image_id(self, index: int) -> int | str:
        """The COCO image id."""
        return self.annotations.image_ids[self._rows[index]]

    def image_path(self, index: int) -> Path:
        """The image's file."""
        return self.images_folder / self.annotations.file_names[self._rows[index]]

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.annotations.sizes[self._rows[index]].tolist()
        return height, width

    def target(self, index: int) -> GroundTruth:
        """The annotations of an image in file order, crowd regions included."""
        read, rows = self.annotations, self.annotations.rows_of(self._rows[index])
        points, keypoints = len(self.keypoint_names), None
        if points:
            absent = [0.0] * (3 * points)
            keypoints = np.array([read.keypoints[row] or absent for row in rows], np.float32)
            keypoints = keypoints.reshape(len(rows), points, 3)
        return GroundTruth(
            boxes_xywh=read.boxes[rows],
            labels=self._label[read.category[rows]],
            crowd=read.crowd[rows],
            difficult=np.zeros(len(rows), bool),
            area=read.areas[rows],
            masks=[read.outlines[row] for row in rows],
            keypoints=keypoints,
        )


def _left_out(own: Sequence[str], kept: Sequence[str], choice: ClassChoice, classes: Sequence[str]) -> str:
    """Which classes are used, and which of the data's and model's are not."""
    data = [name for name in own if choice.names.get(name, name) not in kept]
    model = [name for name in classes if name not in kept]
    return (
        f"limited to the {len(kept)} classes in common: {some(kept)}; left out of the data:"
        f" {some(data) or 'none'};"
        f" of the model: {some(model) or 'none'}"
    )


def find_split(folder: Path, split: str | None, keypoints: bool) -> tuple[Path, Path, str]:
    """Locate a split of a COCO folder: (images folder, annotation file, split name).

    Args:
        folder: with `annotations/` and one image folder per split.
        split: "val2017", "train2017", "minival" (the 5000 images of val2017, under their 2014 file names
            where only those are there),
            "test-dev2017" ...; None takes val2017, or the only split there is.
        keypoints: take the person_keypoints_*.json file.

    Raises:
        DatasetError: the split is not found; lists what exists.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give the folder with COCO's annotations/ and val2017/")
    annotations = next((folder / name for name in ANNOTATION_FOLDERS if (folder / name).is_dir()), None)
    if annotations is None:
        raise DatasetError(
            f"{folder}: has no folder annotations/; give the folder with COCO's annotations/ and val2017/"
        )
    kind = "person_keypoints" if keypoints else "instances"
    there = {p.stem.removeprefix(f"{kind}_"): p for p in sorted(annotations.glob(f"{kind}_*.json"))}
    there |= {p.stem.removeprefix("image_info_"): p for p in sorted(annotations.glob("image_info_*.json"))}
    split = _resolve_split(split, there, annotations, kind)
    candidates = _image_folders(split)
    for name in candidates:
        for images in (folder / name, folder / "images" / name):
            if images.is_dir():
                return images, there[split], split
    raise DatasetError(
        f"{folder}: has {there[split].name} but no image folder {' or '.join(candidates)}; unpack the images"
        " there"
    )


def _resolve_split(split: str | None, there: dict[str, Path], annotations: Path, kind: str) -> str:
    if split in (None, "minival"):
        preferred = ("val2017",) if split is None else ("minival2014", "val2017")
        found = next((name for name in preferred if name in there), None)
        if found is not None:
            return found
        if split is None and len(there) == 1:
            return next(iter(there))
    if split in there:
        return split
    listed = f"{annotations}: contains {', '.join(p.name for p in there.values()) or f'no {kind}_*.json'}"
    if split is None:
        raise DatasetError(f"{listed}; choose one with coco:DIR:SPLIT")
    raise DatasetError(f"{listed}, but nothing for split {split!r}; {did_you_mean(split, there)}")


def _image_folders(split: str) -> list[str]:
    """Folders that may contain a split's images: test-dev is part of test, minival and valminusminival of
    val2014."""
    names = [split]
    if split.startswith("test-dev"):
        names.append(split.replace("test-dev", "test"))
    if "minival" in split:
        names.append("val2014")
    return names
