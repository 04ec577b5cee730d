"""Stored comparisons as tables: one line per model, one column per metric with verdict, ratio to the
reference and interval. Does not import torch."""

from __future__ import annotations

from typing import Any

from detection_zoo.benchmarks.compare.record import Comparison, Pair, Side
from detection_zoo.benchmarks.compare.text import notes, ratio_cells
from detection_zoo.benchmarks.folders import COMPARISONS
from detection_zoo.benchmarks.spec import counted, metric
from detection_zoo.benchmarks.tabular import Notes, Table


def comparison_table(one: Comparison) -> Table:
    """The table of a comparison: cells with ratios, records of every metric."""
    data, marks = comparison_data(one), Notes()
    rows = [
        [row["model"], row["weights"], *(_cell(cell, marks) for cell in row["cells"])] for row in data["rows"]
    ]
    lead = [
        "The first line is the reference.",
        "Other lines: verdict, ratio to the reference (AP and top-1: difference), its interval, value.",
        f"Times by the other clock, and full precision, are in {COMPARISONS}.csv.",
    ]
    return Table(
        ["Model", "Weights", *data["heads"]],
        rows,
        [*lead, data["circumstances"], *data["notes"], *marks.lines()],
        COMPARISONS,
        data["title"],
        [_record(one, pair) for pair in one.pairs],
        flat=True,
    )


def _cell(cell: dict[str, str], marks: Notes) -> str:
    """A cell of the page's data as text: the value of the reference; verdict, ratio and value of another
    model; or a dash with the reason."""
    if "why" in cell:
        return "-" + marks.mark(cell["why"])
    if "verdict" not in cell:
        return cell["own"]
    ratio = marks.mark(cell["note"]) if cell["value"] == "-" else f" {cell['value']} ({cell['interval']})"
    return f"{cell['verdict']}{ratio}, {cell['own']}"


def comparison_data(one: Comparison) -> dict[str, Any]:
    """The data of a comparison for the page, as plain values."""
    reference, *others = one.sides
    columns = _columns(one)
    pairs = {(pair.other, pair.metric): pair for pair in one.pairs}
    cells = {reference.label: [{"own": metric(n).format(pair.values[0])} for n, pair in columns.items()]}
    for side in others:
        cells[side.label] = [_shown(pairs.get((side.label, name)), side) for name in columns]
    return {
        "title": f"{reference.label} and {', '.join(side.label for side in others)}",
        "circumstances": circumstances(one),
        "heads": [f"{metric(name).title} ({pair.unit})" for name, pair in columns.items()],
        "rows": [
            {
                "model": side.label,
                "weights": side.weights.short if side.weights else "-",
                "cells": cells[side.label],
            }
            for side in one.sides
        ],
        "notes": notes(one),
    }


def _shown(pair: Pair | None, side: Side) -> dict[str, str]:
    if pair is None:
        failed = side.status == "failed"
        return {"why": "the model failed" if failed else "not measured for both models"}
    value, interval = ratio_cells(pair)
    return {
        "own": metric(pair.metric).format(pair.values[1]),
        "verdict": pair.verdict,
        "tone": _tone(pair),
        "value": value,
        "interval": interval,
        "note": pair.note,
    }


def _tone(pair: Pair) -> str:
    """Whether the verdict favours the model: good, bad, same, or open (undecided)."""
    if pair.verdict in ("SAME", "UNDECIDED"):
        return "same" if pair.verdict == "SAME" else "open"
    more = pair.verdict in ("SLOWER", "HIGHER")
    return "good" if more == (metric(pair.metric).better == "higher") else "bad"


def _columns(one: Comparison) -> dict[str, Pair]:
    """Metric -> first pair, in column order: the deciding metric, accuracy, times by the deciding clock,
    memory."""
    cpu = one.clock == "processor"
    shown = [pair for pair in one.pairs if pair.unit != "ms" or pair.metric.endswith("_cpu_ms") == cpu]
    return {
        pair.metric: pair for pair in sorted(shown, key=lambda pair: (not pair.decides, pair.unit != "%"))
    }


def circumstances(one: Comparison) -> str:
    """Return one note: machine, clock, date, software and images of a comparison."""
    side = next((side for side in one.sides if side.environment and side.data), one.sides[0])
    env, data = side.environment, side.data
    parts = [
        env.device_name if env else "machine not recorded",
        f"{one.clock} time decides",
        f"begun {one.started}",
    ]
    if one.threads is not None:
        parts.insert(1, f"{counted(one.threads, 'thread')} per operator")
    if env:
        parts.append(f"torch {env.packages.get('torch', 'unknown')}, Python {env.python}")
        parts.append(env.commit_text or "commit unknown")
    parts.append(f"{one.spec.precision_text}, batch {one.spec.batch_size}{one.spec.path_note}")
    if data:
        subset = f", the first {data.images} of {data.images_of_split} images" if data.is_subset else ""
        timed = min(one.spec.timed_images, data.images)
        parts.append(
            f"{data.name}{' (synthetic)' if data.made_up else ''}{subset}, {timed} of {data.images} images"
            " timed"
        )
    return "; ".join([*parts, f"record {one.id}"])


def _record(one: Comparison, pair: Pair) -> dict[str, Any]:
    """A pair as one flat record, for CSV and JSON."""
    rows = {side.label: side.row for side in one.sides}
    low, high = pair.interval or (None, None)
    env = next((side.environment for side in one.sides if side.environment), None)
    return {
        "comparison": one.id,
        "started": one.started,
        "device": env.device_name if env else None,
        "threads": one.threads,
        "clock": one.clock,
        "reference": pair.reference,
        "reference_row": rows[pair.reference],
        "model": pair.other,
        "row": rows[pair.other],
        "metric": pair.metric,
        "unit": pair.unit,
        "reference_value": pair.values[0],
        "value": pair.values[1],
        "kind": pair.kind,
        "of_reference": pair.value,
        "low": low,
        "high": high,
        "confidence": pair.confidence,
        "rests_on": pair.blocks,
        "smallest_difference": pair.smallest,
        "verdict": pair.verdict,
        "decides": pair.decides,
        "covers": pair.covers,
        "note": pair.note,
    }
