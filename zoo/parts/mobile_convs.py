"""Convolution blocks of mobile networks, with torch's symmetric padding or TensorFlow's "SAME"."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Padding = Literal["symmetric", "same"]


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis so that the output has ceil(length / stride) cells.

    Args:
        length, kernel, stride: of the axis, in cells.
    """
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding: an odd zero is added at the right and bottom. Its parameters
    are those of `nn.Conv2d`."""

    def forward(self, features: Tensor) -> Tensor:
        (kernel_y, kernel_x), (stride_y, stride_x) = self.kernel_size, self.stride
        top, bottom = same_padding(features.shape[-2], kernel_y, stride_y)
        left, right = same_padding(features.shape[-1], kernel_x, stride_x)
        return super().forward(functional.pad(features, (left, right, top, bottom)))


def conv_norm_act(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, padding: Padding
) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU6."""
    conv: nn.Module
    if padding == "same" and stride > 1:
        conv = SameConv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
    else:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))
