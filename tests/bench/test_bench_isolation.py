"""Work in a process of its own: reports survive whatever becomes of the process."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from pickle import PicklingError
from typing import Any

import psutil
import pytest

from detection_zoo.benchmarks.run.isolation import BEAT, Limits, failure, kill_with_children, run_isolated
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.zoo.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]


def counts(upto: int, report) -> None:
    for number in range(upto):
        report({"number": number})
        report(BEAT)
    print("this is talk, and stdout is for data", flush=True)


def advances(report) -> None:
    with progress("steps", 8) as tick:
        for _ in range(8):
            time.sleep(0.5)
            tick()


class Interrupting:
    """Who reads it gets Ctrl-C meanwhile."""

    def __reduce__(self) -> tuple:
        return signal.raise_signal, (signal.SIGINT,)


def interrupts_its_reader(report) -> None:
    report({"number": 1, "other": Interrupting()})
    signal.pause()


def frozen(report) -> None:
    report({"frozen": gc.get_freeze_count()})


class Large:
    def __del__(self) -> None:
        print("taken down", flush=True)


def leaves_much(report) -> None:
    global large
    large = Large()
    atexit.register(print, "cleaned up", flush=True)


def breaks(kind: str, report) -> None:
    report("before")
    match kind:
        case "raise":
            raise ValueError("the wheel came off\nand rolled away")
        case "memory":
            bytearray(2**60)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "leave":
            os._exit(3)
        case "hang":
            threading.Event().wait()
        case "busy":
            while True:
                report(BEAT)
                time.sleep(0.01)
    raise AssertionError("not reached")


def stays(report) -> None:
    print(f"PID {os.getpid()}", file=sys.stderr, flush=True)
    threading.Event().wait()


def test_reports_arrive_in_order_and_talk_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    seen = []
    outcome = run_isolated(counts, (5,), seen.append, limits=Limits(stall_s=60))
    assert outcome.status == "finished" and outcome.reason is None
    assert seen == [{"number": number} for number in range(5)]
    out, err = capfd.readouterr()
    assert "talk" in err and "talk" not in out


def test_each_step_of_a_progress_bar_is_a_heartbeat() -> None:
    seen = []
    assert run_isolated(advances, (), seen.append, limits=Limits(stall_s=3)).status == "finished"
    assert seen == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raise", "ValueError: the wheel came off"),
        ("memory", "out of memory"),
        ("kill", "ended by SIGKILL; typically the out-of-memory killer"),
        ("fault", "ended by SIGSEGV"),
        ("leave", "without a message (exit code 3)"),
        ("hang", "reported nothing for 0.5 s"),
        ("busy", "longer than its limit of 6 s"),
    ],
)
def test_every_way_to_fail_is_told_and_keeps_what_was_reported(kind: str, said: str) -> None:
    seen = []
    outcome = run_isolated(
        breaks,
        (kind,),
        seen.append,
        limits=Limits(stall_s=0.5 if kind == "hang" else 60, limit_s=6 if kind == "busy" else None),
    )
    assert outcome.status == "failed" and said in outcome.reason and "\n" not in outcome.reason
    assert (outcome.traceback is not None) == (kind in ("raise", "memory"))
    assert seen == ["before"] or kind == "hang"  # a process may still be starting when half a second is over


def test_the_garbage_collector_does_not_walk_over_imports() -> None:
    reports: list[dict[str, int]] = []
    assert run_isolated(frozen, (), reports.append, limits=Limits(stall_s=60)).status == "finished"
    assert reports[0]["frozen"] > 10_000


def test_an_ended_process_takes_nothing_down_object_by_object(capfd: pytest.CaptureFixture[str]) -> None:
    """All modules of torch would take half a second."""
    assert run_isolated(leaves_much, (), print).status == "finished"
    assert capfd.readouterr().err == "cleaned up\n"


def test_a_process_does_not_outlive_its_parent() -> None:
    code = (
        "from test_bench_isolation import stays; from detection_zoo.benchmarks.run.isolation import"
        " run_isolated\nif __name__ == '__main__': run_isolated(stays, (), print)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'bench'}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    child = int(next(line for line in parent.stderr if line.startswith("PID")).split()[1])
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    # the pipe to stderr closes when the last process that holds it has ended
    closed = threading.Thread(target=parent.stderr.read, daemon=True)
    closed.start()
    closed.join(30)
    assert not closed.is_alive(), f"process {child} is still there"
    parent.stderr.close()


def shows_a_bar(report) -> None:
    from detection_zoo.benchmarks.run.progress import progress

    with progress("a bar", 1):
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_ended_process_with_a_bar_leaves_no_semaphore_behind() -> None:
    """Python's resource tracker warned of one at the end of every sweep that Ctrl-C had stopped."""
    code = (
        "from test_bench_isolation import shows_a_bar; from detection_zoo.benchmarks.run.isolation import"
        " run_isolated\nif __name__ == '__main__': print(run_isolated(shows_a_bar, (), print).reason)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'bench'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "ended by SIGKILL" in done.stdout and "leaked" not in done.stderr


def test_a_reason_is_one_line_and_keeps_what_our_own_errors_name() -> None:
    ours = failure(
        CheckpointError("a.pth: 1 missing\n  missing from the file: fc.bias\n  is it the file of this row?")
    )
    assert (
        ours.reason == "CheckpointError: a.pth: 1 missing; missing from the file: fc.bias; is it the file"
        " of this row?"
    )
    assert failure(RuntimeError("sizes differ\n  (at some kernel)\n")).reason == "RuntimeError: sizes differ"
    assert failure(ValueError("")).reason == "ValueError: no message"


SLEEPS = "import os, sys, time\nprint(f'PID {os.getpid()}', file=sys.stderr, flush=True)\ntime.sleep(600)\n"
IMPORTING = {
    "run": "import long_import_twin; from detection_zoo.benchmarks.run.isolation import"
    " run_isolated\nif __name__ == '__main__': run_isolated(print, (long_import_twin.Value(),), print)",
    "compare": "from detection_zoo.benchmarks.compare import workers\nif __name__ == '__main__':\n"
    "    workers.PRELOADED[1:] = ['long_import']; workers.Worker('a', print, ())",
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("command", IMPORTING)
def test_a_process_that_still_imports_ends_with_its_parent(
    command: str, number: signal.Signals, tmp_path: Path
) -> None:
    """The import of torch takes seconds, on a busy machine many."""
    (tmp_path / "long_import.py").write_text(SLEEPS)
    twin = "class Value:\n    def __reduce__(self):\n        return __import__, ('long_import',)\n"
    (tmp_path / "long_import_twin.py").write_text(twin)
    parent = subprocess.Popen(
        [sys.executable, "-c", IMPORTING[command]],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    child = int(next(line for line in parent.stderr if line.startswith("PID")).split()[1])
    os.killpg(parent.pid, number) if number == signal.SIGINT else parent.send_signal(number)
    said: list[str] = []
    closed = threading.Thread(target=lambda: said.extend(parent.stderr), daemon=True)
    closed.start()
    closed.join(60)
    assert not closed.is_alive(), f"process {child} is still there"
    parent.wait(60)
    assert "".join(said).count("Traceback") <= (number == signal.SIGINT)  # the parent's own
    parent.stderr.close()


def test_a_process_that_ctrl_c_interrupts_at_its_start_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is interrupted when the start is over, also where another thread gets the signal."""
    start, started = BaseProcess.start, []

    def interrupted(process: BaseProcess) -> None:
        other.submit(signal.raise_signal, signal.SIGINT).result()
        start(process)
        started.append(process)

    monkeypatch.setattr(BaseProcess, "start", interrupted)
    with ThreadPoolExecutor(1) as other, pytest.raises(KeyboardInterrupt):
        other.submit(int).result()  # its thread has begun, and does not block the signal
        run_isolated(stays, (), print)
    assert [process.exitcode for process in started] == [-signal.SIGKILL]


def test_a_process_that_ends_while_it_is_killed_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between what is asked of it and the look for what it has started."""
    process = get_context("fork").Process(target=signal.pause)
    process.start()
    children = psutil.Process.children

    def ends(parent: psutil.Process, **options: Any) -> list[psutil.Process]:
        process.kill()
        process.join()
        return children(parent, **options)

    monkeypatch.setattr(psutil.Process, "children", ends)
    kill_with_children(process)
    assert process.exitcode == -signal.SIGKILL


def test_a_process_that_cannot_start_says_why() -> None:
    with pytest.raises((AttributeError, PicklingError), match="pickle"):
        run_isolated(lambda report: None, (), print)


def test_a_report_that_ctrl_c_interrupts_is_kept() -> None:
    reports: list[dict[str, object]] = []
    with pytest.raises(KeyboardInterrupt):
        run_isolated(interrupts_its_reader, (), reports.append)
    assert reports == [{"number": 1, "other": None}]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
