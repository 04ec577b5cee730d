"""Table files: every source's own tables, the wide one, comparisons and operators, as Markdown, CSV, JSON and
LaTeX. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from detection_zoo.benchmarks.report.latex import latex
from detection_zoo.benchmarks.report.layouts import WIDE
from detection_zoo.benchmarks.report.table import Table, records_csv
from detection_zoo.benchmarks.report.tables import BESIDE, tables_from, text_of
from detection_zoo.benchmarks.report.wide import Overview, wide_records
from detection_zoo.benchmarks.spec import OWN_PROTOCOL
from detection_zoo.benchmarks.store import COMPARISONS, KERNELS

if TYPE_CHECKING:
    import pandas

SUFFIX = {"md": "md", "csv": "csv", "json": "json", "latex": "tex"}  # format -> how its files end
OWN: dict[str, Callable[[list[Table]], str]] = {
    "md": lambda tables: text_of(tables, "markdown"),
    "csv": lambda tables: text_of(tables, "csv"),
    "json": lambda tables: text_of(tables, "json"),
    "latex": latex,
}
FLAT = {**OWN, "csv": records_csv}  # of what is no source's table: numbers, not cells


def stored_tables(view: Overview) -> dict[str, list[Table]]:
    """Tables of what is stored beside the runs, by name: comparisons and timings of operators."""
    records = {COMPARISONS: view.comparisons, KERNELS: view.kernels}
    return {name: beside.lay_out(records[name]) for name, beside in BESIDE.items()}


def source_tables(view: Overview, name: str) -> list[Table]:
    """The tables of a source, or the table of that name, timed by the project's own protocol."""
    runs = [run for run in view.runs if run.spec.protocol == OWN_PROTOCOL]
    return tables_from(name, runs, view.manifests, view.layouts)


def table_files(view: Overview, formats: set[str]) -> dict[str, bytes]:
    """Every table file of these formats by its path under results/: `tables/SOURCE.md` is what `bench.py
    table SOURCE` prints."""
    files: dict[str, str] = {}
    for source in sorted({entry.source for entry in view.manifests.entries.values()}):
        tables = source_tables(view, source)
        files |= {f"tables/{source}.{SUFFIX[form]}": OWN[form](tables) for form in SUFFIX if form in formats}
    for name, tables in stored_tables(view).items():
        files |= {
            f"tables/{name}.{SUFFIX[form]}": FLAT[form](tables)
            for form in SUFFIX
            if form in formats and tables
        }
    files |= {f"tables/{WIDE}.{SUFFIX[form]}": text for form, text in _wide(view, formats).items()}
    return {path: text.encode() for path, text in files.items()}


def _wide(view: Overview, formats: set[str]) -> dict[str, str]:
    """The wide table: all metrics as data, the main ones to read."""
    texts: dict[str, str] = {}
    if "csv" in formats:
        texts["csv"] = wide_frame(view).to_csv(index=False, lineterminator="\n")
    if "json" in formats:
        texts["json"] = json.dumps([_known(record) for record in wide_records(view)], indent=1) + "\n"
    if formats & {"md", "latex"}:
        tables = source_tables(view, WIDE)
        texts |= {form: OWN[form](tables) for form in ("md", "latex") if form in formats}
    return texts


def _known(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value is not None}


def wide_frame(view: Overview) -> pandas.DataFrame:
    """The wide table as a data frame: a line each, every metric in its own unit, empty where there is no
    number."""
    import pandas

    records = wide_records(view)
    columns = list(dict.fromkeys(name for record in records for name in record))
    ordered = _beside(columns)
    return pandas.DataFrame(
        [[record.get(name) for name in ordered] for record in records], columns=ordered, dtype=object
    )


def _beside(columns: list[str]) -> list[str]:
    """Columns in their order, with a metric's _low, _high and _n right behind it."""
    extra = {f"{name}{end}" for name in columns for end in ("_low", "_high", "_n")} & set(columns)
    return [
        each
        for name in columns
        if name not in extra
        for each in (name, f"{name}_low", f"{name}_high", f"{name}_n")
        if each in columns
    ]
