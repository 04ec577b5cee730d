"""RoICrop: bilinear samples at the points of a grid, and the affine grid of a box (Jaderberg et al. 2015,
equations 1 and 5).

As DetNet_pytorch and Detectron.pytorch define them: grid points are (y, x) in [-1, 1] over the whole map with
aligned corners; each of the four cells around a point is used only if it is inside the map; there is a
gradient of the map, not of the grid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.backend import backend_for, cpu_form
from detection_zoo.kernels.cell_sums import (
    add_to_cells,
    cell_table,
    fill_maps,
    sum_cells,
    sum_type,
    zero_table,
)
from detection_zoo.kernels.operator import operator
from detection_zoo.kernels.plane_launch import run_on_planes
from detection_zoo.kernels.roi_align import output_pair


def affine_grid(
    rois: Tensor, map_size: tuple[int, int], output_size: int | tuple[int, int], spatial_scale: float = 1 / 16
) -> Tensor:
    """Return the sample points of each box on a map, corner to corner (no +1).

    Args:
        rois: (R, 5) floating, (image index, x1, y1, x2, y2) in image pixels.
        map_size: (H, W) of the map, both above 1.
        output_size: (PH, PW), or one number for both; the original doubles it before a 2 x 2 max pooling.
        spatial_scale: map cells per pixel; always 1/16 in the originals.
    Returns:
        (R, PH, PW, 2) grid, y before x, in units of half the map.
    Raises:
        ValueError: wrong shapes, or a map of one cell.

    Examples:
        >>> affine_grid(torch.tensor([[0, 0.0, 0, 28, 28]]), (8, 8), 2, spatial_scale=1 / 4)[0, 1]
        tensor([[ 1., -1.],
                [ 1.,  1.]])
    """
    if rois.ndim != 2 or rois.shape[1] != 5 or not rois.is_floating_point() or min(map_size) < 2:
        raise ValueError(
            f"rois must be floating (R, 5) and the map at least 2 x 2, got {rois.dtype} {tuple(rois.shape)}"
            f" and {tuple(map_size)}"
        )
    pooled = output_pair(output_size)
    axes = []
    for start, end, side, steps in (
        (rois[:, 2], rois[:, 4], map_size[0], pooled[0]),
        (rois[:, 1], rois[:, 3], map_size[1], pooled[1]),
    ):
        start, end = start * spatial_scale, end * spatial_scale
        line = torch.linspace(-1, 1, steps, dtype=rois.dtype, device=rois.device)
        axes.append(
            (end - start)[:, None] / (side - 1) * line + ((start + end - side + 1) / (side - 1))[:, None]
        )
    y, x = axes[0][:, :, None], axes[1][:, None, :]
    return torch.stack(torch.broadcast_tensors(y, x), dim=-1)


def roi_crop(
    features: Tensor, grid: Tensor, image_index: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Sample a map at the grid points of each RoI.

    Args:
        features: (N, C, H, W) float32, float64, float16 or bfloat16.
        grid: (R, PH, PW, 2) floating, y before x, in [-1, 1] over the whole map; points that are not finite
            give 0.
        image_index: (R,) integers; None for the originals' rule, image = row // (R / N). An index outside
            0..N-1 gives zeros.
    Returns:
        (R, C, PH, PW) of the features' type.
    Raises:
        ValueError: wrong shapes, types or devices, or R not a multiple of N without image_index.

    Examples:
        >>> features = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> roi_crop(features, affine_grid(torch.tensor([[0, 0.0, 0, 28, 28]]), (8, 8), 2, 1 / 4))
        tensor([[[[ 0.,  7.],
                  [56., 63.]]]])
    """
    if (
        features.ndim != 4
        or not features.is_floating_point()
        or grid.ndim != 4
        or grid.shape[3] != 2
        or not grid.is_floating_point()
    ):
        raise ValueError(
            f"features must be floating (N, C, H, W) and grid floating (R, PH, PW, 2), got {features.dtype} "
            f"{tuple(features.shape)} and {grid.dtype} {tuple(grid.shape)}"
        )
    if grid.device != features.device or (image_index is not None and image_index.device != features.device):
        raise ValueError(
            f"features are on {features.device}, grid on {grid.device}; move features, grid and image_index"
            " together"
        )
    if image_index is None:
        if len(grid) % max(len(features), 1) != 0:
            raise ValueError(f"{len(grid)} grids do not divide over {len(features)} images; give image_index")
        image_index = torch.arange(len(features), device=grid.device).repeat_interleave(
            len(grid) // max(len(features), 1)
        )
    if image_index.shape != grid.shape[:1] or image_index.is_floating_point():
        raise ValueError(
            f"image_index must be integers ({len(grid)},), got {image_index.dtype} {tuple(image_index.shape)}"
        )
    chosen = backend_for(features, backend, operator="RoICrop", known=("reference", "cpu", "cuda"))
    return _roi_crop_op(features, grid.detach().to(sum_type(features)), image_index.long(), chosen)


