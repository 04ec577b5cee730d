"""PASCAL VOC accuracy: average precision by the 11-point metric of 2007 and by the area metric of later
years."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from detection_zoo.zoo.data.voc import VocDataset

Method = Literal["11point", "area"]


@dataclass(frozen=True)
class VocTruth:
    """The objects of one class in one image: boxes (R, 4) float64 xyxy in file coordinates, difficult (R,)
    bool."""

    boxes: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class VocDetection:
    """One detection of one class: image, score, box (x1, y1, x2, y2) in file coordinates."""

    image: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class ClassScore:
    """Score of a class: AP (NaN if the area metric has no ground truth), recall and precision after
    each detection, counts.

    recall is NaN if all objects of the class are marked as difficult.
    """

    ap: float
    recall: np.ndarray
    precision: np.ndarray
    positives: int


def evaluate_voc_class(
    truth: dict[str, VocTruth],
    detections: Sequence[VocDetection],
    *,
    iou_threshold: float = 0.5,
    method: Method = "11point",
    plus_one: bool = True,
) -> ClassScore:
    """Average precision of one class, as the devkit computes it.

    A detection is matched to the object with the highest overlap in its image, including difficult and
    already matched ones. It is a true positive if the overlap is above the threshold and the object is
    unmatched; a match with a difficult object is ignored, one with an already matched object is a false
    positive.

    Args:
        truth: image -> objects of the class; images without any may be omitted.
        detections: detections of the class, in any order; equal scores keep their order.
        iou_threshold: overlap must be strictly greater.
        method: "11point" (mean of the best precision at recall 0, 0.1 ... 1) or "area" (under the precision
            envelope).
        plus_one: widths are x2 - x1 + 1, as the devkit has them.
    """
    positives = sum(int((~objects.difficult).sum()) for objects in truth.values())
    order = np.argsort([-d.score for d in detections], kind="stable")
    right, wrong = np.zeros(len(detections)), np.zeros(len(detections))
    taken = {image: np.zeros(len(objects.boxes), bool) for image, objects in truth.items()}
    for place, row in enumerate(order):
        detection = detections[row]
        objects = truth.get(detection.image)
        best, overlap = (
            _best(objects.boxes, detection.box, plus_one)
            if objects is not None and len(objects.boxes)
            else (0, -math.inf)
        )
        if overlap <= iou_threshold:
            wrong[place] = 1
        elif not objects.difficult[best]:
            (wrong if taken[detection.image][best] else right)[place] = 1
            taken[detection.image][best] = True
    hits = np.cumsum(right)
    recall = hits / positives if positives else np.full(len(hits), np.nan)
    precision = hits / np.maximum(hits + np.cumsum(wrong), np.finfo(np.float64).eps)
    return ClassScore(average_precision(recall, precision, method, positives), recall, precision, positives)


def _best(boxes: np.ndarray, box: Sequence[float], plus_one: bool) -> tuple[int, float]:
    """Return the index of the box with the highest overlap (the first of equals), and the overlap."""
    more = 1.0 if plus_one else 0.0
    candidate = np.asarray(box, np.float64)
    sides = np.maximum(
        np.minimum(boxes[:, 2:], candidate[2:]) - np.maximum(boxes[:, :2], candidate[:2]) + more, 0.0
    )
    shared = sides[:, 0] * sides[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0] + more) * (boxes[:, 3] - boxes[:, 1] + more)
    own = (candidate[2] - candidate[0] + more) * (candidate[3] - candidate[1] + more)
    overlaps = shared / (own + areas - shared)
    best = int(np.argmax(overlaps))
    return best, float(overlaps[best])


def average_precision(recall: np.ndarray, precision: np.ndarray, method: Method, positives: int) -> float:
    """Return the AP of a precision-recall curve.

    Args:
        recall, precision: (n,) after each detection; recall never falls.
        method: see `evaluate_voc_class`.
        positives: number of ground-truth objects. Without any, 11-point AP is 0 and area AP is NaN, as in the
        original.
    """
    if method == "11point":
        # the devkit's thresholds are floating-point sums, so that a recall of exactly 0.3 is
        # below 0.30000000000000004
        points = np.arange(0.0, 1.1, 0.1)
        if not positives:
            return 0.0
        return float(sum(precision[recall >= t].max() / 11.0 if (recall >= t).any() else 0.0 for t in points))
    if not positives:
        return math.nan
    r = np.concatenate([[0.0], recall, [1.0]])
    p = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(p[::-1])[::-1]
    steps = np.flatnonzero(r[1:] != r[:-1])
    return float(((r[steps + 1] - r[steps]) * envelope[steps + 1]).sum())


def voc_truth(
    classes: Iterable[str], objects: Iterable[tuple[str, str, Sequence[float], bool]]
) -> dict[str, dict[str, VocTruth]]:
    """Class -> image -> its objects, from (image, class, box, difficult)."""
    found: dict[str, dict[str, list[tuple[Sequence[float], bool]]]] = {name: {} for name in classes}
    for image, name, box, difficult in objects:
        found.setdefault(name, {}).setdefault(image, []).append((box, difficult))
    return {
        name: {
            image: VocTruth(
                np.array([box for box, _ in objects], np.float64),
                np.array([hard for _, hard in objects], bool),
            )
            for image, objects in images.items()
        }
        for name, images in found.items()
    }


def dataset_truth(dataset: VocDataset) -> dict[str, dict[str, VocTruth]]:
    """The objects of a dataset, in the files' own 1-based inclusive coordinates."""
    return voc_truth(
        dataset.classes,
        (
            (dataset.image_id(index), item.name, item.box, item.difficult)
            for index in range(len(dataset))
            for item in dataset.annotation(index).objects
        ),
    )


def evaluate_voc(
    truth: dict[str, dict[str, VocTruth]],
    detections: dict[str, list[VocDetection]],
    *,
    iou_threshold: float = 0.5,
    method: Method = "11point",
) -> dict[str, ClassScore]:
    """Score of each class of `truth`; a class without detections has AP 0. See `evaluate_voc_class`."""
    return {
        name: evaluate_voc_class(images, detections.get(name, []), iou_threshold=iou_threshold, method=method)
        for name, images in truth.items()
    }


def mean_ap(scores: dict[str, ClassScore]) -> float:
    """The plain mean over classes; NaN where a class is NaN, as in the original."""
    return float(np.mean([score.ap for score in scores.values()]))
