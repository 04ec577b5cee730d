"""RoIAlign compiled for CPU: parallel over RoIs in the forward pass and over channels in the backward pass,
in the memory layout of the maps.

Each bin of a RoI is a list of cells and weights; points on the same cell are merged. Channels-last maps: four
weighted cells at a time are added to all channels of a bin. NCHW maps: plane by plane, rows before columns.
Results differ from the reference only by the order of sums and the place of the division by the number of
points: with n cells per bin (before merging) by at most n + 4 ulps of the sum of the absolute terms of an
output.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

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
ROWS, COLUMNS = np.int64(0), np.int64(1)  # a function of a plain number would be compiled for each


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
    flat = as_array((sums.permute(0, 2, 3, 1) if last else sums).view(len(rois), prod(shape)))
    placed = _place(maps, rois, shape[1:], sampling)
    for image, value in ((ABSENT, 0), (UNPOOLABLE, np.nan)):
        sums[torch.from_numpy(np.flatnonzero(placed[3] == image))] = value
    forward, given = (_forward_last, placed) if fastest else (_forward_planes, _lines_of(placed, shape[1:]))

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
    flat = upstream.reshape(len(rois), prod(grad.shape[1:])).numpy()
    backward, given = (_backward_last, placed)
    if not fastest:
        backward, given = _backward_planes, _lines_of(placed, grad.shape[2:])

    def work(first: int, end: int) -> None:
        backward(first, end, *given, flat, *grad.shape[1:], last)

    in_threads(work, grad.shape[1], torch.get_num_threads(), least=16)
    return [each if each is total else each.copy_(total) for each, total in zip(maps, sums, strict=True)]


def channels_are_fastest(maps: Sequence[Tensor]) -> bool:
    """Whether all maps (N, C, H, W) are channels-last."""
    return all(each.stride(1) == 1 for each in maps)


def _place(maps: Sequence[Tensor], rois: Tensor, pooled: Sequence[int], sampling: Sampling) -> tuple:
    """Arguments of the compiled functions: (L,) addresses, (L, 4) strides, (R,) level, (R,) image index,
    ABSENT or UNPOOLABLE, (L, 2) sizes, (R, 4) edges in cells, before the shift of half a cell; points per
    bin, the rule, and 0, 1, 2 ... in the type of edges."""
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
    """What functions for planes get: addresses, strides, level and image of `_place`, and `_both_axes`."""
    return *placed[:4], *_both_axes(*pooled, *placed[1:])


@part_of_compiled
def _axis(start, end, pooled, side, ratio, rule, numbers):
    """Cells (pooled, 2 * points), their weights, the number of cells of each bin, and of all bins. `numbers`
    are 0, 1, 2 ... in the type of the coordinates, so that no operation is computed in a wider type."""
    zero, one, size = numbers[0], numbers[1], numbers[side]
    half = one / numbers[2]
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
            count = side + 2 if step >= numbers[side + 2] else int(np.ceil(step))
    if side == 0:
        count = 0
    cells = np.empty((pooled, 2 * count), np.int64)
    weights = np.empty((pooled, 2 * count), numbers.dtype)
    filled, total = np.empty(pooled, np.int64), 0
    for place in range(pooled):
        found = 0
        for point in range(count):
            at = start + numbers[place] * step
            if rule == POINTS:
                if not (at >= zero and at < size):
                    continue
                low = min(int(np.floor(at)), max(side - 2, 0))
            else:
                at = at + (numbers[point] + half) * step / numbers[count]
                if not (at >= -one and at <= size):
                    continue
                at = at if at > zero else zero
                low = int(np.floor(at))
                if low >= side - 1:  # beyond the last cell's centre: that cell
                    low = side - 1
                    at = numbers[low]
            fraction = at - numbers[low]
            for part in range(2):
                cell = low if part == 0 else min(low + 1, side - 1)
                weight = one - fraction if part == 0 else fraction
                if found > 0 and cells[place, found - 1] == cell:
                    weights[place, found - 1] += weight
                elif found > 1 and cells[place, found - 2] == cell:
                    weights[place, found - 2] += weight
                else:
                    cells[place, found], weights[place, found] = cell, weight
                    found += 1
        for index in range(found):
            weights[place, index] /= numbers[count]
        filled[place] = found
        total += found
    return cells, weights, filled, total


@part_of_compiled
def _bins(edges, size, strides, height, width, ratio, rule, numbers):
    """Start of the list of each bin, and offsets and weights of the cells."""
    y, weight_y, many_y, total_y = _axis(edges[1], edges[3], height, size[0], ratio, rule, numbers)
    x, weight_x, many_x, total_x = _axis(edges[0], edges[2], width, size[1], ratio, rule, numbers)
    begins = np.empty(height * width + 1, np.uint64)
    offsets = np.empty(total_y * total_x, np.uint64)
    weights = np.empty(len(offsets), numbers.dtype)
    count = 0
    for ph in range(height):
        for pw in range(width):
            begins[ph * width + pw] = count
            for i in range(many_y[ph]):
                for j in range(many_x[pw]):
                    offsets[count] = y[ph, i] * strides[2] + x[pw, j] * strides[3]
                    weights[count] = weight_y[ph, i] * weight_x[pw, j]
                    count += 1
    begins[height * width] = count
    return begins, offsets, weights


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
    first, end, addresses, strides, level_of, image_of, sizes, edges, ratio, rule, numbers, pooled, channels,
    height, width, last,
):  # fmt: skip
    """Channels-last maps; pooled, of their type, (R, PH * PW * C), or (R, C * PH * PW) unless `last`."""
    bins, every = height * width, np.uint64(channels)
    tile = np.empty(bins * channels, edges.dtype)
    for row in range(first, end):
        if image_of[row] < 0:
            continue
        at, size = strides[level_of[row]], sizes[level_of[row]]
        cells = array_at(addresses[level_of[row]], (ANY,), pooled.dtype)
        begins, offsets, weights = _bins(edges[row], size, at, height, width, ratio, rule, numbers)
        base = np.uint64(image_of[row] * at[0])
        out = pooled[row]
        for place in range(bins):
            to, begin, stop = 0 if last else place * channels, begins[place], begins[place + 1]
            _add_cells(tile, np.uint64(to), every, cells, base, offsets, weights, begin, stop)
            for n in range(channels if last else 0):
                out[np.uint64(place * channels + n)] = narrow(tile[np.uint64(n)], out[0])
        for channel in range(0 if last else channels):
            for place in range(bins):
                value = tile[np.uint64(place * channels + channel)]
                out[np.uint64(channel * bins + place)] = narrow(value, out[0])


@compiled
def _backward_last(
    first, end, addresses, strides, level_of, image_of, sizes, edges, ratio, rule, numbers, grad, channels,
    height, width, last,
):  # fmt: skip
    """Channels first .. end - 1 of channels-last gradients; grad as `pooled` of `_forward_last`."""
    bins, own = height * width, end - first
    tile, every = np.empty(bins * own, edges.dtype), np.uint64(own)
    for row in range(len(edges)):
        if image_of[row] < 0:
            continue
        at, size, upstream = strides[level_of[row]], sizes[level_of[row]], grad[row]
        cells = array_at(addresses[level_of[row]], (ANY,), edges.dtype)
        begins, offsets, weights = _bins(edges[row], size, at, height, width, ratio, rule, numbers)
        base = np.uint64(image_of[row] * at[0] + first)
        for place in range(bins):
            for channel in range(own):
                other = first + channel
                from_ = place * channels + other if last else other * bins + place
                tile[np.uint64(place * own + channel)] = upstream[np.uint64(from_)]
        for place in range(bins):
            start = np.uint64(place * own)
            for k in range(begins[place], begins[place + 1]):
                to, weight = base + offsets[k], weights[k]
                for n in range(every):
                    cells[to + n] += weight * tile[start + n]


@part_of_compiled
def _lines(axis, pooled, strides, level_of, image_of, sizes, edges, ratio, rule, numbers):
    """The rows (axis ROWS) or columns (COLUMNS) that are read by the bins of all RoIs.

    Returns the start of the list of each bin (R, pooled + 1), offsets of its cells (of columns: relative to
    the first of the RoI), their weights, and (R, 2) the first cell and the number of cells up to the last.
    """
    begins, windows = np.empty((len(edges), pooled + 1), np.uint64), np.empty((len(edges), 2), np.int64)
    offsets, weights, count = np.empty(0, np.uint64), np.empty(0, numbers.dtype), np.uint64(0)
    for row in range(len(edges)):
        windows[row, 0] = windows[row, 1] = 0
        if image_of[row] < 0:
            continue
        begins[row, 0] = count
        start, stop, side = edges[row][1 - axis], edges[row][3 - axis], sizes[level_of[row]][axis]
        cells, own, filled, total = _axis(start, stop, pooled, side, ratio, rule, numbers)
        more = count + np.uint64(total)
        if more > len(offsets):
            offsets = np.concatenate((offsets, np.empty(more, np.uint64)))
            weights = np.concatenate((weights, np.empty(more, numbers.dtype)))
        first, last = side, np.int64(-1)
        for place in range(pooled):
            for index in range(filled[place]):
                offsets[count], weights[count] = cells[place, index], own[place, index]
                first, last = min(first, cells[place, index]), max(last, cells[place, index])
                count += np.uint64(1)
            begins[row, place + 1] = count
        windows[row, 0], windows[row, 1] = first, max(last + 1 - first, 0)
        for k in range(begins[row, 0], count):
            offsets[k] -= np.uint64(0 if axis == 0 else first)
            offsets[k] *= np.uint64(strides[level_of[row]][2] if axis == 0 else 1)
    return begins, offsets, weights, windows


@compiled
def _both_axes(height, width, *given):
    """`_lines` of rows and of columns, but no windows of rows."""
    begins, offsets, weights, _ = _lines(ROWS, height, *given)
    return begins, offsets, weights, *_lines(COLUMNS, width, *given)


@part_of_compiled
def _widest(windows):
    widest = 0
    for row in range(len(windows)):
        widest = max(widest, windows[row, 1])
    return widest


@compiled
def _forward_planes(
    first, end, addresses, strides, level_of, image_of, begins_y, offsets_y, weights_y, begins_x, offsets_x,
    weights_x, windows, pooled, channels, height, width, last,
):  # fmt: skip
    """Channels first .. end - 1 of NCHW maps; pooled as in `_forward_last`.

    Plane by plane, so that a plane stays in the cache for all its RoIs. The weight of a cell is the product
    of a row and a column weight, so the rows of each row of bins are added first, all columns at once.
    """
    sums = np.empty(_widest(windows), weights_x.dtype)
    zero, start = weights_x.dtype.type(0), np.uint64(0)
    for channel in range(first, end):
        for row in range(len(image_of)):
            if image_of[row] < 0:
                continue
            to = np.uint64(channel if last else channel * height * width)
            step, out = np.uint64(channels if last else 1), pooled[row]
            at = strides[level_of[row]]
            cells = array_at(addresses[level_of[row]], (ANY,), weights_x.dtype)
            left, across = windows[row]
            base = np.uint64(image_of[row] * at[0] + channel * at[1] + left)
            for ph in range(height):
                begin, stop = begins_y[row, ph], begins_y[row, ph + 1]
                if begin == stop:
                    sums[:] = 0
                _add_cells(sums, start, np.uint64(across), cells, base, offsets_y, weights_y, begin, stop)
                for pw in range(width):
                    total = zero
                    for k in range(begins_x[row, pw], begins_x[row, pw + 1]):
                        total += weights_x[k] * sums[offsets_x[k]]
                    out[to] = total
                    to += step


@compiled
def _backward_planes(
    first, end, addresses, strides, level_of, image_of, begins_y, offsets_y, weights_y, begins_x, offsets_x,
    weights_x, windows, grad, channels, height, width, last,
):  # fmt: skip
    """Channels first .. end - 1 of NCHW gradients; grad as in `_backward_last`. Plane by plane, columns
    before rows: the reverse of `_forward_planes`."""
    sums = np.empty(_widest(windows), weights_x.dtype)
    for channel in range(first, end):
        for row in range(len(image_of)):
            if image_of[row] < 0:
                continue
            from_ = np.uint64(channel if last else channel * height * width)
            step, upstream = np.uint64(channels if last else 1), grad[row]
            at = strides[level_of[row]]
            cells = array_at(addresses[level_of[row]], (ANY,), weights_x.dtype)
            left, across = windows[row]
            base = np.uint64(image_of[row] * at[0] + channel * at[1] + left)
            for ph in range(height):
                sums[:across] = 0
                for pw in range(width):
                    for k in range(begins_x[row, pw], begins_x[row, pw + 1]):
                        sums[offsets_x[k]] += weights_x[k] * upstream[from_]
                    from_ += step
                for k in range(begins_y[row, ph], begins_y[row, ph + 1]):
                    to, weight = base + offsets_y[k], weights_y[k]
                    for n in range(np.uint64(across)):
                        cells[to + n] += weight * sums[n]
