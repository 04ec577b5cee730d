"""`bench.py paths`: the fast path beside eager and torchvision, stored and in the table; wrong rows and
sizes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.benchmarks.measure import detector_cases, kernel_speed
from detection_zoo.benchmarks.report.kernel_cases import kernel_table, stored_timings

SLIM = "faster_rcnn_resnet14_slim_fpn.demo"


def test_a_row_is_measured_beside_eager_and_torchvision_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_speed, "report", partial(kernel_speed.report, probe_s=0.0))
    monkeypatch.setitem(detector_cases.PEERS, SLIM, SLIM)  # torchvision's own is ten times larger
    store = tmp_path / "kernels"
    words = ["paths", SLIM, "--device", "cpu", "--size", "64x96", "--repeats", "3", "--store", str(store)]
    done = CliRunner().invoke(app, [*words, "--wide"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    (timings,), problems = stored_timings(tmp_path / "runs")
    assert not problems and timings.work == "detectors"
    assert [case.name.rpartition("64 x 96, ")[2] for case in timings.cases] == [
        "fast float32 (peer: eager float32)",
        "fast bfloat16 (peer: eager float32)",
        "fast float32 (peer: torchvision float32)",
    ]
    assert all(case.correct and case.ratio > 0 and case.ours.n == 3 for case in timings.cases)
    table = kernel_table(timings)
    assert table.title.startswith("Detectors compared with ")
    assert all(" ms" in cell for cell in table.rows[0][1:3])
    assert done.stdout.startswith("Detectors compared with ")


def test_wrong_rows_and_sizes_are_wrong_usage() -> None:
    for words, said in (
        (["no_such_row"], "no row matches 'no_such_row'"),
        (["resnet18_imagenet.detnet", "--size", "wide"], "'wide' is not HxW in pixels"),
        (["resnet18_imagenet.detnet"], "none of these is a detector"),
    ):
        done = CliRunner().invoke(app, ["paths", *words, "--device", "cpu"])
        assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output


def test_a_path_that_leaves_its_tolerance_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector_cases, "map_error", lambda *given: float("nan"))
    cases = list(detector_cases.detector_cases("cpu", [SLIM], (64, 96)))
    assert [case.agrees() for case in cases] == [False, False]
