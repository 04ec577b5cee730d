"""Coordinate frames of detections: pixels of the network's input, or of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Side = int | Tensor  # pixels; in a recorded graph a tensor on the device, which is not read
Factor = float | Tensor


@dataclass
class Frame:
    """Coordinate frame of one image: the size of the input without padding, and the factors (x, y) from its
    pixels to the original's."""

    size: tuple[Side, Side]
    original: tuple[Side, Side] | None = None
    factor: tuple[Factor, Factor] = (1.0, 1.0)

    @property
    def whole(self) -> tuple[Side, Side]:
        """Size of the original, or of the input if the original's is unknown."""
        return self.size if self.original is None else self.original


def frames(
    sizes: Tensor, original_sizes: Tensor | None, common: bool, resize: tuple[int, int | None] | None = None
) -> list[Frame]:
    """The frame of each image of sizes (N, 2); factors are the ratio of the sides, or for both axes one
    factor (`common`).

    That factor is the one of `resize` (shorter side, bound of the longer) if the sizes are its result,
    otherwise the ratio of the shorter sides: sizes are rounded, so the factor cannot be computed exactly from
    them.
    """
    limits = list(sizes) if torch.compiler.is_compiling() else sizes.tolist()
    found = [Frame((height, width)) for height, width in limits]
    if original_sizes is not None:
        for frame, (height, width) in zip(found, original_sizes.tolist(), strict=True):
            frame.original = (height, width)
            frame.factor = (width / frame.size[1], height / frame.size[0])
            if common:
                frame.factor = (_unscaled(frame.size, (height, width), resize),) * 2
    return found


def _unscaled(
    size: tuple[int, int], original: tuple[int, int], resize: tuple[int, int | None] | None
) -> float:
    """From input pixels to original pixels."""
    if resize is not None:
        short, longest = resize
        scale = short / min(original)
        if longest is not None and round(scale * max(original)) > longest:
            scale = longest / max(original)
        if tuple(round(side * scale) for side in original) == tuple(size):
            return 1 / scale
    return min(original) / min(size)


def rows_of_frames(where: Sequence[Frame]) -> Tensor:
    """Frames as rows (N, 6) float64: height and width of the input, of the original, factors of x and y."""
    rows = [[*frame.size, *frame.whole, *frame.factor] for frame in where]
    return torch.tensor(rows, dtype=torch.float64)


def frames_of_rows(rows: Tensor) -> list[Frame]:
    """Frames from rows (N, 6), which stay on the device and are not read."""
    return [Frame((row[0], row[1]), (row[2], row[3]), (row[4], row[5])) for row in rows.unbind()]