def reference_forward(features: Tensor, grid: Tensor, image_index: Tensor) -> Tensor:
    """Sampled (R, C, PH, PW); arguments as in `roi_crop`."""
    cells, weights = _cells(features.shape, grid, image_index)
    sampled = sum_cells(cell_table([features]), cells, weights)
    return (
        sampled.view(*grid.shape[:3], features.shape[1]).permute(0, 3, 1, 2).contiguous().to(features.dtype)
    )


def reference_backward(grad: Tensor, grid: Tensor, image_index: Tensor, grad_features: Tensor) -> Tensor:
    """Fill grad_features (N, C, H, W) from the upstream gradient (R, C, PH, PW)."""
    table = zero_table([grad_features])
    cells, weights = _cells(grad_features.shape, grid, image_index)
    add_to_cells(table, cells, weights, grad.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype))
    return fill_maps([grad_features], table)[0]


def _cells(shape: torch.Size, grid: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
    """The four cells around each point (images * H * W for those outside the map) and their weights: (R * PH
    * PW, 4) each."""
    images, _, height, width = shape
    in_batch = (image_index >= 0) & (image_index < images)
    usable = torch.isfinite(grid).all(dim=-1) & in_batch[:, None, None]
    axes = []
    for axis, side in ((0, height), (1, width)):
        position = (torch.where(usable, grid[..., axis], -2.0) + 1) * (side - 1) / 2
        low = position.floor()
        cells = torch.stack([low, low + 1], dim=-1)
        axes.append(
            (
                cells,
                torch.stack([1 - (position - low), position - low], dim=-1),
                (cells >= 0) & (cells <= side - 1),
            )
        )
    (y, weight_y, y_on_map), (x, weight_x, x_on_map) = axes
    on_map = y_on_map[..., :, None] & x_on_map[..., None, :] & usable[..., None, None]
    image = torch.where(in_batch, image_index, 0)[:, None, None, None, None]
    y, x = (
        torch.where(each_on_map, each, 0.0).long() for each, each_on_map in ((y, y_on_map), (x, x_on_map))
    )
    cells = (image * height + y[..., :, None]) * width + x[..., None, :]
    weights = weight_y[..., :, None] * weight_x[..., None, :]
    return torch.where(on_map, cells, images * height * width).reshape(-1, 4), torch.where(
        on_map, weights, 0.0
    ).reshape(-1, 4)


@operator("roi_crop", gradient=True)
def _roi_crop_op(features: Tensor, grid: Tensor, image_index: Tensor, backend: str) -> Tensor:
    if backend == "reference":
        return reference_forward(features, grid, image_index)
    if backend == "cpu":
        shape = (len(grid), features.shape[1], *grid.shape[1:3])
        return cpu_form("roi_crop").cpu_forward(features, *_cells(features.shape, grid, image_index), shape)
    cropped = features.new_empty(grid.shape[0], features.shape[1], grid.shape[1], grid.shape[2])
    run_on_planes(
        "roi_crop.cu",
        "roi_crop_forward",
        features,
        cropped,
        grid.contiguous(),
        image_index.contiguous(),
        cropped,
        np.int32(grid.shape[1] * grid.shape[2]),
    )
    return cropped


@torch.library.register_fake(_roi_crop_op)
def _(features, grid, image_index, backend):
    return features.new_empty(grid.shape[0], features.shape[1], grid.shape[1], grid.shape[2])


@operator("roi_crop_backward")
def _roi_crop_backward_op(
    grad: Tensor, grid: Tensor, image_index: Tensor, shape: list[int], backend: str, deterministic: bool
) -> Tensor:
    if backend == "reference":
        return reference_backward(grad, grid, image_index, grad.new_empty(shape))
    if backend == "cpu":
        return cpu_form("roi_crop").cpu_backward(grad, *_cells(torch.Size(shape), grid, image_index), shape)
    sums = grad.new_zeros(shape, dtype=sum_type(grad))
    run_on_planes(
        "roi_crop.cu",
        "roi_crop_backward",
        sums,
        grad,
        grid.contiguous(),
        image_index.contiguous(),
        grad.contiguous(),
        np.int32(grid.shape[1] * grid.shape[2]),
        ordered=deterministic,
    )
    return sums.to(grad.dtype)


@torch.library.register_fake(_roi_crop_backward_op)
def _(grad, grid, image_index, shape, backend, deterministic):
    return grad.new_empty(shape)


def _setup(ctx, inputs, output) -> None:
    features, grid, image_index, ctx.backend = inputs
    ctx.shape = list(features.shape)
    ctx.save_for_backward(grid, image_index)


def _backward(ctx, grad: Tensor):
    grid, image_index = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    return (
        _roi_crop_backward_op(grad, grid, image_index, ctx.shape, ctx.backend, deterministic),
        None,
        None,
        None,
    )


torch.library.register_autograd(_roi_crop_op, _backward, setup_context=_setup)
