"""A piece of work in its own process: its reports reach the caller as they are made, whatever becomes of
the process."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detection_zoo.zoo.errors import ZooError

Report = Callable[[Any], None]
BEAT = "beat"  # a report that says nothing but "still alive"
MEMORY_POLL_S = 0.1
# Left alone, glibc gives freed memory back and fetches it again, or not, as the history of each process has
# it: of two equal processes one had 13,700 page faults an image and the other 7,800, and was 7.5 % faster.
# Memory that is kept, in large pages where the system has them, ends that.
TUNABLES = "GLIBC_TUNABLES"  # read by glibc when a program starts
ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=67108864"
)
ALLOCATOR_NOTE = (
    "freed memory is kept (glibc: no mmap, no trim, huge pages), since page faults differ from process to"
    " process"
)
_ENVIRONMENT = threading.RLock()
_GRACE_S = 10.0  # from the work's last word to the end of its process
_PARENT_POLL_S = 0.5
_PARENT = "DETECTION_ZOO_PARENT"  # who started a process of ours
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent ends


@contextmanager
def _in_environment(name: str, value: str) -> Iterator[None]:
    with _ENVIRONMENT:
        before = os.environ.get(name)
        os.environ[name] = value
        try:
            yield
        finally:
            os.environ.pop(name) if before is None else os.environ.update({name: before})


@contextmanager
def same_allocator() -> Iterator[None]:
    """Processes started inside the block have the settings of ALLOCATOR, whatever measures in them."""
    with _in_environment(TUNABLES, ALLOCATOR):
        yield


@contextmanager
def starting_a_process() -> Iterator[None]:
    """A process started inside the block gets its parent's id and ignores Ctrl-C; here that comes after the
    block."""
    multiprocessing.resource_tracker.ensure_running()  # later, it would end the block of the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _in_environment(_PARENT, str(os.getpid())):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Outcome:
    """How the work ended: finished, or failed with a reason and, where Python raised it, a traceback."""

    status: Literal["finished", "failed"]
    reason: str | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class Limits:
    """When a process is ended.

    stall_s: it has reported nothing for so long. limit_s: it has run for so long. memory_mib: it and its
        children hold more than that in the machine's
    memory; without such a limit the system would end some process of its own choice when memory runs out.
    """

    stall_s: float | None = None
    limit_s: float | None = None
    memory_mib: float | None = None

    def exceeded(self, running_s: float, silent_s: float, process: Any) -> str | None:
        """What is wrong with a process that has run and been silent for so long, or None."""
        if self.limit_s is not None and running_s >= self.limit_s:
            return f"the process ran longer than its limit of {self.limit_s:g} s and was killed"
        if self.stall_s is not None and silent_s >= self.stall_s:
            return f"the process reported nothing for {self.stall_s:g} s and was killed"
        if self.memory_mib is not None and (used := _resident_mib(process.pid)) > self.memory_mib:
            return (
                f"out of memory: the process held {used:.0f} MiB, its limit is {self.memory_mib:.0f} MiB, and"
                " was ended"
            )
        return None

    def wait_s(self, running_s: float, silent_s: float) -> float | None:
        """How long nothing can be exceeded unseen; None for ever."""
        waits = [
            limit - passed
            for limit, passed in ((self.limit_s, running_s), (self.stall_s, silent_s))
            if limit is not None
        ]
        waits += [MEMORY_POLL_S] if self.memory_mib is not None else []
        return max(min(waits), 0.0) if waits else None


def usable_memory_mib(share: float = 0.9) -> float:
    """That share of the memory which is free now, for this machine or container."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit, used = (
            Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current")
        )
        free = min(free, int(limit) - int(used)) if limit != "max" else free
    except OSError:
        pass  # no such container
    return share * free / 2**20


def _resident_mib(pid: int) -> float:
    """Memory that a process and its children hold; 0 for one that has just ended."""
    import psutil

    try:
        parent = psutil.Process(pid)
        return (
            sum(process.memory_info().rss for process in [parent, *parent.children(recursive=True)]) / 2**20
        )
    except psutil.NoSuchProcess:
        return 0.0


