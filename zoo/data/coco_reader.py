"""Reader of COCO annotations: the fields that training and evaluation need, checked and in columns.

Everything else in a file (licences, dates, supercategories, skeletons, attributes) is ignored:
exporters write it in different ways, and no result depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from detection_zoo.zoo.data import fields
from detection_zoo.zoo.data.fields import Records, no_collection, plain_numbers, read_json, shown
from detection_zoo.zoo.data.rle import rle_problem
from detection_zoo.zoo.errors import DatasetError

Outline = list[list[float]] | dict[str, Any] | None
LEAST_POLYGON = 6  # numbers: shorter ones enclose nothing, and Detectron drops them


@dataclass(frozen=True)
class CocoAnnotations:
    """The content of a COCO annotation file.

    where: the file, for messages; annotated: whether it has ground truth (test splits have none).
    image_ids (N), category_ids (K): sorted, whole numbers before texts; file_names (N); sizes (N, 2) int64
    height and width in pixels; category_names (K); keypoint_names (P), and sigmas (P) where the file gives
    them.
    Of the A objects, in file order: image, category (A,) int64 places in those lists; boxes (A, 4) float64
    x, y, width, height; areas (A,) float64 square pixels; crowd (A,) bool; outlines (A): polygons of at
    least three points, a checked RLE mapping, or None; keypoints (A): 3 P numbers, or None.
    """

    where: str
    image_ids: list[int | str]
    file_names: list[str]
    sizes: np.ndarray
    category_ids: list[int | str]
    category_names: list[str]
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    outlines: list[Outline]
    keypoints: list[list[float] | None]
    keypoint_names: tuple[str, ...] = ()
    sigmas: tuple[float, ...] = ()
    annotated: bool = True

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def image_place(self) -> dict[int | str, int]:
        """Place of each image id."""
        return {identity: place for place, identity in enumerate(self.image_ids)}

    @cached_property
    def category_place(self) -> dict[int | str, int]:
        """Place of each category id."""
        return {identity: place for place, identity in enumerate(self.category_ids)}

    @cached_property
    def _by_image(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.image, kind="stable")
        return order, np.searchsorted(self.image[order], np.arange(len(self.image_ids) + 1))

    def rows_of(self, place: int) -> np.ndarray:
        """Rows of the objects of the image at a place, in file order."""
        order, starts = self._by_image
        return order[starts[place] : starts[place + 1]]


def read_coco(path: Path) -> CocoAnnotations:
    """Read and check a COCO annotation file; image_info_*.json files (test-dev) may lack annotations.

    Raises:
        DatasetError: names file, record and field of what is wrong.
    """
    with no_collection():
        document = read_json(path, dict, "COCO annotation file", "is it a results file?")
        read = annotations_of(document, str(path), may_be_hidden=path.name.startswith("image_info"))
        del document  # before garbage collection resumes
    return read


def annotations_of(document: dict[str, Any], where: str, *, may_be_hidden: bool = False) -> CocoAnnotations:
    """The annotations of a document with the lists `images`, `categories` and `annotations`.

    Args:
        document: as read from JSON.
        where: the file, for messages.
        may_be_hidden: the document may lack `annotations`.

    Raises:
        DatasetError: names file, record and field of what is wrong.
    """
    for key in ("images", "categories"):
        if not isinstance(document.get(key), list) or not document[key]:
            raise DatasetError(
                f"{where}: the list {key!r} is missing or empty; not a COCO annotation file, or an empty one"
            )
    if not document.get("annotations") and ("annotations" in document or not may_be_hidden):
        raise DatasetError(f"{where}: the file has no annotations; no ground truth to train or evaluate on")
    images = Records(document["images"], f"{where}: images")
    categories = Records(document["categories"], f"{where}: categories")
    image_ids, category_ids = images.ids("image"), categories.ids("category")
    image_rows, category_rows = by_id(image_ids), by_id(category_ids)
    file_names = images.column("file_name", set(), fields.text)
    names = categories.column("name", set(), fields.label)
    sides = [_pixels(images, side) for side in ("height", "width")]
    objects = Records(document.get("annotations") or [], f"{where}: annotations", show_id=True)
    place = {image_ids[row]: place for place, row in enumerate(image_rows)}
    image = objects.places("image_id", place, "image id {} is not in the list of images")
    place = {category_ids[row]: place for place, row in enumerate(category_rows)}
    unknown = f"category id {{}} is not in the list of categories ({len(place)} of them)"
    category = objects.places("category_id", place, unknown)
    boxes = _boxes(objects)
    _refuse_equal_ids(objects)
    sizes = np.stack([side[image_rows] for side in sides], axis=1)  # (N, 2)
    areas = plain_numbers([[record.get("area") for record in objects.records]])
    if areas is None or (areas < 0).any():  # null (becomes NaN), text, or an invalid value
        areas = np.array(objects.column("area", set(), fields.number_or_none), np.float64)
    keypoints = objects.column("keypoints", {list}, _list_or_none)
    keypoint_names = _keypoint_names([categories.records[row] for row in category_rows], keypoints)
    _check_keypoints(objects, keypoints, len(keypoint_names))
    return CocoAnnotations(
        where=where,
        image_ids=[image_ids[row] for row in image_rows],
        file_names=[file_names[row] for row in image_rows],
        sizes=sizes,
        category_ids=[category_ids[row] for row in category_rows],
        category_names=[names[row] for row in category_rows],
        image=image,
        category=category,
        boxes=boxes,
        areas=np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas),
        crowd=np.array(objects.column("iscrowd", {int}, fields.flag), bool),
        outlines=_outlines(objects, sizes[image].tolist()),
        keypoints=[points or None for points in keypoints],
        keypoint_names=keypoint_names,
        sigmas=_sigmas(categories, len(keypoint_names)),
        annotated="annotations" in document,
    )


def _pixels(images: Records, side: str) -> np.ndarray:
    """(N,) int64 heights or widths."""
    values = images.column(side, {int}, fields.pixels)
    if not all(0 < value < 2**31 for value in values):
        values = images.column(side, set(), fields.pixels)  # raises with the record's index
    return np.array(values, np.int64)


def by_id(ids: Sequence[int | str]) -> list[int]:
    """Rows by rising id, whole numbers before texts."""
    return sorted(range(len(ids)), key=lambda row: (isinstance(ids[row], str), ids[row]))


def _boxes(objects: Records) -> np.ndarray:
    """(A, 4) float64 x, y, width, height."""
    boxes = objects.column("bbox", {list}, fields.box)
    values = plain_numbers(boxes) if set(map(len, boxes)) <= {4} else None
    if values is None or (values.reshape(-1, 4)[:, 2:] < 0).any():
        objects.column("bbox", set(), fields.box)  # raises with the record's index
    return values.reshape(-1, 4)


def _refuse_equal_ids(objects: Records) -> None:
    """Raise for duplicate annotation ids: evaluation renumbers annotations, but the file is faulty."""
    ids = [record.get("id") for record in objects.records]
    if set(map(type, ids)) <= {int, str} and len(set(ids)) == len(ids):
        return
    seen: set[int | str] = set()
    for row, record in enumerate(objects.records):
        own = record.get("id")
        if type(own) not in (int, str):
            continue
        if own in seen:
            raise objects.error(row, f"annotation id {own} occurs twice; ids are unique")
        seen.add(own)


def _outlines(objects: Records, sizes: list[list[int]]) -> list[Outline]:
    """The segmentation of each object, polygons of fewer than three points left out."""
    outlines = [record.get("segmentation") or None for record in objects.records]
    polygons = list(chain.from_iterable(outline for outline in outlines if type(outline) is list))
    plain = set(map(type, polygons)) <= {list} and plain_numbers(polygons) is not None
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons)) if plain else np.zeros(1, np.int64)
    if (lengths % 2).any() or (lengths == 0).any():
        _name_bad_polygons(objects, outlines)
    short = (lengths < LEAST_POLYGON).any()
    for row, outline in enumerate(outlines):
        if type(outline) is list:
            if short:
                outlines[row] = [p for p in outline if len(p) >= LEAST_POLYGON] or None
        elif type(outline) is dict:
            if problem := rle_problem(outline, tuple(sizes[row])):
                raise objects.error(row, f"field 'segmentation' is {problem}")
            outlines[row] = {"size": outline["size"], "counts": outline["counts"]}
        elif outline is not None:
            raise objects.error(row, f"field 'segmentation' is {shown(outline)}, expected polygons or an RLE")
    return outlines


def _name_bad_polygons(objects: Records, outlines: list[Any]) -> None:
    for row, outline in enumerate(outlines):
        if type(outline) is list and not (
            all(type(polygon) is list and polygon and len(polygon) % 2 == 0 for polygon in outline)
            and plain_numbers(outline) is not None
        ):
            raise objects.error(
                row,
                f"field 'segmentation' is {shown(outline)}, expected polygons, each a list of finite"
                " numbers"
                " x, y, x, y, ...",
            )


def _list_or_none(value: Any) -> list[Any] | None:
    if value is None or type(value) is list:
        return value
    raise fields.FieldError("expected a list of x, y, visibility of every point")


def _keypoint_names(
    categories: Sequence[dict[str, Any]], keypoints: Sequence[list[float] | None]
) -> tuple[str, ...]:
    """The names that the first category with some gives; where objects have points without names, their
    numbers."""
    for category in categories:
        names = category.get("keypoints")
        if type(names) is list and names and set(map(type, names)) <= {str}:
            return tuple(names)
    count = next((len(points) // 3 for points in keypoints if points), 0)
    return tuple(f"point {place}" for place in range(1, count + 1))


def _check_keypoints(objects: Records, keypoints: Sequence[list[float] | None], count: int) -> None:
    given = [points for points in keypoints if points]
    if set(map(len, given)) <= {3 * count} and plain_numbers(given) is not None:
        return
    for row, points in enumerate(keypoints):
        if points and len(points) != 3 * count:
            raise objects.error(
                row,
                f"field 'keypoints' has {len(points)} numbers, expected {3 * count}: x, y, visibility of"
                " every point",
            )
        if points and plain_numbers([points]) is None:
            raise objects.error(row, f"field 'keypoints' is {shown(points)}, expected finite numbers")


def _sigmas(categories: Records, count: int) -> tuple[float, ...]:
    """The list `sigmas` that a category may have: the tolerated distance of each keypoint, as a
    fraction of the object's size."""
    for row, record in enumerate(categories.records):
        if count and record.get("sigmas") is not None:
            given = record["sigmas"]
            values = plain_numbers([given]) if type(given) is list and len(given) == count else None
            if values is None or values.min() <= 0:
                raise categories.error(
                    row, f"field 'sigmas' is {shown(given)}, expected {count} numbers above 0"
                )
            return tuple(values.tolist())
    return ()
