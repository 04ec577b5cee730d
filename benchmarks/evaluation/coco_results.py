"""COCO results files: detections as JSON that any COCO tool can evaluate, and files for the test-dev
server."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from detection_zoo.benchmarks.evaluation.coco_columns import CocoResults, Kind, by_arrays, joined, results_of
from detection_zoo.benchmarks.store import write_whole
from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.fields import json_records, no_collection, read_json
from detection_zoo.zoo.errors import DatasetError

SUBMISSION = "_submission"  # suffix of a file's key if it is for an evaluation server

if TYPE_CHECKING:
    from detection_zoo.zoo.records import Detections


def detection_records(
    detections: Detections, image_id: int | str, category_ids: Sequence[int | str | None], *, inclusive: bool
) -> dict[Kind, list[dict[str, Any]]]:
    """The detections of one image in COCO's result format, by kind.

    Args:
        detections: boxes (R, 4) float32 in original pixels; masks, where present, (R, H, W) bool, pasted.
        image_id: image ID of the dataset.
        category_ids: dataset category id of each label; None: detections of that label are omitted.
        inclusive: x2 and y2 are inclusive, so that width = x2 - x1 + 1; otherwise they
            are edges.

    Returns:
        "bbox" always, "segm" and "keypoints" if the detections have them; R records each.
    """
    boxes = detections.boxes.detach().cpu().numpy()
    xywh = np.concatenate(
        [boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + np.float32(1 if inclusive else 0)], axis=1
    )
    heads = [
        {"image_id": image_id, "category_id": category_ids[label], "score": score}
        for label, score in zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    ]
    records: dict[Kind, list[dict[str, Any]]] = {
        "bbox": [{**head, "bbox": box} for head, box in zip(heads, xywh.tolist(), strict=True)]
    }
    if detections.masks is not None:
        records["segm"] = [
            {**head, "segmentation": rle}
            for head, rle in zip(heads, _encode(detections.masks.cpu().numpy()), strict=True)
        ]
    if detections.keypoints is not None:
        points = detections.keypoints.detach().cpu().numpy().copy()
        points[..., 2] = 1  # the visibility flag, which evaluation does not read
        flat = points.reshape(len(points), 3 * points.shape[1]).tolist()
        records["keypoints"] = [
            {**head, "keypoints": values} for head, values in zip(heads, flat, strict=True)
        ]
    if None in category_ids:  # the data does not have some of the model's classes
        records = {
            kind: [r for r in found if r["category_id"] is not None] for kind, found in records.items()
        }
    return records


def _encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """Compressed RLE of (R, H, W) bool masks, as JSON can hold it."""
    from pycocotools import mask as coco_mask

    if masks.dtype != np.bool_:
        raise ValueError(
            f"masks must be pasted into the image as bool before they are stored; got {masks.dtype}"
        )
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [
        {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
        for rle in encoded
    ]


def write_results(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a results file atomically."""
    write_whole(path, json.dumps(records).encode())


def read_results(path: Path, dataset: CocoDataset, kind: Kind | None = None) -> CocoResults:
    """Read and check a results file against a dataset.

    Args:
        path: a JSON list of records with image_id, category_id, score and bbox, segmentation or keypoints.
        dataset: dataset with the valid image and category IDs. For a subset, images of the full split
            are valid too.
        kind: what the records hold; None: recognised from the first record (keypoints before bbox
            before segmentation).

    Returns:
        The detections of the dataset's images, in file order. An empty list is valid: no
        detections.

    Raises:
        DatasetError: names file, row and field of what is wrong.
    """
    with no_collection():
        results = _by_pieces(path, dataset, kind)
        if results is not None:
            return results
        records = read_json(path, list, "results file", "is it an annotation file?")
        results = results_of(records, dataset.annotations, kind or _kind_of(records), str(path), dataset.name)
        del records  # before garbage collection is enabled again
    return results.of_images(dataset.places) if dataset.is_subset else results


def _by_pieces(path: Path, dataset: CocoDataset, kind: Kind | None) -> CocoResults | None:
    """The same, one piece of the file at a time; None if a record has an unusual form."""
    parts: list[CocoResults] = []
    try:
        for records in json_records(path):
            kind = kind or _kind_of(records)
            part = by_arrays(records, dataset.annotations, kind)
            if part is None:
                return None
            parts.append(part.of_images(dataset.places) if dataset.is_subset else part)
    except (OSError, ValueError):
        return None
    return joined(parts)


def _kind_of(records: list[Any]) -> Kind:
    first = records[0] if records and isinstance(records[0], dict) else {}
    return (
        "keypoints"
        if "keypoints" in first
        else "bbox"
        if "bbox" in first or "segmentation" not in first
        else "segm"
    )


def write_submission(
    folder: Path, records: list[dict[str, Any]], dataset: CocoDataset, kind: Kind, algorithm: str
) -> Path:
    """Write the zip file that COCO's evaluation server takes for its hidden test annotations.

    Args:
        folder: output folder.
        records: records of the whole split; an image without detections has no record.
        dataset: the split, such as coco:DIR:test-dev2017; its name becomes part of the file name.
        kind: challenge that the file is for.
        algorithm: short name of the model; letters, digits, dash and underscore.

    Returns:
        The zip file: detections_SPLIT_ALGORITHM_results.zip (person_keypoints_... for keypoints) with one
            JSON file of the same name.

    Raises:
        DatasetError: a record is not of the split, or the dataset is a subset: the server needs
            the whole split.
    """
    if dataset.is_subset:
        raise DatasetError(
            f"{dataset.name}: a submission covers the whole split of {dataset.full_size} images, this is a"
            f" subset of {len(dataset)}"
        )
    results_of(records, dataset.annotations, kind, "submission", dataset.name)
    prefix = "person_keypoints" if kind == "keypoints" else "detections"
    split = dataset.name.split(":")[1]
    stem = f"{prefix}_{split}_{''.join(c if c.isalnum() or c in '-_' else '-' for c in algorithm)}_results"

    def fill(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{stem}.json", json.dumps(records))

    write_whole(folder / f"{stem}.zip", fill)
    return folder / f"{stem}.zip"
