"""Tables of sources: published and measured lines of each row, with the columns of the source. Does not
import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detection_zoo.benchmarks.report.layouts import WIDE, Column, Layout, Number
from detection_zoo.benchmarks.report.lines import (
    NOT_REPORTED,
    MeasuredLine,
    Point,
    PublishedLine,
    measured_lines,
    own_metric,
    published_lines,
    qualifiers,
    seed_notes,
    why_not_measured,
)
from detection_zoo.benchmarks.spec import Measurement, Metric, Run, counted, named_metrics
from detection_zoo.benchmarks.tabular import Cell, Link, Notes, Table
from detection_zoo.zoo.manifest import Manifests, ModelEntry

Line = PublishedLine | MeasuredLine | None  # None: not measured
KIND = "Numbers"  # title of the column with "published" or "measured"
PERSONS = "AP of the person class only"
POOLING = {"roi_align": "RoIAlign", "roi_pool": "RoIPool", "roi_crop": "RoICrop"}


@dataclass
class _Group:
    """One manifest row with its lines."""

    entry: ModelEntry
    published: list[PublishedLine]
    measured: list[MeasuredLine]

    @property
    def detector(self) -> str:
        """Name of the detector; ratios are computed between rows with the same one."""
        return self.entry.detector.name if self.entry.detector else ""


def build_table(layout: Layout, manifests: Manifests, runs: list[Run]) -> Table:
    """Build a table.

    Args:
        layout: defines rows and columns.
        manifests: rows with their published numbers.
        runs: records of a store.
    """
    groups = [
        _Group(entry, published_lines(entry), measured_lines(entry, runs))
        for entry in layout.select(manifests.entries)
    ]
    references = {group.detector: group for group in groups if group.entry.name in layout.reference}
    metrics = named_metrics(manifests.metrics)
    columns = _columns(layout, metrics, groups)
    writer = _Writer(layout, columns, metrics, runs)
    rows, records = [], []
    for group in groups:
        for line in [*group.published, *(group.measured or [None])]:
            rows.append(writer.cells(group, line, references.get(group.detector)))
            records.append(_record(layout, group.entry, line, runs))
    headers = [column.title for column in columns]
    headers.insert(writer.kind_place, KIND)
    notes = writer.lines(bool(references), rows)
    return Table(headers, rows, notes, layout.name, layout.title, records, keys=writer.kind_place + 1)


def _columns(layout: Layout, metrics: dict[str, Metric], groups: list[_Group]) -> list[Column]:
    """Return the columns of the layout, with those of metrics.toml before the last one; a source without
    layouts gets a column for every published metric."""
    shown = {number.metric for column in layout.columns for number in column.numbers}
    lines = [line for group in groups for line in (*group.published, *group.measured)]
    published = {name for line in lines if isinstance(line, PublishedLine) for name in line.values}
    every = published if layout.overview and layout.source != WIDE else set()
    wanted = [
        metric
        for name, metric in metrics.items()
        if name not in shown
        and (
            (layout.overview and metric.overview)
            or name in every
            or (metric.tables and any(line.point(metric) for line in lines))
        )
    ]
    added = [
        Column(title=f"{metric.title} ({metric.unit})", numbers=[Number(metric=metric.name)])
        for metric in wanted
    ]
    return [*layout.columns[:-1], *added, *layout.columns[-1:]]


class _Writer:
    """Builds the cells of one table and collects their notes."""

    def __init__(
        self, layout: Layout, columns: list[Column], metrics: dict[str, Metric], runs: list[Run]
    ) -> None:
        self.layout, self.columns, self.metrics = layout, columns, metrics
        self.runs, self.notes = runs, Notes()
        # the column "published or measured" is before the first column with numbers
        self.kind_place = next(
            (place for place, column in enumerate(columns) if column.numbers), len(columns)
        )

    def lines(self, has_reference: bool, rows: list[list[Cell]]) -> list[str]:
        """Return the notes: of the layout, on ratios and dashes, and the numbered ones."""
        ratios = has_reference and any(column.ratio for column in self.columns)
        published = [row for row in rows if str(row[self.kind_place]).startswith("published")]
        return [
            *([self.layout.note] if self.layout.note else []),
            *(
                [
                    f"(1.00x): ratio to the reference of its detector: {', '.join(self.layout.reference)}.",
                    "Ratios are between published values, or between values measured in one setting.",
                ]
                if ratios
                else []
            ),
            *(
                [f"A dash in a published line: {NOT_REPORTED}."]
                if any("-" in row for row in published)
                else []
            ),
            *self.notes.lines(),
        ]

    def cells(self, group: _Group, line: Line, reference: _Group | None) -> list[Cell]:
        """Return the cells of one line."""
        kind: Cell = self.kind(line, group)
        cells: list[Cell] = []
        for column in self.columns:
            if column.text:
                cells.append(self.text(group.entry, column, line))
            elif column.weights:
                cells.append(self.weights(group.entry, line))
            elif line is None or (column.setting and isinstance(line, MeasuredLine)):
                cells.append("-")
            elif isinstance(line, PublishedLine):
                cells.append(self.published(column, line, group.entry, reference))
            else:
                cells.append(self.measured(column, line, group.entry, reference))
        cells.insert(self.kind_place, kind)
        return cells

    def text(self, entry: ModelEntry, column: Column, line: Line) -> str:
        """Return a text cell; a measured line shows its own hardware, and a schedule only with published
        weights."""
        if column.own and line is None:
            return "-"
        if column.own and isinstance(line, MeasuredLine):
            if column.own == "hardware":
                return line.runs[0].hardware or "-"
            if line.weights_kind != "published":
                return "-"
        return _text(entry, column.text or "")

    def kind(self, line: Line, group: _Group) -> str:
        """Return "published" or "measured", with conditions and notes."""
        if line is None:
            state, reason = why_not_measured(group.entry, self.runs)
            return " ".join(filter(None, (state, self.notes.mark(reason))))
        if isinstance(line, MeasuredLine):
            words = ", ".join(["measured", *qualifiers(line.runs[0])])
            return (
                f"{words} {self.notes.mark(*provenance(line), *seed_notes(group.entry, line, self.metrics))}"
            )
        texts = [
            text
            for record in line.records
            for text in (
                "; ".join(part for part in (record.source, record.title, record.split) if part),
                *(record.hardware, record.protocol, record.note),
            )
        ]
        several = line.hardware and any(
            other is not line and other.variant == line.variant for other in group.published
        )
        parts = [
            "published",
            *([line.variant] if line.variant else []),
            *([line.hardware.split(",")[0]] if several and line.hardware else []),
        ]
        return f"{', '.join(parts)} {self.notes.mark(*(text for text in texts if text))}"

    def weights(self, entry: ModelEntry, line: Line) -> Cell:
        """Return the link to the published weights, or the weights that were measured."""
        if line is None:
            return "-"
        if isinstance(line, MeasuredLine):
            weights = line.runs[0].weights
            return weights.short if weights else "-"
        parts: list[str | Link] = []
        for place, spec in enumerate(entry.trained_weights):
            if place == 0 or spec.wrong:  # wrong links are shown too
                address = spec.urls[0] if spec.urls else spec.manual or ""
                parts += [" "] if parts else []
                parts.append(Link("model" if spec.urls else "page", address))
                parts.append(self.notes.mark(f"this link is wrong: {spec.wrong}" if spec.wrong else ""))
        return parts or "-"

    def digits(self, number: Number) -> int:
        """Decimal places: of the column, otherwise of the metric."""
        return self.metrics[number.metric].digits if number.digits is None else number.digits

    def metric(self, entry: ModelEntry, number: Number) -> Metric:
        """Return the metric of a number, for this row."""
        return self.metrics[own_metric(entry, number.metric)]

    def as_printed(self, number: Number, value: float, line: PublishedLine) -> str:
        """Format a published value with the digits of the source; a whole number with at most one decimal
        place, a converted one with those of the column."""
        if float(value).is_integer():
            return f"{value:.{min(self.digits(number), 1)}f}"
        return repr(value) if value in line.values.values() else f"{value:.{self.digits(number)}f}"

    def persons(self, entry: ModelEntry, column: Column) -> str:
        """Return the note mark of numbers for the person class only."""
        alone = any(own_metric(entry, number.metric) != number.metric for number in column.numbers)
        return self.notes.mark(PERSONS) if alone else ""

    def published(
        self, column: Column, line: PublishedLine, entry: ModelEntry, reference: _Group | None
    ) -> str:
        """Return published numbers, with the ratio of the first to the reference row under the same
        conditions."""
        points = [line.point(self.metric(entry, number)) for number in column.numbers]
        if all(point is None for point in points):
            return "-"
        cell = column.separator.join(
            "-" if point is None else self.as_printed(number, point.value, line)
            for number, point in zip(column.numbers, points, strict=True)
            if point is not None or not number.optional
        )
        first = points[0]
        if column.ratio and reference and first is not None:
            same = (line.variant, line.hardware)
            bases = [
                base.value
                for other in reference.published
                if (other.variant, other.hardware) == same
                and (base := other.point(self.metric(reference.entry, column.numbers[0])))
            ]
            if bases and bases[0]:
                cell += f" ({first.value / bases[0]:.2f}x)"
        return cell + self.persons(entry, column)

    def measured(
        self, column: Column, line: MeasuredLine, entry: ModelEntry, reference: _Group | None
    ) -> str:
        """Return measured numbers, a single one with 95 % interval and ratio; missing ones have a note with
        the reason."""
        parts, notes = [], []
        for number in column.numbers:
            metric = self.metric(entry, number)
            found = line.measurement(metric, number.measured)
            if found is None and number.optional:
                continue
            parts.append("-" if found is None else f"{found[1].value:.{self.digits(number)}f}")
            notes.append(line.why_absent(metric, number.measured) if found is None else _how(found[0]))
        cell = "-" if all(part == "-" for part in parts) else column.separator.join(parts)
        own = line.measurement(self.metric(entry, column.numbers[0]), column.numbers[0].measured)
        inside = []
        if own is not None:
            inside = [self.interval(column, own[1]), self.ratio(column, line, own[1], reference)]
        marks = self.notes.mark(*dict.fromkeys(notes)) + (self.persons(entry, column) if cell != "-" else "")
        brackets = f" ({'; '.join(filter(None, inside))})" if any(inside) else ""
        return cell + brackets + (f" {marks}" if marks and cell != "-" else marks)

    def interval(self, column: Column, point: Point) -> str:
        """Return the 95 % interval, for a cell with one number."""
        if len(column.numbers) != 1 or point.interval is None:
            return ""
        return "-".join(f"{edge:.{self.digits(column.numbers[0])}f}" for edge in point.interval)

    def ratio(self, column: Column, line: MeasuredLine, own: Point, reference: _Group | None) -> str:
        """Return the ratio of the first number to the reference row in the same setting, preferably with the
        same kind of weights."""
        if not column.ratio or reference is None:
            return ""
        number = column.numbers[0]
        metric = self.metric(reference.entry, number)
        bases = [
            (other, base)
            for other in reference.measured
            if other.setting == line.setting and (base := other.measurement(metric, number.measured))
        ]
        if not bases:
            return ""
        _, base = min(bases, key=lambda pair: pair[0].weights_kind != line.weights_kind)
        return f"{own.value / base[1].value:.2f}x" if base[1].value else ""


def _how(found: Measurement) -> str:
    """Return what was timed or how memory was measured, and remarks."""
    parts = [found.covers, "extrapolated" if found.extrapolated else "", found.remarks]
    return "; ".join(filter(None, parts))


def _text(entry: ModelEntry, key: str) -> str:
    """Return an entry of the row's `table`, or a field of the row."""
    if key in entry.table:
        return entry.table[key]
    rules = entry.conventions
    method = rules.pooling.method if rules and rules.pooling else ""
    named = {
        "data": " / ".join(_split(part) for part in (entry.train_split, entry.test_split) if part) or "-",
        "scale": str(rules.image.size) if rules and rules.image.size else "-",
        "roi": next((title for name, title in POOLING.items() if method.startswith(name)), "-"),
        "row": entry.name,
        "title": entry.title,
        "dataset": entry.dataset,
        "schedule": entry.schedule or "-",
        "licence": entry.licence or "-",
        **{
            part: component.name if (component := getattr(entry, part)) else "-"
            for part in ("backbone", "neck", "detector")
        },
    }
    return named.get(key.lower(), "-")


