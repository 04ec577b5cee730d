"""Clocks: time phases separately, warm up until times no longer trend, run complete passes until
the median is precise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import torch

from detection_zoo.benchmarks.statistics import is_warm, precise_enough

WARM_UP_S = 1.0  # minimum warm-up
WARM_TURNS, WARM_WINDOW_S = 20, 2.0  # window of `is_warm`: iterations, or seconds


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all queued work; no effect on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class PhaseClock:
    """Host time of named phases; the device is synchronised before and after each.

    samples_ms: for every phase, one value per batch: milliseconds per image.
    cpu_ms: on a CPU, the same for the CPU time of all threads, which excludes waiting
        for a core used by others.
    event_ms: on a GPU, the same by CUDA events: from the first to the last work on the device in this
        phase, without launch and synchronisation latency.
    starts_s: start of each batch's first phase, by time.perf_counter.
    """

    device: torch.device
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    event_ms: dict[str, list[float]] = field(default_factory=dict)
    starts_s: list[float] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str, images: int = 1) -> Iterator[None]:
        """Time a block as one sample of phase `name`."""
        events = (
            [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.device.type == "cuda" else []
        )
        synchronise(self.device)
        processor, start = time.process_time(), time.perf_counter()
        for event in events[:1]:
            event.record()
        yield
        for event in events[1:]:
            event.record()
        synchronise(self.device)
        end = time.perf_counter()
        if events:
            self.event_ms.setdefault(name, []).append(events[0].elapsed_time(events[1]) / images)
        if self.device.type == "cpu":
            self.cpu_ms.setdefault(name, []).append((time.process_time() - processor) * 1e3 / images)
        if name == next(iter(self.samples_ms), name):
            self.starts_s.append(start)
        self.samples_ms.setdefault(name, []).append((end - start) * 1e3 / images)

    def sums_ms(self, names: Sequence[str], clock: Literal["wall", "cpu", "event"] = "wall") -> list[float]:
        """For every batch, return the sum of these phases by one of the clocks."""
        samples = {"wall": self.samples_ms, "cpu": self.cpu_ms, "event": self.event_ms}[clock]
        return [sum(values) for values in zip(*(samples[name] for name in names), strict=True)]


@dataclass(frozen=True)
class WarmUp:
    """Result of the warm-up: seconds, complete passes over the batches, and whether times no longer trend."""

    seconds: float
    passes: int
    warm: bool

    def __str__(self) -> str:
        """Short text for the record."""
        made = f"warm-up of {self.seconds:.1f} s, {self.passes} passes"
        return (
            f"{made} (no trend at its end)"
            if self.warm
            else f"{made} (time budget used up, times still changing)"
        )


def warm_up(work: Sequence[Callable[[], float]], budget_s: float, least_s: float = WARM_UP_S) -> WarmUp:
    """Run complete passes until times no longer trend or the budget is used up.

    Args:
        work: one callable per batch that returns its time; a pass calls each once, so that every input
            shape is covered.
        budget_s: no pass starts after this many seconds.
        least_s: minimum warm-up in seconds.
    """
    start, series, passes = time.perf_counter(), [], 0
    while True:
        series += [piece() for piece in work]
        passes += 1
        seconds = time.perf_counter() - start
        turns = min(WARM_TURNS, max(2, math.ceil(WARM_WINDOW_S * len(series) / max(seconds, 1e-9))))
        # complete passes, so that every image has equal weight
        window = len(work) * math.ceil(turns / len(work))
        warm = is_warm(series, window)
        if warm and seconds >= min(least_s, budget_s) or seconds >= budget_s:
            return WarmUp(seconds, passes, warm)


def time_passes(
    work: Sequence[Callable[[], float]],
    *,
    least_passes: int,
    least_s: float,
    precision: float,
    budget_s: float,
) -> tuple[list[list[float]], bool]:
    """Run complete passes until the mean of pass medians is precise or the budget is used up.

    Args:
        work: one callable per batch that returns its time; a pass calls each once.
        least_passes, least_s: minimum passes and seconds; `least_s` is at most the budget.
        precision: target half-width of the interval, as a fraction.
        budget_s: seconds; a pass is not started if, judging by the previous one, it would exceed the budget.

    Returns:
        Pass -> times, and whether the precision was reached.
    """
    start, passes = time.perf_counter(), []
    while True:
        begun = time.perf_counter()
        passes.append([piece() for piece in work])
        now = time.perf_counter()
        if len(passes) < least_passes:
            continue
        if now - start >= min(least_s, budget_s) and precise_enough(list(map(median, passes)), precision):
            return passes, True
        if now - start + (now - begun) > budget_s:
            return passes, False
