"""COCO accuracy: hotcoco computes it fast, and every run checks a sample against pycocotools,
the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detection_zoo.benchmarks.evaluation.coco_columns import FIELDS, CocoResults, Kind, results_of
from detection_zoo.benchmarks.evaluation.coco_engines import ENGINES, Engine, evaluate_with
from detection_zoo.zoo.data.coco_reader import CocoAnnotations, annotations_of, read_coco
from detection_zoo.zoo.errors import DatasetError

# in pycocotools' order
BOX_STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_STATISTICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
STATISTICS = {"bbox": BOX_STATISTICS, "segm": BOX_STATISTICS, "keypoints": KEYPOINT_STATISTICS}
AGREEMENT = 1e-9  # largest difference between the two engines
# of COCO's 17 keypoints: standard deviations of human annotations, as fractions of the object's size
# (cocoeval.py)
COCO_SIGMAS = tuple(
    tenths / 10
    for tenths in (
        0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89,
    )
)  # fmt: skip
Truth = Path | dict[str, Any] | CocoAnnotations


@dataclass(frozen=True)
class CocoScores:
    """Results of COCO evaluation, as fractions; -1 if there is no ground truth.

    statistics: the 12 (keypoints: 10) numbers by name; per_category: category id -> AP and AP50 (class
        agnostic: the one id -1); curves: "0.50", "0.75", "0.50:0.95" -> precision at the recalls 0, 0.01
        ... 1, the mean over categories with ground truth; errors: AP50 gain if each error type
        were fixed (TIDE, Bolya et al., ECCV 2020), of boxes and masks.
    """

    statistics: dict[str, float]
    per_category: dict[int | str, dict[str, float]]
    curves: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


def score_coco(
    ground_truth: Truth,
    results: list[dict[str, Any]] | CocoResults,
    kind: Kind,
    *,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
    class_agnostic: bool = False,
    checked_images: int = 50,
    details: bool = False,
) -> CocoScores:
    """Compute COCO statistics of results: fractions by name, -1 where there is no ground truth; with AP and
    AP50 of each category and curves.

    Args:
        ground_truth: annotation file, its JSON document, or annotations already read.
        results: records in COCO's result format, or in columns; equal scores keep this order.
        kind: compare boxes, masks or keypoints.
        image_ids, category_ids: restrict ground truth and results to these.
        class_agnostic: ignore categories.
        checked_images: size of the sample on which both engines must agree.
        details: also classify errors by type.

    Raises:
        RuntimeError: the two engines disagree on the sample.
        DatasetError: the annotation file or a record is missing or malformed.
    """
    truth = truth_of(ground_truth, kind)
    results = columns_of(results, truth, kind)
    images = list(range(len(truth.image_ids))) if image_ids is None else _places(image_ids, truth.image_place)
    categories = None if category_ids is None else _places(category_ids, truth.category_place)
    plan = EvaluationPlan(kind, images, categories, class_agnostic, details)
    scores = plan.run("hotcoco", truth, results)
    sample = replace(plan, images=_spread(images, checked_images), details=False)
    fast = scores if len(sample.images) == len(images) else sample.run("hotcoco", truth, results)
    compare_engines(fast, sample.run("pycocotools", truth, results))
    return scores


def _places(ids: Sequence[int | str], place: dict[int | str, int]) -> list[int]:
    return sorted({place[identity] for identity in ids if identity in place})


def truth_of(ground_truth: Truth, kind: Kind) -> CocoAnnotations:
    """Return the annotations, which must have the fields for a kind of results.

    Raises:
        DatasetError: an annotation lacks its mask, or none has keypoints.
    """
    if isinstance(ground_truth, CocoAnnotations):
        truth = ground_truth
    elif isinstance(ground_truth, Path):
        truth = read_coco(ground_truth)
    else:
        truth = annotations_of(ground_truth, "annotations")
    missing = -1
    if kind == "segm":
        missing = next((row for row, outline in enumerate(truth.outlines) if outline is None), -1)
    elif kind == "keypoints" and not any(truth.keypoints):
        missing = 0
    if missing >= 0:
        raise DatasetError(
            f"{truth.where}: annotations[{missing}]: field {FIELDS[kind]!r} is missing or empty; results"
            " of"
            f" kind {kind} cannot be evaluated with this annotation file"
        )
    return truth


def columns_of(
    results: list[dict[str, Any]] | CocoResults, truth: CocoAnnotations, kind: Kind
) -> CocoResults:
    """The results in columns, checked."""
    return results if isinstance(results, CocoResults) else results_of(results, truth, kind, "results")


def keypoint_sigmas(truth: CocoAnnotations) -> tuple[tuple[float, ...], str]:
    """Return the keypoint sigmas, as fractions of the object's size, and their origin.

    From the annotation file; otherwise COCO's for 17 keypoints; otherwise 1 / P for each of P
    keypoints, as in Ultralytics's trainer.
    """
    count = len(truth.keypoint_names)
    if truth.sigmas:
        return truth.sigmas, "sigmas of the annotation file"
    if count == len(COCO_SIGMAS):
        return COCO_SIGMAS, "COCO's sigmas of 17 keypoints"
    return (1 / count,) * count, f"no sigmas given for these {count} keypoints: 1/{count} for each"


def compare_engines(fast: CocoScores, reference: CocoScores) -> None:
    """Raise RuntimeError if hotcoco and pycocotools differ by more than 1e-9 in any number."""
    pairs = [(name, value, reference.statistics[name]) for name, value in fast.statistics.items()]
    pairs += [
        (f"{name} of category {category}", value, reference.per_category[category][name])
        for category, values in fast.per_category.items()
        for name, value in values.items()
    ]
    for name, value, wanted in pairs:
        if not abs(value - wanted) <= AGREEMENT:
            raise RuntimeError(
                f"COCO evaluation: hotcoco gives {name} = {value!r}, pycocotools {wanted!r}, on the same"
                " images; use neither number, and please report a bug with the results file"
            )


def _spread(images: list[int], count: int) -> list[int]:
    """At most `count` of the images, evenly spaced."""
    if len(images) <= count:
        return images
    return [images[round(place)] for place in np.linspace(0, len(images) - 1, count)]


@dataclass(frozen=True)
class EvaluationPlan:
    """Settings of an evaluation, for either engine; images, categories: indices into the annotations' lists;
    details: also error types."""

    kind: Kind
    images: list[int]
    categories: list[int] | None
    class_agnostic: bool
    details: bool = False

    def prepare(self, engine: Engine, truth: CocoAnnotations, results: CocoResults) -> Any:
        """The engine's evaluation object; its IDs are indices from 1, because 0 means "no match"
        in pycocotools."""
        rows = np.arange(len(truth))
        if len(self.images) < len(truth.image_ids):
            rows, results = rows[np.isin(truth.image, self.images)], results.of_images(self.images)
        evaluation = ENGINES[engine](truth, rows, self.images, results)
        evaluation.params.imgIds = [place + 1 for place in self.images]
        if self.categories is not None:
            evaluation.params.catIds = [place + 1 for place in self.categories]
        evaluation.params.useCats = 0 if self.class_agnostic else 1
        if self.kind == "keypoints":
            sigmas = keypoint_sigmas(truth)[0]
            evaluation.params.kpt_oks_sigmas = list(sigmas) if engine == "hotcoco" else np.array(sigmas)
        return evaluation

    def run(self, engine: Engine, truth: CocoAnnotations, results: CocoResults) -> CocoScores:
        """Evaluate with one engine."""
        evaluation = self.prepare(engine, truth, results)
        statistics = evaluate_with(engine, evaluation)
        categories = (
            [-1]
            if self.class_agnostic
            else [truth.category_ids[number - 1] for number in evaluation.params.catIds]
        )
        precision = evaluation.eval["precision"]
        hotcoco = engine == "hotcoco" and not self.class_agnostic
        return CocoScores(
            dict(zip(STATISTICS[self.kind], statistics, strict=True)),
            _per_category(precision, categories),
            _curves(precision) if hotcoco else {},
            _errors(evaluation) if hotcoco and self.kind != "keypoints" and self.details else {},
        )


def _per_category(precision: np.ndarray, categories: list[int | str]) -> dict[int | str, dict[str, float]]:
    """AP and AP50 from precision (T thresholds, R recalls, K categories, A areas, M detection limits)."""
    scores = {}
    for place, category in enumerate(categories):
        values = precision[:, :, place, 0, -1]
        scores[category] = {
            "AP": float(values[values > -1].mean()) if (values > -1).any() else -1.0,
            "AP50": float(values[0][values[0] > -1].mean()) if (values[0] > -1).any() else -1.0,
        }
    return scores


def _curves(precision: np.ndarray) -> dict[str, list[float]]:
    """Mean precision at each of 101 recalls, from precision (T, R, K, A, M)."""
    known = precision[:, :, :, 0, -1]
    known = known[:, :, (known > -1).any(axis=(0, 1))]  # (T, R, categories with ground truth)
    if not known.shape[2]:
        return {}
    whole = known.mean(axis=2)
    return {"0.50": whole[0].tolist(), "0.75": whole[5].tolist(), "0.50:0.95": whole.mean(axis=0).tolist()}


def _errors(evaluation: Any) -> dict[str, float]:
    """Return the AP50 gain if each error type were fixed, as fractions."""
    names = {
        "Cls": "class",
        "Loc": "localisation",
        "Both": "class and localisation",
        "Dupe": "duplicate",
        "Bkg": "background",
        "Miss": "missed",
        "FP": "all false positives",
        "FN": "all false negatives",
    }
    found = evaluation.tide_errors()["delta_ap"]
    return {title: float(found[name]) for name, title in names.items()}
