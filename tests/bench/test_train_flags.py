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
from detection_zoo.zoo.build import build_model

ROW = "faster_rcnn_vovnet27_tiny_fpn.demo"
# DATA: a small folder in COCO's layout; FILE: weights of the row
GROUPS = [
    "--optimizer adamw --policy cosine --clip-norm 1.0 --accumulate 2 --lr 1e-4 --weights random",
    "--precision bfloat16 --channels-last --epochs 1 --no-save --scale-lr --threads 1 --weights random",
    "--optimizer adam --patience 1 --time-limit 1 --workers 1 --images 3 --weights random",
    "--schedule detectron_1x --on-nan skip --keep 1 --save-every 1 --seed 3 --weights random",
    "--weights FILE --format zoo --lr-steps 1 --warmup 1 --ema 0.9 --eval-data DATA --eval-every 2",
    "--class-agnostic --deterministic --resume --json --log-every 1 --device cpu --sync-bn --weights random",
    "--weights random --set schedule.momentum=0.8 --set rpn.foreground_iou=0.6",
]
ALONE = {"--data", "--out", "--iterations", "--batch"}  # in every group
OTHERS = {"--dry-run", "--tensorboard", "--help"}  # that train nothing, or need a package


def run(words: list[str], tmp_path: Path) -> int:
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
    assert done.exit_code == 0, done.output + repr(done.exception)
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


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_events_are_written(tmp_path: Path) -> None:
    assert run(["--tensorboard", "--weights", "random"], tmp_path) == 2
    assert list((tmp_path / "out" / "events").iterdir())


def test_no_flag_is_left_out() -> None:
    command = typer.main.get_command(app).commands["train"]
    flags = {name for option in command.params for name in option.opts if name.startswith("--")}
    tried = {word for group in GROUPS for word in group.split() if word.startswith("--")}
    assert flags - OTHERS - ALONE == tried
