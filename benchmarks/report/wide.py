"""All lines of all sources, for figures, the HTML page and the wide table. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from detection_zoo.benchmarks.compare.record import Comparison
from detection_zoo.benchmarks.report.kernel_cases import KernelTimings
from detection_zoo.benchmarks.report.layouts import Layout, load_layouts
from detection_zoo.benchmarks.report.lines import (
    MeasuredLine,
    Point,
    PublishedLine,
    measured_lines,
    published_lines,
    qualifiers,
    why_not_measured,
)
from detection_zoo.benchmarks.report.table import provenance
from detection_zoo.benchmarks.report.training_logs import TrainingLog
from detection_zoo.benchmarks.spec import UNSTEADY, Metric, Run, named_metrics
from detection_zoo.zoo.manifest import Manifests, ModelEntry
from detection_zoo.zoo.plain import one_line

Kind = Literal["measured", "published", "not measured"]


@dataclass(frozen=True)
class WideLine:
    """One line of the wide table: published numbers of a row under one set of conditions, measured numbers in
    one setting, or neither."""

    entry: ModelEntry
    kind: Kind
    line: PublishedLine | MeasuredLine | None
    setting: tuple[str, ...]  # lines with equal settings are comparable
    setting_title: str
    flags: tuple[str, ...]  # caveats
    reason: str = ""  # why there are no numbers
    trusted: bool = True  # accuracy is meaningful: trained weights, photographs

    @property
    def runs(self) -> list[Run]:
        """Records of a measured line, newest first; otherwise empty."""
        return self.line.runs if isinstance(self.line, MeasuredLine) else []

    def metrics(self) -> dict[str, Point]:
        """Every metric of the line in its own unit."""
        return self.line.points() if self.line else {}

    def point(self, metric: Metric) -> Point | None:
        """The metric in its own unit; None if the line does not have it."""
        return self.line.point(metric) if self.line else None

    def why_not(self, metric: Metric) -> str:
        """Why the line does not have this metric."""
        return self.line.why_absent(metric) if self.line else self.reason


@dataclass
class Overview:
    """All lines, their runs, and the problems of the store.

    classes: AP per class by run; pictures: (name, data URL) by row; see `report.beside`. trainings: curves by
    row; see `report.training_logs`.
    """

    manifests: Manifests
    runs: list[Run]
    layouts: dict[str, Layout] = field(default_factory=load_layouts)
    lines: list[WideLine] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kernels: list[KernelTimings] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    trainings: dict[str, list[TrainingLog]] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Every metric by its name."""
        return named_metrics(self.manifests.metrics)

    @cached_property
    def quantities(self) -> dict[str, Metric]:
        """The metrics that are shown for all rows."""
        return {name: metric for name, metric in self.metrics.items() if metric.overview}


def overview(manifests: Manifests, runs: list[Run], problems: Iterable[str] = ()) -> Overview:
    """Return the lines of all rows.

    Args:
        manifests: rows with their published numbers.
        runs: records of a store; runs of rows without a manifest entry become problems.
        problems: known problems of the store.
    """
    by_row: dict[str, list[Run]] = {}
    for run in runs:
        by_row.setdefault(run.row, []).append(run)
    view = Overview(manifests, runs, problems=list(problems))
    for row in sorted(by_row.keys() - manifests.entries.keys()):
        view.problems.append(
            f"{len(by_row[row])} records of {row} are ignored: no manifest has this row. Restore the row, or"
            " move the records"
        )
    for entry in manifests.entries.values():
        own = by_row.get(entry.name, [])
        measured = [_measured(entry, line) for line in measured_lines(entry, own)]
        view.lines += [_published(entry, line, view.metrics) for line in published_lines(entry)]
        view.lines += measured or [
            WideLine(
                entry, "not measured", None, (), "", (), ": ".join(filter(None, why_not_measured(entry, own)))
            )
        ]
    return view


