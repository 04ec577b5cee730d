"""Resizing: the sizes of each source's rule, and the pixels of its library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Interpolation = Literal["pil_bilinear", "cv2_bilinear", "tf1_bilinear"]


@dataclass(frozen=True)
class ResizePlan:
    """The resize of one image: its new size in pixels, and the (x, y) factors for boxes.

    common_factor: the pixel grid follows the factor (cv2 with fx, fy), not the ratio of the rounded sizes.
    crop: (top, left, height, width) cut out afterwards.
    """

    height: int
    width: int
    scale: tuple[float, float]
    common_factor: bool = False
    crop: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class ShorterSide:
    """The shorter side becomes `size` pixels, the longer one at most `longest` (None: unbounded).

    rounding: "truncate" cuts both sides to whole pixels and lets each axis have its own ratio
        (maskrcnn-benchmark);
    "round" scales both axes by one factor and rounds the sizes half to even (Detectron, DetNet_pytorch);
    "half_up" rounds halves up after the longer side was bounded, and lets each axis have its own ratio
    (Detectron2).
    """

    size: int
    longest: int | None = None
    rounding: Literal["truncate", "round", "half_up"] = "truncate"

    def plan(self, height: int, width: int) -> ResizePlan:
        """The resize of an image of (height, width) pixels."""
        return {"truncate": self._truncated, "round": self._rounded, "half_up": self._rounded_up}[
            self.rounding
        ](height, width)

    def _truncated(self, height: int, width: int) -> ResizePlan:
        short, long, size = min(height, width), max(height, width), self.size
        if self.longest is not None and long / short * size > self.longest:
            size = int(round(self.longest * short / long))
        if short == size:
            return ResizePlan(height, width, (1.0, 1.0))
        new_height = size if height <= width else int(size * height / width)
        new_width = size if width <= height else int(size * width / height)
        return ResizePlan(new_height, new_width, (new_width / width, new_height / height))

    def _rounded(self, height: int, width: int) -> ResizePlan:
        short, long = min(height, width), max(height, width)
        factor = self.size / short
        if self.longest is not None and round(factor * long) > self.longest:
            factor = self.longest / long
        return ResizePlan(round(height * factor), round(width * factor), (factor, factor), common_factor=True)

    def _rounded_up(self, height: int, width: int) -> ResizePlan:
        factor = self.size / min(height, width)
        sides = (self.size, factor * width) if height < width else (factor * height, self.size)
        bound = 1.0 if self.longest is None or max(sides) <= self.longest else self.longest / max(sides)
        new_height, new_width = (int(side * bound + 0.5) for side in sides)
        return ResizePlan(new_height, new_width, (new_width / width, new_height / height))


@dataclass(frozen=True)
class FixedSize:
    """Both sides become `size` pixels; the aspect ratio is not kept (SSD)."""

    size: int

    def plan(self, height: int, width: int) -> ResizePlan:
        """The resize of an image of (height, width) pixels."""
        return ResizePlan(self.size, self.size, (self.size / width, self.size / height))


@dataclass(frozen=True)
class ResizeThenCentreCrop:
    """The shorter side becomes `short` pixels (the longer one is truncated), then the centre `crop` x `crop`
    is kept (classifiers).

    rounding: where the margins are odd, the crop's corner is rounded half to even (torchvision) or truncated
        (Keras, Caffe).
    """

    short: int
    crop: int
    rounding: Literal["round", "truncate"] = "round"

    def plan(self, height: int, width: int) -> ResizePlan:
        """The resize of an image of (height, width) pixels."""
        new_height = self.short if height <= width else int(self.short * height / width)
        new_width = self.short if width <= height else int(self.short * width / height)
        whole = round if self.rounding == "round" else int
        top, left = (whole((side - self.crop) / 2.0) for side in (new_height, new_width))
        return ResizePlan(
            new_height,
            new_width,
            (new_width / width, new_height / height),
            crop=(top, left, self.crop, self.crop),
        )


@dataclass(frozen=True)
class NoResize:
    """Images keep their size."""

    def plan(self, height: int, width: int) -> ResizePlan:
        """The resize of an image of (height, width) pixels: none."""
        return ResizePlan(height, width, (1.0, 1.0))


Resize = ShorterSide | FixedSize | ResizeThenCentreCrop | NoResize


def resize_pixels(pixels: np.ndarray, plan: ResizePlan, interpolation: Interpolation) -> np.ndarray:
    """Resize and crop as planned.

    Args:
        pixels: (H, W, 3) uint8, or float32 for cv2 and tf1.
        plan: from a resize rule.
        interpolation: see `Preprocess` of transforms.py.

    Returns:
        (H', W', 3); uint8 from uint8, but float32 from tf1_bilinear.
    """
    resized = (
        pixels if pixels.shape[:2] == (plan.height, plan.width) else _INTERPOLATE[interpolation](pixels, plan)
    )
    if plan.crop is None:
        return resized
    top, left, height, width = plan.crop
    return resized[top : top + height, left : left + width]


def _resize_pil(pixels: np.ndarray, plan: ResizePlan) -> np.ndarray:
    from PIL import Image

    if 2 <= pixels.shape[0] <= plan.height and 2 <= pixels.shape[1] <= plan.width:
        enlarge = _enlargement()
        if enlarge is not None:
            return enlarge(pixels, plan.height, plan.width)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((plan.width, plan.height), Image.Resampling.BILINEAR))


@functools.cache
def _enlargement() -> Callable[[np.ndarray, int, int], np.ndarray] | None:
    """A function that enlarges bit-identically to Pillow in a fifth of its time; None if numba is not
    installed."""
    try:
        from detection_zoo.kernels.bilinear_cpu import enlarge_bilinear
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return None
    return enlarge_bilinear


def _resize_cv2(pixels: np.ndarray, plan: ResizePlan) -> np.ndarray:
    import cv2

    pixels = np.ascontiguousarray(pixels)
    if plan.common_factor:
        return cv2.resize(pixels, None, fx=plan.scale[0], fy=plan.scale[1], interpolation=cv2.INTER_LINEAR)
    return cv2.resize(pixels, (plan.width, plan.height), interpolation=cv2.INTER_LINEAR)


def _resize_tf1(pixels: np.ndarray, plan: ResizePlan) -> np.ndarray:
    """Output pixel i samples input coordinate i * in / out: TensorFlow 1's default, without the half-pixel
    offset."""
    height, width = pixels.shape[:2]
    y0, y1, wy = _tf1_axis(height, plan.height)
    x0, x1, wx = _tf1_axis(width, plan.width)
    near, far = pixels[y0].astype(np.float32), pixels[y1].astype(np.float32)
    rows = _between(near, far, wy[:, None, None])  # (H', W, 3)
    return _between(np.take(rows, x0, axis=1), np.take(rows, x1, axis=1), wx[None, :, None])


def _between(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """low + (high - low) * weight, in the memory of `high`."""
    high -= low
    high *= weight
    high += low
    return high


def _tf1_axis(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place = np.arange(new, dtype=np.float32) * np.float32(old / new)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32)


_INTERPOLATE = {"pil_bilinear": _resize_pil, "cv2_bilinear": _resize_cv2, "tf1_bilinear": _resize_tf1}
