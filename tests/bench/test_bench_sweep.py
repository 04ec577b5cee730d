"""Sweeps: nothing that fails stops the rest, what is stored is not measured again, and a kill loses the model
in progress only."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from forked import ROOT, Forked
from records import MACHINE, make_small_shapes, measured

from detection_zoo.benchmarks.environment import cpu_name
from detection_zoo.benchmarks.run.arguments import chosen_rows
from detection_zoo.benchmarks.run.options import SweepOptions
from detection_zoo.benchmarks.run.runner import Draft, Interrupted, run_row
from detection_zoo.benchmarks.run.subject import Sources, identify_data, open_data
from detection_zoo.benchmarks.run.sweep import run_sweep
from detection_zoo.benchmarks.spec import BenchmarkSpec, WeightsIdentity
from detection_zoo.benchmarks.store import read_runs
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest_files import load_manifests

ROWS = [
    "mask_rcnn_resnet14_slim_fpn.demo",
    "mask_rcnn_vovnet27_tiny_fpn.demo",
    "faster_rcnn_resnet50_fpn_2x.vovnet",
]
SOURCES = Sources("shapes")
SPEC = BenchmarkSpec(images=2)


@pytest.fixture(scope="module", autouse=True)
def shapes_home(tmp_path_factory: pytest.TempPathFactory):
    import torch  # here alone: every process of these tests imports this file

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_THREADS", str(torch.get_num_threads()))  # for `quick`, which starts without torch
        patch.setenv("DETECTION_ZOO_HOME", str(make_small_shapes(tmp_path_factory.mktemp("home"))))
        yield


def quick(row: str, spec: BenchmarkSpec, sources: Sources, weights: str, folder: Path, report) -> None:
    """Stands for a model: reports what the real work reports, without one."""
    report(
        {
            "stage": "timing",
            "environment": MACHINE.model_copy(
                update={"device_name": cpu_name(), "threads": int(os.environ["TEST_THREADS"])}
            ),
            "data": identify_data(open_data(load_manifests().entry(row), sources.data, spec.images)),
        }
    )
    report({"measurements": {"model_ms": measured(20.0, "ms")}})


def kills_itself_on_the_second(row: str, *rest) -> None:
    quick(row, *rest)
    if row == ROWS[1]:
        os.kill(os.getpid(), signal.SIGKILL)


def stops_the_sweep_on_the_second(row: str, *rest) -> None:
    quick(row, *rest)
    if row == ROWS[1]:
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()


def kills_the_sweep_on_the_second(row: str, *rest) -> None:
    quick(row, *rest)
    if row == ROWS[1]:
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()


def test_few_frames_lie_between_a_sweep_and_the_first_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detection_zoo.benchmarks.measure.timing import PhaseClock

    depths, phase = [], PhaseClock.phase

    def counted(self, *arguments):
        frame, names = sys._getframe(1), []
        while frame is not None and not names[-1:] == ["run_sweep"]:
            if Path(frame.f_code.co_filename).is_relative_to(ROOT / "benchmarks"):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        depths.append(names)
        return phase(self, *arguments)

    monkeypatch.setattr(PhaseClock, "phase", counted)
    monkeypatch.setattr(BenchmarkSpec, "least_passes", 2)
    quick_spec = SPEC.model_copy(
        update={"groups": ("inference",), "timed_images": 1, "warm_up_budget_s": 0.1, "time_budget_s": 0.1}
    )
    sweep = run_sweep(demo_rows()[:1], quick_spec, SOURCES, SweepOptions(tmp_path / "runs", isolate=False))
    assert not sweep.failed and depths[0][-1] == "run_sweep"
    assert len(depths[0]) <= 9, depths[0][::-1]


def demo_rows():
    return chosen_rows(ROWS[:2])


def test_a_model_that_dies_is_a_record_and_the_sweep_goes_on(tmp_path: Path) -> None:
    said = []
    sweep = run_sweep(
        demo_rows(),
        SPEC,
        SOURCES,
        SweepOptions(tmp_path / "runs"),
        said.append,
        work=kills_itself_on_the_second,
    )
    runs = read_runs(tmp_path / "runs").runs
    assert [(run.row, run.status) for run in runs] == [(ROWS[0], "finished"), (ROWS[1], "failed")]
    assert (
        "SIGKILL" in runs[1].reason
        and runs[1].stage == "timing"
        and runs[1].measurements["model_ms"].value == 20.0
    )
    assert sweep.summary().startswith("1 measured, 1 failed") and any("SIGKILL" in line for line in said)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (Sources("coco:no/such/folder"), "no such folder"),
        (Sources("shapes", weights="no/such/file.pth"), "no such file"),
        (Sources("cocoo:x"), "unknown kind of dataset"),
        (Sources("shapes", weights="stand-in:no/such/folder"), "description of a checkpoint"),
    ],
)
def test_what_never_started_fails_with_a_reason_and_is_no_record(
    tmp_path: Path, sources: Sources, said: str
) -> None:
    sweep = run_sweep(demo_rows()[:1], SPEC, sources, SweepOptions(tmp_path / "runs", isolate=False))
    (run,) = sweep.failed
    assert (
        run.status == "failed" and said in run.reason and run.stage and not read_runs(tmp_path / "runs").runs
    )


def test_a_row_without_published_weights_never_starts(tmp_path: Path) -> None:
    entry = load_manifests().entry("faster_rcnn_resnet101_fpn_voc07.detnet")
    options = SweepOptions(tmp_path / "runs", isolate=False)
    (run,) = run_sweep([entry], SPEC, Sources("shapes", weights="published"), options).failed
    assert "has no published weights" in run.reason and not read_runs(tmp_path / "runs").runs


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    options = SweepOptions(tmp_path / "runs", isolate=False)
    first = run_sweep(demo_rows(), SPEC, SOURCES, options, work=quick)
    second = run_sweep(demo_rows(), SPEC, SOURCES, options, work=quick)
    assert (
        len(first.runs) == 2
        and not first.known
        and not second.runs
        and [run.id for run in second.known] == [run.id for run in first.runs]
    )
    different = [SPEC.model_copy(update={"images": 3}), SPEC.model_copy(update={"batch_size": 2})]
    assert all(
        len(run_sweep(demo_rows()[:1], spec, SOURCES, options, work=quick).runs) == 1 for spec in different
    )
    assert (
        len(
            run_sweep(
                demo_rows(),
                SPEC,
                SOURCES,
                SweepOptions(tmp_path / "runs", again=True, isolate=False),
                work=quick,
            ).runs
        )
        == 2
    )


def test_failed_runs_are_made_again(tmp_path: Path) -> None:
    options = SweepOptions(tmp_path / "runs")
    run_sweep(demo_rows(), SPEC, SOURCES, options, work=kills_itself_on_the_second)
    second = run_sweep(demo_rows(), SPEC, SOURCES, options, work=quick)
    assert (
        [run.row for run in second.known] == [ROWS[0]]
        and [run.row for run in second.runs] == [ROWS[1]]
        and not second.failed
    )


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    options = SweepOptions(tmp_path / "runs")
    entries = [*demo_rows(), load_manifests().entry(ROWS[2])]
    sweep = run_sweep(entries, SPEC, SOURCES, options, work=stops_the_sweep_on_the_second)
    runs = read_runs(tmp_path / "runs").runs
    assert sweep.interrupted and [(run.row, run.status) for run in runs] == [
        (ROWS[0], "finished"),
        (ROWS[1], "interrupted"),
    ]
    assert runs[1].measurements["model_ms"].value == 20.0 and "stopped by Ctrl-C" in sweep.summary()


SCRIPT = """
from pathlib import Path
import sys
import test_bench_sweep as t
if __name__ == "__main__":
    sweep = t.run_sweep(t.demo_rows(), t.SPEC, t.SOURCES, t.SweepOptions(Path(sys.argv[1])), print, work=getattr(t, sys.argv[2]))
    print(sweep.summary())
