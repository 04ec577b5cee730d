"""Comparison of stored runs: refused if they measured different things, with footnotes if circumstances
differ. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from detection_zoo.benchmarks.spec import Run
from detection_zoo.benchmarks.statistics import t_quantile
from detection_zoo.zoo.errors import ManifestError, UnknownName
from detection_zoo.zoo.registry import did_you_mean

TIMES = (
    "model_ms",
    "model_cpu_ms",
    "forward_ms",
    "postprocess_ms",
    "end_to_end_ms",
    "throughput_images_per_s",
    "epoch_time_s",
)
MEMORY = (
    "inference_memory_allocated_mib",
    "inference_memory_resident_mib",
    "train_memory_allocated_mib",
    "train_memory_resident_mib",
)


class NotComparable(ManifestError):
    """Runs that measured different things; the message says what differs and what to do."""


@dataclass(frozen=True)
class Difference:
    """A difference between two runs; `refuses`: no ratio is computed unless explicitly
    requested."""

    what: str
    reference: str
    other: str
    refuses: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.reference} and {self.other}"


def differences(reference: Run, other: Run) -> list[Difference]:
    """Return all differences of two runs: hardware, precision, images, batch, protocol (each prevents
    a ratio); versions, weights, load, commit."""
    pairs = [(what, a, b, True) for what, a, b in zip(_FIRM, _firm(reference), _firm(other), strict=True)]
    pairs += [(what, a, b, False) for what, (a, b) in _soft(reference, other).items()]
    return [Difference(what, str(a), str(b), refuses) for what, a, b, refuses in pairs if a != b]


_FIRM = (
    "hardware",
    "precision",
    "path",
    "TensorFloat-32",
    "batch",
    "images",
    "image list",
    "protocol",
    "soft-NMS",
    "test-time augmentation",
    "timed phases",
)


def _firm(run: Run) -> tuple[Any, ...]:
    spec, data = run.spec, run.data
    timed = run.measurements.get("model_ms")
    images = f"{data.name} {data.digest[:12]}" if data else "unknown"
    return (
        run.hardware or "unknown",
        spec.dtype,
        spec.path,
        spec.tf32,
        spec.batch_size,
        images,
        f"{spec.timed_images} timed of {data.images if data else 'unknown'}",
        spec.protocol,
        spec.soft_nms,
        spec.tta,
        timed.covers if timed else "",
    )


def _soft(reference: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    if reference.environment and other.environment:
        names = sorted({*reference.environment.packages, *other.environment.packages})
        found |= {
            f"version of {name}": tuple(
                run.environment.packages.get(name, "not installed") for run in (reference, other)
            )
            for name in names
        }
        for name in ("gpu_driver", "cuda", "cudnn", "python", "commit", "cpu"):
            found[name.replace("gpu_", "GPU ")] = (
                getattr(reference.environment, name),
                getattr(other.environment, name),
            )
        found["uncommitted changes"] = (reference.environment.dirty, other.environment.dirty)
    found["kind of weights"] = tuple(
        run.weights.kind if run.weights else "unknown" for run in (reference, other)
    )
    found["state of the machine"] = tuple(
        run.telemetry["inference"].verdict if "inference" in run.telemetry else "not watched"
        for run in (reference, other)
    )
    return found


@dataclass(frozen=True)
class StoredPair:
    """One metric of two rows, from their stored runs.

    reference, other: the runs of each, newest first. values: means over them (geometric).
    low, high: 95 % interval of the ratio from the spread between runs; None if neither row has two runs.
    """

    metric: str
    reference: tuple[Run, ...]
    other: tuple[Run, ...]
    values: tuple[float, float]
    low: float | None
    high: float | None
    footnotes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """The other's value over the reference's."""
        return self.values[1] / self.values[0]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "metric": self.metric,
            "reference": [run.id for run in self.reference],
            "other": [run.id for run in self.other],
            "rows": [self.reference[0].row, self.other[0].row],
            "values": list(self.values),
            "ratio": self.ratio,
            "interval": None if self.low is None else [self.low, self.high],
            "footnotes": list(self.footnotes),
        }


def chosen_runs(name: str, runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs of a record ID or a row, newest first.

    For a row: its newest run with measurements, and all others with the same weights, machine and settings.

    Raises:
        UnknownName: the store has no such record and no run of such a row.
    """
    fits = [run for run in runs if run.measurements and name in (run.id, run.row)]
    if not fits:
        known = {run.row for run in runs} | {run.id for run in runs}
        raise UnknownName(
            f"the store has no measured run of {name!r}:"
            f" {did_you_mean(name, known) if known else 'it is empty'}; measure it with `bench.py run`"
        )
    newest = max(fits, key=lambda run: (run.started, run.id))
    return (newest,) if name == newest.id else alike(newest, runs)


