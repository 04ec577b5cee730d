"""COCO: images and one JSON annotation file a split, in the official layout or any folder shaped like it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detection_zoo.zoo.data.base import Dataset, GroundTruth, label_order
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.registry import did_you_mean

ANNOTATION_FOLDERS = ("annotations", "original_annotations")  # the second is where one of the sources looks


class CocoDataset(Dataset):
    """One split of a COCO-format dataset; labels follow rising category id unless `classes` gives an order.

    Args:
        images_folder: holds the image files.
        annotation_file: instances_*.json, person_keypoints_*.json or image_info_*.json.
        classes: class names in the order of a model's labels.
        name: as in records.
        decoder: see `decode_image`.

    Raises:
        DatasetError: names file, row and field of what is wrong.
    """

    layout: Literal["coco"] = "coco"

    def __init__(
        self,
        images_folder: Path,
        annotation_file: Path,
        *,
        classes: Sequence[str] | None = None,
        name: str = "coco",
        decoder: Literal["pil", "cv2"] = "pil",
    ) -> None:
        super().__init__()
        self.images_folder, self.annotation_file, self.name, self.decoder = (
            images_folder,
            annotation_file,
            name,
            decoder,
        )
        document = read_annotations(annotation_file)
        self.has_annotations = "annotations" in document
        self._images = sorted(document["images"], key=lambda image: image["id"])
        self._rows = range(len(self._images))
        self.full_size = len(self._images)
        categories = sorted(document["categories"], key=lambda category: category["id"])
        labels = label_order([category["name"] for category in categories], classes, str(annotation_file))
        self._label = {category["id"]: label for category, label in zip(categories, labels, strict=True)}
        by_label = sorted(zip(labels, categories, strict=True), key=lambda pair: pair[0])
        self.classes = tuple(category["name"] for _, category in by_label)
        self.category_ids = tuple(category["id"] for _, category in by_label)
        self.keypoint_names = next((tuple(c["keypoints"]) for c in categories if "keypoints" in c), ())
        self._objects: dict[int, list[dict[str, Any]]] = {}
        for annotation in document.get("annotations", ()):
            self._objects.setdefault(annotation["image_id"], []).append(annotation)

    def image_id(self, index: int) -> int:
        """The COCO image id."""
        return self._images[self._rows[index]]["id"]

    def image_path(self, index: int) -> Path:
        """The image's file."""
        return self.images_folder / self._images[self._rows[index]]["file_name"]

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels."""
        image = self._images[self._rows[index]]
        return image["height"], image["width"]

    def target(self, index: int) -> GroundTruth:
        """The annotations of an image in file order, crowd regions included."""
        objects = self._objects.get(self.image_id(index), [])
        count, points = len(objects), len(self.keypoint_names)
        keypoints = None
        if points:
            keypoints = np.array(
                [o.get("keypoints") or [0] * (3 * points) for o in objects], np.float32
            ).reshape(count, points, 3)
        return GroundTruth(
            boxes_xywh=np.array([o["bbox"] for o in objects], np.float64).reshape(count, 4),
            labels=np.array([self._label[o["category_id"]] for o in objects], np.int64),
            crowd=np.array([bool(o.get("iscrowd", 0)) for o in objects], bool),
            difficult=np.zeros(count, bool),
            area=np.array([o.get("area", o["bbox"][2] * o["bbox"][3]) for o in objects], np.float64),
            masks=[o.get("segmentation") for o in objects],
            keypoints=keypoints,
        )


def read_annotations(path: Path) -> dict[str, Any]:
    """Read and check a COCO annotation file.

    Args:
        path: the JSON file; image_info_*.json files (test-dev) may lack annotations, others may not.

    Returns:
        The document, with `images` and `categories`, and `annotations` where the file has them.

    Raises:
        DatasetError: names file, row and field of what is wrong.
    """
    document = read_json(path, dict, "COCO annotation file", "is it a results file?")
    for key in ("images", "categories"):
        if not isinstance(document.get(key), list) or not document[key]:
            raise DatasetError(
                f"{path}: the list {key!r} is missing or empty; this is no COCO annotation file, or an"
                " empty one"
            )
    _check_images(document["images"], path)
    categories = _check_categories(document["categories"], path)
    if "annotations" not in document and path.name.startswith("image_info"):
        return document
    if not document.get("annotations"):
        raise DatasetError(
            f"{path}: the file holds no annotations; there is nothing to train on or to measure against"
        )
    sizes = {image["id"]: [image["height"], image["width"]] for image in document["images"]}
    points = {
        category["id"]: 3 * len(category["keypoints"])
        for category in document["categories"]
        if category.get("keypoints")
    }
    _check_objects(document["annotations"], sizes, categories, points, path)
    return document


def read_json(path: Path, kind: type, title: str, confused: str) -> Any:
    """Read a JSON file whose outermost value must be a `kind`.

    Args:
        path: the file; title: what it should be; confused: a question about what it may be instead.

    Raises:
        DatasetError: the file is missing, no JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such {title}; put it there, or give another path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path}: not valid JSON ({error}); the {title} is empty or cut short, get it again"
        ) from None
    if not isinstance(value, kind):
        raise DatasetError(
            f"{path}: a {title} is a JSON {_JSON_NAMES[kind]}, this is a {type(value).__name__}; {confused}"
        )
    return value


