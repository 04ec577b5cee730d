"""What takes part in a comparison, and how it is made. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detection_zoo.benchmarks.store import results_folder
from detection_zoo.zoo.created_row import row_named


@dataclass(frozen=True)
class CompareOptions:
    """How a comparison is made.

    smallest, smallest_ap: smallest differences of interest, as a fraction and in percentage points.
    blocks: at most so many, each with fresh processes. rounds: in a block; in a round every model runs the
        same images once. warm_up: rounds before those.
    turn_ms: a turn takes as many batches as last so long. budget_s: no block is begun after that.
    threads: of one operator on a CPU. accuracy: AP, or top-1, as well. files: folder for detections.

    Raises ValueError for fewer than two blocks or rounds.
    """

    smallest: float = 0.015
    smallest_ap: float = 0.5
    blocks: int = 32
    rounds: int = 12
    warm_up: int = 3
    turn_ms: float = 20.0
    budget_s: float = 1800.0
    threads: int = 1
    stall_s: float = 300.0
    accuracy: bool = False
    files: Path = field(default_factory=lambda: results_folder() / "detections")
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("blocks", "rounds"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; intervals need 2 or more")

    @property
    def clock(self) -> str:
        """With one thread the processor's time is the latency without the waiting that others cause; with
        several it is not."""
        return "processor" if self.threads == 1 else "wall"


@dataclass(frozen=True)
class Entrant:
    """What takes part: a row with weights (as `identify_weights` takes them) under a label; `extra_units` of
    planted work an image."""

    label: str
    row: str
    weights: str = "random"
    extra_units: int = 0


def entrants_of(names: Sequence[str], weights: str) -> list[Entrant]:
    """Entrants from ROW or ROW@WEIGHTS; a row that is named twice gets a number. Raises ManifestError for an
    unknown row."""
    entrants: list[Entrant] = []
    for name in names:
        row, _, own = name.partition("@")
        row_named(row)
        times = sum(one.label.split(" (")[0] == name for one in entrants) + 1
        entrants.append(Entrant(name if times == 1 else f"{name} ({times})", row, own or weights))
    return entrants
