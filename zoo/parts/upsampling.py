"""The sum of a pyramid's levels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detection_zoo.kernels.backend import is_traced


def plus_upsampled(lateral: Tensor, top: Tensor) -> Tensor:
    """The sum of a map (N, C, H, W) and a coarser one, upsampled by nearest neighbour. Without gradients and
    at exactly twice the size the sum is computed in place without the upsampled map, with equal results."""
    height, width = top.shape[-2:]
    if lateral.shape[-2:] == top.shape[-2:]:
        return lateral + top
    doubled = lateral.shape[-2:] == (2 * height, 2 * width) and lateral.dtype == top.dtype
    if not doubled or torch.is_grad_enabled() or is_traced(lateral):
        return lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
    quads = lateral.permute(0, 2, 3, 1).unflatten(2, (width, 2)).unflatten(1, (height, 2))
    quads += top.permute(0, 2, 3, 1)[:, :, None, :, None]
    return lateral
