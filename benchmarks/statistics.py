"""Statistics of raw samples: medians and means with 95 % intervals, percentiles, and when a warm-up is over.
No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, stdev

from detection_zoo.benchmarks.spec import Measurement

PERCENTILES = (5, 20, 80, 95, 99)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The value below which `percent` % of the samples lie, linear between neighbours (Hyndman and Fan 1996,
    definition 7)."""
    if not samples:
        raise ValueError("a percentile needs at least one sample")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median_interval_ranks(n: int, confidence: float = 0.95) -> tuple[int, int] | None:
    """Ranks (from 1) of the order statistics that hold the median with at least that confidence, whatever the
    distribution.

    None where n is too small for any such interval (n < 6 for 95 %). Binomial count of samples below the
    median (Conover, Practical Nonparametric Statistics, 3.2).
    """
    term, total, rank = 1, 1, 0
    bound = round((1 - confidence) * 10**6) * 2**n // (2 * 10**6)  # whole numbers: 2**n outgrows a float
    while total <= bound:
        rank += 1
        term = term * (n - rank + 1) // rank
        total += term
    return (rank, n + 1 - rank) if rank else None


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of the median from order statistics; None where there are too few samples."""
    ranks = median_interval_ranks(len(samples), confidence)
    if ranks is None:
        return None
    ordered = sorted(samples)
    return ordered[ranks[0] - 1], ordered[ranks[1] - 1]


def t_quantile(confidence: float, freedom: int) -> float:
    """How many standard errors a two-sided interval of Student's t reaches to each side."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))


def mean_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean; None with fewer than two samples."""
    if len(samples) < 2:
        return None
    centre = fmean(samples)
    half = t_quantile(confidence, len(samples) - 1) * stdev(samples) / math.sqrt(len(samples))
    return centre - half, centre + half


def precise_enough(samples: Sequence[float], fraction: float) -> bool:
    """Whether the median's 95 % interval lies within `fraction` of the median on both sides."""
    interval = median_interval(samples)
    if interval is None:
        return False
    centre = median(samples)
    return max(centre - interval[0], interval[1] - centre) <= fraction * centre


def is_warm(series: Sequence[float], window: int = 3, tolerance: float = 0.02) -> bool:
    """Whether the median of the last `window` values is within `tolerance` of the median of the `window`
    before."""
    if len(series) < 2 * window:
        return False
    before, now = median(series[-2 * window : -window]), median(series[-window:])
    return abs(now - before) <= tolerance * before


def summarise(samples: Sequence[float], unit: str, *, covers: str, note: str = "") -> Measurement:
    """The median of raw samples with its interval and percentiles, samples kept."""
    return Measurement(
        value=median(samples),
        unit=unit,
        statistic="median",
        n=len(samples),
        interval=median_interval(samples),
        percentiles={f"p{p}": percentile(samples, p) for p in PERCENTILES},
        samples=list(samples),
        covers=covers,
        note=note,
    )
