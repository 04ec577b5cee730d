"""RoIPool: the maximum of each bin of a RoI (Girshick 2015, section 2.1), with the rounding of the CUDA
kernels of DetNet_pytorch.

Edges are multiplied by the scale and rounded half away from zero; sides are inclusive (end - start + 1) and
at least 1, so an inverted box pools one cell; bin p covers floor(p * side / P) .. ceil((p + 1) * side / P),
clipped to the map; an empty bin is 0. The gradient goes to the first maximum in row order, and only if that
cell is between the rounded edges: an inverted box passes none. The maximum with a NaN is NaN. Invalid rows
are treated as in `kernels.roi_align`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.backend import BACKENDS, backend_for, cpu_form
from detection_zoo.kernels.cell_sums import cell_table, fill_maps, sum_type, zero_table
from detection_zoo.kernels.operator import operator
from detection_zoo.kernels.plane_launch import run_on_planes
from detection_zoo.kernels.roi_align import check_pooling, output_pair
from detection_zoo.kernels.roi_align_reference import poolable, unpoolable

_CELLS = 1 << 22  # cells processed at once


def roi_pool(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    *,
    backend: str | None = None,
) -> Tensor:
    """Maximum of each bin of each RoI.

    Args:
        features: (N, C, H, W) float32, float64, float16 or bfloat16.
        rois: (R, 5) floating, (image index, x1, y1, x2, y2) in image pixels.
        output_size: (PH, PW), or one number for both.
        spatial_scale: map cells per pixel.
    Returns:
        (R, C, PH, PW) of the features' type.
    Raises:
        ValueError: wrong shapes, types or devices.

    Examples:
        >>> features = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> roi_pool(features, torch.tensor([[0, 0.0, 0, 32, 32]]), 2, spatial_scale=1 / 4)
        tensor([[[[36., 39.],
                  [60., 63.]]]])
    """
    size = output_pair(output_size)
    check_pooling([features], rois, size)
    if features.shape[2] * features.shape[3] >= 2**31:
        raise ValueError(
            f"a map of {tuple(features.shape[2:])} cells; RoIPool counts fewer than 2^31 of them"
        )
    chosen = backend_for(features, backend, operator="RoIPool", known=BACKENDS)
    if chosen == "torchvision":
        import torchvision

        return torchvision.ops.roi_pool(features, rois.to(features.dtype), size, spatial_scale)
    return _roi_pool_op(features, rois.detach(), list(size), spatial_scale, chosen)[0]


def reference_forward(
    features: Tensor, rois: Tensor, output_size: list[int], spatial_scale: float
) -> tuple[Tensor, Tensor]:
    """Pooled (R, C, PH, PW) and, for each, the flat index h * W + w of its maximum, -1 for an empty bin."""
    images, channels, height, width = features.shape
    table = cell_table([features])
    pooled = table.new_zeros(len(rois), *output_size, channels)
    argmax = torch.full_like(pooled, -1, dtype=torch.int32)
    rows = poolable(rois, images).nonzero().squeeze(1)
    (top, bottom), (left, right) = _bins(
        rois.to(table.dtype)[rows], output_size, spatial_scale, (height, width)
    )
    tallest, widest = (
        int((end - start).max()) if end.numel() else 0 for start, end in ((top, bottom), (left, right))
    )
    if min(tallest, widest, channels) > 0:
        at_once = max(1, _CELLS // (output_size[0] * output_size[1] * tallest * widest * channels))
        for part in torch.arange(len(rows), device=rois.device).split(at_once):
            y = _cells_of(top[part], bottom[part], tallest)[:, :, None, :, None]  # (n, PH, 1, tallest, 1)
            x = _cells_of(left[part], right[part], widest)[:, None, :, None, :]
            cells = (y * width + x).flatten(3)  # (n, PH, PW, cells of a bin, in row order)
            values = table[
                rois[rows[part], 0].long()[:, None, None, None] * (height * width) + cells.clamp(min=0)
            ]
            best, where = values.max(dim=3)  # (n, PH, PW, C)
            empty = ((bottom <= top)[part][:, :, None] | (right <= left)[part][:, None, :])[..., None]
            pooled[rows[part]] = best.masked_fill(empty, 0.0)
            argmax[rows[part]] = cells.gather(3, where).masked_fill(empty, -1).int()
    pooled[unpoolable(rois, images)] = float("nan")
    return pooled.to(features.dtype).permute(0, 3, 1, 2).contiguous(), argmax.permute(0, 3, 1, 2).contiguous()


def reference_backward(
    grad: Tensor, argmax: Tensor, rois: Tensor, spatial_scale: float, grad_features: Tensor
) -> Tensor:
    """Fill grad_features (N, C, H, W) from the upstream gradient (R, C, PH, PW) and the argmax of the forward
    pass."""
    images, channels, height, width = grad_features.shape
    table = zero_table([grad_features])
    edges = _rounded_edges(rois.to(table.dtype), spatial_scale)[:, :, None, None, None]
    y, x = argmax // width, argmax % width
    inside = (argmax >= 0) & (x >= edges[:, 0]) & (y >= edges[:, 1]) & (x <= edges[:, 2]) & (y <= edges[:, 3])
    row, channel, *_ = inside.nonzero(as_tuple=True)
    cell = rois[row, 0].long() * (height * width) + argmax[inside].long()
    table.index_put_((cell, channel), grad[inside].to(table.dtype), accumulate=True)
    return fill_maps([grad_features], table)[0]


def _rounded_edges(rois: Tensor, spatial_scale: float) -> Tensor:
    """(R, 4) whole numbers, halves rounded away from zero as by C's round()."""
    scaled = rois[:, 1:] * spatial_scale
    whole = scaled.abs().floor()
    return torch.sign(scaled) * (whole + (scaled.abs() - whole >= 0.5))


