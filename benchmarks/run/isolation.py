"""Run work in its own process; its reports reach the caller immediately, even if the process
fails later."""

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
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from detection_zoo.benchmarks.run.progress import heartbeats
from detection_zoo.zoo.entry import collect_rarely, leave
from detection_zoo.zoo.errors import ZooError

Report = Callable[[Any], None]
BEAT = "beat"  # a report that only says "still alive"
MEMORY_POLL_S = 0.1
# By default, glibc returns freed memory to the system or not, depending on each process's history:
# of two equal processes, one had 13,700 page faults per image and the other 7,800, and was 7.5 %
# faster. Keeping freed memory, in huge pages where available, avoids this.
TUNABLES = "GLIBC_TUNABLES"  # read by glibc at program start
ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=67108864"
)
ALLOCATOR_NOTE = (
    "freed memory is kept (glibc: no mmap, no trim, huge pages), because page faults vary between processes"
)
_ENVIRONMENT = threading.RLock()
_GRACE_S = 10.0  # seconds between the last report and the end of the process
_PARENT_POLL_S = 0.5
_PARENT = "DETECTION_ZOO_PARENT"  # process ID of the parent that started this process
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal sent to a process when its parent ends


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
    """Processes started inside this block use the allocator settings of ALLOCATOR."""
    with _in_environment(TUNABLES, ALLOCATOR):
        yield


@contextmanager
def starting_a_process() -> Iterator[None]:
    """A process started inside this block gets its parent's ID and ignores Ctrl-C; in this process Ctrl-C is
    handled after the block."""
    multiprocessing.resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it inherits that
    try:
        with _interrupted_later(), _in_environment(_PARENT, str(os.getpid())):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C and SIGTERM are handled after the block, which neither starts half a process nor reads half a
    report. A signal that is blocked in this thread may come through another."""
    numbers: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    kinds = [kind for kind in (signal.SIGINT, signal.SIGTERM) if main and signal.getsignal(kind)]
    before = [(kind, signal.signal(kind, lambda number, _: numbers.append(number))) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in before:
            signal.signal(kind, handler)
        if numbers:
            signal.raise_signal(numbers[0])


@dataclass(frozen=True)
class Outcome:
    """How the work ended: finished, or failed with a reason and, for a Python exception, a traceback."""

    status: Literal["finished", "failed"]
    reason: str | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class Limits:
    """Limits at which a process is killed.

    stall_s: seconds without a report. limit_s: run time in seconds. memory_mib: memory of the process and
    its children; without this limit, the system would kill any process when memory runs out.
    """

    stall_s: float | None = None
    limit_s: float | None = None
    memory_mib: float | None = None

    def with_memory(self, share: float = 1.0) -> Limits:
        """These limits; without a limit of memory, with this share of the usable memory."""
        return replace(self, memory_mib=self.memory_mib or share * usable_memory_mib())

    def exceeded(self, running_s: float, silent_s: float, process: Any) -> str | None:
        """Return which limit a process exceeded, or None."""
        if self.limit_s is not None and running_s >= self.limit_s:
            return f"the process ran longer than its limit of {self.limit_s:g} s and was killed"
        if self.stall_s is not None and silent_s >= self.stall_s:
            return f"the process reported nothing for {self.stall_s:g} s and was killed"
        if self.memory_mib is not None and (used := _resident_mib(process.pid)) > self.memory_mib:
            return (
                f"out of memory: the process held {used:.0f} MiB, its limit is {self.memory_mib:.0f}"
                " MiB; it was killed"
            )
        return None

    def wait_s(self, running_s: float, silent_s: float) -> float | None:
        """Return the seconds until the next check is needed; None: never."""
        waits = [
            limit - passed
            for limit, passed in ((self.limit_s, running_s), (self.stall_s, silent_s))
            if limit is not None
        ]
        waits += [MEMORY_POLL_S] if self.memory_mib is not None else []
        return max(min(waits), 0.0) if waits else None


NO_LIMITS = Limits()


def usable_memory_mib(share: float = 0.9) -> float:
    """Return this fraction of the free memory of the machine or container."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit, used = (
            Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current")
        )
        free = min(free, int(limit) - int(used)) if limit != "max" else free
    except OSError:
        pass  # not a container with a memory limit
    return share * free / 2**20


