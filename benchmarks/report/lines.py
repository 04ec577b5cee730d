"""Lines of a table: one a set of published numbers, one a setting that was measured. The two never mix. No
torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import NamedTuple

from detection_zoo.benchmarks.spec import MADE_UP_WEIGHTS, OWN_PROTOCOL, Measurement, Metric, Run
from detection_zoo.zoo.manifest import MetricSource, ModelEntry, Published

NOT_RUN = "not run yet"
NOT_REPORTED = "not reported"
NOT_MEASURED = "not measured with these weights on this data"


class Point(NamedTuple):
    """A number with its 95 % interval, where it has one."""

    value: float
    interval: tuple[float, float] | None = None


def own_metric(entry: ModelEntry, name: str) -> str:
    """The name of a metric of this row: the box AP of a model with keypoints is over persons alone, and is
    called so wherever it is read."""
    keypoints = entry.detector is not None and "keypoint" in entry.detector.name
    return f"person_{name.removeprefix('box_')}" if keypoints and name.startswith("box_a") else name


@dataclass
class PublishedLine:
    """Numbers that a source prints for one row under one set of conditions."""

    variant: str | None
    hardware: str | None
    values: dict[str, float] = field(default_factory=dict)
    records: list[Published] = field(default_factory=list)

    def point(self, metric: Metric) -> Point | None:
        """The metric, or what gives it; None where nothing does."""
        for source in metric.published or [MetricSource(metric=metric.name)]:
            if source.metric in self.values:
                return Point(source.convert(self.values[source.metric]))
        return None


@dataclass
class MeasuredLine:
    """The newest measurement of each metric in one setting: hardware, precision, weights, data."""

    runs: list[Run]  # newest first
    values: dict[str, Measurement] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def measurement(
        self, metric: Metric, sources: Sequence[MetricSource] = ()
    ) -> tuple[Measurement, Point] | None:
        """What was measured for the metric, and its value in the metric's unit.

        Args:
            metric: of metrics.toml.
            sources: metrics of records, in place of those that the metric names.
        """
        for source in sources or metric.measured or [MetricSource(metric=metric.name)]:
            if source.metric in self.values:
                measurement = self.values[source.metric]
                edges = sorted(map(source.convert, measurement.interval or ()))
                interval = (edges[0], edges[1]) if edges else None
                return measurement, Point(source.convert(measurement.value), interval)
        return None

    def why_absent(self, metric: Metric, sources: Sequence[MetricSource] = ()) -> str:
        """Why there is no such number."""
        names = [source.metric for source in sources or metric.measured] or [metric.name]
        return next((self.absent[name] for name in names if name in self.absent), NOT_MEASURED)

    @property
    def setting(self) -> tuple[str, ...]:
        """What may be compared with each other: hardware, device, precision, batch, data."""
        return comparable(self.runs[0])

    @property
    def weights_kind(self) -> str:
        """Random, stand-in, published or file."""
        return self.runs[0].weights.kind if self.runs[0].weights else ""


def seeds_text(by_seed: dict[str, float]) -> str:
    """Values of trainings with several seeds, their mean and standard deviation; empty for one training."""
    if len(by_seed) < 2:
        return ""
    values = ", ".join(f"{value:.2f} ({seed})" for seed, value in by_seed.items())
    return f"by seed: {values}; mean {fmean(by_seed.values()):.2f}, SD {stdev(by_seed.values()):.2f}"


def seed_notes(entry: ModelEntry, line: MeasuredLine, metrics: dict[str, Metric]) -> list[str]:
    """What trainings of this row with other seeds reached, where its shipped weights were measured."""
    if entry.training is None or line.weights_kind != "published":
        return []
    texts = {name: seeds_text(entry.training.by_seed(name)) for name in entry.training.expected}
    return [f"{metrics[own_metric(entry, name)].title} {text}" for name, text in texts.items() if text]


def published_lines(entry: ModelEntry) -> list[PublishedLine]:
    """Published numbers of a row, as few lines as hold them without two values of one metric or two pieces of
    hardware in a line."""
    lines: list[PublishedLine] = []
    for record in entry.published:
        values = {own_metric(entry, name): value for name, value in record.values.items()}
        fits = (
            line
            for line in lines
            if line.variant == record.variant
            and (line.hardware is None or record.hardware in (None, line.hardware))
            and all(line.values[name] == values[name] for name in line.values.keys() & values.keys())
        )
        line = next(fits, None)
        if line is None:
            line = PublishedLine(record.variant, record.hardware)
            lines.append(line)
        line.hardware = line.hardware or record.hardware
        line.values |= values
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
        spec.path,
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
            named = {own_metric(entry, name): value for name, value in run.measurements.items()}
            fresh = {name: value for name, value in named.items() if name not in line.values}
            if fresh:
                line.runs.append(run)
            line.values |= fresh
            line.absent = {own_metric(entry, name): why for name, why in run.absent.items()} | line.absent
        line.absent = {name: why for name, why in line.absent.items() if name not in line.values}
        lines.append(line)
    return lines


def why_not_measured(entry: ModelEntry, runs: list[Run]) -> tuple[str, str]:
    """Why a row has no measured line: in two or three words, and the reason where there is more to say."""
    if entry.published_only:
        return "cannot be built", entry.published_only
    attempts = [run for run in runs if run.row == entry.name]
    if attempts:
        last = max(attempts, key=lambda run: (run.started, run.id))
        stage, reason = last.stage or "starting", last.reason or "no reason was recorded"
        return f"run {last.status}", f"{last.status} while {stage}: {reason} (record {last.id})"
    if entry.trained_weights and entry.trained_weights[0].wrong:
        return NOT_RUN, f"the published weights are wrong: {entry.trained_weights[0].wrong}"
    return NOT_RUN, ""


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
