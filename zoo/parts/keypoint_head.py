"""The keypoint branch: head, targets, loss, and decoding of heat maps (Mask R-CNN, He et al. 2017, section
5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection_zoo.kernels.operator import operator
from detection_zoo.zoo.parts.fixed_size import rows_of
from detection_zoo.zoo.parts.norm import ConvNorm
from detection_zoo.zoo.parts.trace import record


class KeypointHead(nn.Module):
    """Pooled features to one heat map per keypoint.

    Args:
        pooler: pools features of boxes.
        channels: of the pooled features.
        keypoints: P.
        convs, width: of the 3x3 convolutions.
        upsampling: the last doubling of the size, "interpolate" (bilinear) or "deconvolution" (fixed bilinear
            kernel, zero padding).
    """

    def __init__(
        self,
        pooler: nn.Module,
        channels: int,
        keypoints: int = 17,
        *,
        convs: int = 8,
        width: int = 512,
        upsampling: str = "interpolate",
    ) -> None:
        super().__init__()
        if upsampling not in ("interpolate", "deconvolution"):
            raise ValueError(f"upsampling must be interpolate or deconvolution, not {upsampling!r}")
        self.pooler, self.keypoints, self.upsampling = pooler, keypoints, upsampling
        self.convs = nn.Sequential(*(ConvNorm(channels if i == 0 else width, width, 3) for i in range(convs)))
        self.upsample = nn.ConvTranspose2d(width, keypoints, 4, 2, padding=1)
        ramp = (0.25, 0.75, 0.75, 0.25)
        kernel = torch.tensor([[[[row * column for column in ramp] for row in ramp]]] * keypoints)
        self.register_buffer("kernel", kernel, persistent=False)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def low(self, pooled: Tensor) -> Tensor:
        """Pooled features (R, C, S / 4, S / 4) to maps (R, P, S / 2, S / 2)."""
        return self.upsample(self.convs(pooled))

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features (R, C, S / 4, S / 4) to heat maps (R, P, S, S)."""
        low = self.low(pooled)
        record("keypoint.low", low)
        return self.double_size(low)

    def double_size(self, low: Tensor) -> Tensor:
        """Maps (R, P, S / 2, S / 2) to (R, P, S, S), without trained weights."""
        if self.upsampling == "deconvolution":
            return F.conv_transpose2d(
                low, self.kernel.to(low.dtype), stride=2, padding=1, groups=self.keypoints
            )
        return F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)


def decode_heatmaps(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum of each heat map, resized (bicubic) to its box; sides are x2 - x1, at least 1, rounded
    up for the map.

    Args:
        heatmaps: (R, P, S, S) float logits.
        boxes: (R, 4) float pixels.

    Returns:
        positions (R, P, 2) x and y in pixels; logits (R, P) there; probabilities (R, P), softmax over the
        resized map.
    """
    positions, logits = heatmaps.new_zeros((*heatmaps.shape[:2], 2)), heatmaps.new_zeros(heatmaps.shape[:2])
    chances = torch.zeros_like(logits)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    whole = sides.ceil()  # pixels of each resized map
    for row, (width, height) in enumerate(whole.to(torch.int64).tolist()):
        resized = F.interpolate(
            heatmaps[row : row + 1], size=(height, width), mode="bicubic", align_corners=False
        )[0].flatten(1)  # (P, height * width)
        logits[row], place = resized.max(dim=1)
        chances[row] = (logits[row] - resized.logsumexp(dim=1)).exp()
        cell = torch.stack([place % width, place // width], dim=1)
        factor = sides[row] / whole[row]
        positions[row] = (cell + 0.5) * factor + boxes[row, :2]
    return positions, logits, chances


@operator("decode_heatmaps")
def decoded_heatmaps(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """The result of `decode_heatmaps`, (R, P, 4) x, y, logit and probability, as one operator of an exported
    graph; absent boxes are treated as one pixel."""
    places, *values = decode_heatmaps(heatmaps, boxes.nan_to_num(0.0))
    return torch.cat([places, torch.stack(values, dim=2)], dim=2)


@torch.library.register_fake(decoded_heatmaps)
def _(heatmaps, boxes):
    return heatmaps.new_empty((*heatmaps.shape[:2], 4))


def heatmap_targets(
    keypoints: Tensor, boxes: Tensor, side: int, *, divide: bool = False
) -> tuple[Tensor, Tensor]:
    """The cell of each keypoint in its box; a keypoint on the far edge belongs to the last cell.

    Args:
        keypoints: (R, P, 3) x, y in pixels and visibility.
        boxes: (R, 4) pixels, sides x2 - x1.
        side: S, cells of a heat map's side.
        divide: by a box's side in float32, as numpy does it (Detectron), not times its reciprocal, as torch
            does (maskrcnn-benchmark): keypoints exactly between two cells may be assigned differently.

    Returns:
        (R, P) int64 row * S + column, 0 if not valid; (R, P) bool, visible and inside.
    """
    if divide:
        keypoints, boxes = keypoints.float(), boxes.float()
    sides = boxes[:, 2:] - boxes[:, :2]
    scale = torch.full_like(sides, side) / sides if divide else side / sides
    near, far = boxes[:, None, :2], boxes[:, None, 2:]
    place = keypoints[..., :2]
    cell = ((place - near) * scale[:, None]).floor().to(torch.int64)
    cell = torch.where(place == far, side - 1, cell)
    valid = ((cell >= 0) & (cell < side)).all(dim=2) & (keypoints[..., 2] > 0)
    return (cell[..., 1] * side + cell[..., 0]) * valid, valid


def has_visible_keypoint(keypoints: Tensor, boxes: Tensor) -> Tensor:
    """Mark (R,) bool the boxes (R, 4) with at least one visible keypoint (R, P, 3) inside or on the edge."""
    place = keypoints[..., :2]
    inside = ((place >= boxes[:, None, :2]) & (place <= boxes[:, None, 2:])).all(dim=2)
    return (inside & (keypoints[..., 2] > 0)).any(dim=1)


def keypoint_loss(heatmaps: Tensor, cells: Tensor, valid: Tensor) -> Tensor:
    """Mean cross entropy over a heat map's cells, of the valid keypoints (He et al. 2017, section 5); 0 if
    there are none.

    Args:
        heatmaps: (R, P, S, S). cells: (R, P) int64. valid: (R, P) bool.
    """
    rows, wanted = rows_of(valid.flatten()), cells.where(valid, -1).flatten()
    maps = heatmaps.flatten(2).flatten(0, 1)[rows]
    whole = F.cross_entropy(maps, wanted[rows], ignore_index=-1, reduction="sum")
    return whole / valid.sum().clamp(min=1)
