"""RoICrop compiled for CPU: four weighted cells per point; parallel over RoIs in the forward pass and over
channels in the backward pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.cell_sums import sum_type
from detection_zoo.kernels.machine_code import ANY, array_at, compiled, in_threads, part_of_compiled


def cpu_forward(features: Tensor, cells: Tensor, weights: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sampled (R, C, PH, PW).

    Args:
        features: (N, C, H, W) of any strides.
        cells: (R * PH * PW, 4) int64, (image * H + y) * W + x of the four cells around each point, N * H * W
            if outside the map. weights: the same, in the type of sums.
        shape: (R, C, PH, PW).
    """
    maps = features.to(sum_type(features))
    sampled = maps.new_empty(shape)
    given = (maps.data_ptr(), maps.stride(), *features.shape, cells.numpy(), weights.numpy())
    bins = shape[2] * shape[3]
    flat = sampled.view(shape[0], shape[1] * bins).numpy()

    def work(first: int, end: int) -> None:
        _forward(first, end, *given, flat, bins)

    in_threads(work, shape[0], torch.get_num_threads(), least=8)
    return sampled.to(features.dtype)


def cpu_backward(grad: Tensor, cells: Tensor, weights: Tensor, shape: list[int]) -> Tensor:
    """The gradient (N, C, H, W) of the features from that of the samples (R, C, PH, PW); the rest as in
    `cpu_forward`."""
    sums = torch.zeros(shape, dtype=sum_type(grad))
    bins = grad.shape[2] * grad.shape[3]
    upstream = grad.contiguous().to(sums.dtype).view(len(grad), shape[1] * bins).numpy()
    given = (sums.data_ptr(), sums.stride(), *shape, cells.numpy(), weights.numpy())

    def work(first: int, end: int) -> None:
        _backward(first, end, *given, upstream, bins)

    in_threads(work, shape[1], torch.get_num_threads(), least=16)
    return sums.to(grad.dtype)


@part_of_compiled
def _offsets(point, strides, images, height, width, cells, found):
    """Offsets of the cells of a point in a map, and the number of cells inside it; their indices are written
    to `found`."""
    count = 0
    offsets = np.empty(4, np.uint64)
    for k in range(4):
        cell = cells[point, k]
        if cell >= images * height * width:
            continue
        x, line = cell % width, cell // width
        offsets[count] = line // height * strides[0] + line % height * strides[2] + x * strides[3]
        found[count] = k
        count += 1
    return offsets, count


@compiled
def _forward(first, end, address, strides, images, channels, height, width, cells, weights, sampled, bins):
    maps, found = array_at(address, (ANY,), weights.dtype), np.empty(4, np.int64)
    for row in range(first, end):
        out = sampled[row]
        for place in range(bins):
            point = row * bins + place
            offsets, count = _offsets(point, strides, images, height, width, cells, found)
            for channel in range(channels):
                total, base = weights.dtype.type(0), np.uint64(channel * strides[1])
                for k in range(count):
                    total += weights[point, found[k]] * maps[base + offsets[k]]
                out[np.uint64(channel * bins + place)] = total


@compiled
def _backward(first, end, address, strides, images, channels, height, width, cells, weights, grad, bins):
    maps, found = array_at(address, (ANY,), weights.dtype), np.empty(4, np.int64)
    for row in range(len(grad)):
        for place in range(bins):
            point = row * bins + place
            offsets, count = _offsets(point, strides, images, height, width, cells, found)
            for channel in range(first, end):
                base = np.uint64(channel * strides[1])
                for k in range(count):
                    part = weights[point, found[k]] * grad[row, np.uint64(channel * bins + place)]
                    maps[base + offsets[k]] += part