def run_isolated(
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    on_report: Report,
    *,
    stall_s: float | None = None,
    limit_s: float | None = None,
    memory_mib: float | None = None,
    environment: dict[str, str] | None = None,
    cancel: Any = None,
    keep_memory: bool = False,
) -> Outcome:
    """Run `work(*arguments, report)` in a fresh process.

    Args:
        work: a module-level function; it calls `report` with anything that pickles, as often as it likes.
        arguments: must pickle.
        on_report: gets every report in order, except BEAT.
        stall_s, limit_s, memory_mib: see `Limits`.
        environment: variables set in the process before the work begins.
        cancel: a connection; when something is to be read from it, or its other end closes, the work is ended
            as by Ctrl-C.
        keep_memory: with the allocator's settings of ALLOCATOR, for times that can be compared.

    Returns:
        How it ended. KeyboardInterrupt passes through, after the process has been ended.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_in_child,
        args=(Settled(), work, arguments, theirs, environment or {}),
        name="benchmark",
        daemon=False,
    )
    with same_allocator() if keep_memory else nullcontext(), starting_a_process():
        process.start()
    theirs.close()
    try:
        return _follow(
            process, ours, on_report, Limits(stall_s, limit_s, memory_mib), [] if cancel is None else [cancel]
        )
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


def _follow(process: Any, reports: Any, on_report: Report, limits: Limits, cancel: list[Any]) -> Outcome:
    started = heard = time.monotonic()
    while True:
        now = time.monotonic()
        ready = multiprocessing.connection.wait([reports, *cancel], limits.wait_s(now - started, now - heard))
        if any(one in ready for one in cancel):
            raise KeyboardInterrupt
        if reports in ready:
            try:
                kind, value = reports.recv()
            except EOFError:
                process.join(_GRACE_S)
                return Outcome("failed", how_it_died(process.exitcode))
            heard = time.monotonic()
            if kind == "end":
                process.join(_GRACE_S)  # it still has to leave in order; after that it is ended
                return value
            if value != BEAT:
                on_report(value)
        now = time.monotonic()
        if wrong := limits.exceeded(now - started, now - heard, process):
            return Outcome("failed", wrong)


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
    """What an exit code says about a process that reported nothing itself."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        why = "; typically the out-of-memory killer" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{why}"
    return f"the process ended without a message (exit code {code})"


def _in_child(
    settled: None,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    reports: Any,
    environment: dict[str, str],
) -> None:
    """The process."""
    os.environ.update(environment)
    freeze_objects()
    try:
        work(*arguments, lambda value: reports.send(("report", value)))
        outcome = Outcome("finished")
    except BaseException as error:
        outcome = failure(error)
    reports.send(("end", outcome))
    reports.close()


def freeze_objects() -> None:
    """Take what is there now, above all what imports made, out of the garbage collector's sight: a full
    collection walks over all of it, which takes 0.2 s of some timed iteration."""
    gc.collect()
    gc.freeze()


class Settled:
    """The first argument of a process: it calls `settle_in_child` there, before the arguments behind it
    import torch, which takes seconds; the process sees None."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return settle_in_child, ()


def settle_in_child() -> None:
    """What every process of ours does first: Ctrl-C is the parent's to handle, stdout is for data, and
    nothing outlives the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    end_with_parent()


def end_with_parent() -> None:
    """End this process when its parent has ended: by Linux at once, else by a thread that looks now and
    then."""
    parent = int(os.environ.pop(_PARENT, os.getppid()))
    asked = sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0
    if os.getppid() != parent:  # it had ended before
        os._exit(1)
    if not asked:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)  # house: allowed, no event tells of it
    os._exit(1)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports exhausted memory: Python's, the processor's or the GPU's."""
    phrases = (
        *("can't allocate memory", "_ALLOC_FAILED"),  # torch on a CPU; cuDNN and cuBLAS
        "CUDA error: out of memory",  # torch.AcceleratorError
        *("CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation"),  # CuPy: the driver, the runtime
    )
    return (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or any(words in str(error) for words in phrases)
    )


def failure(error: BaseException) -> Outcome:
    """An exception as an outcome: one line that says what went wrong, and the traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or ["no message"]
    text = (
        "; ".join(lines) if isinstance(error, ZooError) else lines[0]
    )  # ours name what is wrong in all of their lines
    reason = f"out of memory: {text}" if out_of_memory(error) else f"{type(error).__name__}: {text}"
    return Outcome("failed", reason, "".join(traceback.format_exception(error)))
