"""A command of bench.py in the process of the test: the same words, exit code and streams as from a terminal,
without the seconds that its imports take in a process of its own."""

from __future__ import annotations

from typer.testing import CliRunner

from detection_zoo.bench import app


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; an error that the command does not catch is raised."""
    done = CliRunner().invoke(app, [*arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr
