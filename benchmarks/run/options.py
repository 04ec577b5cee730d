"""How a sweep treats rows: store, limits, processes. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from detection_zoo.benchmarks.store import RUNS, results_folder


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep treats rows.

    store: folder of records. again: repeat finished measurements. isolate, stall_s, limit_s, memory_mib:
        see `run_row`; memory_mib None: nine tenths of what is free when a row begins, shared among the jobs.
    jobs: rows at once, a GPU each. engine: this machine, or a Ray cluster.
    """

    store: Path = field(default_factory=lambda: results_folder() / RUNS)
    again: bool = False
    isolate: bool = True
    stall_s: float | None = 600.0
    limit_s: float | None = None
    memory_mib: float | None = None
    jobs: int = 1
    engine: Literal["local", "ray"] = "local"

    @property
    def files(self) -> Path:
        """Where files that belong to runs are kept."""
        return self.store.parent / "detections"