"""


def in_a_process(store: Path, work: str) -> Forked:
    with_tests = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'tests' / 'bench'}"}
    return Forked("-c", SCRIPT, store, work, environment=with_tests, forks=True)


def test_a_killed_sweep_loses_the_model_in_progress_only(tmp_path: Path) -> None:
    killed = in_a_process(tmp_path / "runs", "kills_the_sweep_on_the_second")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    stored = read_runs(tmp_path / "runs")
    assert [(run.row, run.status) for run in stored.runs] == [(ROWS[0], "finished")] and not stored.problems
    again = run_sweep(demo_rows(), SPEC, SOURCES, SweepOptions(tmp_path / "runs", isolate=False), work=quick)
    assert [run.row for run in again.known] == [ROWS[0]] and [run.row for run in again.runs] == [ROWS[1]]


def test_two_sweeps_share_a_store(tmp_path: Path) -> None:
    both = [in_a_process(tmp_path / "runs", "quick") for _ in range(2)]
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    stored = read_runs(tmp_path / "runs")
    assert (
        {run.row for run in stored.runs} == set(ROWS[:2])
        and all(run.status == "finished" for run in stored.runs)
        and not stored.problems
    )


def test_rows_are_chosen_by_name_pattern_or_source() -> None:
    demo = [entry.name for entry in load_manifests().entries.values() if entry.source == "demo"]
    assert [e.name for e in chosen_rows(["demo"])] == demo and set(ROWS[:2]) < set(demo)
    assert [e.name for e in chosen_rows(["mask_*_fpn.demo", ROWS[0]])] == ROWS[:2]
    with pytest.raises(ManifestError, match="did you mean 'mask_rcnn_resnet14_slim_fpn.demo'"):
        chosen_rows(["mask_rcnn_resnet14_slim_fpn.dem"])
    with pytest.raises(
        ManifestError, match="no row matches 'mask'"
    ):  # a part of a name would run a hundred models
        chosen_rows(["mask"])


def test_reports_are_laid_together() -> None:
    draft = Draft("a.demo", SPEC)
    draft.add({"measurements": {"model_ms": measured(1.0, "ms")}, "notes": ["one"]})
    draft.add({"measurements": {"box_ap": measured(2.0, "%")}, "notes": ["two"], "stage": "training"})
    from detection_zoo.benchmarks.run.isolation import Outcome

    run = draft.finish(Outcome("failed", "why"))
    assert (
        set(run.measurements) == {"model_ms", "box_ap"}
        and run.notes == ["one", "two"]
        and run.stage == "training"
    )
    assert draft.finish(Outcome("finished")).stage is None


def test_ctrl_c_without_isolation_keeps_the_draft(tmp_path: Path) -> None:
    def work(row, spec, sources, weights, folder, report) -> None:
        report({"measurements": {"model_ms": measured(1.0, "ms")}})
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        run_row(
            ROWS[0],
            SPEC,
            SOURCES,
            (WeightsIdentity(kind="random", digest="seed:0"), "random"),
            tmp_path,
            isolate=False,
            work=work,
        )
    assert caught.value.run.status == "interrupted" and caught.value.run.measurements["model_ms"].value == 1.0
