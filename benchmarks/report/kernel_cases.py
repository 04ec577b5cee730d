"""Timings of the GPU operators beside a peer's, as they are stored in results/kernels: schema, reader, ratios. No torch."""
from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from zoo.manifest import Strict

from ..spec import Environment, Measurement


class KernelCase(Strict):
    """One operator on one input: our time and the peer's, taken in one run."""

    name: str = Field(description="operator and input: 'nms, 1,000 boxes'")
    ours: Measurement = Field(description="time of ours, in ms or us")
    peer: Measurement | None = Field(None, description="time of the peer, in the same unit")
    correct: bool = Field(description="whether ours equalled the reference on this input")
    note: str = Field("", description="GB/s, share of the limit, or why the peer has no time")

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the peer ours is; none without a peer, or where the units differ."""
        if self.peer is None or self.peer.unit != self.ours.unit or not self.ours.value:
            return None
        return self.peer.value / self.ours.value

    @property
    def ratio_interval(self) -> tuple[float, float] | None:
        """The widest ratios that both 95 % intervals allow."""
        if self.ratio is None or self.peer is None or self.peer.interval is None or self.ours.interval is None or self.ours.interval[0] <= 0:
            return None
        return self.peer.interval[0] / self.ours.interval[1], self.peer.interval[1] / self.ours.interval[0]


class KernelTimings(Strict):
    """One run of `bench.py kernels`."""

    started: str = Field(description="UTC, ISO 8601")
    backend: str = Field(description="cuda; or reference, where the plain implementation ran on a CPU")
    peer: str = Field(description="whose operators ours are measured against, with its version")
    environment: Environment
    cases: list[KernelCase]


def read_timings(folder: Path) -> tuple[list[KernelTimings], list[str]]:
    """The newest timings of each device and backend, and what is wrong with files that are not used."""
    found: dict[tuple[str, str], KernelTimings] = {}
    problems = []
    for path in sorted(folder.glob("*.json")):
        try:
            timings = KernelTimings.model_validate_json(path.read_bytes())
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            problems.append(f"{path}: field {where}: {error.errors()[0]['msg']}; it is left out. Run `bench.py kernels` again")
            continue
        key = (timings.environment.device_name, timings.backend)
        if key not in found or timings.started > found[key].started:
            found[key] = timings
    return [found[key] for key in sorted(found)], problems