def _measured(entry: ModelEntry, line: MeasuredLine) -> WideLine:
    run = line.runs[0]
    flags = qualifiers(run)
    verdicts = {one.verdict for each in line.runs for one in each.telemetry.values()} & set(UNSTEADY)
    flags += sorted(verdicts)
    flags += ["unfinished run"] if any(each.status != "finished" for each in line.runs) else []
    made_up = bool(run.weights and run.weights.made_up) or bool(run.data and run.data.made_up)
    return WideLine(
        entry,
        "measured",
        line,
        ("measured", *line.setting),
        setting_title(run),
        tuple(flags),
        trusted=not made_up,
    )


def setting_title(run: Run) -> str:
    """Return hardware, precision, batch and data of a run in one line."""
    spec, data = run.spec, run.data
    images = (
        f"{data.name}, {'first ' if data.is_subset else ''}{data.images} images"
        if data
        else "data not recorded"
    )
    hardware = run.environment.device_name if run.environment else "machine not recorded"
    precision = spec.precision_text + spec.path_note
    return one_line(f"{hardware}, {precision}, batch {spec.batch_size}, {images}")


def _published(entry: ModelEntry, line: PublishedLine, metrics: dict[str, Metric]) -> WideLine:
    accuracy = {name for name, metric in metrics.items() if metric.accuracy}
    with_accuracy = (record for record in line.records if record.values.keys() & accuracy)
    record = next(with_accuracy, line.records[0])  # its split is the one of the line
    hardware = line.hardware or "hardware not stated"
    dataset = record.dataset or entry.dataset
    # coco_2014_minival contains the dataset
    data = (
        dataset if not record.split else record.split if "_" in record.split else f"{dataset} {record.split}"
    )
    protocols = tuple(sorted({one.protocol for one in line.records if one.protocol}))
    key = ("published", entry.source, data, hardware, *protocols)
    return WideLine(
        entry,
        "published",
        line,
        key,
        f"{entry.source}, {data}, {hardware}",
        (line.variant,) if line.variant else (),
    )


def wide_records(view: Overview) -> list[dict[str, Any]]:
    """Return the wide table as one flat record per line: identity, all metrics with interval and n,
    provenance."""
    known = {name for line in view.lines for name in line.metrics()}
    names = [name for name in view.metrics if name in known]
    return [_flat(line, names) for line in view.lines]


def _flat(line: WideLine, names: list[str]) -> dict[str, Any]:
    entry, found = line.entry, line.line
    by_schedule = found is None or found.weights_kind == "published"  # trained with the row's schedule
    parts = {
        part: component.name if (component := getattr(entry, part)) else None
        for part in ("backbone", "neck", "detector")
    }
    flat: dict[str, Any] = {
        "row": entry.name,
        "source": entry.source,
        "title": entry.title,
        **parts,
        "dataset": entry.dataset,
        "schedule": entry.schedule if by_schedule else None,
        "kind": line.kind,
        "setting": line.setting_title or None,
        "flags": ", ".join(line.flags) or None,
    }
    metrics = line.metrics()
    for name in names:
        point = metrics.get(name)
        low, high = point.interval if point and point.interval else (None, None)
        counted = isinstance(found, MeasuredLine) and name in found.values
        flat[name] = point.value if point else None
        flat |= {f"{name}_low": low, f"{name}_high": high}
        flat[f"{name}_n"] = found.values[name].n if counted else None
    reasons = (
        [f"{name}: {why}" for name, why in found.absent.items()] if isinstance(found, MeasuredLine) else []
    )
    flat["reason"] = line.reason or "; ".join(reasons) or None
    flat["weights"] = _weights(line)
    flat["from"] = (
        "; ".join(provenance(found))
        if isinstance(found, MeasuredLine)
        else "; ".join(dict.fromkeys(one.source for one in found.records))
        if found
        else None
    )
    return flat


def _weights(line: WideLine) -> str | None:
    """Return the weights that were measured, or the address of the published ones."""
    if line.runs:
        weights = line.runs[0].weights
        return f"{weights.kind} {weights.digest}" if weights else None
    spec = next((spec for spec in line.entry.trained_weights if not spec.wrong), None)
    return (spec.urls[0] if spec.urls else spec.manual) if spec else None
