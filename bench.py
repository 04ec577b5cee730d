"""The benchmark commands: `python bench.py COMMAND --help` explains each; they are in
benchmarks/commands."""

from __future__ import annotations

import os
import sys

try:
    # isort: off
    from detection_zoo.zoo.entry import begin_command, run_command

    if __name__ == "__main__":
        begin_command()
    # each module registers its commands; this order is the one in --help
    from detection_zoo.benchmarks.commands import rows, run, train, compare, check, export, ask  # noqa: F401
    from detection_zoo.benchmarks.commands.app import app
    # isort: on
except KeyboardInterrupt:
    print("stopped by Ctrl-C", file=sys.stderr)
    sys.exit(130)
except ModuleNotFoundError as error:
    if error.name != "typer":
        raise
    print("error: the commands need typer: pip install 'detection-zoo[commands]'", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Entry point of the `detection-zoo` command."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA numbers GPUs as NVML does then
    called = [c for c in app.registered_commands if (c.name or c.callback.__name__) in sys.argv[1:2]]
    app.registered_commands = called or app.registered_commands  # building all of them takes typer 0.03 s
    run_command(app, prog_name="bench.py" if sys.argv[0].endswith(".py") else None)


if __name__ == "__main__":
    main()
