"""Run-length codes of COCO masks: their lengths are decoded and summed before a library uses them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

# five bits per character from "0" on; from "P" on, the number continues; real lengths have at most 7 digits
_NUMBERS = re.compile(r"(?:[P-o]{0,6}[0-O])*")
_AT_ONCE = 4096  # codes decoded together


def rle_problem(code: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with one RLE mapping, or None.

    Args:
        code: of a file, expected {"size": [height, width], "counts": a string or a list of lengths}.
        size: (height, width) of the image in pixels.
    """
    found = code.get("size")
    counts = code.get("counts")
    if not isinstance(found, list) or found != list(size) or not isinstance(counts, str | list):
        return (
            f"a run-length code of size {found!r:.40}, expected 'counts' and the image's size {list(size)}"
            " (height, width)"
        )
    if isinstance(counts, list) and not (set(map(type, counts)) <= {int} and min(counts, default=0) >= 0):
        return "a run-length code whose counts are not integers of at least 0"
    pixels = int(code_sums([counts])[0]) if isinstance(counts, str) else sum(counts)
    return None if pixels == size[0] * size[1] else sum_problem(pixels, size)


def sum_problem(pixels: int, size: tuple[int, int]) -> str:
    """The message for a code with another number of pixels than its image (-1: cannot be decoded)."""
    if pixels < 0:
        return "a run-length code that cannot be decoded: its counts are damaged"
    return (
        f"a run-length code of {pixels} pixels, height x width are {size[0]} x {size[1]} ="
        f" {size[0] * size[1]}"
    )


def code_sums(codes: Sequence[str]) -> np.ndarray:
    """How many pixels each compressed run-length code covers.

    The form is that of cocoapi's maskApi.c (rleFrString): from the fourth number on each is the difference to
    the number two places before.

    Args:
        codes: the strings `counts` of N RLE mappings.

    Returns:
        (N,) int64; -1 where a code has other characters, ends inside a number, or has a negative length.
    """
    sums = np.full(len(codes), -1, np.int64)
    for first in range(0, len(codes), _AT_ONCE):
        part = codes[first : first + _AT_ONCE]
        whole = [row for row, code in enumerate(part) if code and _NUMBERS.fullmatch(code)]
        if whole:
            sums[np.add(first, whole)] = _sums([part[row] for row in whole])
    return sums


def _sums(codes: list[str]) -> np.ndarray:
    """`code_sums` of codes that are whole numbers and not empty."""
    values = np.frombuffer("".join(codes).encode("ascii"), np.uint8).astype(np.int64) - 48  # (B,) bytes
    stop = np.flatnonzero(values < 32)  # (M,) last byte of each number
    start = np.concatenate([[0], stop[:-1] + 1])
    digits = stop - start + 1
    place = np.arange(len(values)) - np.repeat(start, digits)
    numbers = np.add.reduceat((values & 31) << (5 * place), start)
    numbers = numbers - np.where(values[stop] & 16, 1 << (5 * digits), 0)  # two's complement
    lengths = np.array([len(code) for code in codes])
    first = np.searchsorted(stop, np.concatenate([[0], np.cumsum(lengths)[:-1]]))  # (N,) first number of each
    counts = np.diff(np.concatenate([first, [len(stop)]]))
    owner = np.repeat(np.arange(len(codes)), counts)  # (M,)
    index = np.arange(len(stop)) - first[owner]
    runs = numbers.copy()
    for odd in (0, 1):
        chain = (index % 2 == odd) & (index > 0)
        total = np.cumsum(np.where(chain, numbers, 0))
        before = total[first] - np.where(chain[first], numbers[first], 0)
        runs[chain] = (total - before[owner])[chain]
    sums = np.add.reduceat(runs, first)
    return np.where(np.minimum.reduceat(runs, first) < 0, -1, sums)
