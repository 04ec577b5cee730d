"""Tables: published and measured lines of each row under its source's own columns; pure functions of records
and manifests. No torch."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any

from detection_zoo.benchmarks.report.layouts import Column, Layout, Number
from detection_zoo.benchmarks.report.lines import (
    MeasuredLine,
    PublishedLine,
    measured_lines,
    published_lines,
    qualifiers,
    why_not_measured,
)
from detection_zoo.benchmarks.spec import Measurement, Run
from detection_zoo.zoo.manifest import Manifests, MetricSpec, ModelEntry

Line = PublishedLine | MeasuredLine | None  # none: nothing was measured
KIND = "Numbers"  # title of the column that says published or measured


class Footnotes:
    """Texts by number, each text once."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def mark(self, *texts: str) -> str:
        """The marks of these texts, as they stand behind a cell; empty texts have none."""
        return "".join(f"[{self.texts.setdefault(text, len(self.texts) + 1)}]" for text in texts if text)


@dataclass
class Table:
    """A finished table: cells as text, footnotes, and the same as records for JSON."""

    name: str
    title: str
    headers: list[str]
    rows: list[list[str]]
    footnotes: list[str]
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Group:
    """One manifest row with its lines."""

    entry: ModelEntry
    published: list[PublishedLine]
    measured: list[MeasuredLine]

    @property
    def detector(self) -> str:
        """What ratios are taken within."""
        return self.entry.detector.name if self.entry.detector else ""


def build_table(layout: Layout, manifests: Manifests, runs: list[Run]) -> Table:
    """Lay out a table.

    Args:
        layout: rows and columns.
        manifests: rows with their published numbers.
        runs: records of a store.
    """
    groups = [
        _Group(entry, published_lines(entry), measured_lines(entry, runs))
        for entry in layout.select(manifests.entries)
    ]
    references = {group.detector: group for group in groups if group.entry.name in layout.reference}
    writer = _Writer(layout, manifests.metrics, runs)
    rows, records = [], []
    for group in groups:
        for line in [*group.published, *(group.measured or [None])]:
            rows.append(writer.cells(group, line, references.get(group.detector)))
            records.append(_record(layout, group.entry, line, runs))
    headers = [column.title for column in layout.columns]
    headers.insert(writer.kind_place, KIND)
    return Table(layout.name, layout.title, headers, rows, writer.footnotes(bool(references)), records)