_JSON_NAMES = {dict: "object", list: "list"}


def _check_images(images: list[dict[str, Any]], path: Path) -> None:
    seen: set[int] = set()
    for row, image in enumerate(images):
        for field, kind in (("id", int), ("file_name", str), ("height", int), ("width", int)):
            if not isinstance(image, dict) or not isinstance(image.get(field), kind):
                raise DatasetError(f"{path}: images[{row}]: field {field!r} is missing or no {kind.__name__}")
        if image["id"] in seen:
            raise DatasetError(f"{path}: images[{row}]: image id {image['id']} occurs twice; ids are unique")
        seen.add(image["id"])


def _check_categories(categories: list[dict[str, Any]], path: Path) -> set[int]:
    seen: set[int] = set()
    for row, category in enumerate(categories):
        if (
            not isinstance(category, dict)
            or not isinstance(category.get("id"), int)
            or not isinstance(category.get("name"), str)
        ):
            raise DatasetError(f"{path}: categories[{row}]: needs an integer 'id' and a 'name'")
        if category["id"] in seen:
            raise DatasetError(
                f"{path}: categories[{row}]: category id {category['id']} occurs twice; ids are unique"
            )
        seen.add(category["id"])
    return seen


def _check_objects(
    objects: list[dict[str, Any]],
    images: Mapping[int, list[int]],
    categories: set[int],
    points: Mapping[int, int],
    path: Path,
) -> None:
    """images: id -> [height, width]; points: category id -> numbers in its key points."""
    seen: set[int] = set()
    for row, item in enumerate(objects):
        try:
            image, category, box = item["image_id"], item["category_id"], item["bbox"]
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{path}: annotations[{row}]: field {error} is missing") from None
        where = f"{path}: annotations[{row}] (id {item.get('id')})"
        if image not in images:
            raise DatasetError(f"{where}: image id {image} is not in the list of images")
        if category not in categories:
            raise DatasetError(
                f"{where}: category id {category} is not in the list of categories ({len(categories)} of"
                " them)"
            )
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(isinstance(v, int | float) and math.isfinite(v) for v in box)
            or min(box[2:]) < 0
        ):
            raise DatasetError(
                f"{where}: field 'bbox' is {box!r:.60}, four finite numbers x, y, width, height are wanted"
            )
        if "id" in item and item["id"] in seen:
            raise DatasetError(
                f"{where}: annotation id {item['id']} occurs twice; ids are unique, and evaluation finds"
                " objects by them"
            )
        seen.add(item.get("id"))
        _check_outline(item.get("segmentation"), images[image], where)
        keypoints = item.get("keypoints")
        if keypoints and len(keypoints) != points.get(category, len(keypoints)):
            raise DatasetError(
                f"{where}: field 'keypoints' has {len(keypoints)} numbers, {points[category]} are wanted: x,"
                " y, visibility of every point"
            )


