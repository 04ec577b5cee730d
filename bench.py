"""Door 1: list, show, run, compare and tabulate detectors. It parses, calls and prints; `python bench.py COMMAND --help` explains each command."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zoo.errors import ZooError

INTERRUPTED = 130


class _Doors(TyperGroup):
    """Turns the project's errors into one line and an exit code, and Ctrl-C into a sentence."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; 1 for what failed, 130 for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except (ZooError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("stopped by Ctrl-C; everything finished is stored, and the same command goes on from there", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(cls=_Doors, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Benchmark tables of object detectors: rows of the manifests, measured here and as published.")

JSON = Annotated[bool, typer.Option("--json", help="print JSON")]
STORE = Annotated[Path | None, typer.Option(help="folder of records; default: results/runs")]


def _print(value: Any, as_json: bool, text: str) -> None:
    """Data to stdout."""
    typer.echo(json.dumps(value, indent=2) if as_json else text)


def _say(text: str) -> None:
    """Talk to stderr."""
    typer.echo(text, err=True)


@app.command("list")
def list_rows(pattern: Annotated[str, typer.Argument(help="part of a name, a shell pattern, or a source")] = "*", as_json: JSON = False) -> None:
    """List the rows of the manifests."""
    from benchmarks.report.listing import listing, summary
    from zoo.manifest import load_manifests

    entries = load_manifests().find(pattern)
    _print([summary(entry) for entry in entries], as_json, listing(entries))
    _say(f"{len(entries)} rows")
    if not entries:
        raise typer.Exit(1)


@app.command()
def show(row: Annotated[str, typer.Argument(help="name of a row")], as_json: JSON = False) -> None:
    """Show everything the manifests say of one row."""
    from benchmarks.report.listing import described
    from zoo.manifest import load_manifests

    entry = load_manifests().entry(row)
    _print(entry.model_dump(mode="json", exclude_none=True), as_json, described(entry))


@app.command()
def table(source: Annotated[str | None, typer.Argument(help="source or table; default: every source with a measured row")] = None,
          store: STORE = None, out: Annotated[Path | None, typer.Option(help="write the table here as well")] = None,
          as_csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False, as_json: JSON = False) -> None:
    """Print a source's own table, published beside measured."""
    from benchmarks.report.tables import tables_of, text_of

    tables, problems = tables_of(source, store)
    text = text_of(tables, "json" if as_json else "csv" if as_csv else "markdown")
    if out is not None:
        out.write_text(text, encoding="utf-8")
    typer.echo(text, nl=False)
    for problem in problems:
        _say(f"warning: {problem}")
    _say(f"{len(tables)} tables, {sum(len(t.rows) for t in tables)} lines" + (f"; {len(problems)} records could not be used" if problems else ""))


def main() -> None:
    """Entry point of the `bench` command."""
    app(prog_name="bench.py" if sys.argv[0].endswith(".py") else None)


if __name__ == "__main__":
    main()
