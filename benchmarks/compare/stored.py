"""May two stored runs be compared, and what comes out: refused where what was measured differs, footnoted
where the circumstances do. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from detection_zoo.benchmarks.compare.paired import Ratio, Verdict, judge_ratio
from detection_zoo.benchmarks.spec import Measurement, Run, metric
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.registry import did_you_mean

DRAWS = 2000
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
    """Runs that measured different things; says what differs, and how to go on."""


@dataclass(frozen=True)
class Difference:
    """Something in which two runs differ; `refuses`: no ratio is taken then, unless it is asked for in spite
    of that."""

    what: str
    reference: str
    other: str
    refuses: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.reference} and {self.other}"


def differences(reference: Run, other: Run) -> list[Difference]:
    """Everything that a ratio of two runs would hide: hardware, precision, images, batch, protocol (each
    refuses); versions, weights, load, commit."""
    pairs = [(what, a, b, True) for what, a, b in zip(_FIRM, _firm(reference), _firm(other), strict=True)]
    pairs += [(what, a, b, False) for what, (a, b) in _soft(reference, other).items()]
    return [Difference(what, str(a), str(b), refuses) for what, a, b, refuses in pairs if a != b]


_FIRM = (
    "hardware",
    "precision",
    "TensorFloat-32",
    "batch",
    "images",
    "image list",
    "protocol",
    "soft-NMS",
    "test-time augmentation",
    "inside the clock",
)


def _firm(run: Run) -> tuple[Any, ...]:
    spec, data = run.spec, run.data
    timed = run.measurements.get("model_ms")
    images = f"{data.name} {data.digest[:12]}" if data else "unknown"
    return (
        run.hardware or "unknown",
        spec.dtype,
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
    """One metric of two stored runs, with the ratio of medians."""

    metric: str
    reference: Run
    other: Run
    values: tuple[float, float]
    ratio: Ratio | None
    verdict: Verdict
    footnotes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "metric": self.metric,
            "reference": self.reference.id,
            "other": self.other.id,
            "rows": [self.reference.row, self.other.row],
            "values": list(self.values),
            "ratio": self.ratio.value if self.ratio else self.values[1] / self.values[0],
            "interval": [self.ratio.low, self.ratio.high] if self.ratio else None,
            "verdict": self.verdict,
            "footnotes": list(self.footnotes),
        }


def chosen_runs(names: Sequence[str], runs: Sequence[Run]) -> list[Run]:
    """The runs that ids or rows mean; a row means its newest run with measurements.

    Raises:
        NotComparable: the store has no such record and no run of such a row.
    """
    chosen = []
    for name in names:
        fits = [run for run in runs if run.measurements and name in (run.id, run.row)]
        if not fits:
            known = {run.row for run in runs} | {run.id for run in runs}
            raise NotComparable(
                f"the store has no measured run of {name!r}:"
                f" {did_you_mean(name, known) if known else 'it is empty'}; `bench.py run` measures it"
            )
        chosen.append(max(fits, key=lambda run: (run.started, run.id)))
    return chosen


def compare_stored(
    runs: Sequence[Run], smallest: float = 0.015, anyway: bool = False, seed: int = 0
) -> list[StoredPair]:
    """Times and memory of stored runs over those of the first.

    The runs were made one after the other, so the interval (a bootstrap of the ratio of medians) covers the
    spread within the runs and not what changed between them; a SAME, FASTER or SLOWER that counts comes from
    running the models side by side.

    Args:
        runs: the reference first.
        smallest: smallest difference of interest, a fraction.
        anyway: give ratios of what differs too, with footnotes.
        seed: of the bootstrap.

    Raises:
        NotComparable: hardware, precision, images, batch or protocol differ, and `anyway` was not said.
    """
    found = []
    for other in runs[1:]:
        unlike = differences(runs[0], other)
        firm = [difference for difference in unlike if difference.refuses]
        if firm and not anyway:
            raise NotComparable(
                f"{other.id} and {runs[0].id} cannot be compared, they differ in {'; '.join(map(str, firm))}."
                " Measure both alike; or see --relative-to for other hardware, or --anyway for ratios with"
                " footnotes"
            )
        notes = (
            "made one after the other: the interval leaves out what changed between them",
            *map(str, unlike),
        )
        for name in (*TIMES, *MEMORY):
            if name in runs[0].measurements and name in other.measurements:
                found.append(_stored_pair(name, runs[0], other, smallest, seed, notes))
    return found


def _stored_pair(
    name: str, reference: Run, other: Run, smallest: float, seed: int, notes: tuple[str, ...]
) -> StoredPair:
    base, own = reference.measurements[name], other.measurements[name]
    ratio = ratio_of_medians(base, own, seed)
    higher_is_better = metric(name).better == "higher"
    words: tuple[Verdict, Verdict] = (
        ("LOWER", "HIGHER")
        if name in MEMORY
        else ("SLOWER", "FASTER")
        if higher_is_better
        else ("FASTER", "SLOWER")
    )
    return StoredPair(
        name, reference, other, (base.value, own.value), ratio, judge_ratio(ratio, smallest, words), notes
    )


def ratio_of_medians(
    base: Measurement, own: Measurement, seed: int = 0, confidence: float = 0.95
) -> Ratio | None:
    """The ratio of two medians of independent samples with its bootstrap interval; None where a measurement
    has too few samples for one."""
    if min(len(base.samples), len(own.samples)) < 6 or "median" not in (base.statistic, own.statistic):
        return None
    draw = np.random.default_rng(seed)
    medians = [np.median(draw.choice(one.samples, (DRAWS, len(one.samples))), axis=1) for one in (base, own)]
    low, high = np.quantile(medians[1] / medians[0], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Ratio(
        median(own.samples) / median(base.samples),
        float(low),
        float(high),
        confidence,
        min(len(base.samples), len(own.samples)),
    )


def relative_speeds(runs: Sequence[Run], reference_row: str, name: str = "model_ms") -> list[dict[str, Any]]:
    """Each run's metric over that of the reference row on the same hardware in the same setting: what may be
    set beside other hardware.

    Args:
        runs: of a store.
        reference_row: the row that every piece of hardware has measured.
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
            f"no stored run of {reference_row!r} has {name}; measure it on every piece of hardware that is to"
            " be set beside another"
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
