"""Stored comparisons as tables: a model a line, its ratio to the reference with interval and verdict in each
metric's column. No torch."""

from __future__ import annotations

from typing import Any

from detection_zoo.benchmarks.compare.record import Comparison, Pair, Side
from detection_zoo.benchmarks.compare.text import notes, ratio_cells
from detection_zoo.benchmarks.folders import COMPARISONS
from detection_zoo.benchmarks.spec import metric
from detection_zoo.benchmarks.tabular import Notes, Table


def comparison_tables(comparisons: list[Comparison]) -> list[Table]:
    """A table a comparison, in the order given."""
    return [_table(one) for one in comparisons]


def _table(one: Comparison) -> Table:
    reference, *others = one.sides
    columns = _columns(one)
    first = [
        reference.label,
        _weights(reference),
        *(metric(name).format(pair.values[0]) for name, pair in columns.items()),
    ]
    pairs, marks = {(pair.other, pair.metric): pair for pair in one.pairs}, Notes()
    rows = [
        [side.label, _weights(side), *(_cell(pairs.get((side.label, name)), side, marks) for name in columns)]
        for side in others
    ]
    lead = [
        "The first line is the reference.",
        "Other lines: verdict, ratio to the reference (AP and top-1: difference), its interval, value.",
        f"Times by the other clock, and full precision, are in {COMPARISONS}.csv.",
    ]
    footnotes = [*lead, circumstances(one), *notes(one), *marks.lines()]
    return Table(
        ["Model", "Weights", *_heads(columns)],
        [first, *rows],
        footnotes,
        COMPARISONS,
        _title(one),
        [_record(one, pair) for pair in one.pairs],
        flat=True,
    )


def comparison_data(one: Comparison) -> dict[str, Any]:
    """What the page shows of a comparison, in plain values."""
    reference, *others = one.sides
    columns = _columns(one)
    pairs = {(pair.other, pair.metric): pair for pair in one.pairs}
    own = [{"own": metric(name).format(pair.values[0])} for name, pair in columns.items()]
    first = {"model": reference.label, "weights": _weights(reference), "cells": own}
    rest = [
        {
            "model": side.label,
            "weights": _weights(side),
            "cells": [_shown(pairs.get((side.label, name)), side) for name in columns],
        }
        for side in others
    ]
    return {
        "title": _title(one),
        "circumstances": circumstances(one),
        "heads": _heads(columns),
        "rows": [first, *rest],
        "notes": notes(one),
    }


def _shown(pair: Pair | None, side: Side) -> dict[str, str]:
    if pair is None:
        return {"why": _why_not(side)}
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
    """Whether the verdict is in the model's favour: good, bad, same or open."""
    if pair.verdict in ("SAME", "UNDECIDED"):
        return "same" if pair.verdict == "SAME" else "open"
    more = pair.verdict in ("SLOWER", "HIGHER")
    return "good" if more == (metric(pair.metric).better == "higher") else "bad"


def _title(one: Comparison) -> str:
    reference, *others = one.sides
    return f"{reference.label} and {', '.join(side.label for side in others)}"


def _heads(columns: dict[str, Pair]) -> list[str]:
    return [f"{metric(name).title} ({pair.unit})" for name, pair in columns.items()]


def _why_not(side: Side) -> str:
    return "the model failed" if side.status == "failed" else "not measured for both models"


def _columns(one: Comparison) -> dict[str, Pair]:
    """Metrics in columns: the one that decides first, accuracy, times by its clock only, memory."""
    own_clock = (
        (lambda name: name.endswith("_cpu_ms"))
        if one.clock == "processor"
        else (lambda name: not name.endswith("_cpu_ms"))
    )
    shown = [pair for pair in one.pairs if pair.unit != "ms" or own_clock(pair.metric)]
    return {
        pair.metric: pair for pair in sorted(shown, key=lambda pair: (not pair.decides, pair.unit != "%"))
    }


def _cell(pair: Pair | None, side: Side, marks: Notes) -> str:
    if pair is None:
        return "-" + marks.mark(_why_not(side))
    value, interval = ratio_cells(pair)
    own = metric(pair.metric).format(pair.values[1])
    return (
        f"{pair.verdict} {value} ({interval}), {own}"
        if pair.value is not None
        else f"{pair.verdict}{marks.mark(pair.note)}, {own}"
    )


def _weights(side: Side) -> str:
    weights = side.weights
    return (
        "-"
        if weights is None
        else weights.kind
        if weights.made_up
        else f"{weights.kind} {weights.digest[:12]}"
    )


def circumstances(one: Comparison) -> str:
    """Machine, clock, date, software and images of a comparison, in a sentence."""
    side = next((side for side in one.sides if side.environment and side.data), one.sides[0])
    env, data = side.environment, side.data
    parts = [
        env.device_name if env else "machine not recorded",
        f"{one.clock} time decides",
        f"begun {one.started}",
    ]
    if one.threads is not None:
        parts.insert(1, f"{one.threads} thread{'' if one.threads == 1 else 's'} per operator")
    if env:
        parts.append(f"torch {env.packages.get('torch', 'unknown')}, Python {env.python}")
        parts.append(
            f"commit {env.commit[:10]}{' with changes' if env.dirty else ''}"
            if env.commit
            else "commit unknown"
        )
    parts.append(f"{one.spec.dtype}{' with TF32' if one.spec.tf32 else ''}, batch {one.spec.batch_size}")
    if data:
        subset = f", the first {data.images} of {data.images_of_split} images" if data.is_subset else ""
        timed = min(one.spec.timed_images, data.images)
        parts.append(
            f"{data.name}{' (synthetic)' if data.made_up else ''}{subset}, {timed} of {data.images} images"
            " timed"
        )
    return "; ".join([*parts, f"record {one.id}"])


def _record(one: Comparison, pair: Pair) -> dict[str, Any]:
    """A pair as flat data."""
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