def _bins(
    rois: Tensor, output_size: list[int], spatial_scale: float, sides: tuple[int, int]
) -> list[tuple[Tensor, Tensor]]:
    """First and one-past-last cell of each bin, for y and x: (R, P) int64 each."""
    edges = _rounded_edges(rois, spatial_scale)
    bins = []
    for first, last, pooled, cells in ((1, 3, output_size[0], sides[0]), (0, 2, output_size[1], sides[1])):
        start = edges[:, first, None]
        side = (edges[:, last, None] - start + 1).clamp(min=1)
        step = side / torch.full_like(side, pooled)
        index = torch.arange(pooled, dtype=rois.dtype, device=rois.device)[None]
        low, high = torch.floor(index * step) + start, torch.ceil((index + 1) * step) + start
        # 0 * inf is NaN: the first cell
        bins.append((low.clamp(0, cells).nan_to_num().long(), high.clamp(0, cells).long()))
    return bins


def _placed(
    rois: Tensor, shape: Sequence[int], output_size: list[int], spatial_scale: float, number: torch.dtype
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Image index of each RoI (R,) int64, -1 if absent and -2 if invalid, and its bins in y and in x."""
    image = torch.where(poolable(rois, shape[0]), rois[:, 0], -1)
    image = image.masked_fill(unpoolable(rois, shape[0]), -2).long()
    rows, columns = _bins(rois.to(number), output_size, spatial_scale, (shape[2], shape[3]))
    return image, rows, columns


def _cells_of(start: Tensor, end: Tensor, longest: int) -> Tensor:
    """The cells start .. end - 1 of each bin, the last repeated up to a common length: (n, P, longest)."""
    return (start[..., None] + torch.arange(longest, device=start.device)).minimum(end[..., None] - 1)


@operator("roi_pool", gradient=True)
def _roi_pool_op(
    features: Tensor, rois: Tensor, output_size: list[int], spatial_scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        return reference_forward(features, rois, output_size, spatial_scale)
    if backend == "cpu":
        image, rows, columns = _placed(rois, features.shape, output_size, spatial_scale, sum_type(features))
        return cpu_form("roi_pool").cpu_forward(features, image, rows, columns)
    rois = rois.to(sum_type(features)).contiguous()
    pooled = features.new_empty(len(rois), features.shape[1], *output_size)
    argmax = torch.empty_like(pooled, dtype=torch.int32)
    run_on_planes(
        "roi_pool.cu",
        "roi_pool_forward",
        features,
        pooled,
        rois,
        pooled,
        argmax,
        spatial_scale,
        *map(np.int32, output_size),
    )
    return pooled, argmax


@torch.library.register_fake(_roi_pool_op)
def _(features, rois, output_size, spatial_scale, backend):
    shape = (rois.shape[0], features.shape[1], *output_size)
    return features.new_empty(shape), features.new_empty(shape, dtype=torch.int32)


@operator("roi_pool_backward")
def _roi_pool_backward_op(
    grad: Tensor,
    argmax: Tensor,
    rois: Tensor,
    spatial_scale: float,
    shape: list[int],
    backend: str,
    deterministic: bool,
) -> Tensor:
    if backend == "reference":
        return reference_backward(grad, argmax, rois, spatial_scale, grad.new_empty(shape))
    if backend == "cpu":
        size = list(grad.shape[2:])
        image, rows, columns = _placed(rois, shape, size, spatial_scale, sum_type(grad))
        edges = _rounded_edges(rois.to(sum_type(grad)), spatial_scale)
        whole = (columns[0] >= edges[:, :1]) & (columns[1] - 1 <= edges[:, 2:3])
        whole = whole.all(1) & ((rows[0] >= edges[:, 1:2]) & (rows[1] - 1 <= edges[:, 3:])).all(1)
        return cpu_form("roi_pool").cpu_backward(grad, argmax, image, edges, whole, shape)
    sums = grad.new_zeros(shape, dtype=sum_type(grad))
    run_on_planes(
        "roi_pool.cu",
        "roi_pool_backward",
        sums,
        grad,
        rois.to(sums.dtype).contiguous(),
        grad.contiguous(),
        argmax,
        spatial_scale,
        np.int32(grad.shape[2] * grad.shape[3]),
        ordered=deterministic,
    )
    return sums.to(grad.dtype)


@torch.library.register_fake(_roi_pool_backward_op)
def _(grad, argmax, rois, spatial_scale, shape, backend, deterministic):
    return grad.new_empty(shape)


def _setup(ctx, inputs, output) -> None:
    features, rois, _, ctx.spatial_scale, ctx.backend = inputs
    ctx.shape = list(features.shape)
    ctx.save_for_backward(rois, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _):
    rois, argmax = ctx.saved_tensors
    grad = _roi_pool_backward_op(
        grad,
        argmax,
        rois,
        ctx.spatial_scale,
        ctx.shape,
        ctx.backend,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad, None, None, None, None


torch.library.register_autograd(_roi_pool_op, _backward, setup_context=_setup)
