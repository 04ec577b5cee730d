"""Lines of a table: one a set of published numbers, one a setting that was measured. The two never mix. No
torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from detection_zoo.benchmarks.spec import MADE_UP_WEIGHTS, OWN_PROTOCOL, Measurement, Run
from detection_zoo.zoo.manifest import ModelEntry, Published


@dataclass
class PublishedLine:
    """Numbers that a source prints for one row under one set of conditions."""

    variant: str | None
    hardware: str | None
    values: dict[str, float] = field(default_factory=dict)
    records: list[Published] = field(default_factory=list)


@dataclass
class MeasuredLine:
    """The newest measurement of each metric in one setting: hardware, precision, weights, data."""

    runs: list[Run]  # newest first
    values: dict[str, Measurement] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def setting(self) -> tuple[str, ...]:
        """What may be compared with each other: hardware, device, precision, batch, data."""
        return comparable(self.runs[0])

    @property
    def weights_kind(self) -> str:
        """Random, stand-in, published or file."""
        return self.runs[0].weights.kind if self.runs[0].weights else ""


def published_lines(entry: ModelEntry) -> list[PublishedLine]:
    """Published numbers of a row, as few lines as hold them without two values of one metric or two pieces of
    hardware in a line."""
    lines: list[PublishedLine] = []
    for record in entry.published:
        fits = (
            line
            for line in lines
            if line.variant == record.variant
            and (line.hardware is None or record.hardware in (None, line.hardware))
            and all(
                line.values[name] == record.values[name] for name in line.values.keys() & record.values.keys()
            )
        )
        line = next(fits, None)
        if line is None:
            line = PublishedLine(record.variant, record.hardware)
            lines.append(line)
        line.hardware = line.hardware or record.hardware
        line.values |= record.values
        line.records.append(record)
    return lines


def comparable(run: Run) -> tuple[str, ...]:
    """Hardware, precision, batch, data and what was done at test time: ratios are only taken between runs in
    which these are equal."""
    spec, data = run.spec, run.data.digest if run.data else ""
    return (
        run.hardware,
        spec.device,
        spec.dtype,
        str(spec.tf32),
        str(spec.batch_size),
        spec.protocol,
        str(spec.tta),
        spec.soft_nms,
        data,
    )


def measured_lines(entry: ModelEntry, runs: list[Run]) -> list[MeasuredLine]:
    """Measurements of a row, a line a setting, newest measurement of each metric; runs that measured nothing
    make no line."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.started, run.id), reverse=True):
        if run.row == entry.name and run.measurements:
            groups.setdefault((*comparable(run), run.weights.digest if run.weights else ""), []).append(run)
    lines = []
    for group in groups.values():
        line = MeasuredLine([])
        for run in group:
            fresh = {name: value for name, value in run.measurements.items() if name not in line.values}
            if fresh:
                line.runs.append(run)
            line.values |= fresh
            line.absent = {**run.absent, **line.absent}
        line.absent = {name: why for name, why in line.absent.items() if name not in line.values}
        lines.append(line)
    return lines


def why_not_measured(entry: ModelEntry, runs: list[Run]) -> str:
    """Why a row has no measured line: it cannot be built, its last run failed, or nobody has run it."""
    if entry.published_only:
        return f"not measured: {entry.published_only}"
    attempts = [run for run in runs if run.row == entry.name]
    if attempts:
        last = max(attempts, key=lambda run: (run.started, run.id))
        return (
            f"not measured: the last run ({last.id}) {last.status} while {last.stage or 'starting'}:"
            f" {last.reason or 'no reason was recorded'}"
        )
    if entry.trained_weights and entry.trained_weights[0].wrong:
        return f"not measured, and its published weights are not fetched: {entry.trained_weights[0].wrong}"
    return "not measured: the store has no run of this row; `python bench.py run ROW --data ...` measures it"


def qualifiers(run: Run) -> list[str]:
    """What a reader must know before believing a measured line, in a few words each."""
    found = []
    if run.weights is not None and run.weights.kind in MADE_UP_WEIGHTS:
        found.append(f"{run.weights.kind} weights")
    if run.spec.tta:
        found.append("test-time augmentation")
    if run.spec.soft_nms != "none":
        found.append(f"{run.spec.soft_nms} soft-NMS")
    if run.spec.protocol != OWN_PROTOCOL:
        found.append(f"protocol {run.spec.protocol}")
    if run.data is not None and run.data.made_up:
        found.append("made-up data")
    if run.data is not None and run.data.is_subset:
        found.append(f"{run.data.images} of {run.data.images_of_split} images")
    return found