def _check_outline(outline: Any, size: list[int], where: str) -> None:
    """Refuse a segmentation, polygons or a run-length code, that cannot be drawn on an image of that [height,
    width]."""
    if not outline:
        return
    if isinstance(outline, dict):
        if outline.get("size") != size or not isinstance(outline.get("counts"), str | list):
            raise DatasetError(
                f"{where}: field 'segmentation' is a run-length code of size {outline.get('size')}, "
                f"'counts' and the image's size {size} (height, width) are wanted"
            )
    elif not isinstance(outline, list) or any(
        not isinstance(polygon, list) or len(polygon) < 4 or len(polygon) % 2 for polygon in outline
    ):
        raise DatasetError(
            f"{where}: field 'segmentation' is {outline!r:.60}, polygons are wanted, each a list of x, y, x,"
            " y, ..."
        )


def find_split(folder: Path, split: str | None, keypoints: bool) -> tuple[Path, Path, str]:
    """Locate a split of a COCO folder: (images folder, annotation file, split name).

    Args:
        folder: holds `annotations/` and one image folder a split.
        split: "val2017", "train2017", "minival" (the 5000 images of val2017, under their 2014 file names
            where only those are there),
            "test-dev2017" ...; None takes val2017, or the only split there is.
        keypoints: take the person_keypoints_*.json file.

    Raises:
        DatasetError: says what is there instead.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder; give the folder that holds COCO's annotations/ and val2017/"
        )
    annotations = next((folder / name for name in ANNOTATION_FOLDERS if (folder / name).is_dir()), None)
    if annotations is None:
        raise DatasetError(
            f"{folder}: holds no folder annotations/; give the folder that holds COCO's annotations/ and"
            " val2017/"
        )
    kind = "person_keypoints" if keypoints else "instances"
    there = {p.stem.removeprefix(f"{kind}_"): p for p in sorted(annotations.glob(f"{kind}_*.json"))}
    there |= {p.stem.removeprefix("image_info_"): p for p in sorted(annotations.glob("image_info_*.json"))}
    split = _resolve_split(split, there, annotations, kind)
    candidates = _image_folders(split)
    for name in candidates:
        for images in (folder / name, folder / "images" / name):
            if images.is_dir():
                return images, there[split], split
    raise DatasetError(
        f"{folder}: has {there[split].name} but no image folder {' or '.join(candidates)}; unpack the images"
        " there"
    )


def _resolve_split(split: str | None, there: dict[str, Path], annotations: Path, kind: str) -> str:
    if split in (None, "minival"):
        preferred = ("val2017",) if split is None else ("minival2014", "val2017")
        found = next((name for name in preferred if name in there), None)
        if found is not None:
            return found
        if split is None and len(there) == 1:
            return next(iter(there))
    if split in there:
        return split
    listed = f"{annotations}: holds {', '.join(p.name for p in there.values()) or f'no {kind}_*.json'}"
    if split is None:
        raise DatasetError(f"{listed}; say which split: coco:DIR:SPLIT")
    raise DatasetError(f"{listed}, but nothing for split {split!r}; {did_you_mean(split, there)}")


def _image_folders(split: str) -> list[str]:
    """Folders that may hold a split's images: test-dev is part of test, minival and valminusminival of
    val2014."""
    names = [split]
    if split.startswith("test-dev"):
        names.append(split.replace("test-dev", "test"))
    if "minival" in split:
        names.append("val2014")
    return names
