"""Planted faults: whatever a model, a disk or another sweep does, no earlier record is lost and no other
model is stopped. Every process of these tests imports this file, so torch is imported where it is used."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from forked import ROOT, Forked, run_forked
from records import MACHINE, make_small_shapes, measured, run_of

from detection_zoo.benchmarks.run.arguments import chosen_rows
from detection_zoo.benchmarks.run.groups import measure
from detection_zoo.benchmarks.run.isolation import Limits, run_isolated, usable_memory_mib
from detection_zoo.benchmarks.run.jobs import run_parallel, slots_of
from detection_zoo.benchmarks.run.options import SweepOptions
from detection_zoo.benchmarks.run.subject import Sources, identify_data, open_data
from detection_zoo.benchmarks.run.sweep import Sweep, keep, run_sweep, store_unsaved
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.benchmarks.store import read_runs, write_record
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest_files import load_manifests

FIRST, SICK, LAST = (
    "mask_rcnn_resnet10t_fpn_slim.timm",
    "mask_rcnn_resnet14_slim_fpn.demo",
    "mask_rcnn_vovnet27_tiny_fpn.demo",
)
WITH_TESTS = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'tests' / 'bench'}"}
SPEC, SOURCES = BenchmarkSpec(images=2), Sources("shapes")


@pytest.fixture(scope="module", autouse=True)
def shapes_home(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTION_ZOO_HOME", str(make_small_shapes(tmp_path_factory.mktemp("home"))))
        yield


def healthy(row: str, spec: BenchmarkSpec, sources, weights: str, folder: Path, report) -> None:
    report(
        {
            "stage": "timing",
            "environment": MACHINE,
            "data": identify_data(open_data(load_manifests().entry(row), sources.data, spec.images)),
        }
    )
    report({"measurements": {"model_ms": measured(20.0, "ms")}})


def hangs(row: str, *rest) -> None:
    healthy(row, *rest)
    if row == SICK:
        threading.Event().wait()


def leaks(row: str, *rest) -> None:
    healthy(row, *rest)
    held, pause = [], threading.Event()
    while row == SICK:
        held.append(b"x" * 2**24)
        pause.wait(0.02)  # without it the process holds many GiB before it is ended


def exhausts(row: str, *rest) -> None:
    healthy(row, *rest)
    if row == SICK:
        import torch

        torch.empty(2**60)


def kills_itself(row: str, *rest) -> None:
    healthy(row, *rest)
    if row == SICK:
        os.kill(os.getpid(), signal.SIGKILL)


def faults(row: str, *rest) -> None:
    healthy(row, *rest)
    if row == SICK:
        os.kill(os.getpid(), signal.SIGSEGV)


def gives_nan(row: str, spec: BenchmarkSpec, sources, weights: str, folder: Path, report) -> None:
    """The real measurement of a real model, one of whose weights is NaN."""
    if row != SICK:
        healthy(row, spec, sources, weights, folder, report)
        return
    import torch

    from detection_zoo.benchmarks.run.subject import prepare

    entry = load_manifests().entry(row)
    subject = prepare(entry, spec, open_data(entry, sources.data, spec.images), weights)
    with torch.no_grad():
        for parameter in subject.model.box.parameters():
            parameter.fill_(math.nan)
    report({"environment": MACHINE})
    quick = spec.model_copy(update={"groups": ("inference",), "warm_up_budget_s": 0.1, "time_budget_s": 0.1})
    for found in measure(subject, quick):
        report(found)


FAULTS = [
    (hangs, {"stall_s": 10.0}, "reported nothing for 10 s"),
    (leaks, {"memory_mib": 700.0}, "out of memory: the process held"),
    (exhausts, {}, "out of memory"),
    (kills_itself, {}, "ended by SIGKILL"),
    (faults, {}, "ended by SIGSEGV"),
    (gives_nan, {}, "not finite"),
]


@pytest.mark.usefixtures("forked_measurements")
@pytest.mark.parametrize(("work", "limits", "said"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_sick_model_is_a_record_and_stops_nobody(tmp_path: Path, work, limits: dict, said: str) -> None:
    store = tmp_path / "runs"
    earlier = run_of("a.demo", {"model_ms": measured(1.0, "ms")})
    write_record(store, earlier)
    sweep = run_sweep(
        chosen_rows([SICK, LAST]),
        SPEC,
        SOURCES,
        SweepOptions(store, limits=Limits(**{"stall_s": 120.0, **limits})),
        work=work,
    )
    stored = read_runs(store)
    found = {run.row: run for run in stored.runs}
    assert found["a.demo"] == earlier and found[LAST].status == "finished" and not stored.problems
    assert found[SICK].status == "failed" and said in found[SICK].reason, found[SICK].reason
    if work is not gives_nan:
        assert found[SICK].measurements["model_ms"].value == 20.0, "what it had reported is kept"
    assert [run.row for run in sweep.failed] == [SICK] and not sweep.interrupted


def test_a_leak_is_ended_long_before_the_machine_is_out_of_memory() -> None:
    assert 100 < usable_memory_mib() and usable_memory_mib(0.5) < usable_memory_mib()
    started: list[int] = []
    outcome = run_isolated(leak_children, (), started.append, limits=Limits(memory_mib=400.0, limit_s=60))
    assert "its limit is 400 MiB" in outcome.reason, "memory of children counts too"
    (child,), last, pause = started, time.monotonic() + 10, threading.Event()
    while running(child) and time.monotonic() < last:
        pause.wait(0.01)
    assert not running(child), "it is killed with its parent"


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait to be reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def leak_children(report: Callable[[int], None]) -> None:
    code = "import time; held = []\nwhile True: held.append(b'x' * 2**23); time.sleep(0.01)"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        report(child.pid)


def sweep_on_a_small_disk(store: str, limit_bytes: int) -> None:
    """A sweep in a process whose files may not grow beyond a limit: what a full disk does to a writer, by the
    system itself."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    said: list[str] = []
    sweep = run_sweep(
        chosen_rows([SICK, LAST]),
        SPEC,
        SOURCES,
        SweepOptions(Path(store), isolate=False),
        said.append,
        work=healthy,
    )
    assert len(sweep.unsaved) == 2 and not sweep.failed and len(sweep.runs) == 2, (
        "both were measured, none could be stored"
    )
    assert "2 COULD NOT BE STORED" in sweep.summary() and any("free some disk space" in line for line in said)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )  # somebody made room
    store_unsaved(Path(store), sweep, said.append)
    assert not sweep.unsaved


