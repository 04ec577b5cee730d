"""Bilinear enlargement of uint8 images, bitwise equal to Pillow's, compiled for CPU with numba.

Pillow (libImaging/Resample.c) resizes along rows, then along columns, and rounds to bytes after each pass. A
byte is the sum of two neighbours with 22-bit integer weights. Here both passes alternate row by row, so that
intermediate rows stay in the L1 cache, and the second pass processes 16 or 32 bytes at once.
"""

from __future__ import annotations

import numpy as np

from detection_zoo.kernels.machine_code import compiled

BITS = 22  # of weights; with 8 bits of a pixel, two of 32 bits are left


def enlarge_bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image as Pillow's Image.resize with Resampling.BILINEAR does.

    Args:
        pixels: (H, W, 3) uint8, at least two pixels in both directions.
        height, width: of the result, in pixels, at least as many.
    Returns:
        (height, width, 3) uint8.
    """
    rows, columns = pixels.shape[:2]
    out = np.empty((height, width, 3), np.uint8)
    lines = np.ascontiguousarray(pixels).reshape(rows, 3 * columns)
    _enlarge(lines, *_weights(rows, height), *_weights(columns, width), out.reshape(height, 3 * width))
    return out


def _weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `new` pixels: index of the first of two `old` pixels (new,) int64, and weights (new, 2)
    int32; computed in double precision as in Pillow."""
    centre = (np.arange(new) + 0.5) * (old / new)
    first = np.clip((centre - 0.5).astype(np.int64), 0, old - 2)
    weights = np.maximum(1.0 - np.abs(first[:, None] + np.arange(2) - centre[:, None] + 0.5), 0.0)
    weights *= 1.0 / weights.sum(axis=1, keepdims=True)
    return first, (0.5 + weights * (1 << BITS)).astype(np.int32)


@compiled
def _enlarge(pixels, row_start, row_weights, column_start, column_weights, out):
    """Fill out (H', 3 W') from pixels (H, 3 W)."""
    half, done, length = np.int32(1 << (BITS - 1)), -1, out.shape[1]
    lines = np.empty((2, length), np.uint8)  # the last two rows, enlarged along themselves
    for row in range(out.shape[0]):
        at = row_start[row]
        while done <= at:
            done += 1
            line, given = lines[done & 1], pixels[done]
            for column in range(len(column_start)):
                place, to = 3 * column_start[column], 3 * column
                left, right = column_weights[column, 0], column_weights[column, 1]
                line[to] = (half + left * given[place] + right * given[place + 3]) >> BITS
                line[to + 1] = (half + left * given[place + 1] + right * given[place + 4]) >> BITS
                line[to + 2] = (half + left * given[place + 2] + right * given[place + 5]) >> BITS
        above, below, result = lines[at & 1], lines[(at + 1) & 1], out[row]
        upper, lower = row_weights[row, 0], row_weights[row, 1]
        for place in range(length):
            total = half + np.int32(above[place]) * upper + np.int32(below[place]) * lower
            result[place] = total >> np.int32(BITS)
