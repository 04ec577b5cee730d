"""bench.py run, table, detect, evaluate, parity, reproduce and doctor as a person types them, with a real
model on `shapes`. Runs that measure have processes of their own, all forked; what only reads is called in
this one."""

from __future__ import annotations

import json
import os
import signal
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from forked import ROOT, Forked, run_forked
from in_process import call
from PIL import Image

from detection_zoo.benchmarks.store import read_runs

ROW = "mask_rcnn_vovnet27_tiny_fpn.demo"
UNTRAINED = ("--weights", "random")
QUICK = (
    "--images",
    "2",
    "--timed-images",
    "1",
    "--budget-s",
    "0.2",
    "--warm-up-s",
    "0.2",
    "--train-steps",
    "2",
    "--processes",
    "2",
    "--device",
    "cpu",
)


pytestmark = pytest.mark.usefixtures("drawn_shapes")


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def bench(*arguments: str) -> tuple[int, str, str]:
    done = run_forked("bench.py", *arguments, forks=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def read_until(terminal: int, text: str | None) -> str:
    """What is written to a terminal until it has the text, or until its last writer has ended."""
    said = ""
    with suppress(OSError):  # its last writer has ended
        while text is None or text not in said:
            said += os.read(terminal, 4096).decode(errors="replace")
    return said


@pytest.fixture(scope="module")
def store(drawn_shapes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one whole run of a real model, made in a process of its own."""
    folder = tmp_path_factory.mktemp("results") / "runs"
    code, out, err = bench("run", ROW, *UNTRAINED, "--data", "shapes", *QUICK, "--store", str(folder))
    assert code == 0, err
    assert err.strip().endswith("1 measured, 0 failed, 0 already measured") and "Model time" in out
    return folder


def test_the_record_of_a_run_has_all_four_metrics(store: Path) -> None:
    (run,) = read_runs(store).runs
    assert (
        run.status == "finished"
        and run.weights.kind == "random"
        and run.data.made_up
        and run.data.images == 2
    )
    assert {
        "box_ap",
        "mask_ap",
        "model_ms",
        "end_to_end_ms",
        "train_memory_resident_mib",
        "epoch_time_s",
    } <= set(run.measurements)
    assert run.measurements["epoch_time_s"].extrapolated and run.telemetry["inference"].absent
    for file in run.files.values():
        assert (store.parent / "detections" / file.name).stat().st_size == file.bytes


def test_a_second_run_measures_nothing_anew(store: Path) -> None:
    code, out, err = call("run", ROW, *UNTRAINED, "--data", "shapes", *QUICK, "--store", str(store), "--json")
    assert code == 0 and "0 measured, 0 failed, 1 already measured" in err and "--again" in err
    assert [run["row"] for run in json.loads(out)] == [ROW] and len(read_runs(store).runs) == 1


def test_the_table_says_what_was_made_up(store: Path) -> None:
    code, out, _ = call("table", "demo", "--store", str(store), "--wide")
    line = next(line for line in out.splitlines() if "vovnet27_tiny" in line and "mask_rcnn" in line)
    assert (
        code == 0
        and "measured, random weights, made-up data, 2 of 6 images" in line
        and "that this project trained itself" in out
    )
    unmeasured = next(line for line in out.splitlines() if line.startswith("resnet14_slim  mask_rcnn"))
    assert "not run yet" in unmeasured and unmeasured.split().count("-") >= 4


def test_stored_detections_give_the_same_numbers_again(store: Path) -> None:
    (run,) = read_runs(store).runs
    code, out, _ = call(
        "evaluate",
        str(store.parent / "detections" / run.files["bbox"].name),
        "--data",
        "shapes",
        "--images",
        "2",
        "--json",
    )
    metrics = json.loads(out)["metrics"]
    assert code == 0 and metrics == {
        name: pytest.approx(m.value, abs=1e-9)
        for name, m in run.measurements.items()
        if name.startswith("box_a")
    }


def test_a_backbone_runs_without_a_row(tmp_path: Path) -> None:
    options = ("--images", "2", "--metrics", "ap", "--device", "cpu", "--store", str(tmp_path), "--json")
    options += ("--in-process",)
    code, out, err = bench("run", "--backbone", "resnet14_slim", "--detector", "retinanet", *options)
    (run,) = json.loads(out)
    assert code == 0 and run["row"] == "retinanet_resnet14_slim_shapes.created", err
    assert run["weights"]["kind"] == "random" and "box_ap" in run["measurements"]
    code, _, err = call("run", run["row"], "--weights", "random", *options)  # by its name: known
    assert code == 0 and "0 measured, 0 failed, 1 already measured" in err
    for wrong, said in (
        (("--backbone", "resnet14_slm"), "did you mean 'resnet14_slim'"),
        (("--backbone", "resnet14_slim", "--detector", "fast"), "unknown detector"),
        ((), "give rows, or a backbone"),
        ((ROW, "--backbone", "resnet14_slim"), "give rows, or a backbone"),
    ):
        code, _, err = call("run", *wrong, *options)
        assert code == 2 and said in err, err


def test_detections_are_drawn_on_the_picture(tmp_path: Path) -> None:
    picture = tmp_path / "in" / "grey.jpg"
    picture.parent.mkdir()
    Image.new("RGB", (160, 120), (90, 90, 90)).save(picture)
    code, out, err = call(
        "detect",
        ROW,
        str(picture),
        "--out",
        str(tmp_path / "out"),
        "--weights",
        "random",
        "--device",
        "cpu",
        "--min-score",
        "0",
        "--json",
    )
    (told,) = json.loads(out)
    drawn = Image.open(tmp_path / "out" / "grey.png")
    assert code == 0 and told["weights"] == "random" and drawn.size == (160, 120) and "1 files" in err
    assert told["detections"] and len(drawn.getcolors(160 * 120)) > 1, (
        "something was found, so something must be drawn"
    )


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=lambda kind: kind.name)
def test_ctrl_c_or_kill_says_what_is_kept_and_ends_with_130(tmp_path: Path, kind: signal.Signals) -> None:
    terminal, stderr = os.openpty()  # where progress is drawn earlier than in a file
    termios.tcsetwinsize(terminal, (24, 100))
    process = Forked(
        "bench.py",
        "run",
        ROW,
        *UNTRAINED,
        "--data",
        "shapes",
        "--images",
        "2",
        "--metrics",
        "epoch",
        "--budget-s",
        "3000",
        "--train-steps",
        "1000000",
        "--device",
        "cpu",
        "--store",
        str(tmp_path / "runs"),
        stderr=stderr,
        forks=True,
    )
    os.close(stderr)
    said = read_until(terminal, f"{ROW}: training:")
    assert f"{ROW}: training:" in said, "a million steps go on for longer than the bar takes to appear"
    os.killpg(process.pid, kind) if kind == signal.SIGINT else os.kill(process.pid, kind)
    err = read_until(terminal, None)
    os.close(terminal)
    process.communicate(timeout=120)
    assert process.returncode == 130 and "Ctrl-C" in err and "Traceback" not in err
    (run,) = read_runs(tmp_path / "runs").runs
    assert (
        run.status == "interrupted"
        and run.stage == "training"
        and "parameters_m" in run.measurements
        and not read_runs(tmp_path / "runs").problems
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "no_such_row"), 2, "no row matches"),
        (("run", ROW, "--images", "0"), 2, "greater than or equal to 1"),
        (("evaluate", "no/such.json"), 1, "no such results file"),
        (("parity", "--reference", "no/such/folder"), 1, "no such file"),
    ],  # others: test_cli_arguments.py, from a process of their own
)
def test_mistakes_get_one_answer(tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    more = ("--store", str(tmp_path / "runs")) if arguments[0] == "run" else ()
    got, _, err = call(*arguments, *more)
    assert got == code and said in err


def test_reproduce_says_what_is_missing_for_each_row(tmp_path: Path) -> None:
    code, out, err = call(
        "reproduce", "vovnet", "--device", "cpu", "--store", str(tmp_path / "runs"), "--json"
    )
    missing = json.loads(out)["missing"]
    assert code == 0 and "0 of 16 rows can be run here" in err
    assert any(
        "download_weights.py get faster_rcnn_vovnet39_fpn_2x.vovnet" in text
        for text in missing["faster_rcnn_vovnet39_fpn_2x.vovnet"]
    )
    assert any("--data coco:DIR" in text for text in missing["faster_rcnn_vovnet39_fpn_2x.vovnet"])
    assert any("numbers only" in text for text in missing["densenet161_imagenet.vovnet"])


def test_doctor_looks_at_everything() -> None:
    code, out, err = call("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and {f["what"] for f in found["findings"]} >= {
        "gpu",
        "cupy",
        "imports",
        "manifests",
        "records",
        "disk",
        "commit",
    }
    assert "0 broken" in err and found["environment"]["packages"]["torch"]
