"""Persistent workers: they answer, and every way to fail is told."""

from __future__ import annotations

import gc
import os
import signal
import threading

import pytest

from detection_zoo.benchmarks.compare.workers import Worker, WorkerFailed
from detection_zoo.benchmarks.run.progress import beat


class Adder:
    """Adds, and fails as it is told."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise ValueError("a start below zero")
        self.total = start

    def add(self, number: int) -> int:
        beat()
        self.total += number
        return self.total

    def pid(self) -> int:
        return os.getpid()

    def frozen(self) -> int:
        return gc.get_freeze_count()

    def fail(self, how: str) -> None:
        match how:
            case "raise":
                raise ArithmeticError("no more numbers")
            case "memory":
                bytearray(2**60)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                threading.Event().wait()


@pytest.fixture
def worker():
    made = Worker("adder", Adder, (1,))
    yield made
    made.close()


def test_a_worker_keeps_its_state_between_calls(worker: Worker) -> None:
    assert [worker.call("add", number, stall_s=60) for number in (2, 3)] == [3, 6]
    assert worker.call("pid", stall_s=60) not in (
        os.getpid(),
        Worker("other", Adder, (1,)).call("pid", stall_s=60),
    )


def test_the_garbage_collector_does_not_walk_over_imports_while_a_worker_is_timed(worker: Worker) -> None:
    assert worker.call("frozen", stall_s=60) > 10_000


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "ArithmeticError: no more numbers"),
        ("memory", "out of memory"),
        ("kill", "ended by SIGKILL"),
        ("hang", "reported nothing for 1 s"),
    ],
)
def test_failures_are_told_and_leave_no_process(worker: Worker, how: str, said: str) -> None:
    pid = worker.call("pid", stall_s=60)
    with pytest.raises(WorkerFailed, match=said) as caught:
        worker.call("fail", how, stall_s=1 if how == "hang" else 60)
    assert caught.value.label == "adder" and (caught.value.outcome.traceback is not None) == (
        how in ("raise", "memory")
    )
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(WorkerFailed, match="ValueError: a start below zero"):
        Worker("adder", Adder, (-1,)).call("ready", stall_s=60)


def test_equal_processes_make_no_page_faults() -> None:
    """The allocator setting reaches the workers: memory that was used once is used again without a fault."""
    found = Worker("faults", Faults, ()).call("faults", stall_s=60)
    assert found < 200, (
        f"{found} page faults for 20 blocks of 40 MiB that were all used before (10,240 pages each)"
    )


class Faults:
    """Counts the page faults of using the same amount of memory again and again."""

    def faults(self) -> int:
        import resource

        def use() -> None:
            for _ in range(20):
                block = bytearray(b"x" * (40 * 2**20))
                del block

        use()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        use()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
