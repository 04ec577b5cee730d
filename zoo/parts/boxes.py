"""Box arithmetic: areas, IoU, clipping, scaling, and the coding of boxes as deltas. Boxes are (x1, y1, x2,
y2) pixels.

The width of a box is x2 - x1 + `offset`: 1.0 if far corners are inclusive pixels (Detectron's family),
otherwise 0.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DELTA_CAP = math.log(1000.0 / 16)  # Detectron's bound of dw and dh: boxes grow at most from 16 to 1000 pixels


def widened(values: Tensor) -> Tensor:
    """Values of any shape (...) in at least float32; half types are too coarse for scores and coordinates."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def box_areas(boxes: Tensor, offset: float = 0.0) -> Tensor:
    """Areas (R,) in square pixels of boxes (R, 4)."""
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


def box_iou(first: Tensor, second: Tensor, offset: float = 0.0) -> Tensor:
    """Intersection over union of every pair.

    Args:
        first: (R, 4) float boxes.
        second: (S, 4) float boxes.
        offset: added to every side.

    Returns:
        (R, S) float.
    """
    near = torch.maximum(first[:, None, :2], second[None, :, :2])
    far = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = (far - near + offset).clamp(min=0)  # (R, S, 2)
    overlap = sides[..., 0] * sides[..., 1]
    return overlap / (box_areas(first, offset)[:, None] + box_areas(second, offset) - overlap)


def clip_boxes(boxes: Tensor, size: Tensor | Sequence[float], offset: float = 0.0) -> Tensor:
    """Boxes (..., 4) clipped to [0, width - offset] x [0, height - offset]; size is (height, width), as
    numbers or as tensors, which are not read on the host (export, recorded graphs)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    if isinstance(size[0], Tensor) and (size[0].is_cuda or torch.compiler.is_compiling()):
        height, width = (side.to(boxes.dtype) - offset for side in size)
        x1, y1, x2, y2 = (each.clamp(min=0) for each in (x1, y1, x2, y2))
        return torch.stack(
            [x1.minimum(width), y1.minimum(height), x2.minimum(width), y2.minimum(height)], dim=-1
        )
    height, width = float(size[0]) - offset, float(size[1]) - offset
    return torch.stack(
        [x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1
    )


def large_enough(boxes: Tensor, min_size: float, offset: float = 0.0) -> Tensor:
    """Mark (R,) bool the boxes (R, 4) whose sides are both at least `min_size` pixels."""
    sides = boxes[:, 2:] - boxes[:, :2] + offset
    return (sides >= min_size).all(dim=1)


def scale_boxes(boxes: Tensor, factor_x: float, factor_y: float) -> Tensor:
    """Boxes (R, 4) with x multiplied by one factor and y by the other."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1 * factor_x, y1 * factor_y, x2 * factor_x, y2 * factor_y], dim=-1)


@dataclass(frozen=True)
class BoxCoder:
    """Boxes as (dx, dy, dw, dh) relative to other boxes (R-CNN, Girshick et al. 2014, appendix C).

    weights: the four deltas are multiplied by them when encoding, divided when decoding.
    offset: added to sides of boxes; centres are x1 + width / 2 with that width.
    far_offset: subtracted from decoded far corners (Detectron 1, DetNet_pytorch 0 although its offset is 1).
    cap: upper bound of dw and dh after the division; None for no bound.
    """

    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
    offset: float = 1.0
    far_offset: float = 1.0
    cap: float | None = DELTA_CAP

    def _pairs(self, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Weights of the centres and of the sides: plain numbers if equal for x and y, without a copy to the
        device."""
        pairs = self.weights[:2], self.weights[2:]
        return tuple(a if a == b else like.new_tensor([a, b]) for a, b in pairs)

    def _centres_and_sides(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        sides = boxes[:, 2:] - boxes[:, :2] + self.offset
        return boxes[:, :2] + 0.5 * sides, sides

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Deltas (R, 4) that turn anchors (R, 4) into boxes (R, 4)."""
        centres, sides = self._centres_and_sides(boxes)
        anchor_centres, anchor_sides = self._centres_and_sides(anchors)
        near, far = self._pairs(boxes)
        return torch.cat(
            [near * (centres - anchor_centres) / anchor_sides, far * torch.log(sides / anchor_sides)], dim=1
        )

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (R, 4 * K) from deltas (R, 4 * K), K sets per row, relative to anchors (R, 4)."""
        centres, sides = self._centres_and_sides(anchors)
        parts = widened(deltas).reshape(len(deltas), deltas.shape[1] // 4, 4)  # (R, K, 4)
        near, far = self._pairs(parts)
        growth = parts[..., 2:] / far
        growth = growth if self.cap is None else growth.clamp(max=self.cap)
        centres = parts[..., :2] / near * sides[:, None] + centres[:, None]
        sides = torch.exp(growth) * sides[:, None]
        boxes = torch.cat([centres - 0.5 * sides, centres + 0.5 * sides - self.far_offset], dim=2)
        return boxes.reshape(deltas.shape)
