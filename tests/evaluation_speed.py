"""Time the fast COCO evaluation and the reference in one run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.evaluation.coco_columns import Kind
from detection_zoo.benchmarks.evaluation.coco_evaluation import (
    EvaluationPlan,
    columns_of,
    compare_engines,
    truth_of,
)
from detection_zoo.zoo.data.fields import read_json


def repeat_images(
    document: dict[str, Any], records: list[dict[str, Any]], copies: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Repeat images and detections under new image IDs, to reach the size of a full
    split."""
    step = max(image["id"] for image in document["images"]) + 1
    images = [
        {**image, "id": image["id"] + copy * step} for copy in range(copies) for image in document["images"]
    ]
    annotations = [
        {**a, "image_id": a["image_id"] + copy * step}
        for copy in range(copies)
        for a in document["annotations"]
    ]
    annotations = [{**a, "id": number} for number, a in enumerate(annotations, start=1)]
    repeated = [{**r, "image_id": r["image_id"] + copy * step} for copy in range(copies) for r in records]
    return {**document, "images": images, "annotations": annotations}, repeated


def evaluation_speed(
    ground_truth: Path,
    records: list[dict[str, Any]],
    kind: Kind = "bbox",
    *,
    copies: int = 1,
    repeats: int = 3,
) -> dict[str, float]:
    """Time both engines on the same results and compare their outputs.

    Args:
        ground_truth: annotation file; records: results on it.
        copies: how often the images are repeated.
        repeats: timed runs of hotcoco (the median is used); pycocotools runs once.

    Returns:
        images, detections, hotcoco_time_ms, pycocotools_time_ms, ratio (pycocotools over hotcoco).

    Raises:
        RuntimeError: the engines disagree.
    """
    document = read_json(ground_truth, dict, "COCO annotation file", "is it a results file?")
    document, records = repeat_images(document, records, copies)
    truth = truth_of(document, kind)
    results = columns_of(records, truth, kind)
    plan = EvaluationPlan(kind, list(range(len(truth.image_ids))), None, False)
    fast_times = []
    for _ in range(repeats):
        start = time.perf_counter()
        fast = plan.run("hotcoco", truth, results)
        fast_times.append(1e3 * (time.perf_counter() - start))
    start = time.perf_counter()
    reference = plan.run("pycocotools", truth, results)
    reference_time = 1e3 * (time.perf_counter() - start)
    compare_engines(fast, reference)
    fast_time = sorted(fast_times)[len(fast_times) // 2]
    return {
        "images": len(document["images"]),
        "detections": len(records),
        "hotcoco_time_ms": fast_time,
        "pycocotools_time_ms": reference_time,
        "ratio": reference_time / fast_time,
    }


def render_evaluation_speed(result: dict[str, float]) -> str:
    """One line of text for `evaluation_speed`'s result."""
    return (
        f"COCO evaluation, {result['images']:.0f} images, {result['detections']:.0f} detections: hotcoco"
        f" {result['hotcoco_time_ms']:.0f} ms, pycocotools {result['pycocotools_time_ms']:.0f} ms, ratio"
        f" {result['ratio']:.1f}, all numbers equal"
    )
