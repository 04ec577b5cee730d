"""Lines of a table: one per set of published numbers, one per measured setting; they are never mixed. Does
not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import ClassVar, NamedTuple

from detection_zoo.benchmarks.spec import MADE_UP_WEIGHTS, OWN_PROTOCOL, Measurement, Metric, Run
from detection_zoo.zoo.manifest import MetricSource, ModelEntry, Published

NOT_RUN = "not run yet"
NOT_REPORTED = "not reported"
NOT_MEASURED = "not measured with these weights on this data"


class Point(NamedTuple):
    """A number with its 95 % interval, if there is one."""

    value: float
    interval: tuple[float, float] | None = None


def own_metric(entry: ModelEntry, name: str) -> str:
    """Return the name of a metric for this row: the box AP of keypoint models is of the person class only,
    and has its own name."""
    return f"person_{name.removeprefix('box_')}" if entry.has_keypoints and name.startswith("box_a") else name


@dataclass
class PublishedLine:
    """Numbers that a source publishes for one row under one set of conditions."""

    variant: str | None
    hardware: str | None
    values: dict[str, float] = field(default_factory=dict)
    records: list[Published] = field(default_factory=list)
    weights_kind: ClassVar[str] = "published"

    def points(self) -> dict[str, Point]:
        """Every metric, in its own unit."""
        return {name: Point(value) for name, value in self.values.items()}

    def why_absent(self, metric: Metric) -> str:
        """Why there is no such number."""
        return NOT_REPORTED

    def point(self, metric: Metric) -> Point | None:
        """The metric, or its value converted from another one; None if there is neither."""
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
        """Return the measurement that gives the metric, and its value in the unit of the metric.

        Args:
            metric: of metrics.toml.
            sources: metrics of records, instead of those in metrics.toml.
        """
        for source in sources or metric.measured or [MetricSource(metric=metric.name)]:
            if source.metric in self.values:
                measurement = self.values[source.metric]
                edges = sorted(map(source.convert, measurement.interval or ()))
                interval = (edges[0], edges[1]) if edges else None
                return measurement, Point(source.convert(measurement.value), interval)
        return None

    def points(self) -> dict[str, Point]:
        """Every metric, in its own unit."""
        return {name: Point(found.value, found.interval) for name, found in self.values.items()}

    def point(self, metric: Metric) -> Point | None:
        """The metric in its own unit; None if it was not measured."""
        found = self.measurement(metric)
        return found[1] if found else None

    def why_absent(self, metric: Metric, sources: Sequence[MetricSource] = ()) -> str:
        """Why there is no such number."""
        names = [source.metric for source in sources or metric.measured] or [metric.name]
        return next((self.absent[name] for name in names if name in self.absent), NOT_MEASURED)

    @property
    def setting(self) -> tuple[str, ...]:
        """Key of comparable lines: hardware, device, precision, batch, data."""
        return comparable(self.runs[0])

    @property
    def weights_kind(self) -> str:
        """random, stand-in, published or file; empty if not recorded."""
        return self.runs[0].weights.kind if self.runs[0].weights else ""


def seeds_text(by_seed: dict[str, float]) -> str:
    """Return values by training seed with mean and standard deviation; empty for a single seed."""
    if len(by_seed) < 2:
        return ""
    values = ", ".join(f"{value:.2f} ({seed})" for seed, value in by_seed.items())
    return f"by seed: {values}; mean {fmean(by_seed.values()):.2f}, SD {stdev(by_seed.values()):.2f}"


def seed_notes(entry: ModelEntry, line: MeasuredLine, metrics: dict[str, Metric]) -> list[str]:
    """Return notes with the accuracy for other training seeds, if the weights of this project were
    measured."""
    if entry.training is None or line.weights_kind != "published":
        return []
    texts = {name: seeds_text(entry.training.by_seed(name)) for name in entry.training.expected}
    return [f"{metrics[own_metric(entry, name)].title} {text}" for name, text in texts.items() if text]


def published_lines(entry: ModelEntry) -> list[PublishedLine]:
    """Return the published numbers of a row in as few lines as possible; a line has one value per metric and
    one kind of hardware."""
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
    """Return hardware, precision, batch, data and test-time settings; ratios are computed only between runs
    for which these are equal."""
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
    """Return one line per measured setting of a row, with the newest measurement of each metric; runs without
    measurements are omitted."""
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
    """Return why a row has no measured line: a short state, and the full reason or an empty string."""
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
    """Return short caveats of a measured line."""
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
