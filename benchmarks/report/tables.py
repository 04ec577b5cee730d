"""Tables of a source, of comparisons and of operators, from a store of records, and their files: Markdown,
CSV, JSON and LaTeX. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.compare.record import stored_comparisons
from detection_zoo.benchmarks.folders import COMPARISONS, KERNELS
from detection_zoo.benchmarks.report.comparisons import comparison_table
from detection_zoo.benchmarks.report.kernel_cases import kernel_table, stored_timings
from detection_zoo.benchmarks.report.layouts import WIDE, Layout, layouts_of, load_layouts
from detection_zoo.benchmarks.report.table import build_table
from detection_zoo.benchmarks.report.wide import Overview, wide_records
from detection_zoo.benchmarks.spec import OWN_PROTOCOL, Run
from detection_zoo.benchmarks.store import stored_runs
from detection_zoo.benchmarks.tabular import Form, Table, render
from detection_zoo.zoo.manifest import Manifests
from detection_zoo.zoo.manifest_files import load_manifests

Read = Callable[[Path | None], tuple[list[Any], list[str]]]
# records in sibling folders of the runs: name of the folder -> how they are read and laid out
BESIDE: dict[str, tuple[Read, Callable[[Any], Table]]] = {
    COMPARISONS: (stored_comparisons, comparison_table),
    KERNELS: (stored_timings, kernel_table),
}
SUFFIX = {"md": "md", "csv": "csv", "json": "json", "latex": "tex"}  # format -> file suffix
FORM: dict[str, Form] = {"md": "markdown", "csv": "csv", "json": "json", "latex": "latex"}


def tables_of(
    name: str | None, store: Path | None, protocol: str = OWN_PROTOCOL, measured_only: bool = False
) -> tuple[list[Table], list[str]]:
    """Return the tables of a source (or one table by name) and the problems of the store.

    Args:
        name: source or table, "comparisons" or "kernels"; None: every source with a measured row.
        store: folder of records; None: ./results/runs.
        protocol: timing protocol; runs with another protocol are omitted.
        measured_only: omit rows without a run.

    Raises:
        UnknownName: there is no such source, table or protocol.
    """
    if name in BESIDE:
        read, table_of = BESIDE[name]
        records, problems = read(store)
        return [table_of(record) for record in records], problems
    manifests, stored = load_manifests(), stored_runs(store)
    manifests.protocol(protocol)  # an unknown one is an error, not an empty table
    runs = [run for run in stored.runs if run.spec.protocol == protocol]
    measured = {run.row for run in stored.runs}
    if measured_only:
        kept = {name: entry for name, entry in manifests.entries.items() if name in measured}
        manifests = manifests.model_copy(update={"entries": kept})
    names = (
        [name]
        if name
        else sorted({entry.source for entry in manifests.entries.values() if entry.name in measured})
    )
    layouts = load_layouts()
    tables = [table for each in names for table in tables_from(each, runs, manifests, layouts)]
    return tables, stored.problems


def tables_from(name: str, runs: list[Run], manifests: Manifests, layouts: dict[str, Layout]) -> list[Table]:
    """Return the non-empty tables of a source (or one table by name), from runs of one protocol; raises
    ManifestError if there is no such source or table."""
    chosen = layouts_of(name, layouts, {entry.source for entry in manifests.entries.values()})
    tables = [build_table(layout, manifests, runs) for layout in chosen]
    return [table for table in tables if table.rows]


def stored_tables(view: Overview) -> dict[str, list[Table]]:
    """Return the tables of comparisons and of operator timings, by name."""
    records = {COMPARISONS: view.comparisons, KERNELS: view.kernels}
    return {name: [table_of(record) for record in records[name]] for name, (_, table_of) in BESIDE.items()}


def source_tables(view: Overview, name: str) -> list[Table]:
    """Return the tables of a source, or one table by name, with times of the protocol "zoo"."""
    runs = [run for run in view.runs if run.spec.protocol == OWN_PROTOCOL]
    return tables_from(name, runs, view.manifests, view.layouts)


def table_files(view: Overview, formats: set[str]) -> dict[str, bytes]:
    """Return the content of every table file in these formats, by path below results/; `tables/SOURCE.md`
    equals the output of `bench.py table SOURCE --format markdown`. Cells of the wide table are the overview
    metrics, its records have all metrics."""
    sources = sorted({entry.source for entry in view.manifests.entries.values()})
    tables = {name: source_tables(view, name) for name in (*sources, WIDE)}
    tables |= {name: found for name, found in stored_tables(view).items() if found}
    for table in tables[WIDE] if formats & {"csv", "json"} else ():
        table.records, table.flat = wide_records(view), True
    return {
        f"tables/{name}.{SUFFIX[form]}": render(found, FORM[form]).encode()
        for name, found in tables.items()
        for form in SUFFIX
        if form in formats
    }
