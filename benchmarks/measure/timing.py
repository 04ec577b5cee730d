"""Clocks: phases of one piece of work apart, warm-up until times no longer trend, whole passes until the
median is known well enough."""

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

WARM_UP_S = 1.0  # of warm-up at the least
WARM_TURNS, WARM_WINDOW_S = 20, 2.0  # of a window of `is_warm`: so many turns, or those of so many seconds


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class PhaseClock:
    """Host time of named phases; the device is idle at both edges of each.

    samples_ms: for every phase, one value a turn, in milliseconds, divided by the images of that turn.
    cpu_ms: on a CPU the same of the processor time of all threads, which does not count waiting for a
        processor that others use.
    event_ms: on a GPU the same by CUDA events, the device's own clock: from its first to its last work in the
        phase, without the host's way there and back.
    starts_s: when each turn's first phase began, by time.perf_counter.
    """

    device: torch.device
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    event_ms: dict[str, list[float]] = field(default_factory=dict)
    starts_s: list[float] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str, images: int = 1) -> Iterator[None]:
        """Time a block as one turn of `name`."""
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
        """For every turn, the sum of these phases by one of the clocks."""
        samples = {"wall": self.samples_ms, "cpu": self.cpu_ms, "event": self.event_ms}[clock]
        return [sum(values) for values in zip(*(samples[name] for name in names), strict=True)]


@dataclass(frozen=True)
class WarmUp:
    """How warming up ended: seconds, whole passes over the batches, and whether times no longer trended."""

    seconds: float
    passes: int
    warm: bool

    def __str__(self) -> str:
        """A clause for the record."""
        made = f"warm-up of {self.seconds:.1f} s, {self.passes} passes"
        return f"{made} (no trend at its end)" if self.warm else f"{made} (budget spent, times still changed)"


def warm_up(work: Sequence[Callable[[], float]], budget_s: float, least_s: float = WARM_UP_S) -> WarmUp:
    """Do whole passes until the last ones no longer trend, or the budget is spent.

    Args:
        work: one callable a batch, each gives its time; a pass does each once, so that every input shape has
            been seen.
        budget_s: seconds after which no pass begins.
        least_s: seconds of warm-up at the least.
    """
    start, series, passes = time.perf_counter(), [], 0
    while True:
        series += [piece() for piece in work]
        passes += 1
        seconds = time.perf_counter() - start
        turns = min(WARM_TURNS, max(2, math.ceil(WARM_WINDOW_S * len(series) / max(seconds, 1e-9))))
        window = len(work) * math.ceil(turns / len(work))  # whole passes: every image counts alike
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
    """Do whole passes over pieces of work until the mean of pass medians is precise or the budget is spent.

    Args:
        work: one callable a batch of images, each gives its time; a pass does each once.
        least_passes, least_s: passes and seconds at the least; `least_s` is no more than the budget.
        precision: half-width of the interval, as a fraction.
        budget_s: seconds; a pass that would end after it is not begun, as far as the last one tells.

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
