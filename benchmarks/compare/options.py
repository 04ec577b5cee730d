"""Models and options of a comparison. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from detection_zoo.benchmarks.run.arguments import exported_file
from detection_zoo.benchmarks.spec import BenchmarkSpec, ExportedFile
from detection_zoo.benchmarks.store import results_folder
from detection_zoo.zoo.created_row import row_named


@dataclass(frozen=True)
class CompareOptions:
    """Options of a comparison.

    smallest, smallest_ap: smallest differences of interest, as a fraction and in percentage points.
    blocks: maximum number of blocks, each with fresh processes. rounds: in a block; in a round every model
    runs the
        same images once. warm_up: warm-up rounds before them.
    turn_ms: duration of a turn, in ms, which sets its number of batches. budget_s: no block starts after this
    many seconds. threads: CPU threads per operator. accuracy: also compare AP or top-1. files: folder for
    detections.

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
        """With one thread, CPU time equals the latency without waiting for other processes; with
        several it does not."""
        return "processor" if self.threads == 1 else "wall"


@dataclass(frozen=True)
class Entrant:
    """A model in a comparison: a row with weights (an argument of `identify_weights`) and a label;
    `extra_units` of injected work per image; an exported `file` with its `engine` and description."""

    label: str
    row: str
    weights: str = "random"
    extra_units: int = 0
    file: Path | None = None
    engine: Literal["onnxruntime", "openvino"] | None = None
    exported: ExportedFile | None = None

    def spec(self, spec: BenchmarkSpec) -> BenchmarkSpec:
        """A comparison's specification with this model's path."""
        if self.exported is None:
            return spec
        return spec.model_copy(update={"path": self.engine, "exported": self.exported})


def entrants_of(
    names: Sequence[str], weights: str, files: Sequence[Path] = (), batch: int = 1
) -> list[Entrant]:
    """Entrants from ROW or ROW@WEIGHTS, then from exported files; a label that occurs twice gets a number.

    Raises:
        ManifestError: an unknown row, or a file that cannot be run.
    """
    entrants: list[Entrant] = []
    for name in names:
        row, _, own = name.partition("@")
        entrants.append(Entrant(name, row, own or weights))
    for file in files:
        row, engine, exported = exported_file(file, batch)
        one = Entrant(row, row, weights, file=file, engine=engine, exported=exported)
        note = one.spec(BenchmarkSpec()).path_note.removeprefix(", ")
        entrants.append(replace(one, label=f"{row} ({note})"))
    labels: list[str] = []
    for one in entrants:
        row_named(one.row)
        times = labels.count(one.label) + 1
        labels.append(one.label)
        if times > 1:
            entrants[len(labels) - 1] = replace(one, label=f"{one.label} ({times})")
    return entrants
