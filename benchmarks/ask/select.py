"""Filters and order of `bench.py list`, and availability of rows. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detection_zoo.benchmarks.report.lines import published_lines
from detection_zoo.benchmarks.spec import metric
from detection_zoo.benchmarks.tabular import text_table
from detection_zoo.zoo.errors import UnknownName
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import did_you_mean
from detection_zoo.zoo.weights.fetch.availability import Availability, availability
from detection_zoo.zoo.weights.fetch.cache import WeightCache

NUMBERS_ONLY = "numbers only"  # a row that cannot be built here
WEIGHTS = ("available", "here", "fetchable", "needs a person", "partial", "none", NUMBERS_ONLY)
COLUMNS = ("name", "detector", "backbone", "dataset", "licence", "weights")
NARROW = ("name", "published", "weights")
PERMISSIVE = frozenset(
    {
        *("MIT", "ISC", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0"),
        *("Unlicense", "CC0-1.0", "CC-BY-4.0", "0BSD", "Zlib"),
    }
)


def weights_of(entries: Iterable[ModelEntry]) -> dict[str, Availability]:
    """Return the availability of each row's weights, without network access."""
    cache = WeightCache()
    pins = cache.pins()
    return {entry.name: availability(entry, cache, pins) for entry in entries}


def licence_of(entry: ModelEntry) -> str:
    """Return the licences of a row and its weights, without duplicates."""
    weights = (spec.licence for spec in entry.trained_weights if not spec.wrong)
    return " and ".join(name or "not stated" for name in dict.fromkeys([entry.licence, *weights]))


def permitted(entry: ModelEntry, wanted: str) -> bool:
    """Return whether the licences of a row and its weights equal `wanted`, or are permissive if that is
    wanted; unstated licences do not match."""
    licences = {entry.licence, *(spec.licence for spec in entry.trained_weights if not spec.wrong)}
    return all(
        name is not None and (name in PERMISSIVE if wanted == "permissive" else name == wanted)
        for name in licences
    )


def headline(entry: ModelEntry) -> tuple[str, float] | None:
    """Return the first accuracy metric of metrics.toml that the row publishes, and its value."""
    values = values_of(entry)
    accuracies = (name for name, spec in load_manifests().metrics.items() if spec.accuracy)
    return next(((name, values[name]) for name in accuracies if name in values), None)


def values_of(entry: ModelEntry) -> dict[str, float]:
    """Return every published number of a row by metric; the first of several."""
    return {name: value for line in reversed(published_lines(entry)) for name, value in line.values.items()}


def select(
    entries: Iterable[ModelEntry],
    source: str | None = None,
    detector: str | None = None,
    weights: str | None = None,
    licence: str | None = None,
    sort: str | None = None,
) -> list[ModelEntry]:
    """Rows that pass every filter, in order.

    Args:
        entries: rows.
        source: name of a manifest.
        detector: part of a detector's name; "classifier" for rows without one.
        weights: one of WEIGHTS; "available": here or fetchable, for rows that can be built.
        licence: "permissive", or an SPDX name.
        sort: one of COLUMNS, or a metric of metrics.toml: best first, rows without it last.

    Raises:
        UnknownName: there is no such source, state, column or metric; the message lists similar names.
    """
    entries = list(entries)
    sources = {entry.source for entry in load_manifests().entries.values()}
    for name, known, what in ((source, sources, "source"), (weights, WEIGHTS, "state of weights")):
        if name is not None and name not in known:
            raise UnknownName(f"no {what} is named {name!r}: {did_you_mean(name, known)}")
    had = weights_of(entries)

    def fits(entry: ModelEntry) -> bool:
        name = entry.detector.name if entry.detector else "classifier"
        return (
            source in (None, entry.source)
            and (detector is None or detector in name)
            and (licence is None or permitted(entry, licence))
            and (weights is None or weights == state(entry, had) or weights == _usable(entry, had))
        )

    return _ordered([entry for entry in entries if fits(entry)], sort, had)


def state(entry: ModelEntry, had: dict[str, Availability]) -> str:
    """One of WEIGHTS but "available"."""
    return NUMBERS_ONLY if entry.published_only else had[entry.name].state


def _usable(entry: ModelEntry, had: dict[str, Availability]) -> str:
    return "available" if had[entry.name].usable and not entry.published_only else ""


def _ordered(entries: list[ModelEntry], sort: str | None, had: dict[str, Availability]) -> list[ModelEntry]:
    if sort is None:
        return entries
    if sort in COLUMNS:
        return sorted(entries, key=lambda entry: (str(row_of(entry, had).get(sort) or "~"), entry.name))
    metrics = load_manifests().metrics
    if sort not in metrics:
        raise UnknownName(
            f"no column or metric is named {sort!r}: {did_you_mean(sort, (*COLUMNS, *metrics))}"
        )
    sign = -1 if metrics[sort].better == "higher" else 1
    values = {entry.name: values_of(entry).get(sort) for entry in entries}
    return sorted(
        entries,
        key=lambda entry: (
            (value := values[entry.name]) is None,
            0 if value is None else sign * value,
            entry.name,
        ),
    )


def row_of(entry: ModelEntry, had: dict[str, Availability]) -> dict[str, Any]:
    """Return one row as shown in the list."""
    best = headline(entry)
    return {
        "name": entry.name,
        "detector": entry.detector.name if entry.detector else "classifier",
        "backbone": entry.backbone.name,
        "dataset": entry.dataset,
        "published": f"{metric(best[0]).title} {metric(best[0]).format(best[1])}" if best else "-",
        "licence": licence_of(entry),
        "weights": state(entry, had),
    }


def text_of(rows: list[dict[str, Any]], width: int | None) -> str:
    """Render rows of `row_of` as a table; if lines would not fit, without licences and columns that are
    part of the row's name."""
    if not rows:
        return ""
    whole = text_table(list(rows[0]), [list(row.values()) for row in rows])
    if width is None or len(max(whole.splitlines(), key=len)) <= width:
        return whole
    return text_table(list(NARROW), [[row[name] for name in NARROW] for row in rows], width)
