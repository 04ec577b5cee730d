"""Rasterise polygons on the device of the boxes, without synchronizing the host; the masks equal those of
pycocotools (rleFrPoly, Lin et al. 2014) in every pixel.

A polygon is scaled to a grid of FINE steps per pixel. Where its outline crosses the middle of a column, the
pixels below are flipped; a pixel is inside if it was flipped an odd number of times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FINE = 5  # grid steps per pixel
MOST_CROSSINGS = 1 << 22  # pairs of edge and column processed together: 32 MiB in double precision

Polygons = Sequence[Sequence[Sequence[float]]]


def draw_polygons(
    polygons: Polygons,
    boxes: Tensor,
    matches: Tensor,
    side: int,
    size: Sequence[float] | None,
    least: float = 1.0,
) -> Tensor:
    """The part of an object's polygons inside each box.

    Args:
        polygons: of each of G objects, flat [x, y, ...] lists in image pixels, joined.
        boxes: (R, 4) x1, y1, x2, y2; sides are x2 - x1, at least `least`.
        matches: (R,) int64, the object of each box.
        side: M.
        size: (height, width) that boxes are clipped to first; None for no clipping.

    Returns:
        (R, M, M) float32, 0 or 1; arbitrary for NaN boxes.
    """
    edges, parts = edges_of(polygons)
    count, most = (0, 0) if edges is None else edges.shape[:2]
    if not count * most * len(boxes):
        return boxes.new_zeros((len(boxes), side, side), dtype=torch.float32)
    # the driver copies so few numbers to its own buffer before it returns
    edges, places = (each.to(boxes.device, non_blocking=True) for each in (edges, parts))
    near, scale = _frames(boxes.double(), side, size, least)
    step = max(1, MOST_CROSSINGS // (most * side))
    drawn = [
        _draw(edges[own], places[own], int(parts.max()) + 1, corner, factor, side)
        for own, corner, factor in zip(matches.split(step), near.split(step), scale.split(step), strict=True)
    ]
    return torch.cat(drawn)


def edges_of(polygons: Polygons) -> tuple[Tensor | None, Tensor]:
    """Edges (G, E, 4) float64 from x, y to x, y of each object, padded with zeros, and the index (G, E) int64
    of each edge's polygon in its object; None if there are no edges."""
    outlines = [[np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in parts] for parts in polygons]
    most = max((sum(map(len, parts)) for parts in outlines), default=0)
    if not most:
        return None, torch.zeros(0, 0, dtype=torch.int64)
    edges = np.zeros((len(outlines), most, 4))
    numbers = np.zeros((len(outlines), most), dtype=np.int64)
    for own, number, parts in zip(edges, numbers, outlines, strict=True):
        start = 0
        for index, points in enumerate(parts):
            end = start + len(points)
            own[start:end] = np.concatenate([points, np.roll(points, -1, axis=0)], axis=1)
            number[start:end], start = index, end
    return torch.from_numpy(edges), torch.from_numpy(numbers)


def _frames(boxes: Tensor, side: int, size: Sequence[float] | None, least: float) -> tuple[Tensor, Tensor]:
    """Near corners (R, 2) of boxes (R, 4), and the factors (R, 2) from image pixels to cells."""
    x1, y1, x2, y2 = boxes.nan_to_num().unbind(1)
    if size is not None:
        height, width = size
        x1, y1 = x1.clamp(0, width - 1), y1.clamp(0, height - 1)
        x2, y2 = x2.clamp(0, width), y2.clamp(0, height)
    sides = torch.stack([x2 - x1, y2 - y1], dim=1).clamp(min=least)
    # `side / sides` would multiply by the reciprocal, which rounds twice
    return torch.stack([x1, y1], dim=1), torch.full_like(sides, side) / sides


def _draw(edges: Tensor, parts: Tensor, count: int, near: Tensor, scale: Tensor, side: int) -> Tensor:
    """Masks (R, M, M) from edges (R, E, 4), their polygons (R, E) 0..count-1, corner and factor
    (R, 2)."""
    points = (edges.view(*edges.shape[:2], 2, 2) - near[:, None, None]) * scale[:, None, None]
    points = (FINE * points + 0.5).trunc()
    start, end = points.unbind(2)  # (R, E, 2)
    across = (end - start).abs()
    flat = across[..., 0] >= across[..., 1]  # rasterised column by column, otherwise row by row
    turned = torch.where(flat, start[..., 0] > end[..., 0], start[..., 1] > end[..., 1])[..., None]
    start, end = torch.where(turned, end, start), torch.where(turned, start, end)
    (x, y), (far_x, far_y) = start[..., None].unbind(2), end[..., None].unbind(2)  # (R, E, 1)
    flat, change = flat[..., None], torch.where(flat[..., None], far_y - y, far_x - x)
    slope = change / torch.where(flat, far_x - x, far_y - y)  # NaN if the edge is a point
    column = torch.arange(side, device=edges.device, dtype=torch.float64) * FINE + FINE // 2  # left step
    crossed = (torch.minimum(x, far_x) <= column) & (torch.maximum(x, far_x) > column)  # (R, E, M)
    along = column - x
    by_column = torch.minimum(*((y + slope * (along + ahead) + 0.5).trunc() for ahead in (0, 1)))
    by_row = y + _last_before(along, x, column, slope)
    row = torch.where(flat, by_column, by_row)
    row = row.nan_to_num().clamp(0, side * FINE).to(torch.int64)  # in integers, without rounding
    row = ((row + FINE // 2) // FINE).clamp(max=side)
    cells = side * side + 1  # the last one: below the last column
    place = torch.arange(side, device=edges.device) * side + row
    place = place + parts[..., None] * cells
    flips = place.new_zeros((len(edges), count * cells), dtype=torch.int32)
    flips.scatter_add_(1, place.flatten(1), crossed.flatten(1).to(torch.int32))
    inside = flips.view(-1, count, cells)[..., :-1].cumsum(dim=2) % 2
    return inside.amax(dim=1).view(-1, side, side).transpose(1, 2).to(torch.float32)


def _last_before(along: Tensor, x: Tensor, column: Tensor, slope: Tensor) -> Tensor:
    """The last row of a steep edge, counted from its start, before it crosses a column: estimated, then
    corrected by searching adjacent rows, since rows are rounded."""
    guess = ((along + 0.5) / slope).nan_to_num(posinf=0.0, neginf=0.0).floor()
    last = guess - 2
    for ahead in (-1, 0, 1, 2):
        cell = (x + slope * (guess + ahead) + 0.5).trunc()
        last = last + torch.where(slope > 0, cell <= column, cell > column)
    return last
