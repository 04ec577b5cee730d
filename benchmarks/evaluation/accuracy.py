"""Accuracy of a model on a dataset: collect its detections, store them as results files, evaluate them now
or later."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detection_zoo.benchmarks.evaluation.coco_columns import CocoResults, Kind
from detection_zoo.benchmarks.evaluation.coco_evaluation import (
    STATISTICS,
    CocoScores,
    columns_of,
    keypoint_sigmas,
    score_coco,
)
from detection_zoo.benchmarks.evaluation.coco_results import (
    SUBMISSION,
    detection_records,
    read_results,
    write_results,
    write_submission,
)
from detection_zoo.benchmarks.evaluation.subset_guard import images_of_results, refuse_naive_subset
from detection_zoo.benchmarks.evaluation.voc_evaluation import (
    VocDetection,
    dataset_truth,
    evaluate_voc,
    mean_ap,
)
from detection_zoo.benchmarks.evaluation.voc_results import (
    parse_voc_lines,
    read_voc_results,
    voc_lines,
    write_voc_results,
)
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.voc import VocDataset
from detection_zoo.zoo.errors import DatasetError

if TYPE_CHECKING:
    from detection_zoo.zoo.records import Detections

PREFIX: dict[Kind, str] = {
    "bbox": "box",
    "segm": "mask",
    "keypoints": "keypoint",
}  # of metric names in manifests/metrics.toml
DETAILS, ACCURACY_FILE = "accuracy", "accuracy.json"  # a run's file with details beyond its metrics
SUFFIX = {"APs": "ap_s", "APm": "ap_m", "APl": "ap_l", "ARs": "ar_s", "ARm": "ar_m", "ARl": "ar_l"}
METRICS = {
    kind: {name: f"{prefix}_{SUFFIX.get(name, name.lower())}" for name in STATISTICS[kind]}
    for kind, prefix in PREFIX.items()
}  # kind -> COCO's statistic -> metric


@dataclass(frozen=True)
class AccuracyReport:
    """The results: metrics of manifests/metrics.toml in percent (those without ground truth left out), AP
    of each class in percent.

    data: the dataset, with `subset` true for a part of the split; notes: by kind, other settings
    of the evaluation, such as the keypoint sigmas; curves, errors: by kind, as `CocoScores` has them.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    data: dict[str, Any]
    kinds: tuple[str, ...]
    notes: dict[Kind, str] = field(default_factory=dict)
    curves: dict[Kind, dict[str, list[float]]] = field(default_factory=dict)
    errors: dict[Kind, dict[str, float]] = field(default_factory=dict)

    def note_of(self, metric: str) -> str:
        """Notes on one metric."""
        return next((note for kind, note in self.notes.items() if metric.startswith(PREFIX[kind])), "")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "data": self.data,
            "kinds": list(self.kinds),
            "metrics": self.metrics,
            "per_class": self.per_class,
            "notes": self.notes,
            "precision_at_recall": self.curves,
            "ap50_lost_to": self.errors,
        }


@dataclass
class DetectionCollector:
    """Gathers the detections of a run in the dataset's own result format.

    Args:
        dataset: COCO or VOC.
        inclusive: x2 and y2 of detections are inclusive pixel indices (as in the row's conventions), not
        edges.
    """

    dataset: Dataset
    inclusive: bool
    records: dict[Kind, list[dict[str, Any]]] = field(default_factory=lambda: {"bbox": []})
    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, index: int, detections: Detections) -> None:
        """Add the detections of the dataset's image `index`; masks must be pasted.

        Raises:
            FloatingPointError: a score or box is NaN or infinite.
        """
        image = self.dataset.image_id(index)
        if not (bool(detections.boxes.isfinite().all()) and bool(detections.scores.isfinite().all())):
            raise FloatingPointError(
                f"detections of image {image} of {self.dataset.name} have boxes or scores that are not finite"
            )
        if isinstance(self.dataset, VocDataset):
            self.lines += voc_lines(detections, str(image), self.dataset.classes, inclusive=self.inclusive)
            return
        records = detection_records(detections, image, self.dataset.category_ids, inclusive=self.inclusive)
        for kind, found in records.items():
            self.records.setdefault(kind, []).extend(found)

    def write(self, folder: Path) -> list[Path]:
        """Write the detections: bbox.json, segm.json, keypoints.json for COCO, comp4 files for VOC."""
        if isinstance(self.dataset, VocDataset):
            return write_voc_results(folder, self.lines, self.dataset)
        for kind, records in self.records.items():
            write_results(folder / f"{kind}.json", records)
        return [folder / f"{kind}.json" for kind in self.records]

    def submissions(self, folder: Path, algorithm: str) -> dict[str, Path]:
        """Write zip files for COCO's evaluation server, a folder per kind, if the dataset's annotations
        are hidden; otherwise none.

        Raises:
            DatasetError: the dataset is a subset; the server needs the whole split.
        """
        if not annotations_hidden(self.dataset):
            return {}
        return {
            kind + SUBMISSION: write_submission(folder / kind, records, self.dataset, kind, algorithm)
            for kind, records in self.records.items()
        }

    def evaluate(self) -> AccuracyReport:
        """Evaluate the collected detections on the dataset's images."""
        if isinstance(self.dataset, VocDataset):
            texts = {
                name: "\n".join(line for owner, line in self.lines if owner == name)
                for name in self.dataset.classes
            }
            known = set(self.dataset.image_ids)
            return _voc_report(
                self.dataset, {name: parse_voc_lines(text, name, known) for name, text in texts.items()}
            )
        truth = _measurable(self.dataset).annotations
        results = {kind: columns_of(records, truth, kind) for kind, records in self.records.items()}
        return _coco_report(self.dataset, results, details=True)


