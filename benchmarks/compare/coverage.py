"""Coverage of the intervals and error rates of the verdicts, from simulated measurements with known true
values under several kinds of noise. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detection_zoo.benchmarks.compare.paired import (
    block_shift,
    confidence_of_each,
    judge_ratio,
    planned_looks,
    proportions_interval,
    ratio_of_blocks,
)
from detection_zoo.benchmarks.statistics import passes_interval, proportion_interval, steps_interval

IMAGES, SPREAD = 40, 0.05  # of a pass, and how much their times differ
PROCESS = 0.005  # relative difference between processes of the same model
ROUNDS, BLOCKS, SMALLEST = 12, 32, 0.015
LEVEL = 0.03  # relative noise of one sample
PHASE, SLOWER_BY = 40, 0.06  # of a busy machine: mean samples of a phase, and how much slower it is then
RUNS = 1000
BUSY = "busy phases"


def _series(draw: np.random.Generator, shape: tuple[int, ...], correlation: float) -> np.ndarray:
    """(..., n) normal noise of unit variance, each value correlated with the one before."""
    from scipy.signal import lfilter

    fresh = draw.standard_normal(shape)
    fresh[..., 1:] *= math.sqrt(1 - correlation**2)
    return lfilter([1.0], [1.0, -correlation], fresh, axis=-1)


def _busy(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    first = draw.integers(0, 2, (*shape[:-1], 1))
    busy = (np.cumsum(draw.random(shape) < 1 / PHASE, axis=-1) + first) % 2
    return 0.02 * draw.standard_normal(shape) + math.log1p(SLOWER_BY) * busy


NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "independent": lambda draw, shape: LEVEL * draw.standard_normal(shape),
    "AR .5": lambda draw, shape: LEVEL * _series(draw, shape, 0.5),
    "AR .9": lambda draw, shape: LEVEL * _series(draw, shape, 0.9),
    "heavy-tailed": lambda draw, shape: LEVEL * draw.standard_t(2, shape),
    BUSY: _busy,
}


@dataclass(frozen=True)
class Coverage:
    """Result for one interval or verdict under one kind of noise.

    share: fraction of the runs in which the interval contained the true value, or the verdict was given.
    width: half the mean
        interval, as a fraction of the value; None for verdicts.
    """

    what: str
    noise: str
    share: float
    width: float | None = None


def coverage(runs: int = RUNS, seed: int = 0) -> list[Coverage]:
    """Evaluate every interval and verdict under every kind of noise, with `runs` simulated measurements
    each."""
    draw, lines = np.random.default_rng(seed), []
    for noise in NOISES:
        for processes, passes in ((3, 4), (1, 12)):
            lines.append(latency_coverage(draw, noise, processes, passes, runs))
    for noise in NOISES:
        for what, truth in (("A/A: FASTER or SLOWER", 1.0), ("3 % slower: SLOWER", 1.03)):
            lines.append(Coverage(what, noise, verdict_share(draw, noise, truth, max(runs // 2, 1))))
    for images, right in ((50, 0.8), (200, 0.92), (1000, 0.7)):
        lines.append(top1_coverage(draw, images, right, runs))
        lines.append(paired_coverage(draw, images, runs))
    for noise in NOISES:
        for steps in (50, 200):
            lines.append(epoch_coverage(draw, noise, steps, runs))
    return lines


def latency_coverage(
    draw: np.random.Generator, noise: str, processes: int, passes: int, runs: int
) -> Coverage:
    """The interval of `run` for the mean of pass medians."""
    images = np.exp(SPREAD * np.random.default_rng(7).standard_normal(IMAGES))
    effects = PROCESS if processes > 1 else 0.0

    def medians(count: int) -> np.ndarray:
        logs = NOISES[noise](draw, (count, processes, passes * IMAGES))
        times = np.exp(logs).reshape(count, processes, passes, IMAGES) * images
        return np.median(times, axis=-1) * np.exp(effects * draw.standard_normal((count, processes, 1)))

    truth = float(np.mean([medians(100).mean() for _ in range(20)]))
    intervals = [passes_interval(one.tolist()) for one in medians(runs)]
    held = sum(low <= truth <= high for low, high in intervals)
    width = float(np.mean([high - low for low, high in intervals])) / 2 / truth
    name = f"run, {processes} process{'es' if processes > 1 else ''} x {passes} passes"
    return Coverage(name, noise, held / runs, width)


def epoch_coverage(draw: np.random.Generator, noise: str, steps: int, runs: int) -> Coverage:
    """The interval of epoch time for the mean of training steps; a step takes at most twice its usual time,
    since the mean of the heavy-tailed noise has no bound otherwise."""

    def times(count: int, length: int) -> np.ndarray:
        return np.exp(np.clip(NOISES[noise](draw, (count, length)), -math.log(2), math.log(2)))

    truth = float(times(200, 2000).mean())
    intervals = [steps_interval(one.tolist()) for one in times(runs, steps)]
    held = sum(low <= truth <= high for low, high in intervals)
    width = float(np.mean([high - low for low, high in intervals])) / 2 / truth
    unseen = ", unseen" if noise == BUSY else ""  # if telemetry detects it, no interval is given
    return Coverage(f"epoch time, {steps} steps", noise + unseen, held / runs, width)


def verdict_share(draw: np.random.Generator, noise: str, truth: float, runs: int) -> float:
    """Return how often `compare` judges a model with this true ratio as SLOWER (for ratio 1: SLOWER or
    FASTER)."""
    looks, given = planned_looks(BLOCKS), 0
    confidence = confidence_of_each(len(looks), 1)
    for _ in range(runs):
        turns = np.exp(NOISES[noise](draw, (BLOCKS, 2 * ROUNDS)))  # the two models alternate
        effects = np.exp(PROCESS * draw.standard_normal((2, BLOCKS, 1)))
        reference, other = turns[:, ::2] * effects[0], turns[:, 1::2] * effects[1] * truth
        shifts: list[float] = []
        for block in range(BLOCKS):
            shifts.append(block_shift(reference[block], other[block]))
            if block + 1 in looks:
                verdict = judge_ratio(ratio_of_blocks(shifts, confidence), SMALLEST)
                if verdict != "UNDECIDED":
                    given += verdict == "SLOWER" or (truth == 1.0 and verdict == "FASTER")
                    break
    return given / runs


def top1_coverage(draw: np.random.Generator, images: int, right: float, runs: int) -> Coverage:
    """Wilson's interval of top-1 in `run`."""
    intervals = [proportion_interval(int(hits), images) for hits in draw.binomial(images, right, runs)]
    held = sum(low <= right <= high for low, high in intervals)
    width = float(np.mean([high - low for low, high in intervals])) / 2
    return Coverage("top-1 of run", f"{images} images, {right:.0%} right", held / runs, width)


def paired_coverage(draw: np.random.Generator, images: int, runs: int) -> Coverage:
    """Tango's interval of the difference of top-1 in `compare`: the other gains 5 % and loses 3 %."""
    gained, lost = 0.05, 0.03
    counts = draw.multinomial(images, [gained, lost, 1 - gained - lost], runs)
    intervals = [proportions_interval(int(b), int(c), images) for b, c, _ in counts]
    held = sum(low <= gained - lost <= high for low, high in intervals)
    width = float(np.mean([high - low for low, high in intervals])) / 2
    return Coverage("top-1 of compare", f"{images} images, 5 % gained, 3 % lost", held / runs, width)


def coverage_text(lines: list[Coverage], width: int | None = None) -> str:
    """The lines as a table."""
    from detection_zoo.benchmarks.tabular import text_table

    rows = [
        [line.what, line.noise, f"{line.share:.3f}", "-" if line.width is None else f"{line.width:.2%}"]
        for line in lines
    ]
    return text_table(["interval or verdict", "noise", "share of runs", "half width"], rows, width)
