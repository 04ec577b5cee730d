"""Convolution with TensorFlow's "SAME" padding: an odd pixel goes to the right and bottom, and how many depends on the input."""
from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis so that the output has ceil(length / stride) cells.

    Args:
        length, kernel, stride: of the axis, in cells.
    """
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow pads; its parameters are those of `nn.Conv2d`."""

    def forward(self, features: Tensor) -> Tensor:
        (kernel_y, kernel_x), (stride_y, stride_x) = self.kernel_size, self.stride
        top, bottom = same_padding(features.shape[-2], kernel_y, stride_y)
        left, right = same_padding(features.shape[-1], kernel_x, stride_x)
        return super().forward(functional.pad(features, (left, right, top, bottom)))
