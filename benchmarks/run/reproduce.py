"""Reproduce a source's table: which rows can run here with published weights, and what the others
lack."""

from __future__ import annotations

from detection_zoo.benchmarks.run.subject import open_data
from detection_zoo.zoo.errors import DatasetError, UnknownName
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import did_you_mean
from detection_zoo.zoo.weights.fetch.availability import availability


def plan_source(source: str, data: str | None) -> dict[str, list[str]]:
    """Return what each row of a source lacks to run here; nothing is downloaded.

    Args:
        source: name of a manifest.
        data: argument of `open_dataset`, or None.

    Raises:
        UnknownName: there is no manifest with this name.
    """
    manifests = load_manifests()
    sources = {entry.source for entry in manifests.entries.values()}
    if source not in sources:
        raise UnknownName(f"no source is named {source!r}: {did_you_mean(source, sources)}")
    opened: dict[str, str | None] = {}
    missing: dict[str, list[str]] = {}
    for entry in (entry for entry in manifests.entries.values() if entry.source == source):
        if entry.published_only:
            missing[entry.name] = [f"has published numbers only: {entry.published_only}"]
            continue
        if entry.dataset not in opened:
            opened[entry.dataset] = _data_problem(entry, data)
        missing[entry.name] = [text for text in (_weights_problem(entry), opened[entry.dataset]) if text]
    return missing


def _weights_problem(entry: ModelEntry) -> str | None:
    """Return why a row's weights are missing, and how to get them."""
    found = availability(entry)
    return None if found.state == "here" else f"weights ({found.state}): {found.reason}"


def _data_problem(entry: ModelEntry, data: str | None) -> str | None:
    """Return why the row's dataset cannot be used, and how to get it."""
    spec = load_manifests().datasets[entry.dataset]
    where = f" (from {spec.url})" if spec.url else ""
    if data is None:
        return f"data: {spec.title} is needed{where}; give --data {spec.layout}:DIR"
    if data.partition(":")[0] != spec.layout:
        return f"data: {spec.title} is needed{where}, but --data is {data.partition(':')[0]}"
    try:
        open_data(entry, data)
    except DatasetError as error:
        return f"data: {error}"
    return None


def missing_text(missing: dict[str, list[str]]) -> str:
    """Return a line per reason, with all rows that cannot run for this
    reason."""
    by_reason: dict[str, list[str]] = {}
    for row, reasons in missing.items():
        for reason in reasons:
            by_reason.setdefault(reason, []).append(row)
    return "\n".join(f"{', '.join(rows)}\n    {reason}" for reason, rows in by_reason.items())
