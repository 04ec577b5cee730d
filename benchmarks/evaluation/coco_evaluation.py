"""COCO accuracy: pycocotools is the reference, hotcoco the fast path, and every run holds a sample of the one
against the other."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detection_zoo.zoo.data.coco import read_annotations
from detection_zoo.zoo.errors import DatasetError

Kind = Literal["bbox", "segm", "keypoints"]
Engine = Literal["hotcoco", "pycocotools"]
BOX_STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_STATISTICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
FIELDS = {
    "bbox": "bbox",
    "segm": "segmentation",
    "keypoints": "keypoints",
}  # what a result of each kind holds
AGREEMENT = 1e-9  # largest difference between the two engines


@dataclass(frozen=True)
class CocoScores:
    """What COCO evaluation gives, as fractions; -1 where there is no ground truth to measure against.

    statistics: the 12 (keypoints: 10) numbers by name; per_category: category id -> AP and AP50 (class
        agnostic: the one id -1).
    """

    statistics: dict[str, float]
    per_category: dict[int, dict[str, float]]


def statistic_names(kind: Kind) -> tuple[str, ...]:
    """Names of the numbers that evaluation of a kind gives, in pycocotools' order."""
    return KEYPOINT_STATISTICS if kind == "keypoints" else BOX_STATISTICS


def evaluate_coco(
    ground_truth: Path | dict[str, Any],
    results: list[dict[str, Any]],
    kind: Kind,
    *,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
    class_agnostic: bool = False,
    checked_images: int = 50,
) -> dict[str, float]:
    """The named COCO statistics of some results.

    Args:
        ground_truth: annotation file, or its document.
        results: records in COCO's result format, checked (see `read_results`); order decides between equal
            scores.
        kind: what is compared: boxes, masks or keypoints.
        image_ids, category_ids: restrict ground truth and results to these.
        class_agnostic: compare regardless of category.
        checked_images: size of the sample on which both engines must agree.

    Returns:
        Fractions by name, -1 where there is no ground truth.

    Raises:
        RuntimeError: the two engines disagree on the sample.
        DatasetError: the annotation file is missing or malformed.
    """
    return score_coco(
        ground_truth,
        results,
        kind,
        image_ids=image_ids,
        category_ids=category_ids,
        class_agnostic=class_agnostic,
        checked_images=checked_images,
    ).statistics


def score_coco(
    ground_truth: Path | dict[str, Any],
    results: list[dict[str, Any]],
    kind: Kind,
    *,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
    class_agnostic: bool = False,
    checked_images: int = 50,
) -> CocoScores:
    """As `evaluate_coco`, with AP and AP50 of each category."""
    document = complete_annotations(
        read_annotations(ground_truth) if isinstance(ground_truth, Path) else ground_truth, kind
    )
    every_image = sorted({image["id"] for image in document["images"]})
    images = every_image if image_ids is None else sorted(set(image_ids))
    plan = EvaluationPlan(
        kind, images, None if category_ids is None else sorted(set(category_ids)), class_agnostic
    )
    records = result_records(results, kind)
    scores = plan.run("hotcoco", document, records)
    sample = _spread(images, checked_images)
    if len(sample) == len(images):
        compare_engines(scores, plan.run("pycocotools", document, records))
    else:
        smaller = plan.on(sample)
        few = _restrict(document, records, set(sample))
        compare_engines(smaller.run("hotcoco", *few), smaller.run("pycocotools", *few))
    return scores


