"""The typer application of bench.py: output, errors and exit codes. Does not import torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer

from detection_zoo.benchmarks.run.progress import make_way
from detection_zoo.benchmarks.terminal import terminal_width, wrap
from detection_zoo.zoo.errors import ZooError, in_one_line
from detection_zoo.zoo.plain import printable, without_secrets
from detection_zoo.zoo.weights.command_line import Commands

UsageError = typer.BadParameter.__base__
T = TypeVar("T")


def wrong_usage(error: ZooError | OSError) -> typer.Exit:
    """Print a one-line message for an invalid argument; return the exception that exits with code 2."""
    first, *rest = (line.strip() for line in in_one_line(error).splitlines())
    say(f"error: {first} {'; '.join(rest)}".rstrip())
    return typer.Exit(2)


@contextmanager
def checking_arguments() -> Iterator[None]:
    """Report errors raised in this block as wrong usage: one message, exit code 2."""
    try:
        yield
    except (ZooError, OSError) as error:
        raise wrong_usage(error) from None


def _usage_exit(error: Any) -> Exception:
    """Print a usage error on one line; for a command without arguments, print its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return error
    command = error.ctx.command_path if error.ctx else "bench.py"
    say(f"error: {error.format_message()} (see {command} --help)")
    return typer.Exit(2)


class _Commands(Commands):
    """Prints each error as one line, sets the exit code, and reports Ctrl-C."""

    stopped = "stopped by Ctrl-C; results stored so far are kept"

    def say(self, text: str) -> None:
        """Print a message to stderr."""
        say(text)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Parse the arguments."""
        try:
            return super().make_context(*arguments, **options)
        except UsageError as error:
            raise _usage_exit(error) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit code 1 on failure, 2 on wrong usage, 130 on Ctrl-C or SIGTERM."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _usage_exit(error) from None


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"detection-zoo {version('detection-zoo')}")
        except PackageNotFoundError:
            typer.echo("detection-zoo, run from a checkout (not installed)")
        raise typer.Exit(0)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Model zoo and benchmark of object detectors: published numbers beside measurements on this machine."""


def gather(kind: type[T], given: Mapping[str, Any], **named: Any) -> T:
    """Create a dataclass or model: fields from a command's parameters of the same names, and `named` ones."""
    known = getattr(kind, "model_fields", None) or kind.__dataclass_fields__
    return kind(**{name: given[name] for name in known if name in given} | named)


def emit(value: Any, as_json: bool, text: str, width: int | None = None) -> None:
    """Print to stdout: `value` as JSON, or the text with lines wrapped at `width` characters."""
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(_fitting(printable(text), width)))


def say(text: str) -> None:
    """Print a message to stderr with secrets in URLs hidden; clear the progress bar first."""
    lines = _fitting(printable(without_secrets(text)), terminal_width(sys.stderr))
    make_way()
    typer.echo("\n".join(lines), err=True)


def _fitting(text: str, width: int | None) -> list[str]:
    """Wrap the lines of a text at `width` characters; None leaves them unchanged."""
    lines = text.split("\n")
    if width is None:
        return lines
    return [part for line in lines for part in (wrap(line, width, "  ") if len(line) > width else [line])]
