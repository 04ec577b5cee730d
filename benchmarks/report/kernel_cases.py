"""Records of operator timings, ours and a peer's, in results/kernels: schema, reader, ratios. Does not import
torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from detection_zoo.benchmarks.folders import KERNELS
from detection_zoo.benchmarks.spec import Environment, Measurement, counted
from detection_zoo.benchmarks.store import new_id, newest_records, read_regular, validated, write_whole
from detection_zoo.benchmarks.tabular import Table
from detection_zoo.zoo.manifest import Strict

ON_A_CPU = "Timed on a CPU, against the peer on a CPU; GPU speed differs. Quote only the ratios."

Work = Literal["operators", "detectors"]


class KernelCase(Strict):
    """One operator on one input: our time and the peer's, measured in one run."""

    name: str = Field(description="operator and input: 'nms, 1,000 boxes'")
    ours: Measurement = Field(description="time of ours, in ms or us")
    peer: Measurement | None = Field(None, description="time of the peer, in the same unit")
    correct: bool = Field(description="whether our output equals the reference on this input")
    note: str = Field("", description="GB/s, fraction of the limit, or why there is no time of the peer")
    limit: Literal["bandwidth", "arithmetic"] | None = Field(None, description="the nearer of the two")
    share_of_limit: float | None = Field(None, description="time that is needed at the limit, over ours")

    @property
    def ratio(self) -> float | None:
        """Speed-up over the peer; None without a peer, or if the units differ."""
        if self.peer is None or self.peer.unit != self.ours.unit or not self.ours.value:
            return None
        return self.peer.value / self.ours.value

    @property
    def ratio_interval(self) -> tuple[float, float] | None:
        """Smallest and largest ratio of values within both 95 % intervals."""
        if (
            self.ratio is None
            or self.peer is None
            or self.peer.interval is None
            or self.ours.interval is None
            or self.ours.interval[0] <= 0
        ):
            return None
        return self.peer.interval[0] / self.ours.interval[1], self.peer.interval[1] / self.ours.interval[0]


class DeviceLimits(Strict):
    """Maximum rates of the device, measured just before the operators, with the same clock."""

    copy_gb_s: float = Field(description="copy between two large arrays, read plus written, 10^9 bytes/s")
    matrix_gflop_s: float = Field(description="product of square float32 matrices, 10^9 FLOP/s")


class KernelTimings(Strict):
    """One run of `bench.py kernels`, or of `bench.py paths` for detectors."""

    started: str = Field(description="when it was stored: UTC, ISO 8601")
    backend: str = Field(
        description="cuda; on a CPU cpu, or reference if the operator has no CPU implementation"
    )
    work: Work = "operators"
    peer: str = Field(description="library that ours is compared with, and its version")
    environment: Environment
    limits: DeviceLimits | None = Field(None, description="none in old records")
    cases: list[KernelCase]


def write_timings(folder: Path, timings: KernelTimings) -> Path:
    """Store timings atomically; return the file."""
    path = folder / f"{new_id(KERNELS)}.json"
    write_whole(path, timings.model_dump_json(exclude_defaults=True).encode())
    return path


def read_timings(path: Path) -> KernelTimings:
    """Read one record; raises ValueError that says what is wrong with the file."""
    return validated(read_regular(path), path, KernelTimings)


def stored_timings(store: Path | None = None) -> tuple[list[KernelTimings], list[str]]:
    """Return the newest timings of each kind of work, device and backend, and a message for each unusable
    file; from the folders of `record_folders`."""
    return newest_records(
        KERNELS,
        store,
        read_timings,
        lambda timings: (timings.work, timings.environment.device_name, timings.backend),
    )


def kernel_table(one: KernelTimings) -> Table:
    """Return the table of a record, a line per case."""
    env = one.environment
    rows = [
        [
            case.name,
            _time(case.ours, one.work),
            _time(case.peer, one.work),
            _ratio(case),
            "yes" if case.correct else "NO",
            case.note or "-",
        ]
        for case in one.cases
    ]
    where = f"{env.device_name}, " + (
        f"driver {env.gpu_driver}" if one.backend == "cuda" else counted(env.threads, "thread")
    )
    covers = sorted({case.ours.covers for case in one.cases if case.ours.covers})
    footnotes = [
        "; ".join(
            [
                f"measured: {where}",
                *covers,
                f"ended {one.started}",
                f"torch {env.packages.get('torch', 'unknown')}",
                env.commit_text or "commit unknown",
            ]
        ),
        "Times are medians with their 95 % interval.",
        *([] if one.limits is None else [_limits(one.limits)]),
        "The ratio is the peer's time over ours, with the widest range that both intervals allow.",
    ]
    title = f"{one.work.capitalize()} compared with {one.peer}: {one.backend}, {env.device_name}"
    return Table(
        ["Work", "Ours", "Peer", "Times as fast", "Agrees", "Note"],
        rows,
        footnotes + ([ON_A_CPU] if one.backend != "cuda" else []),
        KERNELS,
        title,
        [_record(one, case) for case in one.cases],
        flat=True,
    )


def _limits(limits: DeviceLimits) -> str:
    return (
        f"Limits measured before: copies {limits.copy_gb_s:,.1f} GB/s, products of float32 matrices"
        f" {limits.matrix_gflop_s:,.0f} GFLOP/s. The share is the time that the bytes that must be"
        " moved, or the operations that cannot be left out, need at that rate, over the time that ours took."
    )


def _time(time: Measurement | None, work: Work) -> str:
    """A time with unit: ms for detectors, otherwise the unit of the record."""
    if time is None:
        return "-"
    scale, unit = (1e-3, "ms") if work == "detectors" and time.unit == "us" else (1, time.unit)
    low_high = "-".join(time_text(scale * each) for each in time.interval or ())
    return f"{time_text(scale * time.value)} {unit}" + (f" ({low_high})" if low_high else "")


def time_text(value: float) -> str:
    """Format a time: whole units from 1000 on, otherwise four significant digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _ratio(case: KernelCase) -> str:
    if case.ratio is None:
        return "-"
    return f"{case.ratio:.2f}x" + (
        f" ({case.ratio_interval[0]:.2f}-{case.ratio_interval[1]:.2f})" if case.ratio_interval else ""
    )


def _record(one: KernelTimings, case: KernelCase) -> dict[str, Any]:
    """A case as one flat record, for CSV and JSON."""
    low, high = case.ratio_interval or (None, None)
    return {
        "started": one.started,
        "device": one.environment.device_name,
        "backend": one.backend,
        "peer": one.peer,
        "work": case.name,
        "unit": case.ours.unit,
        "ours": case.ours.value,
        "peer_time": case.peer.value if case.peer else None,
        "ratio": case.ratio,
        "ratio_low": low,
        "ratio_high": high,
        "agrees": case.correct,
        "note": case.note,
    }
