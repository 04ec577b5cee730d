"""The transforms of Winograd's convolution, compiled for a CPU; parallel over tiles.

The loops run over channels, which lie next to each other, so that they become vector instructions. Numbers of
bfloat16 come as their 16 bits (uint16), and are added and multiplied in float32.
"""

from __future__ import annotations

import numpy as np

from detection_zoo.kernels.machine_code import compiled, narrow, widen

HALF, THREE_HALVES, TWO, FOUR, EIGHT = (np.float32(number) for number in (0.5, 1.5, 2, 4, 8))
QUARTER, EIGHTH = np.float32(0.25), np.float32(0.125)  # products stay in float32


@compiled
def transform_input(first, end, strip, values):
    """B^T d B of tiles first..end-1.

    strip: (4 * R + 2, 4 * S + 2, C) float32 or uint16, R rows of S tiles with their border. values:
    (36, R * S, C) of that type, written.
    """
    channels, across = strip.shape[2], (strip.shape[1] - 2) // 4
    half, line = np.empty((36, channels), np.float32), np.empty((6, channels), np.float32)
    kind = values[0, 0, 0]
    for tile in range(first, end):
        top, left = tile // across * 4, tile % across * 4
        for j in range(6):
            for i in range(6):
                for c in range(channels):
                    line[i, c] = widen(strip[top + i, left + j, c])
            for c in range(channels):
                d0, d1, d2 = line[0, c], line[1, c], line[2, c]
                d3, d4, d5 = line[3, c], line[4, c], line[5, c]
                even, odd = d4 - d2, d3 - d1
                g2, g3 = d2 - d0 - THREE_HALVES * d1, odd - THREE_HALVES * d2
                g4, g5 = even - THREE_HALVES * d3, d5 - d3 - THREE_HALVES * d4
                half[j, c] = g4 - g2
                half[6 + j, c] = g4 + g3
                half[12 + j, c] = g4 - g3
                half[18 + j, c] = even + HALF * odd
                half[24 + j, c] = even - TWO * odd
                half[30 + j, c] = g5 - g3
        for i in range(0, 36, 6):
            for c in range(channels):
                d0, d1, d2 = half[i, c], half[i + 1, c], half[i + 2, c]
                d3, d4, d5 = half[i + 3, c], half[i + 4, c], half[i + 5, c]
                even, odd = d4 - d2, d3 - d1
                g2, g3 = d2 - d0 - THREE_HALVES * d1, odd - THREE_HALVES * d2
                g4, g5 = even - THREE_HALVES * d3, d5 - d3 - THREE_HALVES * d4
                line[0, c] = g4 - g2
                line[1, c] = g4 + g3
                line[2, c] = g4 - g3
                line[3, c] = even + HALF * odd
                line[4, c] = even - TWO * odd
                line[5, c] = g5 - g3
            for j in range(6):
                for c in range(channels):
                    values[i + j, tile, c] = narrow(line[j, c], kind)


@compiled
def transform_output(first, end, products, bias, out):
    """A^T m A + bias of tiles first..end-1.

    products: (36, R * S, K) float32 or uint16. bias: (K,) float32. out: (4 * R, 4 * S, K) of the type of
    products, written.
    """
    channels, across = out.shape[2], out.shape[1] // 4
    half = np.empty((24, channels), np.float32)
    kind = out[0, 0, 0]
    for tile in range(first, end):
        top, left = tile // across * 4, tile % across * 4
        for j in range(6):
            for c in range(channels):
                m0, m1, m2 = (
                    widen(products[j, tile, c]),
                    widen(products[6 + j, tile, c]),
                    widen(products[12 + j, tile, c]),
                )
                m3, m4, m5 = (
                    widen(products[18 + j, tile, c]),
                    widen(products[24 + j, tile, c]),
                    widen(products[30 + j, tile, c]),
                )
                plus, minus = m1 + m2, m1 - m2
                half[j, c] = m0 + plus + m3 + m4
                half[6 + j, c] = minus + TWO * m3 - HALF * m4
                half[12 + j, c] = plus + FOUR * m3 + QUARTER * m4
                half[18 + j, c] = minus + EIGHT * m3 - EIGHTH * m4 + m5
        for i in range(4):
            for c in range(channels):
                m0, m1, m2 = half[6 * i, c], half[6 * i + 1, c], half[6 * i + 2, c]
                m3, m4, m5 = half[6 * i + 3, c], half[6 * i + 4, c], half[6 * i + 5, c]
                plus, minus, shift = m1 + m2, m1 - m2, bias[c]
                out[top + i, left, c] = narrow(m0 + plus + m3 + m4 + shift, kind)
                out[top + i, left + 1, c] = narrow(minus + TWO * m3 - HALF * m4 + shift, kind)
                out[top + i, left + 2, c] = narrow(plus + FOUR * m3 + QUARTER * m4 + shift, kind)
                out[top + i, left + 3, c] = narrow(minus + EIGHT * m3 - EIGHTH * m4 + m5 + shift, kind)
