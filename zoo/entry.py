"""A command from its start to the end of its process: closed streams, Ctrl-C before and after the work. No
torch."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

INTERRUPTED = 130


def run_command(app: Callable[..., Any], **options: Any) -> None:
    """Call an application as the work of this process.

    Args:
        app: ends with SystemExit.
        options: passed on.

    Ctrl-C outside the application is one line and exit code 130; once the work has ended it changes nothing.
    A command that Ctrl-C ended leaves at once.
    """
    open_closed_streams()
    try:
        app(**options)
    except KeyboardInterrupt:  # before the command has begun or after it has ended
        print("stopped by Ctrl-C", file=sys.stderr)
        _leave(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave(INTERRUPTED)
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # while Python ends it would replace the exit code


def _leave(code: int) -> None:
    """End the process, its children and temporary files, but do not take down Python and torch object by
    object, which takes seconds on a busy machine."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def open_closed_streams() -> None:
    """Give stdin, stdout and stderr that were closed (`>&-`) the null device: else the next file that is
    opened gets their number, and what libraries and child processes print goes into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(handle, handle == number)
            setattr(sys, name, open(handle, "w" if number else "r", closefd=False))
