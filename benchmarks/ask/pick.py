"""`bench.py pick`: the rows within a budget, best first, and why the others are not. Measured and published
numbers are kept apart. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detection_zoo.benchmarks.ask.select import licence_of, permitted, weights_of
from detection_zoo.benchmarks.report.wide import Overview, WideLine, overview
from detection_zoo.benchmarks.spec import Metric, metric
from detection_zoo.benchmarks.store import stored_runs
from detection_zoo.benchmarks.tabular import Notes, note_lines, text_table
from detection_zoo.benchmarks.terminal import wrap
from detection_zoo.zoo.manifest_files import load_manifests

LEFT_OUT = "Rows that cannot be built, or have no available weights, are not listed; --all includes them."
ORDER = {"measured": 0, "published": 1}


@dataclass(frozen=True)
class Wish:
    """The requested bounds; None: no bound.

    max_ms: model time per image. max_gb: training memory in GiB. min_score: the minimum (or, if lower
    is better, the maximum) of `metric`. licence: "permissive", or an SPDX name. hardware: part of the name
    of the CPU or GPU. every_row: include rows that cannot be built or have no available weights.
    """

    max_ms: float | None = None
    max_gb: float | None = None
    min_score: float | None = None
    metric: str = "box_ap"
    max_parameters_m: float | None = None
    licence: str | None = None
    hardware: str | None = None
    every_row: bool = False

    def bounds(self) -> list[tuple[Metric, float]]:
        """Metrics and their bounds, upper or lower depending on the metric."""
        asked = (
            ("time_ms", self.max_ms),
            ("memory_gib", self.max_gb),
            (self.metric, self.min_score),
            ("parameters_m", self.max_parameters_m),
        )
        return [(metric(name), bound) for name, bound in asked if bound is not None]


@dataclass(frozen=True)
class Candidate:
    """One line of one row and why it does not qualify; without reasons it qualifies."""

    row: str
    kind: str
    setting: str
    licence: str
    values: dict[str, float]
    flags: tuple[str, ...]
    reasons: tuple[str, ...]


def pick(wish: Wish, store: Path | None = None) -> tuple[list[Candidate], list[Candidate]]:
    """Return the lines that qualify, measured ones first and the best of each kind first; and the other rows,
    each with the reasons of its closest line.

    Args:
        wish: the bounds.
        store: folder of records; default: results/runs of the working directory.
    """
    stored = stored_runs(store)
    return choose(overview(load_manifests(), stored.runs, stored.problems), wish)


def choose(view: Overview, wish: Wish) -> tuple[list[Candidate], list[Candidate]]:
    """As `pick`, from manifests and records already read."""
    lines = view.lines if wish.every_row else obtainable(view)
    every = [_candidate(line, wish) for line in lines]
    best = metric(wish.metric)
    fits = sorted(
        (one for one in every if not one.reasons),
        key=lambda one: (ORDER[one.kind], -one.values.get(best.name, float("-inf")), one.row),
    )
    chosen = {one.row for one in fits}
    others: dict[str, Candidate] = {}
    for one in every:
        if one.row not in chosen and (one.row not in others or _nearness(one) < _nearness(others[one.row])):
            others[one.row] = one
    return fits, sorted(others.values(), key=_nearness)


def obtainable(view: Overview) -> list[WideLine]:
    """Return the lines of usable rows: they can be built, and their weights are here, can be downloaded,
    or were measured."""
    had = weights_of(view.manifests.entries.values())
    measured = {line.entry.name for line in view.lines if line.kind == "measured" and line.trusted}
    return [
        line
        for line in view.lines
        if not line.entry.published_only and (had[line.entry.name].usable or line.entry.name in measured)
    ]


def _nearness(one: Candidate) -> tuple[int, int, str]:
    return len(one.reasons), ORDER.get(one.kind, 2), one.row


def _candidate(line: WideLine, wish: Wish) -> Candidate:
    shown = {
        name: found.value
        for name in ("time_ms", "memory_gib", wish.metric, "parameters_m")
        if (found := line.point(metric(name))) is not None
    }
    licence, reasons = licence_of(line.entry), []
    if line.kind == "not measured":
        reasons.append(line.reason)
    else:
        reasons += [
            reason for quantity, bound in wish.bounds() if (reason := _short_of(line, quantity, bound))
        ]
    if wish.licence is not None and not permitted(line.entry, wish.licence):
        reasons.append(f"licence: {licence}")
    if (
        wish.hardware is not None
        and line.kind != "not measured"
        and wish.hardware.lower() not in line.setting_title.lower()
    ):
        reasons.append(f"on other hardware: {line.setting_title or 'not stated'}")
    if wish.min_score is not None and not line.trusted:
        reasons.append("its accuracy is meaningless: weights or images are synthetic")
    return Candidate(
        line.entry.name, line.kind, line.setting_title, licence, shown, line.flags, tuple(reasons)
    )


def _short_of(line: WideLine, quantity: Metric, bound: float) -> str | None:
    """Return why a bound is not satisfied; a missing number satisfies none."""
    found = line.point(quantity)
    if found is None:
        return f"no {line.kind} {quantity.title}"
    if (found.value > bound) if quantity.better == "lower" else (found.value < bound):
        return f"{quantity.title} {found.value:.{quantity.digits}f} {quantity.unit}"
    return None


def text_of(
    fits: list[Candidate], others: list[Candidate], wish: Wish, shown: int, width: int | None = None
) -> str:
    """Return the answer as text, in lines of at most `width` characters; of the other rows, the closest
    `shown`."""
    columns = [metric(name) for name in dict.fromkeys((wish.metric, "time_ms", "memory_gib", "parameters_m"))]
    head = ["row", *(f"{q.title} ({q.unit})" for q in columns), "licence"]
    blocks, marks = [], Notes()
    for kind, title in (
        ("measured", "Measured here"),
        ("published", "Published by their sources, on other hardware, timed differently"),
    ):
        rows = [
            [
                f"{one.row} {marks.mark('; '.join(filter(None, (one.setting, *one.flags))))}",
                *(f"{one.values[q.name]:.{q.digits}f}" if q.name in one.values else "-" for q in columns),
                one.licence,
            ]
            for one in fits
            if one.kind == kind
        ]
        blocks += wrap(f"{title}: {len(rows)} qualify", width or 10**6)
        blocks += [text_table(head, rows, width), ""] if rows else [""]
    blocks += [*note_lines(marks.lines(), width), *([""] if marks.numbers else [])]
    lines = [[one.row, one.kind, "; ".join(one.reasons)] for one in others[:shown]]
    rest = f"Why others do not ({len(others)} rows, the closest {len(lines)})\n"
    if not wish.every_row:
        rest = "\n".join([*wrap(LEFT_OUT, width or 10**6), "", rest])
    return "\n".join([*blocks, rest + text_table(["row", "published numbers", "why not"], lines, width)])
