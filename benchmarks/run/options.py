"""Options of a sweep over rows: store, limits, processes. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from detection_zoo.benchmarks.folders import RUNS
from detection_zoo.benchmarks.run.isolation import Limits
from detection_zoo.benchmarks.store import results_folder


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep over rows.

    store: folder of records. again: repeat finished measurements. isolate, limits: see
        `run_row`; memory_mib None: 90 % of the free memory when a row starts, shared among the jobs.
    jobs: number of parallel rows, one GPU each. engine: this machine, or a Ray cluster.
    """

    store: Path = field(default_factory=lambda: results_folder() / RUNS)
    again: bool = False
    isolate: bool = True
    limits: Limits = Limits(stall_s=600.0)
    jobs: int = 1
    engine: Literal["local", "ray"] = "local"

    @property
    def files(self) -> Path:
        """Folder of the files that belong to runs."""
        return self.store.parent / "detections"
