"""Options, output and exit codes of the commands of download_weights.py. No torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from detection_zoo.zoo.entry import INTERRUPTED, leaving_on_interrupt
from detection_zoo.zoo.errors import UnknownName, ZooError, in_one_line

Rows = Annotated[
    list[str] | None, typer.Argument(metavar="ROW...", help="row names, shell patterns, or parts of names")
]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Everything = Annotated[bool, typer.Option("--all", help="every row of every manifest")]
Holds = Annotated[
    Literal["detector", "imagenet", "results", "all"] | None,
    typer.Option(help="only files of this kind; default: detector and imagenet"),
]
Role = Annotated[
    Literal["trained", "initial", "all"],
    typer.Option(help="trained: a row's own weights; initial: weights its training starts from"),
]
Home = Annotated[
    Path | None, typer.Option(help="weight folder; default: DETECTION_ZOO_HOME, else the user's cache folder")
]
Folder = Annotated[Path, typer.Option("--manifests", help="folder of the manifests")]
Offline = Annotated[
    bool, typer.Option("--offline", help="never use the network", envvar="DETECTION_ZOO_OFFLINE")
]


class Commands(TyperGroup):
    """Ends a command on the project's errors with one message and exit 1; `stopped`: the message on Ctrl-C,
    which keeps finished files."""

    stopped = "stopped by Ctrl-C; rerun the same command to resume"

    def say(self, text: str) -> None:
        """Print a message to stderr."""
        say(text)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit code 1 on failure, 2 for an unknown row, 130 on Ctrl-C or SIGTERM."""
        try:
            with leaving_on_interrupt(False):
                return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output has exited, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (ZooError, OSError) as error:
            self.say(f"error: {in_one_line(error)}")
            raise typer.Exit(2 if isinstance(error, UnknownName) else 1) from None
        except KeyboardInterrupt:
            self.say(self.stopped)
            raise typer.Exit(INTERRUPTED) from None


def say(text: str) -> None:
    """Print a message to stderr."""
    sys.stderr.write(f"{text}\n")  # in one call: threads print, too
    sys.stderr.flush()


def show(rows: Sequence[dict[str, Any]], as_json: bool, columns: Iterable[str] = ()) -> None:
    """Rows as JSON, or as aligned text under a header."""
    if as_json:
        print(json.dumps(rows, indent=1, default=str))
        return
    from tabulate import tabulate

    columns = list(columns)
    cells = [[cell(row[name]) for name in columns] for row in rows]
    print(tabulate(cells, columns, tablefmt="plain", disable_numparse=True))


def cell(value: Any) -> str:
    """A value as readable text: sizes in MiB, nothing for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value / 2**20:.1f} MiB"
    return ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
