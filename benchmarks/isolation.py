"""A piece of work in a process of its own: what it reports as it goes reaches the caller, whatever becomes of the process."""
from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Report = Callable[[Any], None]
BEAT = "beat"  # a report that says nothing but "still alive"
_GRACE_S = 10.0  # from the work's last word to the end of its process


@dataclass(frozen=True)
class Outcome:
    """How the work ended: finished, or failed with a reason and, where Python raised it, a traceback."""

    status: Literal["finished", "failed"]
    reason: str | None = None
    traceback: str | None = None


def run_isolated(work: Callable[..., None], arguments: tuple[Any, ...], on_report: Report, *, stall_s: float | None = None,
                 limit_s: float | None = None) -> Outcome:
    """Run `work(*arguments, report)` in a fresh process.

    Args:
        work: a module-level function; it calls `report` with anything that pickles, as often as it likes.
        arguments: must pickle.
        on_report: gets every report in order, except BEAT.
        stall_s: a process that reports nothing for so long is ended.
        limit_s: a process that runs for so long is ended.

    Returns:
        How it ended. KeyboardInterrupt passes through, after the process has been ended.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(work, arguments, theirs), name="benchmark", daemon=False)
    process.start()
    theirs.close()
    try:
        return _follow(process, ours, on_report, stall_s, limit_s)
    except KeyboardInterrupt:
        process.kill()
        process.join()
        _drain(ours, on_report)
        raise
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()


def _follow(process: Any, reports: Any, on_report: Report, stall_s: float | None, limit_s: float | None) -> Outcome:
    end = time.monotonic() + limit_s if limit_s is not None else float("inf")
    while True:
        wait_s = min(end - time.monotonic(), float("inf") if stall_s is None else stall_s)
        ready = multiprocessing.connection.wait([reports], None if wait_s == float("inf") else max(wait_s, 0))
        if not ready or time.monotonic() >= end:
            late = f"reported nothing for {stall_s:g} s" if time.monotonic() < end else f"ran longer than its limit of {limit_s:g} s"
            return Outcome("failed", f"the process {late} and was ended")
        try:
            kind, value = reports.recv()
        except EOFError:
            process.join(_GRACE_S)
            return Outcome("failed", how_it_died(process.exitcode))
        if kind == "end":
            process.join(_GRACE_S)  # it still has to leave in order; after that it is ended
            return value
        if value != BEAT:
            on_report(value)


def _drain(reports: Any, on_report: Report) -> None:
    """Pass on what an ended process had reported and nobody had read."""
    try:
        while reports.poll():
            kind, value = reports.recv()
            if kind == "report" and value != BEAT:
                on_report(value)
    except (EOFError, OSError):
        return  # the end, or a report that was cut by the process's own


def how_it_died(code: int | None) -> str:
    """What an exit code says of a process that said nothing itself."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        why = "; the system ends processes so when memory runs out" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{why}"
    return f"the process ended without a word (exit code {code})"


def _in_child(work: Callable[..., None], arguments: tuple[Any, ...], reports: Any) -> None:
    """The process."""
    settle_in_child()
    try:
        work(*arguments, lambda value: reports.send(("report", value)))
        outcome = Outcome("finished")
    except BaseException as error:
        outcome = failure(error)
    reports.send(("end", outcome))
    reports.close()


def settle_in_child() -> None:
    """What every process of ours does first: Ctrl-C is the parent's to handle, stdout is for data, and nothing outlives the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def failure(error: BaseException) -> Outcome:
    """An exception as an outcome: one line that says what went wrong, and the traceback."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in text
    reason = f"out of memory: {text}" if memory else f"{type(error).__name__}: {text}"
    return Outcome("failed", reason, "".join(traceback.format_exception(error)))
