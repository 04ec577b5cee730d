"""Decoded pixels to the network's input: resized and normalised exactly as in one source."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from detection_zoo.zoo.data.resizing import (
    FixedSize,
    Interpolation,
    NoResize,
    Resize,
    ResizePlan,
    ResizeThenCentreCrop,
    ShorterSide,
    resize_pixels,
)

if TYPE_CHECKING:
    import torch

    from detection_zoo.zoo.conventions import ImageConventions

# multiplied by, then added
_RANGE = {"0..255": (1.0, 0.0), "0..1": (1 / 255.0, 0.0), "-1..1": (2 / 255.0, -1.0)}


@dataclass(frozen=True)
class PreprocessedImage:
    """One image as input of the network.

    tensor (3, H, W) float32; size, original_size (height, width) in pixels; scale (x, y): factors from
    original to resized coordinates.
    """

    tensor: torch.Tensor
    size: tuple[int, int]
    original_size: tuple[int, int]
    scale: tuple[float, float]


@dataclass(frozen=True)
class Preprocess:
    """Resizing and normalising by one bundle of conventions.

    Args:
        channel_order: of the network's input; input images are RGB.
        value_range: of the values before mean and std.
        mean, std: subtracted, then divided by, in channel order.
        resize: the rule for sizes.
        interpolation: "pil_bilinear" (antialiased, on uint8), "cv2_bilinear" (not antialiased),
            "tf1_bilinear" (no half-pixel offset).
        normalise_first: mean and std are applied before resizing, on float pixels.
        size_divisor: batches are padded to multiples of it.
        through_fractions: mean and std are applied in float32 after torchvision's to_tensor, otherwise in
            float64.
    """

    channel_order: Literal["rgb", "bgr"]
    value_range: Literal["0..255", "0..1", "-1..1"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize
    interpolation: Interpolation = "pil_bilinear"
    normalise_first: bool = False
    size_divisor: int = 1
    through_fractions: bool = False

    def __post_init__(self) -> None:
        if self.normalise_first and self.interpolation == "pil_bilinear":
            raise ValueError(
                "Pillow resizes uint8 pixels only: normalise_first needs cv2_bilinear or tf1_bilinear"
            )

    @classmethod
    def from_conventions(cls, image: ImageConventions) -> Preprocess:
        """Build from the `image` section of a row's conventions."""
        own = image.model_dump(include={field.name for field in fields(cls)})
        own |= {"mean": tuple(image.mean), "std": tuple(image.std), "resize": _resize_rule(image)}
        return cls(**own)

    def with_short_side(self, size: int) -> Preprocess:
        """The same with another shorter side, for multi-scale training; raises TypeError where the rule is
        not ShorterSide."""
        if not isinstance(self.resize, ShorterSide):
            raise TypeError(f"only a shorter-side resize has a short side to change, this is {self.resize}")
        return replace(self, resize=replace(self.resize, size=size))

    def warm_up(self) -> Preprocess:
        """Process a first image, so that everything is compiled and loaded, also for processes forked later;
        returns itself."""
        self(np.zeros((2, 2, 3), np.uint8))
        return self

    def __call__(self, image: np.ndarray) -> PreprocessedImage:
        """Preprocess one image (H, W, 3) uint8 RGB."""
        pixels, plan = self._resized(image)
        if self.normalise_first:
            return _preprocessed(self._split(pixels), image, plan)
        planes = self._split(pixels)
        out = np.empty(planes.shape, np.float32)
        for channel, plane in enumerate(planes):
            self._normalise_plane(plane, channel, out[channel])
        return _preprocessed(out, image, plan)

    def resize_only(self, image: np.ndarray) -> PreprocessedImage:
        """The same without mean and std, as uint8: a quarter of the bytes to copy; `finish` applies them
        on the batch's device.

        Raises:
            TypeError: the source normalises before resizing, or resizes to fractions of a byte.
        """
        if not self.normalises_bytes:
            raise TypeError(
                f"pixels are not whole bytes after resizing with {self.interpolation}, normalise_first"
                f" {self.normalise_first}"
            )
        pixels, plan = self._resized(image)
        return _preprocessed(self._split(pixels), image, plan)

    def finish(self, images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """Mean and std for a padded batch of `resize_only` images, on its own device; equal bit for bit to
        what `__call__` gives.

        Args:
            images: (N, 3, H, W) uint8 in channel order.
            sizes: (N, 2) height and width of each image inside the padding.

        Returns:
            (N, 3, H, W) float32, zero in the padding.
        """
        import torch

        table = torch.from_numpy(self._table).to(images.device)  # (256, 3)
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
        sizes = sizes.to(images.device)
        inside = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])  # (N, H, W)
        out = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        for channel in range(3):
            plane = images[:, channel]
            out[:, channel] = (
                table[:, channel].contiguous().index_select(0, plane.reshape(-1).int()).view(plane.shape)
                * inside
            )
        return out

    @property
    def normalises_bytes(self) -> bool:
        """Whether mean and std are applied to whole bytes, which `resize_only` needs."""
        return not self.normalise_first and self.interpolation != "tf1_bilinear"

    @property
    def _order(self) -> tuple[int, ...]:
        """For each channel of the network, the channel of the RGB image."""
        return (2, 1, 0) if self.channel_order == "bgr" else (0, 1, 2)

    @cached_property
    def _table(self) -> np.ndarray:
        """(256, 3) float32: what each byte becomes in each channel of the network."""
        return np.stack(
            [self._normalised(np.arange(256, dtype=np.float64), channel) for channel in range(3)], axis=1
        )

    def _normalised(self, values: np.ndarray, channel: int) -> np.ndarray:
        if self.through_fractions:
            return self._normalised_fractions(values.astype(np.float32) / np.float32(255), channel)
        factor, offset = _RANGE[self.value_range]
        return ((values * factor + offset - self.mean[channel]) / self.std[channel]).astype(np.float32)

    def _normalised_fractions(self, values: np.ndarray, channel: int) -> np.ndarray:
        """Of float32 fractions of 255, every step rounded to float32."""
        factor, offset = _RANGE[self.value_range]
        ranged = values * np.float32(factor * 255) + np.float32(offset)
        return (ranged - np.float32(self.mean[channel])) / np.float32(self.std[channel])

    def _normalise_plane(self, plane: np.ndarray, channel: int, out: np.ndarray) -> None:
        """Mean and std of one channel, written into `out`, (H, W) float32."""
        import cv2

        if plane.dtype == np.uint8:
            cv2.LUT(plane, np.ascontiguousarray(self._table[:, channel])[None], dst=out)
            return
        out[...] = self._normalised(plane.astype(np.float64), channel)

    def _split(self, pixels: np.ndarray) -> np.ndarray:
        """(3, H, W) in the network's channel order, of pixels (H, W, 3) in RGB order."""
        import cv2

        out = np.empty((3, *pixels.shape[:2]), pixels.dtype)
        targets = [out[self._order.index(source)] for source in range(3)]
        cv2.split(np.ascontiguousarray(pixels), targets)
        return out

    def _resized(self, image: np.ndarray) -> tuple[np.ndarray, ResizePlan]:
        """Resized pixels in RGB order: float32 and normalised already where the source does that first."""
        import cv2

        plan = self.resize.plan(*image.shape[:2])
        if self.normalise_first:
            image = cv2.LUT(
                np.ascontiguousarray(image), np.ascontiguousarray(self._table[:, self._order])[None]
            )
        return resize_pixels(image, plan, self.interpolation), plan


def _preprocessed(channels: np.ndarray, image: np.ndarray, plan: ResizePlan) -> PreprocessedImage:
    import torch

    return PreprocessedImage(torch.from_numpy(channels), channels.shape[1:], image.shape[:2], plan.scale)


def _resize_rule(image: ImageConventions) -> Resize:
    if image.resize == "shorter_side":
        return ShorterSide(image.size, image.max_size, image.rounding)
    if image.resize == "fixed":
        return FixedSize(image.size)
    if image.resize == "centre_crop":
        return ResizeThenCentreCrop(image.resize_short, image.size, image.crop_rounding)
    return NoResize()
