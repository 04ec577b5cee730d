"""Clocks: phases of one piece of work apart, warm-up until it stands still, repetition until the median is
known well enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from detection_zoo.benchmarks.statistics import is_warm, median_interval, precise_enough


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
    starts_s: when each turn's first phase began, by time.perf_counter.
    """

    device: torch.device
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    starts_s: list[float] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str, images: int = 1) -> Iterator[None]:
        """Time a block as one turn of `name`."""
        synchronise(self.device)
        processor, start = time.process_time(), time.perf_counter()
        yield
        synchronise(self.device)
        end = time.perf_counter()
        if self.device.type == "cpu":
            self.cpu_ms.setdefault(name, []).append((time.process_time() - processor) * 1e3 / images)
        if name == next(iter(self.samples_ms), name):
            self.starts_s.append(start)
        self.samples_ms.setdefault(name, []).append((end - start) * 1e3 / images)

    def sums_ms(self, names: Sequence[str], cpu: bool = False) -> list[float]:
        """For every turn, the sum of these phases; cpu: of their processor time."""
        samples = self.cpu_ms if cpu else self.samples_ms
        return [sum(values) for values in zip(*(samples[name] for name in names), strict=True)]


@dataclass(frozen=True)
class Repetition:
    """How warming up and repeating ended."""

    warm_ups: int
    warm: bool
    passes: int
    precise: bool

    def note(self, precision: float, budget_s: float) -> str:
        """A sentence for the record."""
        warm = f"{self.warm_ups} warm-up turns, " + (
            "until the rolling median stood still"
            if self.warm
            else "ended by their budget before it stood still"
        )
        end = (
            f"ended with the median's 95 % interval within {precision:.0%}"
            if self.precise
            else f"ended at the time budget of {budget_s:g} s"
        )
        return f"{warm}; {self.passes} whole passes over the images, {end}"


def warm_up(
    turn: Callable[[], float], budget_s: float, window: int = 3, tolerance: float = 0.02
) -> tuple[int, bool]:
    """Repeat a turn until the rolling median of its times stands still, or the budget is spent.

    Args:
        turn: does the work once and returns its time.
        budget_s: seconds.
        window, tolerance: see `is_warm`.

    Returns:
        Turns made, and whether it stood still.
    """
    series: list[float] = []
    end = time.perf_counter() + budget_s
    while not is_warm(series, window, tolerance):
        if series and time.perf_counter() >= end:
            return len(series), False
        series.append(turn())
    return len(series), True


def repeat(
    work: Sequence[Callable[[], None]],
    samples: Callable[[], list[float]],
    *,
    precision: float,
    budget_s: float,
    tick: Callable[[], None] | None = None,
) -> tuple[int, bool]:
    """Do pieces of work in order, pass after pass, until the median of the samples is precise enough or the
    budget is spent.

    Args:
        work: one callable a batch of images; a pass does each once.
        samples: the samples so far.
        precision: half-width of the median's 95 % interval, as a fraction.
        budget_s: seconds; one piece of work is always done.
        tick: called after every piece.

    Returns:
        Whole passes made, and whether the precision was reached. It is looked at after whole passes only, so
        that no image counts more than another.
    """
    end, passes = time.perf_counter() + budget_s, 0
    while True:
        for place, piece in enumerate(work):
            if (passes or place) and time.perf_counter() >= end:
                return passes, False
            piece()
            if tick is not None:
                tick()
        passes += 1
        if precise_enough(samples(), precision):
            return passes, True


def half_width(samples: Sequence[float], centre: float) -> float | None:
    """Half the width of the median's 95 % interval as a fraction of `centre`; None with too few samples."""
    interval = median_interval(samples)
    return None if interval is None or not centre else (interval[1] - interval[0]) / 2 / centre
