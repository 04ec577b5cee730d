"""Table files: every source's own tables, the wide one, comparisons and operators, as Markdown, CSV, JSON and
LaTeX. No torch."""

from __future__ import annotations

from detection_zoo.benchmarks.folders import COMPARISONS, KERNELS
from detection_zoo.benchmarks.report.layouts import WIDE
from detection_zoo.benchmarks.report.tables import BESIDE, tables_from
from detection_zoo.benchmarks.report.wide import Overview, wide_records
from detection_zoo.benchmarks.spec import OWN_PROTOCOL
from detection_zoo.benchmarks.tabular import Form, Table, render

SUFFIX = {"md": "md", "csv": "csv", "json": "json", "latex": "tex"}  # format -> how its files end
FORM: dict[str, Form] = {"md": "markdown", "csv": "csv", "json": "json", "latex": "latex"}


def stored_tables(view: Overview) -> dict[str, list[Table]]:
    """Tables of what is stored beside the runs, by name: comparisons and timings of operators."""
    records = {COMPARISONS: view.comparisons, KERNELS: view.kernels}
    return {name: beside.lay_out(records[name]) for name, beside in BESIDE.items()}


def source_tables(view: Overview, name: str) -> list[Table]:
    """The tables of a source, or the table of that name, timed by the project's own protocol."""
    runs = [run for run in view.runs if run.spec.protocol == OWN_PROTOCOL]
    return tables_from(name, runs, view.manifests, view.layouts)


def wide_tables(view: Overview) -> list[Table]:
    """The wide table: the overview metrics to read, every metric as data."""
    (table,) = source_tables(view, WIDE)
    table.records, table.flat = wide_records(view), True
    return [table]


def table_files(view: Overview, formats: set[str]) -> dict[str, bytes]:
    """Every table file of these formats by its path under results/: `tables/SOURCE.md` is what `bench.py
    table SOURCE --format markdown` prints."""
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