def _resident_mib(pid: int) -> float:
    """Return the memory of a process and its children in MiB; 0 if it has just ended."""
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
    limits: Limits = NO_LIMITS,
    environment: dict[str, str] | None = None,
    cancel: Any = None,
    keep_memory: bool = False,
) -> Outcome:
    """Run `work(*arguments, report)` in a fresh process.

    Args:
        work: a module-level function; it may call `report` with any picklable object, any number of times.
        arguments: must pickle.
        on_report: called with every report in order, except BEAT.
        limits: at which the process is killed.
        environment: environment variables set in the process before the work begins.
        cancel: a connection; if it becomes readable or its other end closes, the work is
            stopped as by Ctrl-C.
        keep_memory: use the allocator settings of ALLOCATOR, so that times are comparable.

    Returns:
        How it ended. KeyboardInterrupt is re-raised after the process has been ended.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    given = (Settled(), work, arguments, theirs, environment or {})
    process = context.Process(target=_in_child, args=given, name="benchmark", daemon=False)
    try:
        with same_allocator() if keep_memory else nullcontext(), starting_a_process():
            process.start()
        theirs.close()
        return _follow(process, ours, on_report, limits, [] if cancel is None else [cancel])
    except KeyboardInterrupt:
        kill_with_children(process)
        _drain(ours, on_report)
        raise
    finally:
        kill_with_children(process)
        ours.close()


def kill_with_children(process: Any) -> None:
    """Kill a process and what it has started, and wait for its end; nothing if it has ended or not begun."""
    import psutil

    with suppress(psutil.NoSuchProcess):  # it ends meanwhile
        if process.is_alive():
            parent = psutil.Process(process.pid)
            for one in [parent, *parent.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
    if process.pid is not None:
        process.join()


def _follow(process: Any, reports: Any, on_report: Report, limits: Limits, cancel: list[Any]) -> Outcome:
    started = heard = time.monotonic()
    while True:
        now = time.monotonic()
        ready = multiprocessing.connection.wait([reports, *cancel], limits.wait_s(now - started, now - heard))
        if any(one in ready for one in cancel):
            raise KeyboardInterrupt
        if reports in ready:
            try:
                with _interrupted_later():
                    kind, value = reports.recv()
                    if kind == "report" and value != BEAT:
                        on_report(value)
            except EOFError:
                process.join(_GRACE_S)
                return Outcome("failed", how_it_died(process.exitcode))
            heard = time.monotonic()
            if kind == "end":
                process.join(_GRACE_S)  # time for a normal exit; after that it is killed
                return value
        now = time.monotonic()
        if wrong := limits.exceeded(now - started, now - heard, process):
            return Outcome("failed", wrong)


def _drain(reports: Any, on_report: Report) -> None:
    """Pass on unread reports of an ended process."""
    try:
        while reports.poll():
            kind, value = reports.recv()
            if kind == "report" and value != BEAT:
                on_report(value)
    except (EOFError, OSError):
        return  # end of file, or a report cut off by the end of the process


def how_it_died(code: int | None) -> str:
    """Describe the exit code of a process that did not report a failure."""
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
        with heartbeats(lambda: reports.send(("report", BEAT))):
            work(*arguments, lambda value: reports.send(("report", value)))
        outcome = Outcome("finished")
    except BaseException as error:
        outcome = failure(error)
    reports.send(("end", outcome))
    reports.close()
    leave(0)


def freeze_objects() -> None:
    """Exclude existing objects, mainly imported modules, from garbage collection:
    a full collection would add 0.2 s to a timed iteration."""
    gc.collect()
    gc.freeze()


class Settled:
    """First argument of a process: unpickling it calls `settle_in_child` before the later arguments
    import torch, which takes seconds. The process receives None."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return settle_in_child, ()


def settle_in_child() -> None:
    """Set up a child process: the parent handles Ctrl-C, stdout is reserved for data, and the
    child ends with its parent."""
    collect_rarely()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    end_with_parent()


def end_with_parent() -> None:
    """End this process when its parent ends: immediately on Linux, elsewhere by a polling
    thread."""
    parent = int(os.environ.pop(_PARENT, os.getppid()))
    asked = sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0
    if os.getppid() != parent:  # it had ended before
        os._exit(1)
    if not asked:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)  # house: allowed, there is no event for it
    os._exit(1)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means out of memory, in Python, on the CPU or on the GPU."""
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
    """Convert an exception to an outcome: a one-line reason and the traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or ["no message"]
    # this project's errors use all their lines
    text = "; ".join(lines) if isinstance(error, ZooError) else lines[0]
    reason = f"out of memory: {text}" if out_of_memory(error) else f"{type(error).__name__}: {text}"
    return Outcome("failed", reason, "".join(traceback.format_exception(error)))
