"""Training targets from ground truth in original pixels, by the rules of one source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detection_zoo.zoo.conventions import ObjectConventions, TargetConventions
from detection_zoo.zoo.data.base import Dataset, GroundTruth

if TYPE_CHECKING:
    from detection_zoo.zoo.records import Target


class TargetRules(ObjectConventions):
    """Which objects a source trains on, and how it writes their boxes.

    min_visible_keypoints: images with fewer labelled keypoints are left out.
    """

    min_visible_keypoints: int = 0

    @classmethod
    def from_conventions(cls, targets: TargetConventions, *, min_visible_keypoints: int = 0) -> TargetRules:
        """Build from the `targets` section of a row's conventions."""
        own = targets.model_dump(include=set(ObjectConventions.model_fields))
        return cls(**own, min_visible_keypoints=min_visible_keypoints)


def training_boxes(
    truth: GroundTruth, size: tuple[int, int], rules: TargetRules
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes a source trains on.

    Args:
        truth: ground truth of the image.
        size: (height, width) of the original image in pixels.
        rules: of the source.

    Returns:
        (R, 4) float64 x1, y1, x2, y2 in original pixels, and (R,) int64 their rows in `truth`.
    """
    less = 1.0 if rules.inclusive else 0.0
    limit = np.array([size[1], size[0]]) - less
    start = truth.boxes_xywh[:, :2]
    extent = np.maximum(truth.boxes_xywh[:, 2:] - less, 0)
    clipped = np.clip(start, 0, limit)
    end = np.clip((np.maximum(start, 0) if rules.extent_from_clipped else start) + extent, 0, limit)
    boxes = np.concatenate([np.maximum(start, 0) if rules.extent_from_clipped else clipped, end], axis=1)
    if rules.whole_pixels:
        boxes = np.trunc(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (sides >= 0).all(axis=1) if rules.keep_thin else (sides > 0).all(axis=1)
    keep &= (rules.crowd | ~truth.crowd) & (rules.difficult | ~truth.difficult)
    if rules.need_area:
        keep &= truth.area > 0
    rows = np.flatnonzero(keep)[: rules.max_objects]
    return boxes[rows], rows


def trained_images(dataset: Dataset, rules: TargetRules) -> list[int]:
    """Indices of the images that a source trains on."""
    return [
        index
        for index in range(len(dataset))
        if _trained(dataset.target(index), dataset.image_size(index), rules)
    ]


def _trained(truth: GroundTruth, size: tuple[int, int], rules: TargetRules) -> bool:
    if rules.images == "annotated" and not (truth.boxes_xywh[:, 2:] > 1).all(axis=1).any():
        return False
    if rules.images == "usable" and truth.crowd[training_boxes(truth, size, rules)[1]].all():
        return False
    if rules.min_visible_keypoints:
        return (
            truth.keypoints is not None
            and int((truth.keypoints[..., 2] > 0).sum()) >= rules.min_visible_keypoints
        )
    return True


def make_target(
    truth: GroundTruth,
    size: tuple[int, int],
    scale: tuple[float, float],
    rules: TargetRules,
    *,
    resized_width: int,
    flip: bool = False,
    keypoint_names: Sequence[str] = (),
) -> Target:
    """The training target of one image in the network's pixels.

    Args:
        truth: ground truth in original pixels.
        size: (height, width) of the original image.
        scale: (x, y) factors of the resize.
        rules: of the source.
        resized_width: of the network's input before padding, in pixels.
        flip: mirror left and right, keypoints' sides included.
        keypoint_names: needed to swap left and right keypoints in a flip.
    """
    import torch

    from detection_zoo.zoo.records import Target

    boxes, rows = training_boxes(truth, size, rules)
    mirror = (size[1] if rules.flip_first else resized_width) - (1 if rules.inclusive else 0)
    factors = np.array([*scale, *scale])
    if not rules.flip_first:
        boxes = boxes * factors
    if flip:
        boxes = boxes[:, [2, 1, 0, 3]]
        boxes[:, [0, 2]] = mirror - boxes[:, [0, 2]]
    if rules.flip_first:
        boxes = boxes * factors

    def points(xy: np.ndarray) -> np.ndarray:
        """Scaled and mirrored (n, 2) points, in the order of the source."""
        xy = xy.copy() if rules.flip_first else xy * scale
        if flip:
            xy[:, 0] = mirror - xy[:, 0]
        return xy * scale if rules.flip_first else xy

    return Target(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        labels=torch.from_numpy(truth.labels[rows]),
        polygons=None if truth.masks is None else [_polygons(truth.masks[row], points) for row in rows],
        keypoints=(
            None
            if truth.keypoints is None
            else torch.from_numpy(_keypoints(truth.keypoints[rows], points, flip, keypoint_names))
        ),
        crowd=torch.from_numpy(truth.crowd[rows]),
        scale=(float(scale[0]), float(scale[1])),
    )


def _polygons(mask: list[list[float]] | dict[str, Any] | None, points: Any) -> list[list[float]]:
    """Polygons of at least three corners; a crowd's RLE has none."""
    if not isinstance(mask, list):
        return []
    return [
        points(np.array(polygon, np.float64).reshape(-1, 2)).reshape(-1).tolist()
        for polygon in mask
        if len(polygon) >= 6
    ]


def _keypoints(keypoints: np.ndarray, points: Any, flip: bool, names: Sequence[str]) -> np.ndarray:
    """(R, P, 3) moved like the boxes; points that are not labelled become zeros where they are flipped."""
    moved = keypoints.astype(np.float64)
    moved[..., :2] = points(moved[..., :2].reshape(-1, 2)).reshape(*moved.shape[:2], 2)
    if flip:
        moved = moved[:, mirrored_keypoints(names)]
        moved[moved[..., 2] == 0] = 0
    return moved.astype(np.float32)


def mirrored_keypoints(names: Sequence[str]) -> list[int]:
    """For each keypoint, the index of its mirror image: left_* and right_* are swapped, others stay."""
    place = {name: index for index, name in enumerate(names)}
    swap = {"left_": "right_", "right_": "left_"}
    return [
        next(
            (place[other + name.removeprefix(side)] for side, other in swap.items() if name.startswith(side)),
            index,
        )
        for index, name in enumerate(names)
    ]
