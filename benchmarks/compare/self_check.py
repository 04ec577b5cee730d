"""Self-check of comparisons on this machine: a model against itself, and against itself with injected
extra work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from detection_zoo.benchmarks.compare.contestant import Contestant
from detection_zoo.benchmarks.compare.match import compare
from detection_zoo.benchmarks.compare.options import CompareOptions, Entrant
from detection_zoo.benchmarks.compare.record import Comparison
from detection_zoo.benchmarks.compare.workers import Worker
from detection_zoo.benchmarks.run.subject import identify_weights
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.errors import ZooError

PAIRS = 60  # turns and bursts that measure the cost of a unit of extra work
ENOUGH = 0.95  # fraction of the runs that must be right


@dataclass(frozen=True)
class SelfCheck:
    """The outcome of the runs: verdicts of each kind, and every comparison."""

    slow_down: float
    units: int
    same: Counter[str]
    slower: Counter[str]
    comparisons: list[Comparison]

    @property
    def ok(self) -> bool:
        """Whether enough of the runs were right, of both kinds."""
        return (
            self.same["SAME"] >= ENOUGH * self.same.total()
            and self.slower["SLOWER"] >= ENOUGH * self.slower.total()
        )

    def summary(self) -> str:
        """One-line summary of both counts."""
        counts = [
            f"{', '.join(f'{word} {count}' for word, count in found.most_common())} of {found.total()}"
            for found in (self.same, self.slower)
        ]
        return f"against itself: {counts[0]}; with {self.slow_down:.1%} extra work: {counts[1]}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "slow_down": self.slow_down,
            "units": self.units,
            "same": dict(self.same),
            "slower": dict(self.slower),
            "ok": self.ok,
            "runs": [
                {
                    "ended": one.ended,
                    "duration_s": one.duration_s,
                    "load": one.telemetry.verdict if one.telemetry else None,
                    "other": one.pairs[0].other,
                    "ratio": one.pairs[0].value,
                    "interval": one.pairs[0].interval,
                    "verdict": one.pairs[0].verdict,
                }
                for one in self.comparisons
            ],
        }


def self_check(
    row: str,
    weights: str,
    spec: BenchmarkSpec,
    data: str,
    options: CompareOptions,
    runs: int,
    slow_down: float = 0.03,
    say: Callable[[str], None] = lambda text: None,
) -> SelfCheck:
    """Compare a row with itself, unchanged and slowed down, `runs` times each, with fresh processes
    every time.

    Args:
        row, weights, spec, data, options: as for `compare`.
        runs: comparisons of each kind.
        slow_down: extra work, as a fraction of the row's model time.
        say: called with a line per run.
    """
    units = max(1, round(slow_down / _cost(row, weights, spec, data, options)))
    say(f"{slow_down:.1%} of the model time equals {units} units of extra work")
    counts: dict[int, Counter[str]] = {0: Counter(), units: Counter()}
    comparisons = []
    for number in range(2 * runs):
        extra = units * (number % 2)
        label = f"with {slow_down:.1%} extra work" if extra else "itself"
        entrants = [Entrant("reference", row, weights), Entrant(label, row, weights, extra)]
        found = compare(entrants, spec, data, replace(options, seed=options.seed + number))
        if found.status == "interrupted":
            raise KeyboardInterrupt
        if found.status == "failed":
            raise ZooError(f"{label}: {'; '.join(side.reason for side in found.sides if side.reason)}")
        deciding = next(pair for pair in found.pairs if pair.decides)
        counts[extra][deciding.verdict] += 1
        comparisons.append(found)
        low, high = deciding.interval or (float("nan"),) * 2
        say(
            f"[{number + 1}/{2 * runs}] {label}: {deciding.value:.4f} ({low:.4f}-{high:.4f})"
            f" {deciding.verdict}, {deciding.blocks} blocks, {found.duration_s:.0f} s, machine"
            f" {found.telemetry.verdict if found.telemetry else 'not watched'}"
        )
    return SelfCheck(slow_down, units, counts[0], counts[units], comparisons)


def _cost(row: str, weights: str, spec: BenchmarkSpec, data: str, options: CompareOptions) -> float:
    """Return the cost of a unit of extra work as a fraction of the model time of an image."""
    _, argument = identify_weights(row_named(row), weights)
    worker = Worker(
        f"{row}, calibration",
        Contestant,
        (Entrant("calibration", row, weights), spec, data, argument, options.threads),
    )
    try:
        return worker.call("cost_of_unit", PAIRS, stall_s=options.stall_s)
    finally:
        worker.close()
