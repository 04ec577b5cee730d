"""A comparison as text: a line per metric with its verdict, and notes below. Does not import
torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detection_zoo.benchmarks.compare.record import Comparison, Pair
from detection_zoo.benchmarks.compare.stored import StoredPair
from detection_zoo.benchmarks.spec import metric
from detection_zoo.benchmarks.tabular import Notes, note_lines, text_table

HEADERS = ["model", "metric", "reference", "model's", "ratio or difference", "interval", "verdict"]


def comparison_text(found: Comparison, width: int | None = None) -> str:
    """Return the comparison as text for a terminal.

    Args:
        found: the record.
        width: characters per line; None: no limit.
    """
    marks = Notes()
    rows = [pair_cells(pair, marks) for pair in found.pairs]
    table = text_table(HEADERS, rows, width) if rows else "no metric could be compared"
    below = note_lines([*notes(found), *marks.lines()], width)
    weights = [f"weights of {side.label}: {side.weights}" for side in found.sides if side.weights]
    head = [f"reference: {found.sides[0].label}", *note_lines(weights, width)]
    return "\n".join([*head, table, "", *below])


def pair_cells(pair: Pair, marks: Notes) -> list[str]:
    """Return the cells of one metric of one model; a note says what it covers."""
    known = metric(pair.metric)
    unit = f" {pair.unit}"
    return [
        pair.other,
        known.title,
        known.format(pair.values[0]) + unit,
        known.format(pair.values[1]) + unit,
        *ratio_cells(pair),
        f"{pair.verdict} {marks.mark(pair.covers, pair.note)}".rstrip(),
    ]


def ratio_cells(pair: Pair) -> tuple[str, str]:
    """The ratio or difference, and its interval; a dash if unknown."""
    digits, unit = (".3f", " x") if pair.kind == "ratio" else ("+.2f", " points")
    value = "-" if pair.value is None else f"{pair.value:{digits}}{unit}"
    return value, "-" if pair.interval is None else " to ".join(f"{edge:{digits}}" for edge in pair.interval)


def notes(found: Comparison) -> list[str]:
    """Return notes, a sentence each: the method, circumstances, failures and caveats."""
    lines = [found.protocol, found.ended, *_zones(found.pairs)]
    if found.telemetry is not None:
        note = found.telemetry.note or found.telemetry.absent
        lines.append(f"the machine was {found.telemetry.verdict}" + (f": {note}" if note else ""))
    return [
        *lines,
        *(f"{side.label} {side.status}: {side.reason}" for side in found.sides if side.status == "failed"),
        *found.footnotes,
    ]


def _zones(pairs: Iterable[Pair]) -> list[str]:
    """Return what the verdicts mean, with the smallest differences of interest."""
    fractions = {pair.smallest for pair in pairs if pair.kind == "ratio"}
    points = {pair.smallest for pair in pairs if pair.kind == "difference"}
    lines = [f"smallest difference of interest {value:.1%} of the reference" for value in sorted(fractions)]
    lines += [f"AP and top-1: smallest difference of interest {value:g} points" for value in sorted(points)]
    if fractions or points:
        lines += [
            "SAME: the whole interval is within it.",
            "FASTER, SLOWER (memory: LOWER, HIGHER): the whole interval is beyond it.",
            "UNDECIDED: neither.",
        ]
    return lines


def stored_text(pairs: list[StoredPair], width: int | None = None) -> str:
    """Return stored runs side by side, with their differences as notes; `width` as above."""
    marks = Notes()
    rows = []
    for pair in pairs:
        known = metric(pair.metric)
        edges = "-" if pair.low is None else f"{pair.low:.3f} to {pair.high:.3f}"
        rows.append(
            [
                pair.other[0].row,
                known.title,
                *(f"{known.format(v)} {known.unit}" for v in pair.values),
                f"{pair.ratio:.3f} x",
                edges,
                f"{len(pair.reference)}, {len(pair.other)} {marks.mark(*pair.footnotes)}".rstrip(),
            ]
        )
    headers = ["model", "metric", "reference", "model's", "ratio", "95 % interval", "runs"]
    table = text_table(headers, rows, width) if rows else "the records share no metric"
    return "\n".join(
        [
            f"reference: {pairs[0].reference[0].row}" if pairs else "",
            table,
            "",
            *note_lines(marks.lines(), width),
        ]
    ).strip()


def relative_text(found: list[dict[str, Any]], reference_row: str, width: int | None = None) -> str:
    """Return times as multiples of the reference row's on the same hardware; `width` as above."""
    rows = [
        [
            one["row"],
            one["hardware"],
            one["precision"],
            str(one["batch"]),
            f"{one['value']:.2f} ms",
            f"{one['relative']:.2f}",
        ]
        for one in found
    ]
    headers = ["row", "hardware", "precision", "batch", "model time", f"times {reference_row}"]
    return text_table(headers, rows, width)
