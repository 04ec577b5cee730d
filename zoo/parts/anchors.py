"""Anchors: cell boxes of one of several sources, placed on a pyramid of feature maps (Faster R-CNN, Ren et
al. 2015, section 3.1.1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def rounded_cells(stride: float, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Detectron's cell boxes: sides are rounded at the size of one stride, then scaled to `sizes`; ratio
    is height / width.

    Returns:
        (len(ratios) * len(sizes), 4) float64 around the centre (stride - 1) / 2, ordered by ratio, then size,
        with inclusive far corners.
    """
    centre = (stride - 1) / 2
    cells = []
    for ratio in ratios:
        width = np.round(np.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        for size in sizes:
            half_width, half_height = (width * (size / stride) - 1) / 2, (height * (size / stride) - 1) / 2
            cells.append(
                [centre - half_width, centre - half_height, centre + half_width, centre + half_height]
            )
    return np.array(cells)


def centred_cells(stride: float, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """DetNet_pytorch's cell boxes: around the cell's corner (0, 0), without rounding; ratio is width /
    height.

    Returns:
        (len(sizes) * len(ratios), 4) float64, ordered by size, then ratio.
    """
    sides = np.array([[size * np.sqrt(ratio), size / np.sqrt(ratio)] for size in sizes for ratio in ratios])
    return np.concatenate([-sides / 2, sides / 2], axis=1)


def torchvision_cells(stride: float, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """torchvision's cell boxes: around (0, 0), corners rounded half to even; ratio is height / width;
    computed in float32.

    Returns:
        (len(ratios) * len(sizes), 4) float64, ordered by ratio, then size.
    """
    heights = np.sqrt(np.array(ratios, dtype=np.float32))[:, None] * np.array(sizes, dtype=np.float32)
    widths = (1 / np.sqrt(np.array(ratios, dtype=np.float32)))[:, None] * np.array(sizes, dtype=np.float32)
    sides = np.stack([widths.reshape(-1), heights.reshape(-1)], axis=1)
    return np.round(np.concatenate([-sides, sides], axis=1) / 2).astype(np.float64)


KEPT_MAPS = 64  # map sizes whose anchors are cached, about 13 images of five levels
CELL_RULES = {"rounded": rounded_cells, "centred": centred_cells, "torchvision": torchvision_cells}


class AnchorGenerator(nn.Module):
    """Anchors of all cells of all levels, from the cell boxes of each level.

    Args:
        sizes: for each level, the anchor sizes in pixels.
        ratios: aspect ratios; their meaning and the order depend on the rule.
        strides: for each level, the pixels from one cell to the next.
        rule: a name of CELL_RULES.
        slow: order of a cell's anchors: "rule" that of the rule, "size" all ratios of one size, then the next
            size (Detectron's RetinaNet).
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        strides: Sequence[int],
        *,
        rule: str = "rounded",
        slow: str = "rule",
    ) -> None:
        super().__init__()
        if rule not in CELL_RULES:
            raise ValueError(f"unknown anchor rule {rule!r}; known: {', '.join(CELL_RULES)}")
        if len(sizes) != len(strides):
            raise ValueError(
                f"anchor sizes are given for {len(sizes)} levels, but there are {len(strides)} (strides"
                f" {list(strides)})"
            )
        if slow == "size":
            cells = [
                np.concatenate([CELL_RULES[rule](stride, [size], ratios) for size in level])
                for level, stride in zip(sizes, strides, strict=True)
            ]
        else:
            cells = [
                CELL_RULES[rule](stride, level, ratios) for level, stride in zip(sizes, strides, strict=True)
            ]
        if len({len(level) for level in cells}) != 1:
            raise ValueError(
                f"levels need equal numbers of anchors per cell, not {[len(level) for level in cells]}"
            )
        self.strides = list(strides)
        self.per_cell = len(cells[0])  # A
        self._laid: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()  # anchors of the latest maps
        self._cells = [torch.tensor(level, dtype=torch.float32, device="cpu") for level in cells]

    def cells(self) -> list[Tensor]:
        """The cell boxes (A, 4) float32 of each level."""
        return [level.clone() for level in self._cells]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of each level (H * W * A, 4), ordered by row, column, anchor; rounded to float32, then cast
        to the type of the features."""
        if len(features) != len(self._cells):
            raise ValueError(f"anchors are of {len(self._cells)} levels, but there are {len(features)} maps")
        lay = self._level if torch.compiler.is_compiling() else self._kept
        return [lay(level, feature) for level, feature in enumerate(features)]

    def _kept(self, level: int, feature: Tensor) -> Tensor:
        """Anchors of a level, cached for each device, type and map size; shared, so never changed in
        place."""
        key = (level, *feature.shape[-2:], feature.device, feature.dtype)
        if key not in self._laid:
            with torch.inference_mode(False):  # otherwise they could not be used in training
                self._laid[key] = self._level(level, feature)
            while len(self._laid) > KEPT_MAPS:
                self._laid.popitem(last=False)
        self._laid.move_to_end(key)
        return self._laid[key]

    def _level(self, level: int, feature: Tensor) -> Tensor:
        cells, stride = self._cells[level], self.strides[level]
        height, width = feature.shape[-2:]
        device = feature.device
        x = (torch.arange(width, device=device) * stride).expand(height, width)
        y = (torch.arange(height, device=device) * stride)[:, None].expand(height, width)
        shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4).to(torch.float32)  # (H*W, 1, 4)
        kind = feature.dtype if feature.dtype == torch.float64 else torch.float32
        # non-blocking: the driver copies so few numbers to its own buffer before it returns
        return (shifts + cells.to(device, non_blocking=True)).reshape(-1, 4).to(kind)
