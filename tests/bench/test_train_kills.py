"""Trainings that are killed, stopped and disturbed: what was saved stays, and --resume repeats the unbroken
run to the last digit."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from forked import ROOT, Forked

from detection_zoo.zoo.training import checkpoints

KILLS = int(os.environ.get("DETECTION_ZOO_TEST_TRAIN_KILLS", "3"))
ROW = "mask_rcnn_vovnet27_tiny_fpn.demo"
TINY = ["--batch", "1", "--threads", "1", "--log-every", "1", "--save-every", "1"]
TINY += ["--set", "image.size=64", "--set", "image.max_size=96", "--set", "roi.samples=8"]
TINY += ["--set", "pooling.size=2", "--set", "neck.channels=16", "--warmup", "2", "--eval-every", "0"]


def command(folder: Path, iterations: int, *more: object) -> list[str]:
    """The command line of one small training."""
    return ["bench.py", "train", ROW, "--out", str(folder)] + [
        *("--iterations", str(iterations), "--lr-steps", str(iterations - 2), *TINY, *map(str, more))
    ]


def start(folder: Path, iterations: int, *more: object) -> Forked:
    return Forked(*command(folder, iterations, *more))


def wait_for_update(process: Forked, updates: int = 1) -> None:
    """Read the messages until so many updates are made; the checkpoint of the one before is written then."""
    for line in process.stderr:
        updates -= line.startswith("update ")
        if not updates:
            return
    raise AssertionError(f"it ended with {process.wait()} before an update was made")


def metrics(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the times."""
    with (folder / "metrics.csv").open(newline="") as file:
        times = ("seconds", "data_seconds")
        return [{k: v for k, v in line.items() if k not in times} for line in csv.DictReader(file)]


def finish(folder: Path, iterations: int, *more: object) -> None:
    code, said = start(folder, iterations, *more).finish()
    assert code == 0, said


def test_a_training_killed_at_random_moments_repeats_the_unbroken_one(tmp_path: Path) -> None:
    iterations = 4 * KILLS + 4
    whole = [sys.executable, *command(tmp_path / "whole", iterations)]
    done = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True)  # hashes of its own
    assert done.returncode == 0, done.stderr
    draw, folder = random.Random(0), tmp_path / "killed"
    for number in range(KILLS):
        process = start(folder, iterations, "--resume", "--workers", number % 3)
        wait_for_update(process)
        time.sleep(draw.uniform(0, 0.6))
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.finish()
    finish(folder, iterations, "--resume", "--workers", 1)
    assert metrics(folder) == metrics(tmp_path / "whole")
    ours, theirs = (checkpoints.read(tmp_path / name / "last.pth") for name in ("killed", "whole"))
    assert all(torch.equal(ours["model"][name], tensor) for name, tensor in theirs["model"].items())
    assert len(list(folder.glob("step_*.pth"))) == 2 and not list(folder.glob(".*.part"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_training_that_is_asked_to_stop_is_saved_first(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, 500, "--save-every", 400, "--workers", 1)
    wait_for_update(process)
    os.killpg(process.pid, number)
    code, said = process.finish()
    assert code == 128 + number, said
    assert f"stopped by {number.name}; continue with --resume" in said
    made = checkpoints.read(tmp_path / "last.pth")["iteration"]
    assert 1 <= made < 400 and int(metrics(tmp_path)[-1]["iteration"]) == made


def test_a_full_disk_ends_the_training_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    finish(tmp_path, 2)
    before = (tmp_path / "last.pth").read_bytes()
    code, said = Forked(*command(tmp_path, 4, "--resume"), largest_file=100_000).finish()
    said = "".join(said.split())  # long messages are wrapped, within long paths too
    assert code == 1
    assert "step_00000003.pth:thecheckpointcouldnotbewritten" in said
    assert "Thelastgoodoneisstep_00000002.pth" in said and "Traceback" not in said
    assert (tmp_path / "last.pth").read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


def test_a_loader_process_that_dies_ends_the_training_with_a_reason(tmp_path: Path) -> None:
    process = start(tmp_path, 500, "--workers", 1)
    wait_for_update(process, 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    code, said = process.finish()
    said = " ".join(said.split())
    assert code == 1 and "a process that loads data ended" in said and "Traceback" not in said
    assert checkpoints.read(tmp_path / "last.pth")["iteration"] >= 1
