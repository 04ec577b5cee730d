"""`bench.py train`: runs, resumes to the last digit, says what differs, and what it trained can be run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import median

import pytest
import torch
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.benchmarks.run.subject import open_data
from detection_zoo.zoo.data.training_loader import training_batches
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.training.plan import Wishes, plan_training

ROW = "mask_rcnn_vovnet27_tiny_fpn.demo"


def train(*arguments: object, row: str = ROW, code: int = 0) -> str:
    """Everything that one training prints."""
    done = CliRunner().invoke(app, ["train", row, "--threads", "1", *map(str, arguments)])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output.replace("\n  ", " ")  # long messages are wrapped


def losses(folder: Path) -> dict[int, str]:
    """The total loss of every update, as written."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(line["iteration"]): line["loss"] for line in csv.DictReader(file)}


pytestmark = pytest.mark.usefixtures("drawn_shapes")

OWN = load_manifests().schedules["maskrcnn_benchmark_2x"]  # 180,000 updates of 16 images
ROW_OWN = load_manifests().schedules[load_manifests().entry(ROW).schedule]
SMALL = (
    "--set",
    "image.size=64",
    "--set",
    "image.max_size=96",
    "--set",
    "roi.samples=16",
    "--set",
    "pooling.size=2",
    "--set",
    "neck.channels=16",
    "--batch",
    2,
    "--log-every",
    2,
    "--save-every",
    2,
    "--policy",
    "steps",
    "--lr-steps",
    "3",
    "--warmup",
    2,
    "--eval-every",
    0,  # `test_train_own.py` evaluates
)


def test_a_resumed_training_repeats_the_unbroken_one_and_its_file_can_be_run(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    said = train("--out", whole, "--iterations", 4, *SMALL)
    rate = ROW_OWN.lr * 2 / ROW_OWN.images_per_batch
    assert f"images_per_batch: {ROW_OWN.images_per_batch} -> 2" in said
    assert f"lr: {ROW_OWN.lr:g} -> {rate:g}" in said
    middle = median(float(loss) for loss in losses(whole).values())
    assert f"4 iterations, loss {middle:.4g} (median of the last 4), saved as" in said
    assert "update 4/4" in said and "images/s" in said and "waiting for data" in said
    train("--out", broken, "--iterations", 2, *SMALL)
    nowhere = train("--out", whole.with_name("none"), "--weights", whole / "none.pth", *SMALL, code=2)
    assert "none.pth: no such file" in nowhere.replace("\n", "") and not whole.with_name("none").exists()
    assert "holds a training already" in train("--out", broken, "--iterations", 4, *SMALL, code=2)
    said = train("--out", broken, "--iterations", 4, "--resume", "--workers", 1, *SMALL)
    assert "resumed from step_00000002.pth" in said
    assert "the schedule is not the checkpoint's: iterations: 2 -> 4" in said
    assert list(losses(whole)) == [1, 2, 3, 4] and losses(broken) == losses(whole)
    ours, theirs = (torch.load(folder / "last.pth")["model"] for folder in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    recipe = json.loads((whole / "recipe.json").read_text())
    assert recipe["schedule"]["lr"] == rate and recipe["updates"] == 4
    done = CliRunner().invoke(
        app,
        ["run", ROW, "--weights", str(whole / "last"), "--images", "2", "--metrics", "ap", "--in-process"]
        + ["--store", str(tmp_path / "store"), "--json"],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)[0]["weights"]["kind"] == "file"


def test_other_lengths_and_batches_keep_the_shape_of_the_schedule() -> None:
    plan = plan_training(OWN, Wishes(batch=8), 1000)
    assert plan.schedule.lr == 0.01 and plan.iterations == 360000 and plan.schedule.steps == [240000, 320000]
    plan = plan_training(OWN, Wishes(iterations=900), 1000)
    assert plan.schedule.steps == [600, 800] and plan.schedule.warmup_iterations == 90
    plan = plan_training(OWN, Wishes(epochs=18), 1600)
    assert plan.schedule.steps == [12, 16] and plan.iterations == 1800 and plan.updates_per_epoch == 100
    assert plan_training(OWN, Wishes(batch=8), 1000, 130).updates_per_epoch == 130
    plan = plan_training(OWN, Wishes(batch=8, accumulate=2), 1000)
    assert plan.schedule.lr == 0.01 and plan.iterations == 180000 and plan.updates_per_epoch == 62


def test_an_epoch_has_as_many_updates_as_the_stream_has_batches(tmp_path: Path) -> None:
    """Groups of one aspect ratio have incomplete batches too: five images in batches of 4 are two or more."""
    said = train("--out", tmp_path, "--images", 5, "--dry-run", *SMALL[:4], "--batch", 4)
    entry = load_manifests().entry(ROW)
    batches = training_batches(entry, open_data(entry, "shapes:train", 5), batch=4)
    count = len(batches.order(0))
    assert count > batches.entries // 4 == 1 and f"iterations of 4 images, {count} per epoch, " in said


@pytest.mark.parametrize("scale", [False, True])
def test_scripts_that_do_not_rescale_are_followed_unless_asked(scale: bool) -> None:
    own = load_manifests().schedules["hardnet_voc"]
    plan = plan_training(own, Wishes(batch=8, scale_lr=scale), 800)
    assert plan.schedule.lr == (own.lr / 4 if scale else own.lr) and plan.schedule.epochs == own.epochs
    assert bool(plan.warnings) is not scale


def test_settings_are_checked_and_written_down(tmp_path: Path) -> None:
    small = ("--iterations", 1, "--batch", 1, "--no-save", "--eval-every", 0, "--set", "image.size=64")
    said = train(
        "--out", tmp_path, *small, "--set", "schedule.momentum=0.8", "--set", "rpn.foreground_iou=0.6"
    )
    size = load_manifests().entry(ROW).conventions.image.size
    assert f"image.size: {size} -> 64" in said and "schedule.momentum: 0.9 -> 0.8" in said
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["schedule"]["momentum"] == 0.8 and f"image.size: {size} -> 64" in recipe["changes"]
    assert not list(tmp_path.glob("*.pth"))
    for setting, problem in {
        "schedule.momentun=0.8": "did you mean 'momentum'",
        "image.sice=3": "did you mean 'size'",
        "imag.size=3": "did you mean 'image'",
        "schedule.momentum=much": "momentum: Input should be a valid number, but it is 'much'",
        "neck.chanels=3": "did you mean 'channels'",
        "nothing": "write SECTION.FIELD=VALUE",
    }.items():
        assert problem in train("--out", tmp_path, *small, "--set", setting, code=2)
