"""Tables of a source from a store: which layouts, which runs, and the finished text. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from detection_zoo.benchmarks.compare.record import read_comparisons
from detection_zoo.benchmarks.report import comparisons, kernel_cases
from detection_zoo.benchmarks.report.layouts import layouts_of, load_layouts
from detection_zoo.benchmarks.report.table import Table, as_csv, build_table, markdown
from detection_zoo.benchmarks.spec import OWN_PROTOCOL, Run
from detection_zoo.benchmarks.store import DEFAULT_STORE, read_runs
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import load_manifests
from detection_zoo.zoo.registry import did_you_mean


class Beside(NamedTuple):
    """Records that lie beside the runs, in a folder of that name: how they are read, and laid out as
    tables."""

    read: Callable[[Path], tuple[list[Any], list[str]]]
    lay_out: Callable[[list[Any]], list[Table]]


BESIDE = {
    comparisons.NAME: Beside(read_comparisons, comparisons.comparison_tables),
    kernel_cases.NAME: Beside(kernel_cases.read_timings, kernel_cases.kernel_tables),
}


def tables_of(
    name: str | None, store: Path | None, protocol: str = OWN_PROTOCOL
) -> tuple[list[Table], list[str]]:
    """The tables of a source (or one table by its name) and what is wrong in the store.

    Args:
        name: source or table, "comparisons" or "kernels"; None takes every source that has a measured row.
        store: folder of records; None takes results/runs.
        protocol: timing protocol; runs made by another are left out, so that no table mixes them.

    Raises:
        ManifestError: no source and no table is called that, or no protocol.
    """
    if name in BESIDE:
        found, problems = BESIDE[name].read((store or DEFAULT_STORE).parent / name)
        return BESIDE[name].lay_out(found), problems
    stored = read_runs(store or DEFAULT_STORE)
    if protocol not in load_manifests().protocols:
        raise ManifestError(
            f"unknown timing protocol {protocol!r}: {did_you_mean(protocol, load_manifests().protocols)}"
        )
    measured = {run.row for run in stored.runs}
    names = (
        [name]
        if name
        else sorted({entry.source for entry in load_manifests().entries.values() if entry.name in measured})
    )
    return [table for each in names for table in tables_from(each, stored.runs, protocol)], stored.problems


def tables_from(name: str, runs: list[Run], protocol: str = OWN_PROTOCOL) -> list[Table]:
    """The tables of a source (or one table by its name) that have lines, filled from the runs of one
    protocol; raises as `tables_of` does."""
    runs = [run for run in runs if run.spec.protocol == protocol]
    manifests = load_manifests()
    chosen = layouts_of(name, load_layouts(), {entry.source for entry in manifests.entries.values()})
    tables = [build_table(layout, manifests, runs) for layout in chosen]
    return [table for table in tables if table.rows]


def text_of(tables: list[Table], form: Literal["markdown", "csv", "json"]) -> str:
    """Finished tables as text that ends with a newline."""
    if form == "json":
        return json.dumps([record for table in tables for record in table.records], indent=2) + "\n"
    return as_csv(tables) if form == "csv" else markdown(tables)
