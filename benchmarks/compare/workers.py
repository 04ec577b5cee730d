"""Worker processes that build an object once and then answer calls over a pipe, one at a time; forked from a
server that has already imported torch."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
from collections.abc import Callable, Iterable
from typing import Any

from detection_zoo.benchmarks.run.isolation import (
    BEAT,
    Outcome,
    Settled,
    failure,
    freeze_objects,
    how_it_died,
    kill_with_children,
    same_allocator,
    starting_a_process,
)
from detection_zoo.benchmarks.run.progress import heartbeats

# the first ties the server to this process before torch is imported
PRELOADED = ["detection_zoo.benchmarks.compare.server", "detection_zoo.benchmarks.compare.preloaded"]
_LEAVE_S = 10.0


class WorkerFailed(RuntimeError):
    """A worker that raised, died or did not answer; `outcome` says which."""

    def __init__(self, label: str, outcome: Outcome) -> None:
        super().__init__(f"{label}: {outcome.reason}")
        self.label, self.outcome = label, outcome


class Worker:
    """The parent's side of one process.

    Args:
        label: name in error messages.
        build: a module-level class or function; called in the process with `arguments`.
        arguments: must pickle.
    """

    def __init__(self, label: str, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.label = label
        context = _context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(Settled(), build, arguments, theirs), name=f"worker {label}", daemon=True
        )
        self._process.start()
        theirs.close()

    def call(self, name: str, *arguments: Any, stall_s: float) -> Any:
        """Call a method of the built object.

        Args:
            name, arguments: method and its arguments; "ready" waits until the object is built.
            stall_s: a worker without progress for this many seconds is killed.

        Raises:
            WorkerFailed: the method raised, the process died, or it did not answer in time; the process
                has ended.
        """
        try:
            self._pipe.send((name, arguments))
        except OSError:
            raise self._fail(Outcome("failed", how_it_died(self._code()))) from None
        while True:
            try:
                if not self._pipe.poll(stall_s):
                    raise self._fail(
                        Outcome("failed", f"the process reported nothing for {stall_s:g} s and was killed")
                    )
                kind, value = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                raise self._fail(Outcome("failed", how_it_died(self._code()))) from None
            if kind == "failed":
                raise self._fail(value)
            if value != BEAT:
                return value

    def close(self) -> None:
        """End the process, with time for a normal exit."""
        self._pipe.close()
        self._process.join(_LEAVE_S)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        kill_with_children(self._process)

    def _code(self) -> int | None:
        self._process.join(_LEAVE_S)
        return self._process.exitcode

    def _fail(self, outcome: Outcome) -> WorkerFailed:
        self.kill()
        return WorkerFailed(self.label, outcome)


def preload(packages: Iterable[str]) -> None:
    """Import packages, such as timm, once in the server of later workers; missing ones are passed over."""
    PRELOADED[1:1] = sorted(set(packages) - {*PRELOADED})


def _context() -> Any:
    """Fork from a server that has imported torch but not used a GPU, so that a process starts in a fraction
    of a second. The parent handles Ctrl-C, from the server's first import on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with starting_a_process(), same_allocator():
        multiprocessing.forkserver.ensure_running()
    return context


def _serve(settled: None, build: Callable[..., Any], arguments: tuple[Any, ...], pipe: Any) -> None:
    """The process: build, then answer until the other end is closed."""
    try:
        with heartbeats(lambda: pipe.send(("beat", BEAT))):
            served = build(*arguments)
            freeze_objects()
            while True:
                try:
                    name, given = pipe.recv()
                except EOFError:
                    return
                pipe.send(("reply", None if name == "ready" else getattr(served, name)(*given)))
    except BaseException as error:
        try:
            pipe.send(("failed", failure(error)))
        except OSError:
            return  # the parent has closed the pipe
