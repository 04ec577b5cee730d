"""Statistics of raw samples: medians and means with 95 % confidence intervals, percentiles, end of warm-up.
Does not import torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import fmean, median, stdev

import numpy as np

from detection_zoo.benchmarks.spec import Measurement

PERCENTILES = (5, 20, 80, 95, 99)
LEAST_PASSES = 6  # minimum number of passes for a confidence interval
LEAST_PROCESSES = 3  # from this number on, the interval is computed over processes instead of passes
STEP_BLOCKS = 12  # blocks of training steps for the interval of the mean
LEAST_STEPS = 50  # minimum number of training steps for an interval
MANY_STEPS = 200  # fewer steps cannot show a correlation that lasts for tens of steps, so
FEW_STEPS_CONFIDENCE = 0.98  # their 95 % interval is widened to this confidence
MOST_CORRELATION = 0.8  # maximum assumed correlation of successive passes
DRIFT = 0.01  # relative change from first to last pass; less is not drift


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile with linear interpolation (Hyndman and Fan 1996,
    definition 7)."""
    if not samples:
        raise ValueError("a percentile needs at least one sample")
    return float(np.percentile(samples, percent))


def median_interval_ranks(n: int, confidence: float = 0.95) -> tuple[int, int] | None:
    """Return the ranks (from 1) of the order statistics that enclose the median with this confidence, for
    any distribution.

    None if n is too small for such an interval (n < 6 for 95 %). Binomial count of samples below the
    median (Conover, Practical Nonparametric Statistics, 3.2).
    """
    from scipy.special import bdtr, bdtrik  # scipy.stats takes a second to import

    tail = (1 - confidence) / 2
    rank = math.ceil(bdtrik(tail, n, 0.5))
    rank -= rank > 0 and bdtr(rank - 1, n, 0.5) >= tail  # `bdtrik` may lie above by rounding
    return (rank, n + 1 - rank) if rank else None


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the confidence interval of the median from order statistics; None if there are too few
    samples."""
    ranks = median_interval_ranks(len(samples), confidence)
    if ranks is None:
        return None
    ordered = sorted(samples)
    return ordered[ranks[0] - 1], ordered[ranks[1] - 1]


def t_quantile(confidence: float, freedom: float) -> float:
    """Return the half-width of a two-sided Student's t interval in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def mean_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return Student's t interval of the mean; None with fewer than two samples."""
    if len(samples) < 2:
        return None
    centre = fmean(samples)
    half = t_quantile(confidence, len(samples) - 1) * stdev(samples) / math.sqrt(len(samples))
    return centre - half, centre + half


def passes_interval(
    processes: Sequence[Sequence[float]], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return the confidence interval of the mean of pass medians.

    With three or more processes, it is Student's t over the process means, which is valid
    for any correlation within a process. With fewer, it is Student's t over passes,
    widened for their correlation.

    Args:
        processes: for each process, the median of each complete pass over the images.
        confidence: confidence level.

    Returns:
        Low and high; None with fewer than six passes.
    """
    means = [fmean(passes) for passes in processes]
    if sum(map(len, processes)) < LEAST_PASSES:
        return None
    if len(processes) >= LEAST_PROCESSES:
        return mean_interval(means, confidence)
    centred = [[value - mean for value in passes] for passes, mean in zip(processes, means, strict=True)]
    count = sum(map(len, processes))
    squares = sum(value * value for passes in centred for value in passes)
    freedom, centre = count - len(processes), fmean(means)
    if squares == 0:
        return centre, centre
    correlation = _correlation(centred, squares, count / len(processes))
    share = (1 - correlation) / (1 + correlation)  # fraction of the passes that counts as independent
    error = math.sqrt(squares / freedom / max(count * share, 1.5))
    half = t_quantile(confidence, max(freedom * share, 1)) * error
    return centre - half, centre + half


def _correlation(centred: Sequence[Sequence[float]], squares: float, length: float) -> float:
    """Return the correlation of successive passes, corrected for the bias in short series (Kendall 1954)."""
    products = sum(a * b for passes in centred for a, b in itertools.pairwise(passes))
    found = products / squares
    return min(max(found + (1 + 3 * found) / length, 0.0), MOST_CORRELATION)


