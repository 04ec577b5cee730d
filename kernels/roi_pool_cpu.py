"""RoIPool compiled for CPU: parallel over RoIs in the forward pass and over channels in the backward pass, in
the memory layout of the map.

Forward results equal the reference bitwise; backward sums are in the order of RoIs and bins.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.cell_sums import sum_type
from detection_zoo.kernels.machine_code import ANY, array_at, compiled, in_threads, part_of_compiled

UNPOOLABLE = -2  # used instead of an image index; other negative values are absent rows
BLOCK = 64  # channels processed together, so that their bins stay in the L1 cache


def cpu_forward(
    features: Tensor, image: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the maxima and their cells.

    Args:
        features: (N, C, H, W) of any strides.
        image: (R,) int64, image index of each RoI, -1 for an absent row and -2 for an invalid one.
        rows, columns: first and one-past-last cell of each bin, (R, PH) and (R, PW) int64.
    Returns:
        (R, C, PH, PW) of the features' type; the same int32, h * W + w of each maximum, -1 for an empty bin.
    """
    maps = features.to(sum_type(features))
    cells = maps.shape[0] * maps.shape[2] * maps.shape[3]
    if 10 * rows[0].numel() * columns[0].shape[1] > cells:  # converting the map takes less time than it saves
        maps = maps.contiguous(memory_format=torch.channels_last)
    shape = (len(image), features.shape[1], rows[0].shape[1], columns[0].shape[1])
    pooled, argmax = maps.new_empty(shape), torch.empty(shape, dtype=torch.int32)
    flat = [each.view(shape[0], prod(shape[1:])).numpy() for each in (pooled, argmax)]
    given = [each.numpy() for each in (image, *rows, *columns)]
    forward = _forward_last if maps.stride(1) == 1 else _forward_planes

    def work(first: int, end: int) -> None:
        forward(first, end, maps.data_ptr(), maps.stride(), maps.shape[3], *given, *flat, shape[1])

    in_threads(work, shape[0], torch.get_num_threads(), least=8)
    return pooled.to(features.dtype), argmax


def cpu_backward(
    grad: Tensor, argmax: Tensor, image: Tensor, edges: Tensor, whole: Tensor, shape: list[int]
) -> Tensor:
    """Return the gradient (N, C, H, W) of the features.

    Args:
        grad: (R, C, PH, PW). argmax, image: as in `cpu_forward`.
        edges: (R, 4) x1, y1, x2, y2; a maximum outside passes no gradient.
        whole: (R,) bool, True if all bins are between the edges, so that no check is needed.
    """
    sums = torch.zeros(shape, dtype=sum_type(grad))
    count, bins = len(image), grad.shape[2] * grad.shape[3]
    upstream = grad.contiguous().to(sums.dtype).view(count, shape[1] * bins).numpy()
    cells = argmax.contiguous().view(count, shape[1] * bins).numpy()
    flat = sums.view(-1).numpy()
    given = (image.numpy(), edges.numpy(), whole.numpy())

    def work(first: int, end: int) -> None:
        _backward(first, end, flat, shape[2] * shape[3], shape[3], *given, upstream, cells, shape[1], bins)

    in_threads(work, shape[1], torch.get_num_threads(), least=16)
    return sums.to(grad.dtype)


@part_of_compiled
def _wins(value, best):
    """Whether a value of a later cell replaces the maximum so far; NaN replaces numbers."""
    return value > best or (value != value and best == best)


@compiled
def _forward_last(
    first, end, address, strides, map_width, image_of, tops, bottoms, lefts, rights, pooled, argmax, channels
):  # fmt: skip
    """Channels-last maps: all channels of a cell are compared at once."""
    height, width = tops.shape[1], lefts.shape[1]
    bins = height * width
    cells = array_at(address, (ANY,), pooled.dtype)
    best, where = np.empty(bins * BLOCK, pooled.dtype), np.empty(bins * BLOCK, np.int32)
    for row in range(first, end):
        out, at, image = pooled[row], argmax[row], image_of[row]
        if image < 0:
            out[:], at[:] = np.nan if image == UNPOOLABLE else 0.0, -1
            continue
        for begin in range(0, channels, BLOCK):
            own = min(BLOCK, channels - begin)
            every = np.uint64(own)
            best[:], where[:] = 0, -1
            base = image * strides[0] + begin
            for ph in range(height):
                for pw in range(width):
                    to, fresh = np.uint64((ph * width + pw) * BLOCK), True
                    for y in range(tops[row, ph], bottoms[row, ph]):
                        for x in range(lefts[row, pw], rights[row, pw]):
                            start = np.uint64(base + y * strides[2] + x * strides[3])
                            cell = np.int32(y * map_width + x)
                            for n in range(every):
                                value = cells[start + n]
                                wins = fresh or _wins(value, best[to + n])
                                best[to + n] = value if wins else best[to + n]
                                where[to + n] = cell if wins else where[to + n]
                            fresh = False
            for channel in range(own):
                for place in range(bins):
                    to, from_ = (
                        np.uint64((begin + channel) * bins + place),
                        np.uint64(place * BLOCK + channel),
                    )
                    out[to], at[to] = best[from_], where[from_]


@compiled
def _forward_planes(
    first, end, address, strides, map_width, image_of, tops, bottoms, lefts, rights, pooled, argmax, channels
):  # fmt: skip
    """Maps with other strides, channel by channel."""
    height, width = tops.shape[1], lefts.shape[1]
    cells, step = array_at(address, (ANY,), pooled.dtype), np.uint64(strides[3])
    for row in range(first, end):
        out, at, image = pooled[row], argmax[row], image_of[row]
        if image < 0:
            out[:], at[:] = np.nan if image == UNPOOLABLE else 0.0, -1
            continue
        to = np.uint64(0)
        for channel in range(channels):
            base = image * strides[0] + channel * strides[1]
            for ph in range(height):
                for pw in range(width):
                    left, right = np.uint64(lefts[row, pw]), np.uint64(rights[row, pw])
                    top, bottom = tops[row, ph], bottoms[row, ph]
                    best, where = out.dtype.type(0), -1
                    if top < bottom and left < right:
                        best = cells[np.uint64(base + top * strides[2]) + left * step]
                        where = top * map_width + np.int64(left)
                    for y in range(top, bottom):
                        line = np.uint64(base + y * strides[2])
                        for x in range(left, right):
                            value = cells[line + x * step]
                            if _wins(value, best):
                                best, where = value, y * map_width + np.int64(x)
                    out[to], at[to] = best, where
                    to += np.uint64(1)


@compiled
def _backward(first, end, sums, area, width, image_of, edges, whole, grad, argmax, channels, bins):
    """Channels first .. end - 1 of contiguous gradients (N * C * H * W)."""
    for row in range(len(image_of)):
        if image_of[row] < 0:
            continue
        x1, y1, x2, y2 = edges[row, 0], edges[row, 1], edges[row, 2], edges[row, 3]
        for channel in range(first, end):
            base = np.uint64((image_of[row] * channels + channel) * area)
            for item in range(np.uint64(channel * bins), np.uint64((channel + 1) * bins)):
                cell = argmax[row, item]
                if cell < 0:
                    continue
                if not whole[row]:
                    y, x = cell // width, cell % width
                    if x < x1 or y < y1 or x > x2 or y > y2:
                        continue
                sums[base + np.uint64(cell)] += grad[row, item]
