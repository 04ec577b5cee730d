"""The two engines of COCO evaluation, with the same input: hotcoco, and pycocotools as the reference."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any, Literal

import numpy as np

from detection_zoo.benchmarks.evaluation.coco_columns import FIELDS, CocoResults, Kind
from detection_zoo.zoo.data.coco_reader import CocoAnnotations

Engine = Literal["hotcoco", "pycocotools"]


def _lists(truth: CocoAnnotations, images: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Images and categories as both engines take them."""
    sizes = truth.sizes[images].tolist()
    return {
        "images": [
            {"id": place + 1, "height": height, "width": width, "file_name": ""}
            for place, (height, width) in zip(images, sizes, strict=True)
        ],
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(truth.category_names, start=1)
        ],
    }


def _document(truth: CocoAnnotations, rows: np.ndarray, images: list[int], kind: Kind) -> dict[str, Any]:
    """Return the document that evaluation of a kind needs, with annotations numbered from 1."""
    annotations = [
        {
            "id": number,
            "image_id": image + 1,
            "category_id": category + 1,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        for number, (image, category, box, area, crowd) in enumerate(
            zip(
                *(
                    c[rows].tolist()
                    for c in (truth.image, truth.category, truth.boxes, truth.areas, truth.crowd)
                ),
                strict=True,
            ),
            start=1,
        )
    ]
    for annotation, row in zip(annotations, rows.tolist(), strict=True):
        if kind == "segm":
            annotation["segmentation"] = truth.outlines[row]
        elif kind == "keypoints":
            points = truth.keypoints[row] or [0] * (3 * len(truth.keypoint_names))
            annotation |= {"keypoints": points, "num_keypoints": sum(v > 0 for v in points[2::3])}
    return {"info": {}, "licenses": [], **_lists(truth, images), "annotations": annotations}


def _records(results: CocoResults) -> list[dict[str, Any]]:
    """Return only the fields that a kind uses.

    If a result has a box, pycocotools computes its area from the box; without one, from the
    mask or keypoints, as for files of a single kind.
    """
    field = FIELDS[results.kind]
    values = results.values.tolist() if isinstance(results.values, np.ndarray) else map(dict, results.values)
    return [
        {"image_id": image + 1, "category_id": category + 1, field: value, "score": score}
        for image, category, value, score in zip(
            results.image.tolist(), results.category.tolist(), values, results.scores.tolist(), strict=True
        )
    ]


def _hotcoco(truth: CocoAnnotations, rows: np.ndarray, images: list[int], results: CocoResults) -> Any:
    import hotcoco

    if results.kind != "bbox":
        whole = hotcoco.COCO(_document(truth, rows, images, results.kind))
        return hotcoco.COCOeval(whole, whole.load_res(_records(results)), results.kind)
    whole = hotcoco.COCO.from_arrays(
        **_lists(truth, images),
        image_ids=truth.image[rows] + 1,
        category_ids=truth.category[rows] + 1,
        boxes=truth.boxes[rows],
        ids=np.arange(1, len(rows) + 1),
        area=truth.areas[rows],
        iscrowd=truth.crowd[rows],
    )
    found = np.column_stack([results.image + 1, results.values, results.scores, results.category + 1])
    return hotcoco.COCOeval(whole, whole.load_res(found), results.kind)


def _pycocotools(truth: CocoAnnotations, rows: np.ndarray, images: list[int], results: CocoResults) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        whole, found = COCO(), COCO()
        whole.dataset = _document(truth, rows, images, results.kind)
        whole.createIndex()
        if len(results):
            found = whole.loadRes(_records(results))
        else:  # its loadRes checks the first record
            found.dataset = {**whole.dataset, "annotations": []}
            found.createIndex()
        return COCOeval(whole, found, results.kind)


ENGINES = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}


def evaluate_with(engine: Engine, evaluation: Any) -> list[float]:
    """Evaluate, accumulate and summarise an evaluation object of one of `ENGINES`.

    Returns:
        The 12 (keypoints: 10) numbers, -1 where there is no ground truth.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints progress
        evaluation.evaluate()
        if engine == "hotcoco":
            evaluation.accumulate()
            evaluation.summary_lines()
        else:
            _accumulate(evaluation)
            evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def _accumulate(evaluation: Any) -> None:
    """Accumulate only what pycocotools' summary reads, in half the time: precision and recall at the
    largest number of detections, and recall over all areas at smaller ones; other entries stay -1."""
    params = evaluation.params
    most, fewer = copy.copy(params), copy.copy(params)
    most.maxDets, fewer.maxDets = params.maxDets[-1:], params.maxDets[:-1]
    fewer.areaRng, fewer.recThrs = params.areaRng[:1], params.recThrs[:1]
    evaluation.accumulate(fewer)
    recall_of_fewer = evaluation.eval["recall"]  # (T, K, 1, M - 1)
    evaluation.accumulate(most)
    found = evaluation.eval
    precision = np.full((*found["precision"].shape[:-1], len(params.maxDets)), -1.0)  # (T, R, K, A, M)
    recall = np.full((*found["recall"].shape[:-1], len(params.maxDets)), -1.0)  # (T, K, A, M)
    precision[..., -1:], recall[..., -1:] = found["precision"], found["recall"]
    recall[..., :1, :-1] = recall_of_fewer
    evaluation.eval = {"params": params, "precision": precision, "recall": recall}