def evaluate_results_file(
    path: Path,
    dataset: Dataset,
    kind: Kind | None = None,
    *,
    whole: bool = False,
    every_image: bool = False,
    details: bool = False,
) -> AccuracyReport:
    """Evaluate stored detections again.

    Args:
        path: a COCO results file, or for VOC the folder of comp4 files (or one of them).
        dataset: a subset restricts ground truth and detections to its images.
        kind: kind of a COCO file; None: recognised from its first record.
        whole: refuse detections that were made on only a part of the dataset's images.
        every_image: with `whole`: images without a detection were processed too.
        details: also compute error types.

    Raises:
        DatasetError: the file is missing or malformed (with row or line), or the dataset
            has no ground truth.
    """
    if isinstance(dataset, VocDataset):
        detections = read_voc_results(path if path.is_dir() else path.parent, dataset)
        if whole:
            found = {one.image for found in detections.values() for one in found}
            refuse_naive_subset(path, dataset, found, every_image)
        return _voc_report(dataset, detections)
    results = read_results(path, _measurable(dataset), kind)
    if whole:
        refuse_naive_subset(path, dataset, images_of_results(results, dataset), every_image)
    if results.kind == "keypoints" and not dataset.keypoint_names:
        raise DatasetError(
            f"{path}: holds keypoints, but {dataset.annotation_file or dataset.name} has no ground truth for"
            " them; use the person_keypoints annotations (--kind keypoints)"
        )
    return _coco_report(dataset, {results.kind: results}, details)


def annotations_hidden(dataset: Dataset) -> bool:
    """Whether accuracy is available only from the evaluation server, as for COCO's test splits."""
    return isinstance(dataset, CocoDataset) and not dataset.has_annotations


def _measurable(dataset: Dataset) -> CocoDataset:
    if not isinstance(dataset, CocoDataset):
        raise DatasetError(f"{dataset.name}: has no ground-truth boxes; use a COCO or VOC dataset")
    if annotations_hidden(dataset):
        raise DatasetError(
            f"{dataset.name}: its annotations are not public; `bench.py run ... --metrics ap` writes a file"
            " for the evaluation server"
        )
    return dataset


def _coco_report(
    dataset: CocoDataset, results: dict[Kind, CocoResults], details: bool = False
) -> AccuracyReport:
    """Evaluate boxes, masks and keypoints, each only if the annotation file has them."""
    kinds = [kind for kind in results if kind != "keypoints" or dataset.keypoint_names]
    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {name: {} for name in dataset.classes}
    names = dict(zip(dataset.category_ids, dataset.classes, strict=True))
    scored = {
        kind: score_coco(
            dataset.annotations, results[kind], kind, image_ids=dataset.image_ids, details=details
        )
        for kind in kinds
    }
    for kind, scores in scored.items():
        metrics |= metric_values(scores, kind)
        for category, values in scores.per_category.items():
            if values["AP"] >= 0:
                per_class[names[category]][f"{PREFIX[kind]}_ap"] = 100 * values["AP"]
    return AccuracyReport(
        metrics,
        {name: values for name, values in per_class.items() if values},
        dataset.describe(),
        tuple(kinds),
        {"keypoints": keypoint_sigmas(dataset.annotations)[1]} if "keypoints" in kinds else {},
        {kind: scores.curves for kind, scores in scored.items()},
        {kind: scores.errors for kind, scores in scored.items() if scores.errors},
    )


def metric_values(scores: CocoScores, kind: Kind) -> dict[str, float]:
    """COCO statistics under the names of manifests/metrics.toml, in percent; those without ground truth
    are omitted."""
    return {METRICS[kind][name]: 100 * value for name, value in scores.statistics.items() if value >= 0}


def _voc_report(dataset: VocDataset, detections: dict[str, list[VocDetection]]) -> AccuracyReport:
    truth = dataset_truth(dataset)
    eleven = evaluate_voc(truth, detections, method="11point")
    area = evaluate_voc(truth, detections, method="area")
    metrics = {"voc_map": 100 * mean_ap(eleven), "voc_map_area": 100 * mean_ap(area)}
    per_class = {
        name: (
            {"ap_11point": 100 * eleven[name].ap}
            | ({} if math.isnan(area[name].ap) else {"ap_area": 100 * area[name].ap})
        )
        for name in truth
    }
    return AccuracyReport(
        {k: v for k, v in metrics.items() if not math.isnan(v)}, per_class, dataset.describe(), ("bbox",)
    )


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Return the percentage of images whose label is among the k highest-scoring classes.

    Args:
        scores: (N, K) float, higher is better; for equal scores, the lower class index comes first.
        labels: (N,) int64.

    Raises:
        FloatingPointError: a score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise FloatingPointError(f"scores of image {row} are not finite; accuracy cannot be computed")
    own = scores[np.arange(len(labels)), labels][:, None]
    better = (scores > own).sum(axis=1) + (
        (scores == own) & (np.arange(scores.shape[1]) < labels[:, None])
    ).sum(axis=1)
    return 100.0 * float((better < k).mean())
