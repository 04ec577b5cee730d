"""Training by several processes with gloo: what they exchange, what they evaluate, and how they end."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from forked import Forked
from train_folders import small_folder
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.zoo.parts.multibox import MultiBoxLoss, PriorCoder
from detection_zoo.zoo.training import checkpoints

ROW = "faster_rcnn_vovnet27_tiny_fpn.demo"
TINY = (
    "--set",
    "image.size=64",
    "--set",
    "image.max_size=96",
    "--batch",
    2,
    "--threads",
    1,
    "--log-every",
    1,
)

LOSS = """
import sys, torch
from detection_zoo.zoo.parts.multibox import MultiBoxLoss, PriorCoder
from detection_zoo.zoo.training.distributed import gather, joined
case = torch.load(sys.argv[1])
with joined("cpu") as process:
    mine = slice(process.rank * 2, process.rank * 2 + 2)
    losses = MultiBoxLoss(PriorCoder((0.1, 0.2)))(
        case["offsets"][mine],
        case["logits"][mine],
        case["priors"],
        case["boxes"][mine],
        case["classes"][mine],
    )
    first, second = gather([{name: float(value) for name, value in losses.items()}], process)
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    if process.main:
        torch.save(mean, sys.argv[2])
"""


def processes(*command: object) -> list[Forked]:
    """The two processes that torchrun would start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Forked(*command, environment={**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]


def test_the_divisor_of_ssd_counts_the_positives_of_all_processes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    corner = torch.rand(40, 2) * 0.7
    case = {
        "offsets": torch.randn(4, 40, 4),
        "logits": torch.randn(4, 40, 5),
        "priors": torch.cat([corner + 0.15, torch.full((40, 2), 0.3)], dim=1),
        "boxes": [torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])[: 1 + i % 2] for i in range(4)],
        "classes": [torch.tensor([1, 3])[: 1 + i % 2] for i in range(4)],
    }
    torch.save(case, tmp_path / "case.pth")
    (tmp_path / "loss.py").write_text(LOSS)
    both = processes(tmp_path / "loss.py", tmp_path / "case.pth", tmp_path / "mean.pth")
    ended = [process.finish() for process in both]
    assert [code for code, _ in ended] == [0, 0], ended
    whole = MultiBoxLoss(PriorCoder((0.1, 0.2)))(
        *(case[name] for name in ("offsets", "logits", "priors", "boxes", "classes"))
    )
    mean = torch.load(tmp_path / "mean.pth")
    assert mean == pytest.approx({name: float(value) for name, value in whole.items()}, rel=1e-5)


def test_two_processes_train_evaluate_like_one_and_a_lost_one_ends_both(tmp_path: Path) -> None:
    data, out = small_folder(tmp_path / "data", 5), tmp_path / "out"
    command = ("bench.py", "train", ROW, "--data", data, "--eval-data", data, "--out", out, *TINY)
    command += ("--lr-steps", 900, "--warmup", 1, "--save-every", 1, "--accumulate", 2)
    both = processes(*command, "--iterations", 2)
    ended = [process.finish() for process in both]
    assert [code for code, _ in ended] == [0, 0], ended
    assert "2 processes" in ended[0][1] and "update" not in ended[1][1]
    with (out / "evaluations.csv").open(newline="") as file:
        evaluated = float(list(csv.DictReader(file))[-1]["box_ap"])
    state = checkpoints.read(out / "last.pth")
    assert len(state["random_of_ranks"]) == 2 and state["stream"]["world"] == 2
    where = ("--data", data, "--weights", out / "last", "--metrics", "ap", "--in-process", "--json")
    done = CliRunner().invoke(app, [*map(str, ("run", ROW, *where, "--store", tmp_path / "store"))])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)[0]["measurements"]["box_ap"]["value"] == pytest.approx(evaluated)

    both = processes(*command, "--iterations", 500, "--resume")
    for line in both[0].stderr:
        if line.startswith("update 4/"):
            break
    os.kill(both[1].pid, signal.SIGKILL)
    code, said = both[0].finish()
    assert code == 1 and "process 0 of 2 ended after update" in said and "--resume" in said
    assert "Traceback" not in said and checkpoints.read(out / "last.pth")["iteration"] >= 3
    both[1].finish()
