"""The commands list, show, import-config, table and report. Do not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from detection_zoo.benchmarks.commands.app import app, emit, say
from detection_zoo.benchmarks.commands.options import (
    JSON,
    PROTOCOL,
    READ_STORE,
    ROW,
    WIDE,
    row_names,
    width_of,
)


@app.command("list")
def list_rows(
    pattern: Annotated[
        str,
        typer.Argument(help="part of a name, a pattern such as ssd*, or a source", autocompletion=row_names),
    ] = "*",
    source: Annotated[
        str | None, typer.Option(help="only rows of this source: vovnet, detectron ...")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(help="only rows whose detector's name contains this; classifier for classifiers"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="state of the weights: available (here or fetchable), here, fetchable, needs"
            " a person (manual download), partial, none, numbers only"
        ),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="permissive, or an SPDX name")] = None,
    sort: Annotated[
        str | None,
        typer.Option(help="sort by name, detector, backbone, dataset, licence, weights, or a metric"),
    ] = None,
    wide: WIDE = False,
    as_json: JSON = False,
) -> None:
    """List the rows of the manifests."""
    from detection_zoo.benchmarks.ask.select import row_of, select, text_of, weights_of
    from detection_zoo.zoo.manifest_files import load_manifests

    entries = load_manifests().find(pattern)
    entries = select(entries, source, detector, weights, licence, sort)
    had = weights_of(entries)
    rows = [row_of(entry, had) for entry in entries]
    emit(rows, as_json, text_of(rows, width_of(wide)))
    say(f"{len(rows)} rows")
    if not rows:
        raise typer.Exit(1)


@app.command()
def show(row: ROW, wide: WIDE = False, as_json: JSON = False) -> None:
    """Show everything that the manifest says about one row."""
    from detection_zoo.benchmarks.report.listing import described
    from detection_zoo.zoo.created_row import row_named

    entry = row_named(row)
    emit(entry.model_dump(mode="json", exclude_none=True), as_json, described(entry, width_of(wide)))


@app.command()
def table(
    source: Annotated[
        str | None, typer.Argument(help="source or table name; default: every source with a measured row")
    ] = None,
    store: READ_STORE = None,
    out: Annotated[
        Path | None, typer.Option(help="also write the table to this file: .md, .csv, .json, .tex or .txt")
    ] = None,
    protocol: PROTOCOL = "zoo",
    form: Annotated[
        Literal["text", "markdown", "csv", "json", "latex"], typer.Option("--format", help="output format")
    ] = "text",
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
    measured: Annotated[
        bool, typer.Option("--measured", help="show only rows with a stored measurement")
    ] = False,
    wide: WIDE = False,
    as_json: JSON = False,
) -> None:
    """Print a source's table: published numbers beside measured ones."""
    from detection_zoo.benchmarks.report.tables import tables_of
    from detection_zoo.benchmarks.tabular import render

    form = "json" if as_json else "csv" if as_csv else form
    tables, problems = tables_of(source, store, protocol, measured)
    if out is not None:
        endings = {".csv": "csv", ".json": "json", ".tex": "latex", ".txt": "text"}
        out.write_text(render(tables, endings.get(out.suffix, "markdown")), encoding="utf-8")
    typer.echo(render(tables, form, width_of(wide)), nl=False)
    for problem in problems:
        say(f"warning: {problem}")
    if source is None and not tables:
        say("no row has been measured yet; name a source to see its published numbers")
    say(
        f"{len(tables)} tables, {sum(len(t.rows) for t in tables)} lines"
        + (f"; {len(problems)} records could not be used" if problems else "")
    )


@app.command("import-config")
def import_config(
    file: Annotated[Path, typer.Argument(help="YAML file of Detectron or Detectron.pytorch")],
    source: Annotated[
        str | None,
        typer.Option(help="manifest that will hold the row; default: recognised from the file's options"),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Convert a configuration file of Detectron or Detectron.pytorch to a manifest row.

    Also prints notes on corrected options, and the options that are not supported.
    """
    from detection_zoo.zoo.importers.import_config import import_config as read

    found = read(file, source)
    report = {
        "row": found.row,
        "schedule": {found.schedule_name: found.schedule.model_dump(exclude_defaults=True)},
        "new_schedule": found.new_schedule,
        "notes": found.notes,
        "without_effect": found.without_effect,
        "refused": found.refused,
    }
    emit(report, as_json, found.toml().rstrip())
    for line in found.report():
        say(line)
    say(
        f"{file.name}: row {found.row['name']}, {len(found.notes)} notes, {len(found.without_effect)} options"
        f" without effect, {len(found.refused)} not supported"
    )
    if found.refused:
        raise typer.Exit(1)


@app.command()
def report(
    out: Annotated[
        Path | None, typer.Option(help="output folder; default: ./results, in a git checkout results/local")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="comma-separated: md, csv, json, latex, svg, png, html")
    ] = "md,csv,svg,html",
    store: READ_STORE = None,
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; exit 1 if the tracked results are out of date")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Generate tables, figures and the HTML page from the stored records."""
    from detection_zoo.benchmarks.report.generate import FORMATS, make_report, stale_report

    wanted = {name.strip() for name in formats.split(",") if name.strip()}
    if wanted - set(FORMATS):
        raise typer.BadParameter(
            f"unknown format {', '.join(sorted(wanted - set(FORMATS)))}; choose from {', '.join(FORMATS)}",
            param_hint="--format",
        )
    done, problems = stale_report() if check else make_report(store, out, wanted)
    emit({"stale" if check else "files": done, "problems": problems}, as_json, "\n".join(done))
    for problem in problems:
        say(f"warning: {problem}")
    again = "; `make report` writes them again" if check and done else ""
    say(f"{len(done)} {'stale' if check else 'files'}{again}")
    if bool(done) == check:
        raise typer.Exit(1)
