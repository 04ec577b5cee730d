"""`shapes`: a small COCO-format dataset drawn from a seed on first use, so that every command runs without a
download."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detection_zoo.zoo.data.figures import KEYPOINT_NAMES, SHAPE_CATEGORIES, SKELETON, outline
from detection_zoo.zoo.home import home_folder

VERSION = 1  # part of the folder's name: a change of the drawing raises it
SPLITS = {"train": 240, "val": 60}
IMAGE_SIZES = ((320, 240), (240, 320), (288, 256), (352, 224), (256, 256))  # (width, height) in pixels
SIDES = ((14, 30), (40, 88), (108, 180))  # pixels: small, medium and large in COCO's sense
CROWD_CLASSES = ("circle", "star")


def make_shapes(folder: Path | None = None, *, splits: dict[str, int] | None = None, seed: int = 0) -> Path:
    """The folder of the dataset in COCO's layout; drawn first where it is not there yet.

    Args:
        folder: where it is kept; None: below the project's home folder. Several processes may ask at once:
            one draws, the others wait.
        splits: images by split; None: 240 train and 60 val.
        seed: of the drawing; the same seed gives the same annotations everywhere.

    Returns:
        The folder, holding annotations/, train/ and val/. It appears whole or not at all.
    """
    from filelock import FileLock

    folder = folder or home_folder() / "data" / f"shapes-{VERSION}-seed{seed}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        for left_over in folder.parent.glob(
            f"{folder.name}.part-*"
        ):  # of a process that was killed; the lock says nobody draws now
            shutil.rmtree(left_over)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
        for split, images in (splits or SPLITS).items():
            _write_split(part, split, images, np.random.RandomState(seed * 1000 + sum(map(ord, split))))
        os.chmod(part, 0o755)
        os.rename(part, folder)
    return folder


def _write_split(folder: Path, split: str, images: int, random: np.random.RandomState) -> None:
    import cv2

    (folder / split).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, images + 1):
        scene = _draw_scene(random, empty=number % 20 == 0, crowd=number % 6 == 0)
        name = f"{number:06d}.jpg"
        if not cv2.imwrite(
            str(folder / split / name), scene.pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]
        ):
            raise OSError(f"{folder / split / name}: the image could not be written; is the disk full?")
        height, width = scene.pixels.shape[:2]
        records.append({"id": number * 3, "file_name": name, "height": height, "width": width})
        annotations += [
            {**item, "id": len(annotations) + place, "image_id": number * 3}
            for place, item in enumerate(scene.annotations, start=1)
        ]
    _write_json(folder / "annotations" / f"instances_{split}.json", records, annotations, persons=False)
    _write_json(folder / "annotations" / f"person_keypoints_{split}.json", records, annotations, persons=True)


def _write_json(
    path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], *, persons: bool
) -> None:
    categories: list[dict[str, Any]] = [
        {"id": i, "name": name, "supercategory": "shape"}
        for i, name in SHAPE_CATEGORIES
        if not persons or i == 1
    ]
    if persons:
        categories[0] |= {"keypoints": list(KEYPOINT_NAMES), "skeleton": [list(pair) for pair in SKELETON]}
        annotations = [a for a in annotations if a["category_id"] == 1]
    else:
        annotations = [
            {k: v for k, v in a.items() if k not in ("keypoints", "num_keypoints")} for a in annotations
        ]
    path.write_text(
        json.dumps(
            {
                "info": {"description": "shapes, made from a seed", "version": str(VERSION)},
                "images": images,
                "annotations": annotations,
                "categories": categories,
            }
        ),
        encoding="utf-8",
    )


@dataclass
class _Scene:
    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    annotations: list[dict[str, Any]] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)  # xyxy of what has been drawn; a crowd comes first
    crowd: bool = False


def _draw_scene(random: np.random.RandomState, *, empty: bool, crowd: bool) -> _Scene:
    """One image; later objects lie on top, and masks and boxes are of whole objects, hidden parts
    included."""
    width, height = IMAGE_SIZES[random.randint(len(IMAGE_SIZES))]
    scene = _Scene(_background(random, height, width))
    if empty:
        return scene
    if crowd:
        _draw_crowd(scene, random)
    for side in sorted(
        _sides(random, min(height, width)), reverse=True
    ):  # large ones first, else they would hide small ones
        category_id, name = SHAPE_CATEGORIES[random.randint(len(SHAPE_CATEGORIES))]
        polygons, points = outline(name, random)
        low, high = (reach(np.concatenate(polygons), axis=0) * side for reach in (np.min, np.max))
        corner = _free_place(scene, random, high - low)
        if corner is None:
            continue
        polygons = [polygon * side - low + corner for polygon in polygons]
        _hide_keypoints(scene, polygons)
        _fill(scene.pixels, polygons, _colour(random))
        scene.annotations.append(_annotation(category_id, polygons, scene.pixels.shape[:2]))
        if points is not None:
            scene.annotations[-1] |= _keypoints(points * side - low + corner, labelled=side > 32)
        scene.boxes.append(np.concatenate([corner, corner + high - low]))
    return scene


def _sides(random: np.random.RandomState, shortest: int) -> list[float]:
    """Three to eight side lengths in pixels, in turn small, medium and large."""
    ranges = (SIDES[(number + random.randint(2)) % 3] for number in range(random.randint(3, 9)))
    return [min(random.uniform(low, high), 0.9 * shortest) for low, high in ranges]


def _background(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """A dim colour gradient with noise."""
    corners = random.uniform(20, 110, size=(2, 2, 3)).astype(np.float32)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    smooth = (corners[0, 0] * (1 - down) + corners[1, 0] * down) * (1 - across) + (
        corners[0, 1] * (1 - down) + corners[1, 1] * down
    ) * across
    return np.clip(smooth + random.normal(0, 6, size=smooth.shape), 0, 255).astype(np.uint8)


def _colour(random: np.random.RandomState) -> tuple[int, int, int]:
    """A bright colour, so that objects stand out from the background."""
    colour = random.randint(60, 256, size=3)
    colour[random.randint(3)] = random.randint(200, 256)
    return tuple(int(c) for c in colour)


def _free_place(scene: _Scene, random: np.random.RandomState, extent: np.ndarray) -> np.ndarray | None:
    """A corner where the object fits, overlaps no earlier box by more than an IoU of 0.4 and leaves a crowd
    free; None after 30 tries."""
    height, width = scene.pixels.shape[:2]
    for _ in range(30):
        corner = random.uniform(1, np.array([width, height]) - extent - 1)
        overlaps = [_iou(np.concatenate([corner, corner + extent]), box) for box in scene.boxes]
        if all(iou <= (0.0 if place == 0 and scene.crowd else 0.4) for place, iou in enumerate(overlaps)):
            return corner
    return None


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    shared = float(sides.prod())
    return shared / float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def _fill(pixels: np.ndarray, polygons: list[np.ndarray], colour: tuple[int, int, int]) -> None:
    """Fill with antialiased edges; OpenCV counts from pixel centres, annotations from pixel edges, hence the
    half pixel."""
    import cv2

    for polygon in polygons:
        cv2.fillPoly(
            pixels, [np.round((polygon - 0.5) * 16).astype(np.int32)], colour, lineType=cv2.LINE_AA, shift=4
        )


def _annotation(category_id: int, polygons: list[np.ndarray], size: tuple[int, int]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    points = np.concatenate(polygons)
    low, high = points.min(axis=0), points.max(axis=0)
    segmentation = [[round(float(v), 2) for v in polygon.reshape(-1)] for polygon in polygons]
    area = float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))))
    return {
        "category_id": category_id,
        "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        "segmentation": segmentation,
        "area": area,
        "iscrowd": 0,
    }


def _keypoints(points: np.ndarray, *, labelled: bool) -> dict[str, Any]:
    flat = (
        [value for x, y in points for value in (round(float(x), 2), round(float(y), 2), 2)]
        if labelled
        else [0] * 3 * len(points)
    )
    return {"keypoints": flat, "num_keypoints": len(points) if labelled else 0}


def _hide_keypoints(scene: _Scene, polygons: list[np.ndarray]) -> None:
    """Keypoints that a new object covers become 1: labelled, not visible."""
    import cv2

    for annotation in scene.annotations:
        points = annotation.get("keypoints", [])
        for place in range(0, len(points), 3):
            at = (float(points[place]), float(points[place + 1]))
            if points[place + 2] == 2 and any(
                cv2.pointPolygonTest(p.astype(np.float32), at, False) >= 0 for p in polygons
            ):
                points[place + 2] = 1


def _draw_crowd(scene: _Scene, random: np.random.RandomState) -> None:
    """Many small objects of one class, annotated as a single crowd region with an uncompressed RLE, as COCO
    does."""
    import cv2

    height, width = scene.pixels.shape[:2]
    name = CROWD_CLASSES[random.randint(len(CROWD_CLASSES))]
    category_id = next(i for i, known in SHAPE_CATEGORIES if known == name)
    corner = np.array([random.uniform(2, width - 112), random.uniform(2, height - 72)])
    mask = np.zeros((height, width), np.uint8)
    for _ in range(14):
        polygons, _ = outline(name, random)
        at = corner + random.uniform(0, 1, size=2) * [92, 52]
        polygons = [polygon * 16 + at for polygon in polygons]
        _fill(scene.pixels, polygons, _colour(random))
        cv2.fillPoly(mask, [np.round(p - 0.5).astype(np.int32) for p in polygons], 1)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
    scene.crowd = True
    scene.boxes.append(np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]], np.float64))
    scene.annotations.append(
        {
            "category_id": category_id,
            "bbox": box,
            "area": int(mask.sum()),
            "iscrowd": 1,
            "segmentation": {"size": [height, width], "counts": _run_lengths(mask)},
        }
    )


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Column by column: lengths of runs of 0 and 1 in turn, beginning with 0."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs
