"""RoIAlign compiled for a CPU: parallel over RoIs forward, over channels backward, in the maps' own layout.

Each bin of a RoI is a list of cells and weights, points on the same cell merged. Channels-last maps: four
weighted cells at a time are added to all channels of a bin. Planes (NCHW): the lists are walked channel by
channel. Against the reference only the order of sums and where the division by the number of points happens
differ: with n cells a bin (before merging) an output differs by at most n + 4 ulps of the sum of its absolute
terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.cell_sums import sum_type
from detection_zoo.kernels.machine_code import array_at, compiled, in_threads
from detection_zoo.kernels.roi_align_reference import poolable, unpoolable
from detection_zoo.kernels.roi_levels import LevelRule, assign_levels

LEGACY, ALIGNED, POINTS = range(3)  # places in roi_align.RULES
ABSENT, UNPOOLABLE = -1, -2  # in place of an image index
PLANES = 4  # copied together
ANY = 1 << 60  # the length of a map's flat array, which nothing checks


def cpu_forward(
    features: Sequence[Tensor],
    rois: Tensor,
    pooled: Tensor,
    scales: Sequence[float],
    sampling_ratio: int,
    rule: int,
    levels: LevelRule,
) -> Tensor:
    """Fill pooled (R, C, PH, PW), NCHW or channels-last; other arguments as in
    `kernels.roi_align.multilevel_roi_align`."""
    number = sum_type(pooled)
    maps = [each.to(number) for each in features]
    sums = pooled if pooled.dtype == number else torch.empty_like(pooled, dtype=number)
    last = not sums.is_contiguous()
    shape = tuple(pooled.shape[1:])
    flat = (sums.permute(0, 2, 3, 1) if last else sums).view(len(rois), prod(shape)).numpy()
    placed = _place(maps, rois, scales, levels)
    forward = _forward_last if channels_are_fastest(maps) else _forward_planes

    def work(first: int, end: int) -> None:
        forward(first, end, *placed, sampling_ratio, rule, flat, *shape, last)

    in_threads(work, len(rois), torch.get_num_threads(), least=8)
    return pooled if sums is pooled else pooled.copy_(sums)


def cpu_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    rois: Tensor,
    scales: Sequence[float],
    sampling_ratio: int,
    rule: int,
    levels: LevelRule,
) -> list[Tensor]:
    """Fill maps, one (N, C, H_l, W_l) a level, with the gradient of the features; grad is (R, C, PH, PW). The
    sums are in the order of RoIs and bins, whatever the number of threads."""
    number = sum_type(grad)
    sums = [each.zero_() if each.dtype == number else torch.zeros_like(each, dtype=number) for each in maps]
    last = grad.stride(1) == 1 and grad.is_contiguous(memory_format=torch.channels_last)
    upstream = (grad.permute(0, 2, 3, 1) if last else grad.contiguous()).to(number)
    placed = _place(sums, rois, scales, levels)
    flat = upstream.reshape(len(rois), prod(grad.shape[1:])).numpy()
    backward = _backward_last if channels_are_fastest(sums) else _backward_planes

    def work(first: int, end: int) -> None:
        backward(first, end, *placed, sampling_ratio, rule, flat, *grad.shape[1:], last)

    in_threads(work, grad.shape[1], torch.get_num_threads(), least=16)
    return [each if each is total else each.copy_(total) for each, total in zip(maps, sums, strict=True)]


def channels_are_fastest(maps: Sequence[Tensor]) -> bool:
    """Whether the channels of all maps (N, C, H, W) lie side by side."""
    return all(each.stride(1) == 1 for each in maps)


def image_of(rois: Tensor, images: int) -> np.ndarray:
    """The image of each of rois (R, 5), ABSENT or UNPOOLABLE: (R,) int64."""
    image = torch.where(poolable(rois, images), rois[:, 0], ABSENT)
    return image.masked_fill(unpoolable(rois, images), UNPOOLABLE).long().numpy()


def _place(maps: Sequence[Tensor], rois: Tensor, scales: Sequence[float], levels: LevelRule) -> tuple:
    """What the compiled forms need of maps and RoIs: (L,) addresses, (L, 4) strides, (L, 2) sizes, (R,)
    level, (R,) image, (R, 4) edges in cells, before the shift of half a cell."""
    rois = rois.to(maps[0].dtype)
    level = assign_levels(rois, levels, len(maps)) - levels.min_level
    edges = rois[:, 1:] * torch.tensor(scales, dtype=rois.dtype)[level][:, None]
    return (
        np.array([each.data_ptr() for each in maps]),
        np.array([each.stride() for each in maps]),
        np.array([each.shape[2:] for each in maps]),
        level.numpy(),
        image_of(rois, maps[0].shape[0]),
        edges.numpy(),
    )


@compiled
def _axis(start, end, pooled, side, ratio, rule, numbers):
    """Cells (pooled, 2 * points), their weights, and how many of them each bin has. `numbers` are 0, 1, 2 ...
    of the coordinates' type, so that no operation widens it."""
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
    filled = np.zeros(pooled, np.int64)
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
    return cells, weights, filled


@compiled
def _numbers(sizes, pooled_h, pooled_w, ratio, dtype):
    most = max(sizes.max(), pooled_h, pooled_w, ratio) + 3
    return np.arange(most).astype(dtype)


@compiled
def _bins(edges, size, strides, height, width, ratio, rule, numbers):
    """Where the lists of each bin begin, and the offsets and weights of their cells."""
    y, weight_y, many_y = _axis(edges[1], edges[3], height, size[0], ratio, rule, numbers)
    x, weight_x, many_x = _axis(edges[0], edges[2], width, size[1], ratio, rule, numbers)
    begins = np.empty(height * width + 1, np.uint64)
    offsets = np.empty(many_y.sum() * many_x.sum(), np.uint64)
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


@compiled
def _add_cells(target, to, channels, cells, base, offsets, weights, begin, end):
    """target[to + c] = the sum of weights[k] * cells[base + offsets[k] + c], four cells at a time. All
    indices are unsigned, since one that may be negative makes gathers."""
    k = begin
    while k + np.uint64(4) <= end:
        a, b = base + offsets[k], base + offsets[k + np.uint64(1)]
        c, d = base + offsets[k + np.uint64(2)], base + offsets[k + np.uint64(3)]
        p, q = weights[k], weights[k + np.uint64(1)]
        r, s = weights[k + np.uint64(2)], weights[k + np.uint64(3)]
        if k == begin:
            for n in range(channels):
                target[to + n] = p * cells[a + n] + q * cells[b + n] + r * cells[c + n] + s * cells[d + n]
        else:
            for n in range(channels):
                target[to + n] += p * cells[a + n] + q * cells[b + n] + r * cells[c + n] + s * cells[d + n]
        k += np.uint64(4)
    while k < end:
        a, p = base + offsets[k], weights[k]
        if k == begin:
            for n in range(channels):
                target[to + n] = p * cells[a + n]
        else:
            for n in range(channels):
                target[to + n] += p * cells[a + n]
        k += np.uint64(1)


@compiled
def _forward_last(
    first, end, addresses, strides, sizes, level_of, image_of, edges, ratio, rule, pooled, channels,
    height, width, last,
):  # fmt: skip
    """Channels-last maps; pooled (R, PH * PW * C), or (R, C * PH * PW) where `last` is false."""
    numbers = _numbers(sizes, height, width, ratio, edges.dtype)
    bins, every = height * width, np.uint64(channels)
    tile = np.empty(0 if last else bins * channels, edges.dtype)
    for row in range(first, end):
        if image_of[row] < 0:
            pooled[row] = np.nan if image_of[row] == UNPOOLABLE else 0.0
            continue
        at, size = strides[level_of[row]], sizes[level_of[row]]
        cells = array_at(addresses[level_of[row]], (ANY,), edges.dtype)
        begins, offsets, weights = _bins(edges[row], size, at, height, width, ratio, rule, numbers)
        base = np.uint64(image_of[row] * at[0])
        target = pooled[row] if last else tile
        for place in range(bins):
            to, begin, stop = place * channels, begins[place], begins[place + 1]
            if begin == stop:
                target[to : to + channels] = 0
            _add_cells(target, np.uint64(to), every, cells, base, offsets, weights, begin, stop)
        if not last:
            out = pooled[row]
            for channel in range(channels):
                for place in range(bins):
                    out[np.uint64(channel * bins + place)] = tile[np.uint64(place * channels + channel)]


@compiled
def _backward_last(
    first, end, addresses, strides, sizes, level_of, image_of, edges, ratio, rule, grad, channels,
    height, width, last,
):  # fmt: skip
    """Channels first .. end - 1 of channels-last gradients; grad as `pooled` of `_forward_last`."""
    numbers = _numbers(sizes, height, width, ratio, edges.dtype)
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


@compiled
def _reach(edges, size, height, width, ratio, rule, numbers):
    """First row and column that a RoI reads, and how many rows and columns there are up to the last."""
    y, _, many_y = _axis(edges[1], edges[3], height, size[0], ratio, rule, numbers)
    x, _, many_x = _axis(edges[0], edges[2], width, size[1], ratio, rule, numbers)
    top, left, bottom, right = size[0], size[1], np.int64(-1), np.int64(-1)
    for ph in range(height):
        for i in range(many_y[ph]):
            top, bottom = min(top, y[ph, i]), max(bottom, y[ph, i])
    for pw in range(width):
        for j in range(many_x[pw]):
            left, right = min(left, x[pw, j]), max(right, x[pw, j])
    return top, left, max(bottom - top + 1, 0), max(right - left + 1, 0)


@compiled
def _forward_planes(
    first, end, addresses, strides, sizes, level_of, image_of, edges, ratio, rule, pooled, channels,
    height, width, last,
):  # fmt: skip
    """Maps of any strides; pooled as in `_forward_last`.

    Rows of a plane lie far apart, so the time goes to waiting for memory. The part of some planes that a RoI
    reads is copied first, which waits for many rows at once, unless it is mostly cells that no bin reads.
    """
    numbers = _numbers(sizes, height, width, ratio, edges.dtype)
    bins = height * width
    for row in range(first, end):
        if image_of[row] < 0:
            pooled[row] = np.nan if image_of[row] == UNPOOLABLE else 0.0
            continue
        at, size, out = strides[level_of[row]], sizes[level_of[row]], pooled[row]
        cells = array_at(addresses[level_of[row]], (ANY,), edges.dtype)
        begins, offsets, weights = _bins(edges[row], size, at, height, width, ratio, rule, numbers)
        top, left, down, across = _reach(edges[row], size, height, width, ratio, rule, numbers)
        packed = down * across <= 4 * len(offsets)
        part = np.empty(PLANES * down * across if packed else 0, edges.dtype)
        if packed:  # offsets into a part in place of the map
            local = np.array([0, 0, across, 1])
            _, offsets, _ = _bins(edges[row], size, local, height, width, ratio, rule, numbers)
            offsets -= np.uint64(top * across + left)
        for begin in range(0, channels, PLANES):
            planes = min(PLANES, channels - begin)
            corner = image_of[row] * at[0] + begin * at[1] + top * at[2] + left * at[3]
            if packed:
                for plane in range(planes):
                    for y in range(down):
                        to = np.uint64((plane * down + y) * across)
                        from_ = np.uint64(corner + plane * at[1] + y * at[2])
                        if at[3] == 1:
                            for x in range(np.uint64(across)):
                                part[to + x] = cells[from_ + x]
                        else:
                            for x in range(np.uint64(across)):
                                part[to + x] = cells[from_ + x * np.uint64(at[3])]
            for plane in range(planes):
                channel = begin + plane
                base = np.uint64(image_of[row] * at[0] + channel * at[1])
                source = cells
                if packed:
                    base, source = np.uint64(plane * down * across), part
                for place in range(bins):
                    total = numbers[0]
                    for k in range(begins[place], begins[place + 1]):
                        total += weights[k] * source[base + offsets[k]]
                    out[np.uint64(place * channels + channel if last else channel * bins + place)] = total


@compiled
def _backward_planes(
    first, end, addresses, strides, sizes, level_of, image_of, edges, ratio, rule, grad, channels,
    height, width, last,
):  # fmt: skip
    """Channels first .. end - 1 of gradients of any strides; grad as in `_backward_last`."""
    numbers = _numbers(sizes, height, width, ratio, edges.dtype)
    bins = height * width
    for row in range(len(edges)):
        if image_of[row] < 0:
            continue
        at, size, upstream = strides[level_of[row]], sizes[level_of[row]], grad[row]
        cells = array_at(addresses[level_of[row]], (ANY,), edges.dtype)
        begins, offsets, weights = _bins(edges[row], size, at, height, width, ratio, rule, numbers)
        for channel in range(first, end):
            base = np.uint64(image_of[row] * at[0] + channel * at[1])
            for place in range(bins):
                part = upstream[np.uint64(place * channels + channel if last else channel * bins + place)]
                for k in range(begins[place], begins[place + 1]):
                    cells[base + offsets[k]] += weights[k] * part
