"""`shapes`: a small COCO-format dataset drawn from a seed on first use, so that every command works without a
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

from detection_zoo.zoo.data.figures import KEYPOINT_NAMES, SHAPE_CATEGORIES, SKELETON, hue_of, outline
from detection_zoo.zoo.data.textures import background, clutter, texture
from detection_zoo.zoo.home import home_folder

VERSION = 3  # part of the folder name and of records: raised by every change of the drawing
SPLITS = {"train": 1600, "val": 500}
IMAGE_SIZES = ((192, 144), (144, 192), (192, 160), (160, 192), (176, 176))  # (width, height) in pixels
SIDES = ((12, 28), (36, 84), (104, 150))  # pixels: small, medium and large in COCO's sense
CROWD_CLASSES = ("circle", "star")
LEAST_VISIBLE = 0.5  # least fraction of a truncated object's area inside the image


def make_shapes(folder: Path | None = None, *, splits: dict[str, int] | None = None, seed: int = 0) -> Path:
    """The folder of the dataset in COCO's layout; drawn first where it is not there yet.

    Args:
        folder: where it is kept; None: below the project's home folder. If several processes
            need it at once, one draws and the others wait.
        splits: images by split; None: 1600 train and 500 val.
        seed: of the drawing; the same seed gives the same annotations everywhere.

    Returns:
        The folder, holding annotations/, train/ and val/. It is created atomically.
    """
    from filelock import FileLock

    folder = folder or home_folder() / "data" / f"shapes-{VERSION}-seed{seed}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        # left by killed processes; with the lock, no other process is drawing
        for left_over in folder.parent.glob(f"{folder.name}.part-*"):
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
        # the first image has a person, so that every split has keypoints
        scene = _draw_scene(random, empty=number % 20 == 0, crowd=number % 6 == 0, person=number == 1)
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
    boxes: list[np.ndarray] = field(default_factory=list)  # xyxy of drawn objects, a crowd first
    crowd: bool = False


def _draw_scene(random: np.random.RandomState, *, empty: bool, crowd: bool, person: bool) -> _Scene:
    """One image. Later objects are on top; masks and boxes include occluded parts, and end at the image's
    border."""
    width, height = IMAGE_SIZES[random.randint(len(IMAGE_SIZES))]
    scene = _Scene(background(random, height, width))
    clutter(scene.pixels, random)
    if empty:
        return scene
    if crowd:
        _draw_crowd(scene, random)
    # large objects first, so that they do not hide small ones
    for side in sorted(_sides(random, min(height, width)), reverse=True):
        kind = random.randint(len(SHAPE_CATEGORIES))
        category_id, name = SHAPE_CATEGORIES[0 if person and not scene.annotations else kind]
        polygons, points = outline(name, random)
        low, high = (reach(np.concatenate(polygons), axis=0) * side for reach in (np.min, np.max))
        corner = _free_place(scene, random, high - low, truncated=random.uniform() < 0.2)
        if corner is None:
            continue
        polygons = [polygon * side - low + corner for polygon in polygons]
        inside = [part for polygon in polygons if len(part := _clip(polygon, width, height)) >= 3]
        if sum(map(_area, inside)) < LEAST_VISIBLE * sum(map(_area, polygons)):
            continue
        _hide_keypoints(scene, inside)
        _fill(scene.pixels, inside, random, hue_of(name))
        scene.annotations.append(_annotation(category_id, inside, scene.pixels.shape[:2]))
        if points is not None:
            placed = points * side - low + corner
            scene.annotations[-1] |= _keypoints(placed, (width, height), labelled=side > 24)
        scene.boxes.append(_extent(inside))
    return scene


def _sides(random: np.random.RandomState, shortest: int) -> list[float]:
    """Two to seven side lengths in pixels: small, medium and large ones."""
    ranges = (SIDES[kind] for kind in random.choice(3, size=random.randint(2, 8), p=(0.35, 0.4, 0.25)))
    return [min(random.uniform(low, high), 0.95 * shortest) for low, high in ranges]


def _clip(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """The part of a polygon (n, 2) inside the image (Sutherland and Hodgman, CACM 17:1, 1974)."""
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept: list[np.ndarray] = []
        for start, end in zip(np.roll(polygon, 1, axis=0), polygon, strict=True):
            before, after = sign * (start[axis] - limit), sign * (end[axis] - limit)
            if (before < 0) != (after < 0):
                kept.append(start + (end - start) * (before / (before - after)))
            if after >= 0:
                kept.append(end)
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def _area(polygon: np.ndarray) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))


def _extent(polygons: list[np.ndarray]) -> np.ndarray:
    """The box (4,) xyxy around polygons."""
    points = np.concatenate(polygons)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _free_place(
    scene: _Scene, random: np.random.RandomState, extent: np.ndarray, *, truncated: bool
) -> np.ndarray | None:
    """A corner where the object fits, with an IoU of at most 0.3 with earlier boxes and 0 with a crowd; None
    after 30 tries. A truncated object may reach beyond the image by a third of its extent."""
    height, width = scene.pixels.shape[:2]
    over = extent / 3 if truncated else np.full(2, -1.0)
    for _ in range(30):
        corner = random.uniform(-over, np.array([width, height]) - extent + over)
        shown = np.clip(np.stack([corner, corner + extent]), 0, [width, height]).reshape(-1)
        overlaps = [_iou(shown, box) for box in scene.boxes]
        if all(iou <= (0.0 if place == 0 and scene.crowd else 0.3) for place, iou in enumerate(overlaps)):
            return corner
    return None


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    shared = float(sides.prod())
    return shared / float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def _fill(pixels: np.ndarray, polygons: list[np.ndarray], random: np.random.RandomState, hue: float) -> None:
    """Fill with one texture, edges antialiased. OpenCV counts from pixel centres, annotations from pixel
    edges, hence the half pixel."""
    import cv2

    box = _extent(polygons)
    left, top = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
    right, bottom = np.ceil(box[2:]).astype(int) + 1
    part = pixels[top:bottom, left:right]
    covered = np.zeros(part.shape[:2], np.uint8)
    for polygon in polygons:
        corners = np.round((polygon - [left, top] - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(covered, [corners], 255, lineType=cv2.LINE_AA, shift=4)
    alpha = covered[:, :, None].astype(np.float32) / 255
    around = part[covered > 0].mean(axis=0) if covered.any() else np.zeros(3)
    part[:] = np.round(part * (1 - alpha) + texture(random, *covered.shape, around, hue) * alpha)


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


def _keypoints(points: np.ndarray, size: tuple[int, int], *, labelled: bool) -> dict[str, Any]:
    """COCO's flat list of x, y, v; points outside the image and those of small persons are not labelled."""
    shown = labelled & ((points >= 0) & (points <= size)).all(axis=1)
    flat: list[float] = []
    for (x, y), here in zip(points, shown, strict=True):
        flat += [round(float(x), 2), round(float(y), 2), 2] if here else [0, 0, 0]
    return {"keypoints": flat, "num_keypoints": int(shown.sum())}


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
    corner = np.array([random.uniform(2, width - 72), random.uniform(2, height - 52)])
    mask = np.zeros((height, width), np.uint8)
    for _ in range(12):
        polygons, _ = outline(name, random)
        at = corner + random.uniform(0, 1, size=2) * [58, 38]
        polygons = [polygon * 11 + at for polygon in polygons]
        _fill(scene.pixels, polygons, random, hue_of(name))
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
    """Column by column: lengths of alternating runs of 0 and 1, beginning with 0."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs
