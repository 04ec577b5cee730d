"""Detections of some images are never evaluated with the ground truth of all: the resulting
AP would be meaningless."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detection_zoo.benchmarks.evaluation.coco_columns import CocoResults
from detection_zoo.benchmarks.folders import RUNS
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.errors import DatasetError

if TYPE_CHECKING:
    from detection_zoo.benchmarks.spec import DataIdentity

ENOUGH = 0.5  # fraction of the images with objects


def refuse_naive_subset(
    path: Path, dataset: Dataset, found: set[int | str], every_image: bool = False
) -> None:
    """Refuse stored detections that were made on fewer images than the dataset has.

    Args:
        path: COCO results file, or folder of VOC comp4 files.
        dataset: dataset to evaluate on.
        found: ids of the images that have a detection.
        every_image: the user states that all images were processed; a stored record still takes precedence.

    Raises:
        DatasetError: the record of the detections, or the number of images without detections, shows that
        only a subset was processed.
    """
    record = path.resolve().parent.parent.parent / RUNS / f"{path.resolve().parent.name}.json"
    made_on = _made_on(record)
    if made_on is not None and made_on.images < len(dataset):
        raise DatasetError(
            f"{path}: its record {record.name} states that it was made on {made_on.images} of"
            f" {made_on.images_of_split} images, but the dataset has {len(dataset)}; give --images"
            f" {made_on.images}"
        )
    wanted = dataset.images_with_objects()
    if not every_image and found and len(found & wanted) < ENOUGH * len(wanted):
        raise DatasetError(
            f"{path}: has detections in {len(found & wanted)} of the {len(wanted)} images of {dataset.name}"
            " with objects. If it was made on the first N images, give --images N; if"
            " the model processed all images and detected nothing in the others, give --every-image"
        )


def _made_on(record: Path) -> DataIdentity | None:
    if not record.is_file():
        return None
    from detection_zoo.benchmarks.store import read_record

    try:
        return read_record(record).data
    except ValueError as error:  # a damaged record says nothing about its detections
        raise DatasetError(str(error)) from None


def images_of_results(results: CocoResults, dataset: CocoDataset) -> set[int | str]:
    """Ids of the images that have a detection."""
    return {dataset.annotations.image_ids[place] for place in np.unique(results.image).tolist()}