def test_a_disk_that_fills_loses_no_record_and_stops_no_model(tmp_path: Path) -> None:
    store = tmp_path / "runs"
    write_record(store, run_of("a.demo", {}))
    code = f"import test_bench_faults as t; t.sweep_on_a_small_disk({str(store)!r}, 300)"
    done = run_forked("-c", code, environment=WITH_TESTS)
    assert done.returncode == 0, done.stderr
    stored = read_runs(store)
    assert sorted(run.row for run in stored.runs) == sorted(["a.demo", SICK, LAST]) and not stored.problems, (
        "nothing half-written was left behind"
    )


def test_a_later_record_saves_those_that_found_no_room(tmp_path: Path) -> None:
    sweep, store = Sweep(), tmp_path / "runs"
    store.write_text("a file stands where the folder should be")
    keep(run_of("a.demo", {}), store, sweep, lambda text: None)
    assert len(sweep.unsaved) == 1
    store.unlink()
    keep(run_of("b.demo", {}), store, sweep, lambda text: None)
    assert not sweep.unsaved and {run.row for run in read_runs(store).runs} == {"a.demo", "b.demo"}


def test_a_record_cut_in_half_is_told_and_measured_again(tmp_path: Path) -> None:
    options, said = SweepOptions(tmp_path / "runs", isolate=False), []
    run_sweep(chosen_rows([SICK, LAST]), SPEC, SOURCES, options, work=healthy)
    cut = next((tmp_path / "runs").glob(f"*{SICK}*"))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    again = run_sweep(chosen_rows([SICK, LAST]), SPEC, SOURCES, options, said.append, work=healthy)
    assert sorted(run.row for run in again.known + again.runs) == sorted([SICK, LAST])
    assert [run.row for run in again.runs if run.row == SICK] == [SICK] and any(
        "truncated" in line for line in said
    )


