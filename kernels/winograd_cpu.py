"""The transforms of Winograd's convolution, compiled for a CPU; parallel over tiles.

The loops run over channels, which lie next to each other, so that they become vector instructions.
"""

from __future__ import annotations

import numpy as np

from detection_zoo.kernels.machine_code import compiled

TWO, FOUR, FIVE, EIGHT = (np.float32(number) for number in (2, 4, 5, 8))  # products stay in float32


@compiled
def transform_input(first, end, strip, values):
    """B^T d B of tiles first..end-1.

    strip: (4 * R + 2, 4 * S + 2, C), R rows of S tiles with their border. values: (36, R * S, C), written.
    """
    channels, across = strip.shape[2], (strip.shape[1] - 2) // 4
    half = np.empty((36, channels), np.float32)
    for tile in range(first, end):
        top, left = tile // across * 4, tile % across * 4
        for j in range(6):
            for c in range(channels):
                d0, d1, d2 = strip[top, left + j, c], strip[top + 1, left + j, c], strip[top + 2, left + j, c]
                d3, d4 = strip[top + 3, left + j, c], strip[top + 4, left + j, c]
                d5 = strip[top + 5, left + j, c]
                even, odd = d4 - FOUR * d2, d3 - FOUR * d1
                near, far = d4 - d2, TWO * (d3 - d1)
                half[j, c] = FOUR * d0 - FIVE * d2 + d4
                half[6 + j, c] = even + odd
                half[12 + j, c] = even - odd
                half[18 + j, c] = near + far
                half[24 + j, c] = near - far
                half[30 + j, c] = FOUR * d1 - FIVE * d3 + d5
        for i in range(0, 36, 6):
            for c in range(channels):
                d0, d1, d2 = half[i, c], half[i + 1, c], half[i + 2, c]
                d3, d4, d5 = half[i + 3, c], half[i + 4, c], half[i + 5, c]
                even, odd = d4 - FOUR * d2, d3 - FOUR * d1
                near, far = d4 - d2, TWO * (d3 - d1)
                values[i, tile, c] = FOUR * d0 - FIVE * d2 + d4
                values[i + 1, tile, c] = even + odd
                values[i + 2, tile, c] = even - odd
                values[i + 3, tile, c] = near + far
                values[i + 4, tile, c] = near - far
                values[i + 5, tile, c] = FOUR * d1 - FIVE * d3 + d5


@compiled
def transform_output(first, end, products, bias, out):
    """A^T m A + bias of tiles first..end-1.

    products: (36, R * S, K). bias: (K,). out: (4 * R, 4 * S, K), written.
    """
    channels, across = out.shape[2], out.shape[1] // 4
    half = np.empty((24, channels), np.float32)
    for tile in range(first, end):
        top, left = tile // across * 4, tile % across * 4
        for j in range(6):
            for c in range(channels):
                m0, m1, m2 = products[j, tile, c], products[6 + j, tile, c], products[12 + j, tile, c]
                m3, m4, m5 = products[18 + j, tile, c], products[24 + j, tile, c], products[30 + j, tile, c]
                sum12, sum34, less12, less34 = m1 + m2, m3 + m4, m1 - m2, m3 - m4
                half[j, c] = m0 + sum12 + sum34
                half[6 + j, c] = less12 + TWO * less34
                half[12 + j, c] = sum12 + FOUR * sum34
                half[18 + j, c] = less12 + EIGHT * less34 + m5
        for i in range(4):
            for c in range(channels):
                m0, m1, m2 = half[6 * i, c], half[6 * i + 1, c], half[6 * i + 2, c]
                m3, m4, m5 = half[6 * i + 3, c], half[6 * i + 4, c], half[6 * i + 5, c]
                sum12, sum34, less12, less34 = m1 + m2, m3 + m4, m1 - m2, m3 - m4
                out[top + i, left, c] = m0 + sum12 + sum34 + bias[c]
                out[top + i, left + 1, c] = less12 + TWO * less34 + bias[c]
                out[top + i, left + 2, c] = sum12 + FOUR * sum34 + bias[c]
                out[top + i, left + 3, c] = less12 + EIGHT * less34 + m5 + bias[c]
