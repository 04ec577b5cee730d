"""COCO results as arrays, checked vectorised; if that fails, record by record with detailed messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from numbers import Real
from typing import Any, Literal

import numpy as np

from detection_zoo.zoo.data.coco_reader import CocoAnnotations
from detection_zoo.zoo.data.fields import FieldError, identity, plain_numbers, shown
from detection_zoo.zoo.data.rle import code_sums, sum_problem
from detection_zoo.zoo.errors import DatasetError

Kind = Literal["bbox", "segm", "keypoints"]
FIELDS = {
    "bbox": "bbox",
    "segm": "segmentation",
    "keypoints": "keypoints",
}  # required fields of a result of each kind


@dataclass(frozen=True)
class CocoResults:
    """D detections of one kind, in file order.

    image, category (D,) int64: indices into the annotations' lists; scores (D,)
    float64; values: (D, 4) float64 x, y, width, height in pixels; (D, 3 P) float64 x, y, flag; or D
    run-length codes.
    """

    kind: Kind
    image: np.ndarray
    category: np.ndarray
    scores: np.ndarray
    values: np.ndarray | list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.image)

    def of_images(self, places: np.ndarray | list[int]) -> CocoResults:
        """The detections of some images."""
        chosen = np.asarray(places, np.int64)
        wanted = np.zeros(max(self.image.max(initial=-1), chosen.max(initial=-1)) + 1, bool)
        wanted[chosen] = True
        keep = np.flatnonzero(wanted[self.image])
        if len(keep) == len(self):
            return self
        values = self.values[keep] if isinstance(self.values, np.ndarray) else [self.values[i] for i in keep]
        return replace(
            self,
            image=self.image[keep],
            category=self.category[keep],
            scores=self.scores[keep],
            values=values,
        )


def results_of(
    records: list[Any], truth: CocoAnnotations, kind: Kind, where: str, name: str | None = None
) -> CocoResults:
    """Check records in COCO's result format and turn them into columns.

    Args:
        records: with image_id, category_id, score and bbox, segmentation or keypoints.
        truth: annotations with the valid image and category IDs.
        kind: kind of the records.
        where: name of the file, for messages.
        name: of the dataset, for messages.

    Raises:
        DatasetError: names file, record and field of the first record that cannot be evaluated.
    """
    found = by_arrays(records, truth, kind)
    return _by_rows(records, truth, kind, where, name or truth.where) if found is None else found


def joined(parts: Sequence[CocoResults]) -> CocoResults | None:
    """Concatenate detections; None if their values differ in length."""
    values = [part.values for part in parts if len(part)]
    if all(isinstance(each, np.ndarray) for each in values):
        if len({each.shape[1] for each in values}) > 1:
            return None
        whole = np.concatenate(values) if values else parts[0].values
    else:
        whole = list(chain.from_iterable(values))
    return CocoResults(
        parts[0].kind,
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("image", "category", "scores")
        ),
        whole,
    )


def by_arrays(records: list[Any], truth: CocoAnnotations, kind: Kind) -> CocoResults | None:
    """Return the columns, or None if a record has an unusual form."""
    field, count = FIELDS[kind], len(records)
    try:
        images, categories, given, values = (
            [record[name] for record in records] for name in ("image_id", "category_id", "score", field)
        )
        if not set(map(type, images)) | set(map(type, categories)) <= {int}:
            return None
        image = np.fromiter(map(truth.image_place.get, images, repeat(-1)), np.int64, count)
        category = np.fromiter(map(truth.category_place.get, categories, repeat(-1)), np.int64, count)
        scores = plain_numbers([given])
        columns = _COLUMNS[kind](values, truth, image)
    except (
        KeyError,
        TypeError,
        AttributeError,
    ):  # a field is missing, a record is not an object, or a value is not a list
        return None
    if scores is None or columns is None or (count and min(image.min(), category.min()) < 0):
        return None
    return CocoResults(kind, image, category, scores, columns)


def _box_columns(values: list[Any], truth: CocoAnnotations, image: np.ndarray) -> np.ndarray | None:
    numbers = plain_numbers(values) if set(map(len, values)) <= {4} else None
    return None if numbers is None else numbers.reshape(-1, 4)


def _keypoint_columns(values: list[Any], truth: CocoAnnotations, image: np.ndarray) -> np.ndarray | None:
    lengths = set(map(len, values))
    wanted = (
        {3 * len(truth.keypoint_names)} if truth.keypoint_names else {n for n in lengths if n and not n % 3}
    )
    numbers = plain_numbers(values) if lengths <= wanted and len(lengths) <= 1 else None
    return None if numbers is None else numbers.reshape(len(values), max(lengths, default=0))


def _mask_columns(values: list[Any], truth: CocoAnnotations, image: np.ndarray) -> list[dict] | None:
    counts = [value["counts"] for value in values]
    if not set(map(type, counts)) <= {str} or (len(image) and image.min() < 0):
        return None
    sizes = np.array([value["size"] for value in values]).reshape(-1, 2)
    wanted = truth.sizes[image]
    if (
        sizes.shape != wanted.shape
        or (sizes != wanted).any()
        or (code_sums(counts) != wanted.prod(axis=1)).any()
    ):
        return None
    return [{"size": size, "counts": code} for size, code in zip(wanted.tolist(), counts, strict=True)]


_COLUMNS: dict[str, Callable[[list[Any], CocoAnnotations, np.ndarray], Any]] = {
    "bbox": _box_columns,
    "segm": _mask_columns,
    "keypoints": _keypoint_columns,
}


def _by_rows(records: list[Any], truth: CocoAnnotations, kind: Kind, where: str, name: str) -> CocoResults:
    """The same record by record; convertible values are converted, others raise an error with row and
    field."""
    rows = [_row(record, truth, kind, f"{where}: [{row}]", name) for row, record in enumerate(records)]
    image, category, scores, values = (list(part) for part in zip(*rows, strict=True)) if rows else ([],) * 4
    if kind != "segm":
        values = np.array(values, np.float64).reshape(len(rows), -1 if rows else 4)
    return CocoResults(
        kind, np.array(image, np.int64), np.array(category, np.int64), np.array(scores, np.float64), values
    )


def _row(
    record: Any, truth: CocoAnnotations, kind: Kind, where: str, name: str
) -> tuple[int, int, float, Any]:
    field = FIELDS[kind]
    if not isinstance(record, dict):
        raise DatasetError(f"{where}: a detection must be a JSON object, this is {shown(record)}")
    missing = next((n for n in ("image_id", "category_id", "score", field) if n not in record), None)
    if missing is not None:
        raise DatasetError(
            f"{where}: field {missing!r} is missing; records of kind {kind} need image_id, category_id,"
            " score and"
            f" {field}"
        )
    image = _place(record["image_id"], truth.image_place)
    if image is None:
        raise DatasetError(
            f"{where}: image id {shown(record['image_id'])} is not in {name}; are these detections"
            " from another split?"
        )
    category = _place(record["category_id"], truth.category_place)
    if category is None:
        ids = truth.category_ids
        raise DatasetError(
            f"{where}: category id {shown(record['category_id'])} is not in {name}; its ids run from"
            f" {ids[0]} to"
            f" {ids[-1]}, {len(ids)} of them"
        )
    if not _finite([record["score"]]):
        raise DatasetError(f"{where}: field 'score' is {shown(record['score'])}, expected a finite number")
    value = record[field]
    if problem := _PROBLEMS[kind](value, len(truth.keypoint_names)):
        raise DatasetError(f"{where}: field {field!r} is {shown(value)}, {problem}")
    if kind == "segm":
        value = _checked_mask(value, truth.sizes[image].tolist(), record["image_id"], where)
    return image, category, float(record["score"]), value


def _place(value: Any, places: dict[int | str, int]) -> int | None:
    try:
        return places.get(identity(value))
    except FieldError:
        return None


def _finite(values: list[Any]) -> bool:
    try:
        return all(
            isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            for value in values
        )
    except OverflowError:  # an integer too large for a float
        return False


def _box_problem(value: Any, _: int) -> str | None:
    if not isinstance(value, list) or len(value) != 4 or not _finite(value):
        return "expected four finite numbers x, y, width, height"
    return None if plain_numbers([value]) is not None else "expected pixel coordinates below 1e9"


def _mask_problem(value: Any, _: int) -> str | None:
    size = value.get("size") if isinstance(value, dict) else None
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not _finite(size)
        or not isinstance(value.get("counts"), str)
    ):
        return "expected a compressed RLE: a mapping with size [height, width] and the string counts"
    return None


def _checked_mask(value: dict[str, Any], size: list[int], image_id: Any, where: str) -> dict[str, Any]:
    if value["size"] != size:
        raise DatasetError(
            f"{where}: the mask is {value['size']} (height, width), image {image_id} is {size}; masks are"
            " stored in"
            " the original image's size"
        )
    pixels = int(code_sums([value["counts"]])[0])
    if pixels != size[0] * size[1]:
        raise DatasetError(f"{where}: field 'segmentation' is {sum_problem(pixels, (size[0], size[1]))}")
    return {"size": size, "counts": value["counts"]}


def _keypoint_problem(value: Any, points: int) -> str | None:
    if (
        not isinstance(value, list)
        or not value
        or len(value) % 3
        or not _finite(value)
        or (points and len(value) != 3 * points)
    ):
        return (
            f"{points} times x, y, flag expected, as finite numbers"
            if points
            else "expected finite numbers x, y, flag for each keypoint"
        )
    return None


_PROBLEMS: dict[str, Callable[[Any, int], str | None]] = {
    "bbox": _box_problem,
    "segm": _mask_problem,
    "keypoints": _keypoint_problem,
}
