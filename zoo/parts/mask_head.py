"""The mask branch: head, targets from polygons, loss, and pasting into images (Mask R-CNN, He et al. 2017,
section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection_zoo.zoo.parts.boxes import widened
from detection_zoo.zoo.parts.fixed_size import fixed_size
from detection_zoo.zoo.parts.norm import ConvNorm
from detection_zoo.zoo.parts.polygons import draw_polygons
from detection_zoo.zoo.parts.proposals import Size
from detection_zoo.zoo.parts.trace import record


class MaskHead(nn.Module):
    """Pooled features to one map of mask logits per class (background first).

    Args:
        pooler: pools features of boxes; None if the box head's maps are used (C4).
        channels: of the pooled features.
        num_classes: K.
        convs: 3x3 convolutions before the upsampling. norm: their norm, "none" for biases.
        width: of the convolutions and of the upsampling. dilation: of the convolutions.
        stage: applied before them to the pooled features; None for none.
    """

    def __init__(
        self,
        pooler: nn.Module | None,
        channels: int,
        num_classes: int,
        *,
        convs: int = 4,
        norm: str = "none",
        width: int = 256,
        dilation: int = 1,
        stage: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.pooler, self.stage = pooler, stage or nn.Identity()
        self.convs = nn.Sequential(
            *(
                ConvNorm(channels if i == 0 else width, width, 3, norm=norm, dilation=dilation)
                for i in range(convs)
            )
        )
        self.upsample = nn.ConvTranspose2d(width if convs else channels, width, 2, 2)
        self.logits = nn.Conv2d(width, num_classes + 1, 1)
        for layer in [*self.convs.modules(), self.upsample, self.logits]:
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features (R, C, M / 2, M / 2) to logits (R, K + 1, M, M)."""
        hidden = F.relu(self.upsample(self.convs(self.stage(pooled))), inplace=True)
        record("mask.hidden", hidden)
        return self.logits(hidden)


def class_masks(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities (R, M, M) of each row's own class, from logits (R, K + 1, M, M) and labels (R,)
    0..K-1."""
    return widened(logits[torch.arange(len(labels), device=logits.device), labels + 1]).sigmoid()


def rasterise(
    polygons: Sequence[Sequence[float]],
    box: Sequence[float],
    side: int,
    size: Size | None = None,
    least: float = 1.0,
) -> np.ndarray:
    """The part of an object's polygons inside a box, as a side x side mask; polygons are moved and scaled,
    not clipped.

    Args:
        polygons: flat [x, y, ...] lists in image pixels, joined.
        box: x1, y1, x2, y2; its sides are x2 - x1, at least `least`.
        side: M.
        size: (height, width) that the box is clipped to first; None for no clipping.
    """
    from pycocotools import mask as coco_mask

    x1, y1, x2, y2 = (float(v) for v in box)
    if size is not None:
        height, width = size
        x1, y1 = min(max(x1, 0.0), width - 1), min(max(y1, 0.0), height - 1)
        x2, y2 = min(max(x2, 0.0), width), min(max(y2, 0.0), height)
    scale = np.array([side / max(x2 - x1, least), side / max(y2 - y1, least)])
    moved = [
        ((np.asarray(p, dtype=np.float64).reshape(-1, 2) - (x1, y1)) * scale).reshape(-1).tolist()
        for p in polygons
    ]
    if not moved:
        return np.zeros((side, side), dtype=np.uint8)
    encoded: Any = coco_mask.frPyObjects(moved, side, side)
    return coco_mask.decode(coco_mask.merge(encoded))


def mask_targets(
    boxes: Tensor,
    matches: Tensor,
    polygons: Sequence[Sequence[Sequence[float]]],
    side: int,
    size: Size | None,
    least: float = 1.0,
) -> Tensor:
    """Targets (R, side, side) float of boxes (R, 4), each from the polygons of its matched object; other
    arguments as in `rasterise`. With fixed size they are rasterised on the device, with arbitrary values in
    absent rows."""
    if fixed_size(boxes):
        return draw_polygons(polygons, boxes, matches, side, size, least)
    masks = [
        rasterise(polygons[match], box, side, size, least)
        for box, match in zip(boxes.tolist(), matches.tolist(), strict=True)
    ]
    stacked = np.stack(masks) if masks else np.zeros((0, side, side), dtype=np.uint8)
    return torch.from_numpy(stacked).to(boxes.device, torch.float32)


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy of each row's own class (He et al. 2017, section 3); 0 if there are no rows.

    Args:
        logits: (R, K + 1, M, M). labels: (R,) int64, 1..K, -1 in absent rows. targets: (R, M, M) 0 or 1.
    """
    used = (labels > 0)[:, None, None]
    own = logits[torch.arange(len(labels), device=logits.device), labels.clamp(min=0)]
    whole = F.binary_cross_entropy_with_logits(
        own, targets.to(own.dtype), weight=used.to(own.dtype), reduction="sum"
    )
    return whole / (used.sum() * own[:1].numel()).clamp(min=1)


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    size: Size,
    *,
    threshold: float = 0.5,
    padding: int = 1,
    interpolation: str = "torch",
) -> Tensor:
    """Masks in the whole image: each is zero-padded, resized to its enlarged box, and compared with the
    threshold.

    The box is enlarged by (M + 2 * padding) / M around its centre, truncated to integers, and spans x2 - x1 +
    1 pixels.

    Args:
        masks: (R, M, M) float probabilities.
        boxes: (R, 4) float pixels of the image.
        size: (height, width) of the image.
        interpolation: "torch" or "cv2", the bilinear resize (they round differently in the last bit).

    Returns:
        (R, height, width) bool.
    """
    height, width = size
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    padded = F.pad(masks, (padding,) * 4)
    grown = grow_boxes(boxes, padded.shape[-1] / masks.shape[-1]).to(torch.int32).tolist()
    for row, (x1, y1, x2, y2) in enumerate(grown):
        shape = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, width), min(y2 + 1, height)
        if right > left and bottom > top:
            resized = _resize(padded[row], shape, interpolation) > threshold
            pasted[row, top:bottom, left:right] = resized[top - y1 : bottom - y1, left - x1 : right - x1]
    return pasted


def grow_boxes(boxes: Tensor, factor: float) -> Tensor:
    """Boxes (R, 4) enlarged by a factor around their centres, sides being x2 - x1."""
    x1, y1, x2, y2 = boxes.unbind(1)
    half_width, half_height = (x2 - x1) * 0.5 * factor, (y2 - y1) * 0.5 * factor
    x, y = (x2 + x1) * 0.5, (y2 + y1) * 0.5
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=1)


def _resize(mask: Tensor, shape: tuple[int, int], interpolation: str) -> Tensor:
    if interpolation == "torch":
        return F.interpolate(mask[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
    import cv2

    return torch.from_numpy(cv2.resize(mask.detach().cpu().numpy(), shape[::-1])).to(mask.device)