class _Writer:
    """Cells of one table, with the footnotes that they ask for."""

    def __init__(self, layout: Layout, metrics: dict[str, MetricSpec], runs: list[Run]) -> None:
        self.layout, self.metrics, self.runs, self.notes = layout, metrics, runs, Footnotes()
        # published or measured is said before the first column with numbers
        self.kind_place = next(
            (place for place, column in enumerate(layout.columns) if column.numbers), len(layout.columns)
        )

    def footnotes(self, has_reference: bool) -> list[str]:
        """The layout's own note, what ratios are, and the numbered ones."""
        ratio = (
            f"(1.00x): relative to the row with the same detector among {', '.join(self.layout.reference)};"
            " published to published, and measured to measured with the same hardware, precision, batch and"
            " data. Ratios carry over between GPUs better than times do."
        )
        asked = has_reference and any(column.ratio for column in self.layout.columns)
        return [
            *([self.layout.note] if self.layout.note else []),
            *([ratio] if asked else []),
            *(f"[{n}] {text}" for text, n in self.notes.texts.items()),
        ]

    def cells(self, group: _Group, line: Line, reference: _Group | None) -> list[str]:
        """One line of the table."""
        entry = group.entry
        why = why_not_measured(entry, self.runs) if line is None else ""
        kind, cells = self.kind(line, group), []
        for column in self.layout.columns:
            if column.text:
                cells.append(_text(entry, column.text))
            elif column.weights:
                cells.append(self.weights(entry, line))
            elif isinstance(line, PublishedLine):
                cells.append(self.published(column, line, reference))
            elif column.setting:
                cells.append("-" + self.notes.mark("a setting of the source, not a measurement"))
            elif isinstance(line, MeasuredLine):
                cells.append(self.measured(column, line, reference))
            else:
                cells.append("-" + self.notes.mark(why))
        cells.insert(self.kind_place, kind)
        return cells

    def kind(self, line: Line, group: _Group) -> str:
        """Published or measured, and under what circumstances."""
        if line is None:
            return "measured"
        if isinstance(line, MeasuredLine):
            return (
                ", ".join(["measured", *qualifiers(line.runs[0])]) + " " + self.notes.mark(provenance(line))
            )
        texts = [
            "; ".join(part for part in (r.source, r.title, r.split, r.hardware, r.protocol, r.note) if part)
            for r in line.records
        ]
        several = line.hardware and any(
            other is not line and other.variant == line.variant for other in group.published
        )
        parts = [
            "published",
            *([line.variant] if line.variant else []),
            *([line.hardware.split(",")[0]] if several else []),
        ]
        return ", ".join(parts) + " " + self.notes.mark(*(f"published: {text}" for text in texts))

    def weights(self, entry: ModelEntry, line: Line) -> str:
        """The link to the published weights, or which weights were measured."""
        if line is None:
            return "-"
        if isinstance(line, MeasuredLine):
            weights = line.runs[0].weights
            return (
                "-"
                if weights is None
                else weights.kind
                if weights.made_up
                else f"{weights.kind} {weights.digest[:12]}"
            )
        specs = [
            spec for place, spec in enumerate(entry.trained_weights) if place == 0 or spec.wrong
        ]  # a wrong link is shown beside the right one
        if not specs:
            return "-" + self.notes.mark("the source links no weights")
        return " ".join(
            f"[{'model' if spec.urls else 'page'}]({spec.urls[0] if spec.urls else spec.manual})"
            + self.notes.mark(f"this link is wrong: {spec.wrong}" if spec.wrong else "")
            for spec in specs
        )

    def digits(self, number: Number) -> int:
        """Those of the column, or of the metric."""
        return self.metrics[number.metric].digits if number.digits is None else number.digits

    def format(self, number: Number, value: float) -> str:
        """A value in the digits of its column."""
        return f"{value:.{self.digits(number)}f}"

    def as_printed(self, number: Number, value: float) -> str:
        """A published value in its own digits, which are the source's; a whole number with one at most."""
        return f"{value:.{min(self.digits(number), 1)}f}" if float(value).is_integer() else repr(value)

    def published(self, column: Column, line: PublishedLine, reference: _Group | None) -> str:
        """Numbers of a source, and the first one's ratio to the reference row's under the same
        circumstances."""
        values = [line.values.get(number.metric) for number in column.numbers]
        if all(value is None for value in values):
            return "-" + self.notes.mark("the source prints no number here")
        cell = column.separator.join(
            "-" if value is None else self.as_printed(number, value)
            for number, value in zip(column.numbers, values, strict=True)
            if value is not None or not number.optional
        )
        name, same = column.numbers[0].metric, (line.variant, line.hardware)
        bases = (
            [
                r.values[name]
                for r in reference.published
                if name in r.values and (r.variant, r.hardware) == same
            ]
            if column.ratio and reference
            else []
        )
        return cell + (
            f" ({values[0] / bases[0]:.2f}x)" if bases and bases[0] and values[0] is not None else ""
        )

    def measured(self, column: Column, line: MeasuredLine, reference: _Group | None) -> str:
        """Measured numbers; a single one with its 95 % interval and ratio. What is missing says why."""
        parts, notes = [], []
        for number in column.numbers:
            found = _measured(number, line)
            if found is None and number.optional:
                continue
            parts.append("-" if found is None else self.format(number, number.convert(found.value)))
            notes.append(_why_absent(number, line) if found is None else _how(column, found))
        cell = "-" if all(part == "-" for part in parts) else column.separator.join(parts)
        inside = [text for text in (self.interval(column, line), _ratio(column, line, reference)) if text]
        marks = self.notes.mark(*dict.fromkeys(notes))
        return (
            cell
            + (f" ({'; '.join(inside)})" if inside else "")
            + (f" {marks}" if marks and cell != "-" else marks)
        )

    def interval(self, column: Column, line: MeasuredLine) -> str:
        """The 95 % interval of a cell with one number."""
        number = column.numbers[0]
        if len(column.numbers) != 1 or (found := _measured(number, line)) is None or found.interval is None:
            return ""
        return "-".join(
            self.format(number, edge) for edge in sorted(number.convert(edge) for edge in found.interval)
        )


