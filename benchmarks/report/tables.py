"""Tables of a source from a store: which layouts, which runs, and the finished text. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from detection_zoo.benchmarks.compare.record import stored_comparisons
from detection_zoo.benchmarks.folders import COMPARISONS, KERNELS
from detection_zoo.benchmarks.report.comparisons import comparison_tables
from detection_zoo.benchmarks.report.kernel_cases import kernel_tables, stored_timings
from detection_zoo.benchmarks.report.layouts import Layout, layouts_of, load_layouts
from detection_zoo.benchmarks.report.table import build_table
from detection_zoo.benchmarks.spec import OWN_PROTOCOL, Run
from detection_zoo.benchmarks.store import stored_runs
from detection_zoo.benchmarks.tabular import Table
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import Manifests, load_manifests
from detection_zoo.zoo.registry import did_you_mean


class Beside(NamedTuple):
    """Records that lie beside the runs, in a folder of that name: how a store's are read, and laid out as
    tables."""

    read: Callable[[Path | None], tuple[list[Any], list[str]]]
    lay_out: Callable[[list[Any]], list[Table]]


BESIDE = {
    COMPARISONS: Beside(stored_comparisons, comparison_tables),
    KERNELS: Beside(stored_timings, kernel_tables),
}


def tables_of(
    name: str | None, store: Path | None, protocol: str = OWN_PROTOCOL, measured_only: bool = False
) -> tuple[list[Table], list[str]]:
    """The tables of a source (or one table by its name) and what is wrong in the store.

    Args:
        name: source or table, "comparisons" or "kernels"; None takes every source that has a measured row.
        store: folder of records; None: ./results/runs.
        protocol: timing protocol; runs made by another are left out, so that no table mixes them.
        measured_only: leave out rows without a run.

    Raises:
        ManifestError: no source or table is named that, or no protocol.
    """
    if name in BESIDE:
        records, problems = BESIDE[name].read(store)
        return BESIDE[name].lay_out(records), problems
    manifests, stored = load_manifests(), stored_runs(store)
    if protocol not in manifests.protocols:
        raise ManifestError(
            f"unknown timing protocol {protocol!r}: {did_you_mean(protocol, manifests.protocols)}"
        )
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
    """The tables of a source (or one table by its name) that have lines, filled from runs of one protocol;
    raises ManifestError where there is none of that name."""
    chosen = layouts_of(name, layouts, {entry.source for entry in manifests.entries.values()})
    tables = [build_table(layout, manifests, runs) for layout in chosen]
    return [table for table in tables if table.rows]