def alike(run: Run, runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs with the same row, weights, machine and settings as a run, newest first."""
    same = [other for other in runs if other.measurements and _measured(other) == _measured(run)]
    return tuple(sorted(same, key=lambda other: (other.started, other.id), reverse=True))


def _measured(run: Run) -> tuple[Any, ...]:
    return (run.row, run.weights.digest if run.weights else "", *_firm(run))


def compare_stored(names: Sequence[str], runs: Sequence[Run], anyway: bool = False) -> list[StoredPair]:
    """Return ratios of times and memory of stored runs, each row relative to the first.

    The runs were not interleaved, so no verdict is given. The interval comes from the spread between
    runs of one row: Student's t on logarithms of their values, the spread pooled over the two rows.

    Args:
        names: rows or ids of records; the first is the reference.
        runs: of the store.
        anyway: also give ratios of differing runs, with footnotes.

    Raises:
        NotComparable: no such record; or hardware, precision, images, batch or protocol differ, and `anyway`
            is not set.
    """
    chosen = [chosen_runs(name, runs) for name in names]
    pairs = []
    for other in chosen[1:]:
        unlike = differences(chosen[0][0], other[0])
        firm = [difference for difference in unlike if difference.refuses]
        if firm and not anyway:
            raise NotComparable(
                f"{other[0].id} and {chosen[0][0].id} cannot be compared; they differ in"
                f" {'; '.join(map(str, firm))}. Measure both with the same settings; or see"
                " --relative-to for other hardware, or --anyway for ratios with footnotes"
            )
        pairs += [
            _stored_pair(name, chosen[0], other, runs, tuple(map(str, unlike)))
            for name in (*TIMES, *MEMORY)
            if name in chosen[0][0].measurements and name in other[0].measurements
        ]
    return pairs


def _stored_pair(
    name: str, reference: tuple[Run, ...], other: tuple[Run, ...], runs: Sequence[Run], notes: tuple[str, ...]
) -> StoredPair:
    own = [_logs(side, name) for side in (reference, other)]
    everyone = {_measured(side[0]): _logs(alike(side[0], runs), name) for side in (reference, other)}
    means = [fmean(logs) for logs in own]
    freedom = sum(len(logs) - 1 for logs in everyone.values())
    low = high = None
    if freedom > 0:
        squares = sum((value - fmean(logs)) ** 2 for logs in everyone.values() for value in logs)
        error = math.sqrt(squares / freedom * sum(1 / len(logs) for logs in own))
        half = t_quantile(0.95, freedom) * error
        low, high = (math.exp(means[1] - means[0] + side * half) for side in (-1, 1))
    note = (
        f"interval from the spread between {freedom + len(everyone)} runs; `bench.py compare` gives a verdict"
        if freedom > 0
        else "one run each: the spread between runs on this machine is unknown; measure again"
        " with `bench.py run --again`, or run `bench.py compare`"
    )
    values = (math.exp(means[0]), math.exp(means[1]))
    return StoredPair(name, reference, other, values, low, high, (note, *notes))


def _logs(runs: Sequence[Run], name: str) -> list[float]:
    return [math.log(run.measurements[name].value) for run in runs if name in run.measurements]


def relative_speeds(runs: Sequence[Run], reference_row: str, name: str = "model_ms") -> list[dict[str, Any]]:
    """Return each run's metric relative to the reference row's on the same hardware in the same setting, for
    comparisons across hardware.

    Args:
        runs: of a store.
        reference_row: the row that was measured on all hardware.
        name: metric.

    Returns:
        For each comparable newest run: row, hardware, value, relative (how many times the reference's), the
            reference's record.

    Raises:
        NotComparable: no hardware has measured the reference row.
    """
    newest: dict[tuple[Any, ...], Run] = {}
    for run in sorted(runs, key=lambda run: (run.started, run.id)):
        if name in run.measurements:
            newest[run.row, run.weights.digest if run.weights else "", *_firm(run)] = run
    bases = {key[2:]: run for key, run in newest.items() if key[0] == reference_row}
    if not bases:
        raise NotComparable(
            f"no stored run of {reference_row!r} has {name}; measure it on all hardware that"
            " you want to compare"
        )
    found = [
        {
            "row": run.row,
            "record": run.id,
            "hardware": run.hardware,
            "precision": run.spec.dtype,
            "batch": run.spec.batch_size,
            "value": run.measurements[name].value,
            "relative": run.measurements[name].value / bases[key[2:]].measurements[name].value,
            "reference_record": bases[key[2:]].id,
        }
        for key, run in newest.items()
        if key[2:] in bases
    ]
    return sorted(found, key=lambda one: (one["row"], one["hardware"]))
