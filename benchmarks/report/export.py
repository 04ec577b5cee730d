"""Table files: tables of each source, the wide table, comparisons and operators, as Markdown, CSV, JSON and
LaTeX. Does not import torch."""

from __future__ import annotations

from detection_zoo.benchmarks.folders import COMPARISONS, KERNELS
from detection_zoo.benchmarks.report.comparisons import comparison_tables
from detection_zoo.benchmarks.report.kernel_cases import kernel_tables
from detection_zoo.benchmarks.report.layouts import WIDE
from detection_zoo.benchmarks.report.tables import tables_from
from detection_zoo.benchmarks.report.wide import Overview, wide_records
from detection_zoo.benchmarks.spec import OWN_PROTOCOL
from detection_zoo.benchmarks.tabular import Form, Table, render

SUFFIX = {"md": "md", "csv": "csv", "json": "json", "latex": "tex"}  # format -> file suffix
FORM: dict[str, Form] = {"md": "markdown", "csv": "csv", "json": "json", "latex": "latex"}


def stored_tables(view: Overview) -> dict[str, list[Table]]:
    """Return the tables of comparisons and of operator timings, by name."""
    return {COMPARISONS: comparison_tables(view.comparisons), KERNELS: kernel_tables(view.kernels)}


def source_tables(view: Overview, name: str) -> list[Table]:
    """Return the tables of a source, or one table by name, with times of the protocol "zoo"."""
    runs = [run for run in view.runs if run.spec.protocol == OWN_PROTOCOL]
    return tables_from(name, runs, view.manifests, view.layouts)


def wide_tables(view: Overview) -> list[Table]:
    """Return the wide table: cells with the overview metrics, records with all metrics."""
    (table,) = source_tables(view, WIDE)
    table.records, table.flat = wide_records(view), True
    return [table]


def table_files(view: Overview, formats: set[str]) -> dict[str, bytes]:
    """Return the content of every table file in these formats, by path below results/; `tables/SOURCE.md`
    equals the output of `bench.py table SOURCE --format markdown`."""
    tables = {
        source: source_tables(view, source)
        for source in sorted({entry.source for entry in view.manifests.entries.values()})
    }
    tables |= {name: found for name, found in stored_tables(view).items() if found}
    tables[WIDE] = wide_tables(view)
    return {
        f"tables/{name}.{SUFFIX[form]}": render(found, FORM[form]).encode()
        for name, found in tables.items()
        for form in SUFFIX
        if form in formats
    }
