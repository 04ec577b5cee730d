"""3x3 convolutions of a model on a CPU with Winograd's minimal filtering."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from detection_zoo.kernels.backend import is_traced
from detection_zoo.kernels.winograd import winograd_conv, winograd_filters

# with fewer channels, the transforms cost more than the products save
LEAST_CHANNELS = {torch.float32: 16, torch.bfloat16: 128}
LEAST_SIDE = 7  # pixels; in a smaller map most of the tiles is border


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution for inference in one type on a CPU; it computes as nn.Conv2d does where the input is
    of another kind, or very small. Its transformed filters take four times the memory of its weight.

    Args:
        convolution: of stride 1, without dilation and groups, with a border of one zero.
        dtype: of its inputs, float32 or bfloat16.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            3,
            padding=1,
            bias=convolution.bias is not None,
            device="meta",
        )
        self.weight, self.bias, self.dtype = convolution.weight, convolution.bias, dtype
        self.register_buffer("filters", winograd_filters(convolution.weight, dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H, W)."""
        if (
            not x.is_cpu
            or not x.dtype == self.dtype == self.filters.dtype
            or min(x.shape[2:]) < LEAST_SIDE
            or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            or is_traced(x)
        ):
            return super().forward(x)
        return winograd_conv(x, self.filters, None if self.bias is None else self.bias.float())


def use_winograd(model: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Replace the convolutions that WinogradConv2d can take, in place; returns how many there were.

    None is replaced where numba is not installed.
    """
    if importlib.util.find_spec("numba") is None:
        return 0
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and _fits(child, dtype)
    ]
    for parent, name in found:
        setattr(parent, name, WinogradConv2d(getattr(parent, name), dtype))
    return len(found)


def _fits(convolution: nn.Conv2d, dtype: torch.dtype) -> bool:
    geometry = (
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        convolution.padding_mode,
    )
    return (
        geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
        and min(convolution.in_channels, convolution.out_channels) >= LEAST_CHANNELS[dtype]
    )
