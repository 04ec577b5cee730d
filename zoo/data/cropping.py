"""Cropping of very wide or very tall images, and padding to the ratio of a batch, as Detectron.pytorch and
DetNet_pytorch do them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from detection_zoo.zoo.data.transforms import PreprocessedImage
from detection_zoo.zoo.records import Target

Item = tuple[PreprocessedImage, Target]


class Draws(Protocol):
    """Source of randomness: numpy's legacy or new generator."""

    def choice(self, a: Any) -> Any:
        """One of a sequence."""
        ...

    def shuffle(self, x: Any) -> None:
        """Put the rows of an array into another order, in place."""
        ...


def crop_start(near: int, far: int, window: int, side: int, draws: Draws, *, last: bool) -> int:
    """Start of a window along one axis that contains the objects, or starts among them.

    Args:
        near, far: first and last pixel of all objects together.
        window: its length, at most `side`.
        side: of the image, in pixels.
        draws: source of the position, where there is a choice.
        last: the end of the range may be drawn too (Detectron.pytorch), or not (DetNet_pytorch).
    """
    if near == 0:
        return 0
    spare = far - near + 1 - window
    if spare < 0:
        low, high = max(far - window, 0), min(near, side - window)
    else:
        low, high = near, near + spare // 2
    return low if high <= low else int(draws.choice(range(low, high + last)))


def crop(item: Item, axis: int, window: int, draws: Draws, *, last: bool) -> Item:
    """Cut a window out of an image along one axis, and move its boxes, polygons and keypoints with it.

    Boxes are clipped to the window; keypoints outside it become unlabelled. Polygons are only shifted: the
    parts outside are cut off when masks are rasterised.

    Args:
        item: an image with at least one object.
        axis: 0 cuts the width, 1 the height.
        window: pixels that stay.
        draws, last: as in `crop_start`.
    """
    image, target = item
    side = image.size[1 - axis]
    boxes = target.boxes
    near, far = int(boxes[:, axis].min().floor()), int(boxes[:, axis + 2].max().floor())
    start = crop_start(near, far, window, side, draws, last=last)
    tensor = image.tensor.narrow(2 - axis, start, min(window, side - start))
    boxes = boxes.clone()
    boxes[:, [axis, axis + 2]] = (boxes[:, [axis, axis + 2]] - start).clamp(0, window - 1)
    polygons = target.polygons and [
        [[v - start if i % 2 == axis else v for i, v in enumerate(part)] for part in parts]
        for parts in target.polygons
    ]
    keypoints = target.keypoints
    if keypoints is not None:
        keypoints = keypoints.clone()
        keypoints[..., axis] -= start
        outside = (keypoints[..., axis] < 0) | (keypoints[..., axis] > window - 1)
        keypoints[outside] = 0
    moved = replace(target, boxes=boxes, polygons=polygons, keypoints=keypoints)
    return replace(image, tensor=tensor, size=tuple(tensor.shape[1:])), moved


def crop_to_ratio(item: Item, ratio: float, draws: Draws) -> Item:
    """Crop an image to an aspect ratio (width / height), as Detectron.pytorch does with aspect cropping.

    The original does not shift masks and keypoints; here they are shifted.
    """
    height, width = item[0].size
    if not len(item[1].boxes):
        return item
    if ratio < 1:
        return without_thin(crop(item, 1, min(int(np.ceil(width / ratio)), height), draws, last=True))
    return without_thin(crop(item, 0, min(int(np.ceil(height * ratio)), width), draws, last=True))


def fit_to_ratio(item: Item, ratio: float, own_ratio: float, draws: Draws, max_objects: int | None) -> Item:
    """Fit an image to the aspect ratio of its group, as DetNet_pytorch: objects shuffled, the image cropped
    where its own ratio is beyond 1/2 to 2, then padded; cut to a square where the group's ratio is 1.

    Args:
        item: resized image and its target.
        ratio: width over height of the group.
        own_ratio: of the original image.
        draws: source of the order of objects, then of the window.
        max_objects: no more than the first so many of the shuffled objects; None: all.

    Returns:
        the image and target; the image's size is the padded one, as in the original.
    """
    ratio = np.float32(ratio)  # as in the original
    order = np.arange(len(item[1].boxes)).reshape(-1, 1)
    draws.shuffle(order)
    item = item[0], select(item[1], torch.from_numpy(order[:, 0]))
    height, width = item[0].size
    if not 0.5 <= own_ratio <= 2 and len(item[1].boxes):
        if ratio < 1:
            item = crop(item, 1, int(np.floor(np.float32(width) / ratio)), draws, last=False)
        else:
            item = crop(item, 0, int(np.ceil(np.float32(height) * ratio)), draws, last=False)
    image, target = item
    if ratio == 1:
        side = min(height, width)
        padded = image.tensor[:, :side, :side]
        target = replace(target, boxes=target.boxes.clamp(0, side))
    else:
        tall, wide = height, width
        if ratio < 1:
            tall = int(np.ceil(np.float32(width) / ratio))
        else:
            wide = int(np.ceil(np.float32(height) * ratio))
        padded = image.tensor.new_zeros(3, tall, wide)
        tensor = image.tensor[:, :tall, :wide]
        padded[:, : tensor.shape[1], : tensor.shape[2]] = tensor
    image, target = without_thin((replace(image, tensor=padded, size=tuple(padded.shape[1:])), target))
    return image, select(target, torch.arange(len(target.boxes))[:max_objects])


def without_thin(item: Item) -> Item:
    """An item without the objects that have no width or no height left."""
    image, target = item
    sides = target.boxes[:, 2:] != target.boxes[:, :2]
    return image, select(target, torch.nonzero(sides.all(dim=1)).squeeze(1))


def select(target: Target, rows: torch.Tensor) -> Target:
    """The objects of a target in those rows (R,) int64, in their order."""
    return replace(
        target,
        boxes=target.boxes[rows],
        labels=target.labels[rows],
        polygons=target.polygons and [target.polygons[row] for row in rows.tolist()],
        keypoints=None if target.keypoints is None else target.keypoints[rows],
        crowd=None if target.crowd is None else target.crowd[rows],
    )