def _split(name: str) -> str:
    """Format a split as in papers: voc_2007+2012_trainval becomes VOC07+12 trainval."""
    years, _, part = name.removeprefix("voc_").partition("_")
    if not name.startswith("voc_"):
        return name
    return f"VOC{'+'.join(year[-2:] for year in years.split('+'))} {part}"


def provenance(line: MeasuredLine) -> list[str]:
    """Return notes on measured numbers: machine and software, weights, data, records."""
    run = line.runs[0]
    env, weights, data = run.environment, run.weights, run.data
    precision = f"{run.spec.precision_text}, batch {run.spec.batch_size}{run.spec.path_note}"
    notes = [f"machine not recorded; {precision}"]
    if env:
        on_gpu = f"driver {env.gpu_driver}, CUDA {env.cuda}"
        torch = f"torch {env.packages.get('torch', 'unknown')}"
        where = counted(env.threads, "thread") if run.spec.device == "cpu" else on_gpu
        parts = [env.device_name, where, torch, precision, env.commit_text]
        notes = ["; ".join(filter(None, parts))]
    if weights:
        untrained = (
            "; untrained: accuracy is meaningless, detection count arbitrary" if weights.made_up else ""
        )
        notes.append(f"weights {weights.kind} ({weights.digest[:12]}){untrained}")
    if data:
        images = f"{data.images} images"
        if data.is_subset:
            images = (
                f"the first {data.images} of {data.images_of_split} images; not comparable with published"
                " accuracy"
            )
        notes.append(f"{data.name}{' (generated images)' if data.made_up else ''}, {images}")
    return [*notes, f"records {', '.join(run.id for run in line.runs)}"]


def _record(layout: Layout, entry: ModelEntry, line: Line, runs: list[Run]) -> dict[str, Any]:
    """Return a line as a record: values by metric, in the unit of the metric."""
    record: dict[str, Any] = {"table": layout.name, "row": entry.name, "title": entry.title}
    if line is None:
        return record | {
            "kind": "measured",
            "values": {},
            "reason": ": ".join(filter(None, why_not_measured(entry, runs))),
        }
    if isinstance(line, PublishedLine):
        return record | {
            "kind": "published",
            "variant": line.variant,
            "hardware": line.hardware,
            "values": line.values,
            "sources": [record.source for record in line.records],
        }
    values = {
        name: m.model_dump(mode="json", exclude={"samples"}, exclude_defaults=True)
        for name, m in line.values.items()
    }
    return record | {
        "kind": "measured",
        "values": values,
        "absent": line.absent,
        "records": [run.id for run in line.runs],
        "qualifiers": qualifiers(line.runs[0]),
        "provenance": "; ".join(provenance(line)),
    }