def drift(processes: Sequence[Sequence[float]]) -> tuple[float, bool]:
    """Return how much the pass medians change from the first to the last pass of a process.

    Args:
        processes: for each process, the median of each complete pass, in order.

    Returns:
        The change as a fraction, from one linear fit to all processes; and whether times are steady:
        the change is below 1 % or not significant at the 99 % level.
    """
    rows = [
        (place / max(len(passes) - 1, 1) - 0.5, value)
        for passes in processes
        for place, value in enumerate(_relative(passes))
    ]
    across = sum(x * x for x, _ in rows)
    freedom = len(rows) - len(processes) - 1
    if across == 0 or freedom < 1:
        return 0.0, True
    change = sum(x * y for x, y in rows) / across
    error = math.sqrt(sum((y - change * x) ** 2 for x, y in rows) / freedom / across)
    return change, abs(change) < DRIFT or abs(change) <= t_quantile(0.99, freedom) * error


def block_means(samples: Sequence[float], count: int = STEP_BLOCKS) -> list[float]:
    """Return the means of `count` blocks of successive samples; the samples themselves if a block would
    have fewer than two."""
    if len(samples) < 2 * count:
        return list(samples)
    ends = [place * len(samples) // count for place in range(count + 1)]
    return [fmean(samples[start:end]) for start, end in itertools.pairwise(ends)]


def steps_interval(steps: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of successive steps: Student's t over block means, widened for
    their correlation, and further with fewer than MANY_STEPS. None with fewer than LEAST_STEPS."""
    if len(steps) < LEAST_STEPS:
        return None
    return passes_interval([block_means(steps)], 0.95 if len(steps) >= MANY_STEPS else FEW_STEPS_CONFIDENCE)


def _relative(passes: Sequence[float]) -> list[float]:
    centre = fmean(passes)
    return [value / centre - 1 for value in passes]


def precise_enough(passes: Sequence[float], fraction: float) -> bool:
    """Return whether the interval of one process's pass medians is within `fraction` of their mean."""
    interval = passes_interval([passes])
    return interval is not None and (interval[1] - interval[0]) / 2 <= fraction * fmean(passes)


def is_warm(series: Sequence[float], window: int = 3, tolerance: float = 0.015) -> bool:
    """Return whether the warm-up is complete: the medians of the last three windows differ by at most
    `tolerance`.

    With 20 iterations per window, a slow-down that decays over 100 iterations is at most 3 % then.
    """
    if len(series) < 3 * window:
        return False
    ends = [len(series) - window * back for back in (2, 1, 0)]
    medians = [median(series[end - window : end]) for end in ends]
    return max(medians) - min(medians) <= tolerance * min(medians)


def proportion_interval(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson, JASA 22, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def summarise_passes(
    processes: Sequence[Sequence[Sequence[float]]], unit: str, *, covers: str, note: str = ""
) -> Measurement:
    """Return the mean of pass medians with its interval and the samples.

    Args:
        processes: process -> pass -> samples.
        unit, covers, note: fields of the measurement.
    """
    medians = [[median(samples) for samples in passes] for passes in processes]
    every = [sample for passes in processes for samples in passes for sample in samples]
    means = {
        "value": fmean(fmean(passes) for passes in medians),
        "statistic": "mean of pass medians",
        "interval": passes_interval(medians),
        "passes": [len(passes) for passes in processes],
    }
    return summarise(every, unit, covers=covers, note=note).model_copy(update=means)


def summarise(samples: Sequence[float], unit: str, *, covers: str, note: str = "") -> Measurement:
    """Return the median of raw samples with its interval, percentiles and the samples."""
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


def timed_measurement(
    samples: list[list[float]], passes: list[int], covers: str, note: str, warm: bool
) -> Measurement:
    """Return a measured time from complete passes in several processes.

    Args:
        samples: samples of each process, in order.
        passes: number of complete passes in each process.
        covers, note: fields of the measurement.
        warm: whether the warm-up of every process was complete before its first pass.
    """
    processes = []
    for values, count in zip(samples, passes, strict=True):
        size = len(values) // count
        processes.append([values[start : start + size] for start in range(0, len(values), size)])
    found = summarise_passes(processes, "ms", covers=covers, note=note)
    change, level = drift([[median(times) for times in made] for made in processes])
    return found.model_copy(update={"drift": change, "steady": level and warm})


def of_processes(parts: Sequence[dict[str, Measurement]]) -> dict[str, Measurement]:
    """Combine the measurements of several processes that timed the same images."""
    found = {}
    for name, first in parts[0].items():
        sides = [part[name] for part in parts]
        joined = timed_measurement(
            [side.samples for side in sides],
            [count for side in sides for count in side.passes],
            first.covers,
            first.note,
            all(side.steady is not False for side in sides),
        )
        times = [moment for side in sides for moment in side.times_s]
        untested = {"drift": None, "steady": None} if first.drift is None else {}
        found[name] = joined.model_copy(update={"times_s": times, **untested})
    return found
