"""Every flag of `bench.py train` makes two updates."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest
import torch
import typer
from train_folders import small_folder
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.benchmarks.train import largest_batch
from detection_zoo.zoo.build import build_model

ROW = "faster_rcnn_vovnet27_tiny_fpn.demo"
# DATA: a small folder in COCO's layout; FILE: weights of the row
GROUPS = [
    "--optimizer adamw --policy cosine --clip-norm 1.0 --accumulate 2 --lr 1e-4 --weights random",
    "--precision bfloat16 --channels-last --epochs 1 --no-save --scale-lr --threads 1 --weights random",
    "--optimizer adam --patience 1 --time-limit 1 --workers 1 --images 3 --weights random --classes common",
    "--schedule detectron_1x --on-nan skip --keep 1 --save-every 1 --seed 3 --weights random --map star=disc",
    "--weights FILE --format zoo --lr-steps 1 --warmup 1 --ema 0.9 --eval-data DATA --eval-every 2",
    "--class-agnostic --deterministic --resume --json --log-every 1 --device cpu --sync-bn --weights random",
    "--weights random --layer-decay 0.5 --set schedule.momentum=0.8 --set rpn.foreground_iou=0.6",
]
ALONE = {"--data", "--out", "--iterations", "--batch"}  # in every group
OTHERS = {"--dry-run", "--tensorboard", "--help", "--fit-gb"}  # below: alone, or in place of another


def run(words: list[str], tmp_path: Path, code: int = 0) -> int:
    """Updates that a training made."""
    data, out = small_folder(tmp_path / "data"), tmp_path / "out"
    if "FILE" in words:
        torch.save(build_model(ROW).state_dict(), tmp_path / "file.pth")
    places = {"DATA": data, "FILE": str(tmp_path / "file.pth")}
    words = [places.get(word, word) for word in words]
    words += [] if "--epochs" in words else ["--iterations", "2"]
    words += [] if "--eval-every" in words else ["--eval-every", "0"]
    small = ["--set", "image.size=64", "--set", "image.max_size=96", "--batch", "2"]
    done = CliRunner().invoke(app, ["train", ROW, "--data", data, "--out", str(out), *small, *words])
    assert done.exit_code == code, done.output + repr(done.exception)
    if not (out / "metrics.csv").is_file():
        return 0
    with (out / "metrics.csv").open(newline="") as file:
        return len(list(csv.DictReader(file)))


@pytest.mark.parametrize("flags", GROUPS)
def test_flags_make_two_updates(flags: str, tmp_path: Path) -> None:
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        assert run(flags.split(), tmp_path) == 2
    finally:
        torch.use_deterministic_algorithms(deterministic)


def test_a_dry_run_makes_none(tmp_path: Path) -> None:
    assert run(["--dry-run", "--weights", "random"], tmp_path) == 0


@pytest.mark.usefixtures("forked_measurements")
def test_the_largest_batch_that_fits_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest_batch, "USUAL", (96, 64))
    assert run(["--fit-gb", "0.1", "--weights", "random"], tmp_path, code=2) == 0  # --batch is there as well
    tried: list[str] = []
    batch = largest_batch.largest_batch(ROW, 64, "cpu", "float32", tried.append, most=2)
    assert batch == 2 and tried
    with pytest.raises(ValueError, match="no batch of .* fits"):
        largest_batch.largest_batch(ROW, 0.01, "cpu", "float32", tried.append, most=2)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_events_are_written(tmp_path: Path) -> None:
    assert run(["--tensorboard", "--weights", "random"], tmp_path) == 2
    assert list((tmp_path / "out" / "events").iterdir())


def test_no_flag_is_left_out() -> None:
    command = typer.main.get_command(app).commands["train"]
    flags = {name for option in command.params for name in option.opts if name.startswith("--")}
    tried = {word for group in GROUPS for word in group.split() if word.startswith("--")}
    assert flags - OTHERS - ALONE == tried
