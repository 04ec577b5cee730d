"""User data with PASCAL VOC's XML files: a devkit, or folders of annotations and images, with any classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detection_zoo.zoo.data.coco_reader import CocoAnnotations, by_id
from detection_zoo.zoo.data.voc import VocAnnotation, read_voc_xml
from detection_zoo.zoo.data.yolo import SUFFIXES, ids_of
from detection_zoo.zoo.errors import DatasetError


def read_voc_folder(
    annotations: Path, images: Path, names: Sequence[str] | None = None
) -> tuple[CocoAnnotations, str]:
    """Read every XML file of a folder, or those of the given names.

    Difficult objects are treated as COCO's crowds. Corners are 1-based and inclusive in the devkit; many
    tools write edges counted from 0, which is detected if a corner is 0 or has a fraction.

    Returns:
        The annotations, and a description of the corners.

    Raises:
        DatasetError: names file and line of what is wrong.
    """
    files = [annotations / f"{name}.xml" for name in names] if names else sorted(annotations.glob("*.xml"))
    there = {path.stem: path for path in images.iterdir() if path.suffix.lower() in SUFFIXES}
    if missing := next((file for file in files if file.stem not in there), None):
        raise DatasetError(f"{missing}: has no image of its name in {images}; unpack the images")
    paths = [there[file.stem] for file in files]
    read: list[VocAnnotation] = [read_voc_xml(file, None) for file in files]
    corners = [box for one in read for box in (item.box for item in one.objects)]
    edges = any(value != int(value) or value == 0 for box in corners for value in box)
    ids = ids_of(paths)
    order = by_id(ids)
    objects = [(place, item) for place, row in enumerate(order) for item in read[row].objects]
    classes = sorted({item.name for _, item in objects})
    if not objects:
        raise DatasetError(f"{annotations}: its {len(files)} XML files have no object")
    xyxy = np.array([item.box for _, item in objects], np.float64)
    low = xyxy[:, :2] - (0 if edges else 1)
    boxes = np.concatenate([low, xyxy[:, 2:] - low], axis=1)
    return CocoAnnotations(
        where=str(annotations),
        image_ids=[ids[row] for row in order],
        file_names=[str(paths[row]) for row in order],
        sizes=np.array([[read[row].height, read[row].width] for row in order], np.int64),
        category_ids=list(range(1, len(classes) + 1)),
        category_names=classes,
        image=np.array([place for place, _ in objects], np.int64),
        category=np.array([classes.index(item.name) for _, item in objects], np.int64),
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=np.array([item.difficult for _, item in objects], bool),
        outlines=[None] * len(objects),
        keypoints=[None] * len(objects),
    ), "corners are edges counted from 0" if edges else "corners are 1-based and inclusive, as in the devkit"
