"""Run a command as a process: closed streams, Ctrl-C before and after the work. No torch."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130
_AGAIN_S = 0.01
_at_once = True  # Ctrl-C ends the process without an exception
_received: list[int] = []  # signals that became KeyboardInterrupt


def run_command(app: Callable[..., Any], **options: Any) -> None:
    """Call an application as the command of this process.

    Args:
        app: ends with SystemExit.
        options: passed on.

    Ctrl-C outside the application, and an error after it (compiled code converts it), is one line and exit
    code 130; after the work it has no effect. A command interrupted by Ctrl-C exits immediately.
    """
    begin_command()
    open_closed_streams()
    sys.unraisablehook = _interrupt_again
    try:
        app(**options)
    except BaseException as end:
        code = getattr(end, "code", 1)
        if code == INTERRUPTED:
            leave(INTERRUPTED)
        if code and (_received or isinstance(end, KeyboardInterrupt)):
            _stop()
        raise
    finally:
        _ignore_interrupts()  # during Python's shutdown they would change the exit code


def begin_command() -> None:
    """What a command does before it imports its modules; once more has no effect."""
    collect_rarely()
    leave_on_interrupt()


def collect_rarely() -> None:
    """Full garbage collections of this process are ten times rarer than usual: torch's modules are a
    few hundred thousand objects, and while they are imported all are looked at again and again (a
    tenth of the time)."""
    gc.set_threshold(*gc.get_threshold()[:2], 100)


def leave_on_interrupt() -> None:
    """From here on, Ctrl-C and SIGTERM end this process with one line and exit code 130.

    They raise no exception: compiled code that runs while modules are imported may drop or convert it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is ignored
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


@contextmanager
def leaving_on_interrupt(leave: bool = True) -> Iterator[None]:
    """In this block, Ctrl-C and SIGTERM end a command at once, since there is nothing to save, or else raise
    KeyboardInterrupt. They are not changed where no command runs."""
    global _at_once
    before, _at_once = _at_once, leave
    try:
        yield
    finally:
        _at_once = before


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _at_once:
        _stop()
    _received.append(number)
    while frame is not None:
        if frame.f_code.co_name == "_numba_unpickle":  # its caller, compiled code, would raise SystemError
            return _interrupt_later()
        frame = frame.f_back
    raise KeyboardInterrupt


def _stop() -> NoReturn:
    print("stopped by Ctrl-C", file=sys.stderr)
    leave(INTERRUPTED)


def _interrupt_again(dropped: Any) -> None:
    """Repeat an interrupt that Python dropped: in a weakref callback or `__del__` it cannot be raised."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        _interrupt_later()
    elif not _received:  # afterwards it may be of an object that Ctrl-C left half made
        sys.__unraisablehook__(dropped)


def _interrupt_later() -> None:
    """Repeat an interrupt when the function that could not raise it has ended."""
    main = threading.main_thread().ident
    again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, signal.SIGINT))
    again.daemon = True
    again.start()


def _ignore_interrupts() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> NoReturn:
    """End the process, its children and temporary files, without the shutdown of Python and torch, which
    takes half a second, on a busy machine more."""
    _ignore_interrupts()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the reader has closed the pipe
            stream.flush()
    os._exit(code)


def open_closed_streams() -> None:
    """Give stdin, stdout and stderr that were closed (`>&-`) the null device: otherwise the next opened
    file gets their descriptor, and output of libraries and child processes would be written to it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(handle, handle == number)
            setattr(sys, name, open(handle, "w" if number else "r", closefd=False))
