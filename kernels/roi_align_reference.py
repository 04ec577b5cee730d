"""RoIAlign in plain torch: every output is a weighted sum of map cells, computed with embedding bags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from detection_zoo.kernels.cell_sums import (
    add_to_cells,
    cell_table,
    fill_maps,
    sum_cells,
    sum_type,
    zero_table,
)
from detection_zoo.kernels.roi_levels import ALIGNED, POINTS, Sampling, assign_levels

_LOOKUPS = 1 << 21  # weighted cells processed at once: 48 MB of indices, weights and products


def reference_forward(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: Sequence[int],
    sampling: Sampling,
    channels_last: bool,
) -> Tensor:
    """Pooled (R, C, PH, PW); arguments as in `kernels.roi_align.multilevel_roi_align`."""
    height, width = output_size
    table = cell_table(features)
    pooled = table.new_zeros(len(rois), height * width, table.shape[1])
    for rows, cells, weights in _bags(features, rois.to(table.dtype), output_size, sampling):
        pooled[rows] = sum_cells(table, cells, weights).view(len(rows), height * width, -1)
    pooled[unpoolable(rois, features[0].shape[0])] = float("nan")
    pooled = pooled.to(features[0].dtype).view(len(rois), height, width, table.shape[1]).permute(0, 3, 1, 2)
    return pooled.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def reference_backward(
    grad: Tensor, maps: Sequence[Tensor], rois: Tensor, sampling: Sampling
) -> list[Tensor]:
    """Fill maps, one (N, C, H_l, W_l) per level, with the gradient of the features; grad is (R, C, PH,
    PW)."""
    number = sum_type(grad)
    by_bin = grad.permute(0, 2, 3, 1).flatten(1, 2).to(number)  # (R, PH * PW, C)
    table = zero_table(maps)
    for rows, cells, weights in _bags(maps, rois.to(number), grad.shape[2:], sampling):
        add_to_cells(table, cells, weights, by_bin[rows].flatten(0, 1))
    return fill_maps(maps, table)


def poolable(rois: Tensor, images: int) -> Tensor:
    """Rows of rois (R, 5) with finite coordinates and a valid image index: (R,) bool."""
    return torch.isfinite(rois).all(dim=1) & (rois[:, 0] >= 0) & (rois[:, 0] < images)


def unpoolable(rois: Tensor, images: int) -> Tensor:
    """Rows whose output is NaN: neither `poolable` nor absent (image index below 0): (R,) bool."""
    return ~poolable(rois, images) & ~(rois[:, 0] < 0)


def _bags(
    maps: Sequence[Tensor], rois: Tensor, output_size: Sequence[int], sampling: Sampling
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield chunks of RoIs: their rows (n,), and for each bin the cells (n * PH * PW, k) and weights (same
    shape) to sum."""
    (height, width), (scales, ratio, rule, levels) = output_size, sampling
    images = maps[0].shape[0]
    level = assign_levels(rois, levels, len(maps)) - levels.min_level
    sizes = torch.tensor([each.shape[2:] for each in maps], dtype=rois.dtype, device=rois.device)[
        level
    ]  # (R, 2) of H, W
    first_cell = torch.tensor(
        [each.shape[0] * each.shape[2] * each.shape[3] for each in maps], device=rois.device
    ).cumsum(0)
    first_cell = torch.cat([first_cell.new_zeros(1), first_cell])[level]
    scale = torch.tensor(scales, dtype=rois.dtype, device=rois.device)[level]
    starts, bins, counts = zip(
        *(
            _axis(
                rois[:, 2 - axis] * scale,
                rois[:, 4 - axis] * scale,
                output_size[axis],
                sizes[:, axis],
                ratio,
                rule,
            )
            for axis in (0, 1)
        ),
        strict=True,
    )
    usable = poolable(rois, images) & (sizes > 0).all(dim=1) & (torch.minimum(*counts) > 0)
    off_map = sum(each.shape[0] * each.shape[2] * each.shape[3] for each in maps)  # the table's row of zeros
    for count_y, count_x in torch.unique(torch.stack(counts, 1)[usable], dim=0).tolist():
        same = (usable & (counts[0] == count_y) & (counts[1] == count_x)).nonzero().squeeze(1)
        for rows in same.split(max(1, _LOOKUPS // (height * width * 4 * count_y * count_x))):
            y, weight_y = _taps(
                starts[0][rows], bins[0][rows], height, count_y, sizes[rows, 0], rule
            )  # (n, PH, 2 * count_y)
            x, weight_x = _taps(starts[1][rows], bins[1][rows], width, count_x, sizes[rows, 1], rule)
            columns, cells_of_map = sizes[rows, 1].long(), (sizes[rows, 0] * sizes[rows, 1]).long()
            base = first_cell[rows] + rois[rows, 0].long() * cells_of_map
            y_cells = torch.where(y < 0, -off_map, base[:, None, None] + y * columns[:, None, None])
            x_cells = torch.where(x < 0, -off_map, x)
            cells = (
                y_cells[:, :, None, :, None] + x_cells[:, None, :, None, :]
            )  # (n, PH, PW, 2 * count_y, 2 * count_x)
            weights = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :] / (count_y * count_x)
            bags = (len(rows) * height * width, -1)
            yield rows, torch.where(cells < 0, off_map, cells).reshape(bags), weights.reshape(bags)


def _axis(
    start: Tensor, end: Tensor, pooled: int, size: Tensor, ratio: int, rule: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Start, bin length and points per bin of one axis, in map cells, each (R,); divides by tensors, which is
    rounded equally on all devices."""
    if rule == POINTS:
        return (
            start,
            (end - start + 1.0).clamp(min=0.0) / torch.full_like(start, pooled - 1),
            torch.ones_like(start, dtype=torch.int64),
        )
    if rule == ALIGNED:
        start, end = start - 0.5, end - 0.5
    side = end - start if rule == ALIGNED else (end - start).clamp(min=1.0)
    step = side / torch.full_like(side, pooled)
    count = torch.full_like(step, ratio) if ratio > 0 else torch.ceil(step).clamp(min=0.0).minimum(size + 2)
    return start, step, count.nan_to_num(0.0).long()


def _taps(
    start: Tensor, step: Tensor, pooled: int, count: int, size: Tensor, rule: int
) -> tuple[Tensor, Tensor]:
    """The two cells of each point of an axis, -1 for a point outside the map, and their weights: (n, P, 2 *
    count) int64 and floating."""
    bins = torch.arange(pooled, dtype=start.dtype, device=start.device)[None, :, None]
    points = torch.arange(count, dtype=start.dtype, device=start.device)[None, None, :]
    start, step, size = start[:, None, None], step[:, None, None], size[:, None, None]
    if rule == POINTS:
        position = start + bins * step
        inside = (position >= 0) & (position < size)
        # clamped, so that the last line is extrapolated
        low = torch.where(inside, position, 0.0).floor().minimum((size - 2).clamp(min=0))
        high = (low + 1).minimum(size - 1)
    else:
        position = start + bins * step + (points + 0.5) * step / torch.full_like(step, count)
        inside = (position >= -1) & (position <= size)
        position = torch.where(inside, position, 0.0).clamp(min=0)
        low = position.floor().minimum(size - 1)
        position = torch.where(low >= size - 1, low, position)  # beyond the last centre: the last cell
        high = (low + 1).minimum(size - 1)
    fraction = torch.where(inside, position - low, 0.0)
    weights = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None]
    cells = torch.where(inside[..., None], torch.stack([low, high], dim=-1), -1.0).long()
    return cells.flatten(2), weights.flatten(2)
