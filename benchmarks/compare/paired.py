"""Statistics of paired measurements: the ratio of two models' times, its uncertainty, and when to stop. Does
not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Literal

import numpy as np

from detection_zoo.benchmarks.statistics import mean_interval, t_quantile

Verdict = Literal["FASTER", "SAME", "SLOWER", "LOWER", "HIGHER", "UNDECIDED"]
FIRST_LOOK = 6


@dataclass(frozen=True)
class Ratio:
    """A model's value over the reference's, with its interval; `blocks` is the number of blocks that it is
    based on."""

    value: float
    low: float
    high: float
    confidence: float
    blocks: int


def hodges_lehmann(values: Sequence[float]) -> float:
    """Return the median of the means of all pairs, including each value with itself: almost as efficient as
    the mean, and robust to a quarter of outliers.

    Hodges and Lehmann, Annals of Mathematical Statistics 34 (1963).
    """
    array = np.asarray(values, np.float64)
    return float(np.median(((array[:, None] + array) / 2)[np.triu_indices(len(array))]))


def block_shift(reference: Sequence[float], other: Sequence[float]) -> float:
    """The typical log ratio of `other` to `reference` in one block; both (n,), of the same rounds,
    positive."""
    return hodges_lehmann(np.log(np.asarray(other, np.float64) / np.asarray(reference, np.float64)))


def ratio_of_blocks(shifts: Sequence[float], confidence: float = 0.95) -> Ratio | None:
    """Return the ratio from one log ratio per block, with Student's t interval over blocks.

    Each block has fresh processes, so that variation between processes (such as memory layout)
    counts as noise, not as a difference between models. None with fewer than two blocks.
    """
    if len(shifts) < 2:
        return None
    low, high = mean_interval(shifts, confidence)
    return Ratio(math.exp(fmean(shifts)), math.exp(low), math.exp(high), confidence, len(shifts))


def judge_ratio(
    ratio: Ratio | None, smallest: float, words: tuple[Verdict, Verdict] = ("FASTER", "SLOWER")
) -> Verdict:
    """Return the verdict on a ratio.

    Args:
        ratio: value over the reference's; None: too little is known.
        smallest: the smallest difference of interest, as a fraction: 0.01 for 1 %.
        words: the words for a value below and above the reference's.

    Returns:
        The second word: the whole interval lies above 1 + smallest. The first: below 1 / (1 + smallest).
            SAME: between the two. Otherwise UNDECIDED.
    """
    if ratio is None:
        return "UNDECIDED"
    top = 1 + smallest
    if ratio.low > top:
        return words[1]
    if ratio.high < 1 / top:
        return words[0]
    return "SAME" if ratio.low >= 1 / top and ratio.high <= top else "UNDECIDED"


def proportions_interval(gained: int, lost: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of the difference of two proportions on the same images (Tango, Statistics in Medicine
    17, 1998).

    Args:
        gained: images that only the other has right; lost: only the reference.
        count: images.
        confidence: of the interval.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def score(delta: float) -> float:
        b = (2 * count - gained + lost) * delta - gained - lost
        root = b * b + 8 * count * lost * delta * (1 - delta)
        share = (math.sqrt(max(root, 0.0)) - b) / (4 * count)
        variance = count * (2 * share + delta * (1 - delta))
        return (gained - lost - count * delta) / math.sqrt(variance) if variance > 0 else 0.0

    centre = (gained - lost) / count
    return _root(score, z, -1.0, centre), _root(score, -z, centre, 1.0)


def _root(score: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Find where a decreasing function reaches a value, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > target else (low, middle)
    return (low + high) / 2


def blocks_needed(
    shifts: Sequence[float], smallest: float, confidence: float, most: int = 10_000
) -> int | None:
    """Estimate after how many blocks the interval would exclude the smallest difference of interest, if
    mean and spread stay the same; None: more than `most`."""
    if len(shifts) < 2:
        return None
    edge, centre, spread = math.log1p(smallest), abs(fmean(shifts)), stdev(shifts)
    margin = abs(edge - centre)
    blocks = len(shifts)
    while blocks <= most:
        if t_quantile(confidence, blocks - 1) * spread / math.sqrt(blocks) < margin:
            return blocks
        blocks += max(1, blocks // 20)
    return None


def planned_looks(most: int, first: int = FIRST_LOOK) -> tuple[int, ...]:
    """Return after how many blocks interim analyses are made: `first`, then about 50 % more each time, then
    `most`; fixed in advance, so that the confidence level can be corrected."""
    looks, blocks = [], first
    while blocks < most:
        looks.append(blocks)
        blocks = math.ceil(blocks * 1.5)
    return (*looks, most)


def confidence_of_each(looks: int, comparisons: int, confidence: float = 0.95) -> float:
    """Return the confidence level of one interval such that all intervals hold jointly with `confidence`
    (Bonferroni)."""
    return 1 - (1 - confidence) / (looks * comparisons)
