"""RoIAlign compiled for CPU: parallel over RoIs in the forward pass and over channels in the backward pass,
in the memory layout of the maps.

Each bin of a RoI is a list of cells and weights; points on the same cell are merged. Channels-last maps: four
weighted cells at a time are added to all channels of a bin. NCHW maps: plane by plane, rows before columns.
Results differ from the reference only by the order of sums and the place of the division by the number of
points: with n cells per bin (before merging) by at most n + 4 ulps of the sum of the absolute terms of an
output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.cell_sums import sum_type
from detection_zoo.kernels.machine_code import (
    ANY,
    array_at,
    as_array,
    compiled,
    in_threads,
    narrow,
    part_of_compiled,
    widen,
)
from detection_zoo.kernels.roi_align_reference import poolable, unpoolable
from detection_zoo.kernels.roi_levels import ALIGNED, LEGACY, POINTS, Sampling, assign_levels

ABSENT, UNPOOLABLE = -1, -2  # used instead of an image index


def cpu_forward(features: Sequence[Tensor], rois: Tensor, pooled: Tensor, sampling: Sampling) -> Tensor:
    """Fill pooled (R, C, PH, PW), NCHW or channels-last; other arguments as in
    `kernels.roi_align.multilevel_roi_align`."""
    fastest = channels_are_fastest(features)
    number = pooled.dtype if fastest and pooled.dtype == torch.bfloat16 else sum_type(pooled)
    maps = [each.to(number) for each in features]
    if not fastest:
        maps = [each.contiguous() for each in maps]
    sums = pooled if pooled.dtype == number else torch.empty_like(pooled, dtype=number)
    last, shape = not sums.is_contiguous(), tuple(pooled.shape[1:])
    flat = as_array((sums.permute(0, 2, 3, 1) if last else sums).view(len(rois), math.prod(shape)))
    placed = _place(maps, rois, shape[1:], sampling)
    for image, value in ((ABSENT, 0), (UNPOOLABLE, np.nan)):
        if len(rows := np.flatnonzero(placed[3] == image)):
            sums[torch.from_numpy(rows)] = value
    forward, given = _forward_last if fastest else _forward_planes, _lines_of(placed, shape[1:])

    def work(first: int, end: int) -> None:
        forward(first, end, *given, flat, *shape, last)

    in_threads(work, len(rois) if fastest else shape[0], torch.get_num_threads(), least=8)
    return pooled if sums is pooled else pooled.copy_(sums)


def cpu_backward(grad: Tensor, maps: Sequence[Tensor], rois: Tensor, sampling: Sampling) -> list[Tensor]:
    """Fill maps, one (N, C, H_l, W_l) per level, with the gradient of the features; grad is (R, C, PH, PW).
    Sums are in the order of RoIs and bins for any number of threads."""
    number = sum_type(grad)
    fastest = channels_are_fastest(maps)
    form = torch.channels_last if fastest else torch.contiguous_format
    sums = [
        each.zero_()
        if each.dtype == number and each.is_contiguous(memory_format=form)
        else torch.zeros_like(each, dtype=number, memory_format=form)
        for each in maps
    ]
    last = grad.stride(1) == 1 and grad.is_contiguous(memory_format=torch.channels_last)
    upstream = (grad.permute(0, 2, 3, 1) if last else grad.contiguous()).to(number)
    placed = _place(sums, rois, grad.shape[2:], sampling)
    flat = upstream.reshape(len(rois), math.prod(grad.shape[1:])).numpy()
    backward, given = _backward_last if fastest else _backward_planes, _lines_of(placed, grad.shape[2:])

    def work(first: int, end: int) -> None:
        backward(first, end, *given, flat, *grad.shape[1:], last)

    in_threads(work, grad.shape[1], torch.get_num_threads(), least=16)
    return [each if each is total else each.copy_(total) for each, total in zip(maps, sums, strict=True)]


def channels_are_fastest(maps: Sequence[Tensor]) -> bool:
    """Whether all maps (N, C, H, W) are channels-last."""
    return all(each.stride(1) == 1 for each in maps)


def _place(maps: Sequence[Tensor], rois: Tensor, pooled: Sequence[int], sampling: Sampling) -> tuple:
    """Arguments of `_lines_of`: (L,) addresses, (L, 4) strides, (R,) level, (R,) image index, ABSENT or
    UNPOOLABLE, (L, 2) sizes, (R, 4) edges in cells, before the shift of half a cell; points per bin, the
    rule, and 0, 1, 2 ... in the type of edges."""
    rois, (scales, ratio, rule, levels) = rois.to(sum_type(maps[0])), sampling
    level = assign_levels(rois, levels, len(maps)) - levels.min_level
    image = torch.where(poolable(rois, maps[0].shape[0]), rois[:, 0], ABSENT)
    image = image.masked_fill(unpoolable(rois, maps[0].shape[0]), UNPOOLABLE)
    edges = (rois[:, 1:] * torch.tensor(scales, dtype=rois.dtype)[level][:, None]).numpy()
    longest = max(*pooled, ratio, *(max(each.shape[2:]) for each in maps))
    return (
        np.array([each.data_ptr() for each in maps]),
        np.array([each.stride() for each in maps]),
        level.numpy(),
        image.long().numpy(),
        np.array([each.shape[2:] for each in maps]),
        edges,
        ratio,
        rule,
        np.arange(longest + 3, dtype=edges.dtype),
    )


def _lines_of(placed: tuple, pooled: Sequence[int]) -> tuple:
    """What the compiled functions get: addresses, strides, level and image of `_place`, what `_lines`
    returns, and a number of cells that no line exceeds."""
    return *placed[:4], *_lines(*pooled, *placed[1:]), len(placed[-1])


@compiled
def _lines(height, width, strides, level_of, image_of, sizes, edges, ratio, rule, numbers):
    """The rows and the columns that are read by the bins of all RoIs. `numbers` are 0, 1, 2 ... in the type
    of the edges, so that no operation is computed in a wider type.

    Returns (2, R, max(PH, PW) + 1) the start of the list of each row and each column of bins; offsets of
    their cells (of columns: relative to the first of the RoI, in cells) and weights; and (R, 2) the first
    column and the number of columns up to the last.
    """
    begins = np.empty((2, len(edges), max(height, width) + 1), np.uint64)
    windows, filled = np.empty((len(edges), 2), np.int64), np.uint64(0)
    offsets, weights = np.empty(filled, np.uint64), np.empty(filled, numbers.dtype)
    zero, one, following = numbers[0], numbers[1], np.uint64(1)
    half = one / numbers[2]
    for axis in range(2):
        pooled = height if axis == 0 else width
        for row in range(len(edges)):
            windows[row, 0] = windows[row, 1] = 0
            if image_of[row] < 0:
                continue
            side = sizes[level_of[row], axis]
            start, end, size = edges[row, 1 - axis], edges[row, 3 - axis], numbers[side]
            if rule == ALIGNED:
                start, end = start - half, end - half
            count = 1
            if rule == POINTS:
                length = end - start + one
                step = (length if length > zero else zero) / numbers[pooled - 1]
            else:
                length = end - start
                if rule == LEGACY and length < one:
                    length = one
                step = length / numbers[pooled]
                count = ratio
                if ratio == 0 and not step > zero:
                    count = 0
                elif ratio == 0:
                    count = side + 2 if step >= numbers[side + 2] else math.ceil(step)
            if side == 0:
                count = 0
            most = filled + np.uint64(2 * count * pooled)
            if most > len(offsets):
                before = offsets, weights
                offsets, weights = np.empty(2 * most, np.uint64), np.empty(2 * most, numbers.dtype)
                for k in range(filled):
                    offsets[k], weights[k] = before[0][k], before[1][k]
            lowest, highest, begin = side, np.int64(-1), filled
            for place in range(pooled):
                own = begins[axis, row, place] = filled
                for point in range(count):
                    at = start + numbers[place] * step
                    if rule == POINTS:
                        if not (at >= zero and at < size):
                            continue
                        low = min(math.floor(at), max(side - 2, 0))
                    else:
                        at = at + (numbers[point] + half) * step / numbers[count]
                        if not (at >= -one and at <= size):
                            continue
                        at = at if at > zero else zero
                        low = math.floor(at)
                        if low >= side - 1:  # beyond the last cell's centre: that cell
                            low = side - 1
                            at = numbers[low]
                    fraction = at - numbers[low]
                    lowest, highest = min(lowest, low), max(highest, min(low + 1, side - 1))
                    for part in range(2):
                        cell = np.uint64(low if part == 0 else min(low + 1, side - 1))
                        weight = one - fraction if part == 0 else fraction
                        if filled > own and offsets[filled - following] == cell:
                            weights[filled - following] += weight
                        elif filled > own + following and offsets[filled - following - following] == cell:
                            weights[filled - following - following] += weight
                        else:
                            offsets[filled], weights[filled] = cell, weight
                            filled += following
                for k in range(own, filled):
                    weights[k] /= numbers[count]
            begins[axis, row, pooled] = filled
            windows[row, 0], windows[row, 1] = lowest, max(highest + 1 - lowest, 0)  # columns come last
            for k in range(begin, filled):
                offsets[k] -= np.uint64(0 if axis == 0 else lowest)
                offsets[k] *= np.uint64(strides[level_of[row], 2] if axis == 0 else 1)
    return begins, offsets, weights, windows


@part_of_compiled
def _bins(row, height, width, step, begins, offsets, weights):
    """Start of the list of each bin of a RoI on a channels-last map, in which columns are `step` apart, and
    offsets and weights of the cells."""
    starts, count = np.empty(height * width + 1, np.uint64), np.uint64(0)
    most = (begins[0, row, height] - begins[0, row, 0]) * (begins[1, row, width] - begins[1, row, 0])
    places, factors = np.empty(most, np.uint64), np.empty(most, weights.dtype)
    for ph in range(height):
        for pw in range(width):
            starts[ph * width + pw] = count
            for i in range(begins[0, row, ph], begins[0, row, ph + 1]):
                for j in range(begins[1, row, pw], begins[1, row, pw + 1]):
                    places[count] = offsets[i] + offsets[j] * step
                    factors[count] = weights[i] * weights[j]
                    count += np.uint64(1)
    starts[height * width] = count
    return starts, places, factors


@part_of_compiled
def _add_cells(target, to, channels, cells, base, offsets, weights, begin, end):
    """target[to + c] = the sum of weights[k] * cells[base + offsets[k] + c], four cells at a time. All
    indices are unsigned, because signed ones would prevent vector loads."""
    for n in range(channels):
        target[to + n] = 0
    k = begin
    while k + np.uint64(4) <= end:
        a, b = base + offsets[k], base + offsets[k + np.uint64(1)]
        c, d = base + offsets[k + np.uint64(2)], base + offsets[k + np.uint64(3)]
        p, q = weights[k], weights[k + np.uint64(1)]
        r, s = weights[k + np.uint64(2)], weights[k + np.uint64(3)]
        for n in range(channels):
            near = p * widen(cells[a + n]) + q * widen(cells[b + n])
            target[to + n] += near + r * widen(cells[c + n]) + s * widen(cells[d + n])
        k += np.uint64(4)
    while k < end:
        a, p = base + offsets[k], weights[k]
        for n in range(channels):
            target[to + n] += p * widen(cells[a + n])
        k += np.uint64(1)


@compiled
def _forward_last(
    first, end, addresses, strides, level_of, image_of, begins, offsets, weights, windows, longest, pooled,
    channels, height, width, last,
):  # fmt: skip
    """Channels-last maps; pooled, of their type, (R, PH * PW * C), or (R, C * PH * PW) unless `last`."""
    bins, every = height * width, np.uint64(channels)
    tile = np.empty(bins * channels, weights.dtype)
    for row in range(first, end):
        if image_of[row] < 0:
            continue
        level, out = level_of[row], pooled[row]
        cells = array_at(addresses[level], (ANY,), pooled.dtype)
        base = np.uint64(image_of[row] * strides[level, 0] + windows[row, 0] * strides[level, 3])
        step = np.uint64(strides[level, 3])
        starts, places, factors = _bins(row, height, width, step, begins, offsets, weights)
        for place in range(bins):
            to, begin, stop = np.uint64(0 if last else place * channels), starts[place], starts[place + 1]
            _add_cells(tile, to, every, cells, base, places, factors, begin, stop)
            for n in range(channels if last else 0):
                out[np.uint64(place * channels + n)] = narrow(tile[np.uint64(n)], out[0])
        for channel in range(0 if last else channels):
            for place in range(bins):
                value = tile[np.uint64(place * channels + channel)]
                out[np.uint64(channel * bins + place)] = narrow(value, out[0])


@compiled
def _backward_last(
    first, end, addresses, strides, level_of, image_of, begins, offsets, weights, windows, longest, grad,
    channels, height, width, last,
):  # fmt: skip
    """Channels first .. end - 1 of channels-last gradients; grad as `pooled` of `_forward_last`."""
    bins, own = height * width, end - first
    tile, every = np.empty(own, weights.dtype), np.uint64(own)
    for row in range(len(image_of)):
        if image_of[row] < 0:
            continue
        level, upstream = level_of[row], grad[row]
        cells = array_at(addresses[level], (ANY,), weights.dtype)
        base = np.uint64(image_of[row] * strides[level, 0] + windows[row, 0] * strides[level, 3] + first)
        step = np.uint64(strides[level, 3])
        starts, places, factors = _bins(row, height, width, step, begins, offsets, weights)
        for place in range(bins):
            for channel in range(own):
                other = first + channel
                from_ = place * channels + other if last else other * bins + place
                tile[np.uint64(channel)] = upstream[np.uint64(from_)]
            for k in range(starts[place], starts[place + 1]):
                to, weight = base + places[k], factors[k]
                for n in range(every):
                    cells[to + n] += weight * tile[n]


@compiled
def _forward_planes(
    first, end, addresses, strides, level_of, image_of, begins, offsets, weights, windows, longest, pooled,
    channels, height, width, last,
):  # fmt: skip
    """Channels first .. end - 1 of NCHW maps; pooled as in `_forward_last`.

    Plane by plane, so that a plane stays in the cache for all its RoIs. The weight of a cell is the product
    of a row and a column weight, so the rows of each row of bins are added first, all columns at once.
    """
    sums = np.empty(longest, weights.dtype)
    zero, start = weights.dtype.type(0), np.uint64(0)
    for channel in range(first, end):
        for row in range(len(image_of)):
            if image_of[row] < 0:
                continue
            to = np.uint64(channel if last else channel * height * width)
            step, out, level = np.uint64(channels if last else 1), pooled[row], level_of[row]
            cells = array_at(addresses[level], (ANY,), weights.dtype)
            across = np.uint64(windows[row, 1])
            base = np.uint64(
                image_of[row] * strides[level, 0] + channel * strides[level, 1] + windows[row, 0]
            )
            for ph in range(height):
                begin, stop = begins[0, row, ph], begins[0, row, ph + 1]
                _add_cells(sums, start, across, cells, base, offsets, weights, begin, stop)
                for pw in range(width):
                    total = zero
                    for k in range(begins[1, row, pw], begins[1, row, pw + 1]):
                        total += weights[k] * sums[offsets[k]]
                    out[to] = total
                    to += step


@compiled
def _backward_planes(
    first, end, addresses, strides, level_of, image_of, begins, offsets, weights, windows, longest, grad,
    channels, height, width, last,
):  # fmt: skip
    """Channels first .. end - 1 of NCHW gradients; grad as in `_backward_last`. Plane by plane, columns
    before rows: the reverse of `_forward_planes`."""
    sums, zero = np.empty(longest, weights.dtype), weights.dtype.type(0)
    for channel in range(first, end):
        for row in range(len(image_of)):
            if image_of[row] < 0:
                continue
            from_ = np.uint64(channel if last else channel * height * width)
            step, upstream, level = np.uint64(channels if last else 1), grad[row], level_of[row]
            cells = array_at(addresses[level], (ANY,), weights.dtype)
            across = np.uint64(windows[row, 1])
            base = np.uint64(
                image_of[row] * strides[level, 0] + channel * strides[level, 1] + windows[row, 0]
            )
            for ph in range(height):
                for n in range(across):
                    sums[n] = zero
                for pw in range(width):
                    for k in range(begins[1, row, pw], begins[1, row, pw + 1]):
                        sums[offsets[k]] += weights[k] * upstream[from_]
                    from_ += step
                for k in range(begins[0, row, ph], begins[0, row, ph + 1]):
                    to, weight = base + offsets[k], weights[k]
                    for n in range(across):
                        cells[to + n] += weight * sums[n]
