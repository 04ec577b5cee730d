"""Find the largest size that fits with few trials: doubling, linear extrapolation, and bisection if
extrapolation fails. Does not import torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

GROWTH = 8.0  # maximum cost of a trial relative to the largest size that fits


@dataclass(frozen=True)
class Trial:
    """One attempt in its own process.

    batch: images. image: (width, height) of the image file; network: (width, height) of the network's input,
        including padding. peak_mib: None
    if the process ended before its peak was known; how: how it was measured. detections: mean per image.
    """

    batch: int
    image: tuple[int, int]
    verdict: Literal["fits", "too much", "failed"]
    peak_mib: float | None = None
    how: str | None = None
    network: tuple[int, int] | None = None
    detections: float | None = None
    reason: str | None = None
    seconds: float = 0.0


@dataclass
class Search:
    """Sizes to try, one after another; the caller takes `next_size`, runs the trial and calls `tell`.

    start, least, most: first, smallest and largest size. limit: memory in MiB. cost: quantity that memory
        depends on linearly; increases with the size.
    """

    start: int
    least: int
    most: int
    limit: float
    cost: Callable[[int], float] = float
    low: int = field(init=False)
    high: int = field(init=False)
    points: dict[int, float] = field(default_factory=dict)
    tries: int = 0
    stalled: bool = False  # the last prediction left more than half of the interval
    # step from the largest size that fits to the next, while extrapolation predicts that nothing larger fits
    # and no size has exceeded the limit
    step: int = 1
    stepped: bool = False

    def __post_init__(self) -> None:
        self.low, self.high = self.least - 1, self.most + 1  # not tried; see `fitting` and `exceeding`

    @property
    def fitting(self) -> int | None:
        """The largest size known to fit."""
        return self.low if self.low >= self.least else None

    @property
    def exceeding(self) -> int | None:
        """The smallest size known not to fit."""
        return self.high if self.high <= self.most else None

    def next_size(self) -> int | None:
        """Return the next size to try; None if a size that fits is next to one that does not, or at an end
        of the range."""
        if self.high - self.low == 1:
            return None
        if not self.tries:
            return self.start
        if self.exceeding is not None and (self.stalled or self.fitting is None and len(self.points) < 2):
            return (self.low + self.high) // 2
        guess = self._predicted()
        self.stepped = self.exceeding is None and guess <= self.low
        if self.stepped:
            guess = self.low + self.step
        return max(self.low + 1, min(guess, self.high - 1))

    def tell(self, size: int, fits: bool, peak_mib: float | None) -> None:
        """Record the outcome of a trial; peak_mib None: the trial ended before its peak was known."""
        self.tries += 1
        before, open_end = self.high - self.low, self.exceeding is None
        self.step = 2 * self.step if fits and self.stepped else 1
        if peak_mib is not None:
            self.points[size] = peak_mib
        self.low, self.high = (max(self.low, size), self.high) if fits else (self.low, min(self.high, size))
        self.stalled = not open_end and not self.stalled and 2 * (self.high - self.low) > before

    def _predicted(self) -> int:
        """Predict the largest size within the limit by a line through the two largest measured sizes (for
        small ones, constant memory hides the growth); without an increasing line, twice the cost of the size
        that fits; at most GROWTH times that cost."""
        known = self.cost(self.low) if self.fitting is not None else self.cost(self.least)
        reach = 2 * known
        if len(self.points) > 1:
            (x, peak), (next_x, next_peak) = (
                (self.cost(size), peak) for size, peak in sorted(self.points.items())[-2:]
            )
            if next_peak > peak:
                reach = x + (self.limit - peak) * (next_x - x) / (next_peak - peak)
        return (
            self.least
            - 1
            + bisect_right(range(self.least, self.most + 1), min(reach, GROWTH * known), key=self.cost)
        )