def _measured(number: Number, line: MeasuredLine) -> Measurement | None:
    return next((line.values[name] for name in number.measured_metrics if name in line.values), None)


def _how(column: Column, found: Measurement) -> str:
    """What is inside the clock, or how memory was read."""
    parts = [
        f"{column.title}: {found.covers}" if found.covers else "",
        "extrapolated" if found.extrapolated else "",
        found.note,
    ]
    return "; ".join(part for part in parts if part)


def _why_absent(number: Number, line: MeasuredLine) -> str:
    reason = next((line.absent[name] for name in number.measured_metrics if name in line.absent), None)
    return (
        reason
        or "not measured: no run with these weights and this data has measured"
        f" {' or '.join(number.measured_metrics)}"
    )


def _ratio(column: Column, line: MeasuredLine, reference: _Group | None) -> str:
    """The first number's ratio to the reference row's in the same setting, with the same kind of weights
    where there are several."""
    number = column.numbers[0]
    if not column.ratio or reference is None or (own := _measured(number, line)) is None:
        return ""
    same = [r for r in reference.measured if r.setting == line.setting and _measured(number, r) is not None]
    base = _measured(number, min(same, key=lambda r: r.weights_kind != line.weights_kind)) if same else None
    return (
        f"{own.value / base.value:.2f}x" if base is not None and base.value and base.unit == own.unit else ""
    )


def _text(entry: ModelEntry, key: str) -> str:
    """A cell of the row's own table, or a field of the row."""
    if key in entry.table:
        return entry.table[key]
    named = {
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


def provenance(line: MeasuredLine) -> str:
    """One sentence that says where measured numbers come from."""
    run = line.runs[0]
    env, weights, data = run.environment, run.weights, run.data
    parts = [f"measured: {env.device_name}" if env else "measured: machine not recorded"]
    if env:
        parts.append(
            f"torch {env.packages.get('torch', 'unknown')}, {env.threads}"
            f" thread{'s' if env.threads != 1 else ''}"
            if run.spec.device == "cpu"
            else f"driver {env.gpu_driver}, torch {env.packages.get('torch', 'unknown')}, CUDA {env.cuda}"
        )
        parts.append(
            f"commit {env.commit[:10]}{' with changes' if env.dirty else ''}"
            if env.commit
            else "no commit known"
        )
    parts.append(f"{run.spec.dtype}{' with TF32' if run.spec.tf32 else ''}, batch {run.spec.batch_size}")
    if weights:
        parts.append(
            f"weights {weights.kind} ({weights.digest[:12]})"
            f"{': accuracy says nothing, nobody trained them' if weights.made_up else ''}"
        )
    if data:
        subset = (
            f"the first {data.images} of {data.images_of_split} images: not comparable with published"
            " accuracy"
        )
        parts.append(
            f"data {data.name}{' (made up)' if data.made_up else ''},"
            f" {subset if data.is_subset else f'{data.images} images'}"
        )
    return "; ".join(parts) + f"; records {', '.join(r.id for r in line.runs)}"


def _record(layout: Layout, entry: ModelEntry, line: Line, runs: list[Run]) -> dict[str, Any]:
    """A line as data: values by metric, in the metric's unit."""
    record: dict[str, Any] = {"table": layout.name, "row": entry.name, "title": entry.title}
    if line is None:
        return record | {"kind": "measured", "values": {}, "reason": why_not_measured(entry, runs)}
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
        "provenance": provenance(line),
    }


def markdown(tables: list[Table]) -> str:
    """Tables as GitHub Markdown, each with its footnotes below it."""
    from tabulate import tabulate

    blocks = []
    for table in tables:
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table.rows]
        lines = [
            f"### {table.title}",
            "",
            tabulate(cells, table.headers, tablefmt="github", disable_numparse=True),
            "",
        ]
        blocks.append("\n".join([*lines, *(f"- {text}" for text in table.footnotes)]) + "\n")
    return "\n".join(blocks)


def as_csv(tables: list[Table]) -> str:
    """Tables as CSV, the table's name in the first column; footnotes are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for table in tables:
        writer.writerow(["table", *table.headers])
        writer.writerows([table.name, *row] for row in table.rows)
    return out.getvalue()


def records_csv(tables: list[Table]) -> str:
    """The records of tables as CSV, every digit kept."""
    records = [record for table in tables for record in table.records]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()
