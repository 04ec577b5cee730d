"""A convolution with a mostly zero gradient: losses of sampled anchors depend on few cells of large maps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

DENSE = 0.25  # of the cells: if more have a gradient, the dense gradient is faster


class SparseGradientConv2d(nn.Conv2d):
    """A convolution that keeps the size of its maps; its gradient on a CPU is computed only from the cells
    that the loss depends on, since the others are zero.

    Args:
        in_channels, out_channels: of the maps.
        kernel: side of the weights in cells, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        # on a GPU the number of cells would need a synchronization
        if not (self.training and torch.is_grad_enabled() and x.device.type == "cpu"):
            return super().forward(x)
        parts = x, self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            parts = tuple(part.to(torch.get_autocast_dtype("cpu")) for part in parts)
        return _Convolve.apply(*parts)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        cells = torch.nonzero(gradient.abs().amax(dim=1))  # (R, 3); NaN counts as nonzero
        if len(cells) <= DENSE * gradient[:, 0].numel():
            return gradient_of_cells(gradient, x, weight, cells, context.needs_input_grad)
        ones, around = [1, 1], [weight.shape[-1] // 2] * 2
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], ones, around, ones, False, [0, 0], 1, context.needs_input_grad
        )


def gradient_of_cells(
    gradient: Tensor, x: Tensor, weight: Tensor, cells: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of input, weight and bias of a convolution that keeps the size of its maps.

    Args:
        gradient: (N, O, H, W) of the output, zero outside `cells`.
        x: (N, C, H, W), the input. weight: (O, C, K, K). cells: (R, 3) int64 image, row, column.
        needed: which of the three to compute; the others are None.
    """
    (images, channels, height, width), side = x.shape, weight.shape[-1]
    image, row, column = cells.unbind(1)
    own = gradient[image, :, row, column]  # (R, O)
    of_x = of_weight = None
    if needed[1]:
        windows = F.pad(x, [side // 2] * 4).unfold(2, side, 1).unfold(3, side, 1)  # (N, C, H, W, K, K)
        of_weight = (own.t() @ windows[image, :, row, column].flatten(1)).view_as(weight)
    if needed[0]:
        height, width = height + side - 1, width + side - 1  # with the padding
        step = torch.arange(side)
        first = (image * height + row) * width + column
        places = (first[:, None, None] + step[:, None] * width + step).flatten()  # (R * K * K,)
        shares = (own @ weight.flatten(1)).view(-1, channels, side * side).transpose(0, 1)  # (C, R, K * K)
        padded = x.new_zeros(channels, images * height * width)
        padded.index_add_(1, places, shares.reshape(channels, -1))
        of_x = padded.view(channels, images, height, width).transpose(0, 1)
        of_x = of_x[:, :, side // 2 : height - side // 2, side // 2 : width - side // 2]
    return of_x, of_weight, own.sum(dim=0) if needed[2] else None