def test_two_sweeps_at_once_share_a_store_with_a_sick_model(tmp_path: Path) -> None:
    code = (
        "import sys, test_bench_faults as t\nfrom pathlib import Path\nif __name__ == '__main__':\n   "
        " t.run_sweep(t.chosen_rows([t.SICK, t.LAST]), t.SPEC, t.SOURCES, t.SweepOptions(Path(sys.argv[1])),"
        " work=t.kills_itself)"
    )
    both = [Forked("-c", code, tmp_path / "runs", environment=WITH_TESTS, forks=True) for _ in range(2)]
    assert [process.finish()[0] for process in both] == [0, 0]
    stored = read_runs(tmp_path / "runs")
    assert (
        sorted((run.row, run.status) for run in stored.runs)
        == sorted([(SICK, "failed")] * 2 + [(LAST, "finished")] * 2)
        and not stored.problems
    )


def test_several_jobs_at_once_do_not_disturb_each_others_records(tmp_path: Path) -> None:
    sweep = run_sweep(
        chosen_rows([FIRST, SICK, LAST]),
        SPEC,
        SOURCES,
        SweepOptions(tmp_path / "runs", jobs=3),
        work=kills_itself,
    )
    assert {run.row: run.status for run in read_runs(tmp_path / "runs").runs} == {
        FIRST: "finished",
        SICK: "failed",
        LAST: "finished",
    }
    assert len(sweep.runs) == 3 and not sweep.interrupted


def one_of_two_is_interrupted(row: str, *rest) -> None:
    healthy(row, *rest)
    if row == SICK:
        os.kill(os.getppid(), signal.SIGINT)
    threading.Event().wait()


def test_ctrl_c_ends_every_job_and_keeps_what_they_had_measured(tmp_path: Path) -> None:
    rows = [SICK, LAST, FIRST]
    sweep = run_sweep(
        chosen_rows(rows),
        SPEC,
        SOURCES,
        SweepOptions(tmp_path / "runs", jobs=2),
        work=one_of_two_is_interrupted,
    )
    found = {run.row: run for run in read_runs(tmp_path / "runs").runs}
    assert (
        sweep.interrupted
        and set(found) == {SICK, LAST}
        and {run.status for run in found.values()} == {"interrupted"}
    )
    assert found[SICK].measurements["model_ms"].value == 20.0


def test_each_job_sees_its_own_gpu_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert slots_of(2, "cuda") == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}] and slots_of(
        2, "cpu"
    ) == [{}, {}]
    with pytest.raises(ManifestError, match="has 2 visible GPUs"):
        slots_of(3, "cuda")
    seen: list[str] = []
    run_isolated(tells_its_gpu, (), seen.append, environment={"CUDA_VISIBLE_DEVICES": "5"})
    assert seen == ["5"]


def tells_its_gpu(report) -> None:
    report(os.environ["CUDA_VISIBLE_DEVICES"])


def test_a_fault_of_ours_in_one_job_is_raised_after_the_others_have_ended() -> None:
    def one(piece: int, slot: dict, cancel) -> int:
        if piece == 0:
            raise ZeroDivisionError("ours")
        assert cancel.poll(60), "it is told to end"
        return piece

    with pytest.raises(ZeroDivisionError):
        run_parallel([0, 1, 2, 3], one, lambda piece, result: None, [{}, {}])