def complete_annotations(document: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """The document with what evaluation needs and some files leave out: an id, a crowd flag and an area for
    each annotation.

    Raises:
        DatasetError: an annotation lacks the box, mask or keypoints that are to be compared.
    """
    for row, annotation in enumerate(document["annotations"]):
        if not annotation.get(FIELDS[kind]):
            raise DatasetError(
                f"annotations[{row}] (id {annotation.get('id')}): field {FIELDS[kind]!r} is missing or empty;"
                f" results of kind {kind} cannot be measured against this annotation file"
            )
    annotations = [
        {"id": row, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a}
        for row, a in enumerate(document["annotations"], start=1)
    ]
    return {"info": {}, "licenses": [], **document, "annotations": annotations}


def result_records(results: list[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """Only the fields that count for a kind.

    pycocotools takes the area of a result from its box where it has one; without the box it is that of the
    mask or of the keypoints, as in files of one kind alone.
    """
    field = FIELDS[kind]
    return [
        {"image_id": r["image_id"], "category_id": r["category_id"], field: r[field], "score": r["score"]}
        for r in results
    ]


def compare_engines(fast: CocoScores, reference: CocoScores) -> None:
    """Raise RuntimeError where hotcoco and pycocotools differ by more than 1e-9 in any number."""
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
                " images; do not use either number, and report the results file that shows it"
            )


def _spread(images: list[int], count: int) -> list[int]:
    """At most `count` of the images, evenly spaced."""
    if len(images) <= count:
        return images
    return [images[round(place)] for place in np.linspace(0, len(images) - 1, count)]


def _restrict(
    document: dict[str, Any], records: list[dict[str, Any]], images: set[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    kept = {
        "images": [i for i in document["images"] if i["id"] in images],
        "annotations": [a for a in document["annotations"] if a["image_id"] in images],
    }
    return {**document, **kept}, [record for record in records if record["image_id"] in images]


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated, for either engine."""

    kind: Kind
    images: list[int]
    categories: list[int] | None
    class_agnostic: bool

    def on(self, images: list[int]) -> EvaluationPlan:
        """The same on other images."""
        return EvaluationPlan(self.kind, images, self.categories, self.class_agnostic)

    def run(self, engine: Engine, document: dict[str, Any], records: list[dict[str, Any]]) -> CocoScores:
        """Evaluate with one engine."""
        evaluation = _ENGINES[engine](document, records, self.kind)
        evaluation.params.imgIds = self.images
        if self.categories is not None:
            evaluation.params.catIds = self.categories
        evaluation.params.useCats = 0 if self.class_agnostic else 1
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # pycocotools prints progress; tables belong to the caller
            evaluation.evaluate()
            evaluation.accumulate()
            statistics = _summarise(engine, evaluation)
        categories = [-1] if self.class_agnostic else list(evaluation.params.catIds)
        names = statistic_names(self.kind)
        return CocoScores(
            dict(zip(names, statistics, strict=True)), _per_category(evaluation.eval["precision"], categories)
        )


def _summarise(engine: Engine, evaluation: Any) -> list[float]:
    if engine == "hotcoco":
        evaluation.summary_lines()
    else:
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def _per_category(precision: np.ndarray, categories: list[int]) -> dict[int, dict[str, float]]:
    """AP and AP50 from precision (T thresholds, R recalls, K categories, A areas, M detection limits)."""
    scores = {}
    for place, category in enumerate(categories):
        values = precision[:, :, place, 0, -1]
        scores[int(category)] = {
            "AP": float(values[values > -1].mean()) if (values > -1).any() else -1.0,
            "AP50": float(values[0][values[0] > -1].mean()) if (values[0] > -1).any() else -1.0,
        }
    return scores


def _hotcoco(document: dict[str, Any], records: list[dict[str, Any]], kind: Kind) -> Any:
    import hotcoco

    truth = hotcoco.COCO(document)
    return hotcoco.COCOeval(truth, truth.load_res(records), kind)


def _pycocotools(document: dict[str, Any], records: list[dict[str, Any]], kind: Kind) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        # it writes into the annotations it is given, so it gets copies
        truth.dataset = {
            **document,
            "annotations": [dict(annotation) for annotation in document["annotations"]],
        }
        truth.createIndex()
        if records:
            found = truth.loadRes([dict(record) for record in records])
        else:  # its loadRes looks at the first record
            found = COCO()
            found.dataset = {**document, "annotations": []}
            found.createIndex()
        return COCOeval(truth, found, kind)


_ENGINES = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}
