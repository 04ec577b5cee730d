"""Recorded updates of the original training scripts, made again: inputs, losses, gradients, weights, momentum."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from detection_zoo.benchmarks.run.parity import check_reference
from detection_zoo.zoo.parity.files import ParityError
from detection_zoo.zoo.parity.trajectories import check_trajectory

pytestmark = pytest.mark.usefixtures("kept_memory", "kept_fills")

TRAINING = Path(__file__).resolve().parents[1] / "reference" / "training"
FOLDERS = sorted(path.parent for path in TRAINING.glob("*/*/train_steps.npz"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_updates_equal_the_original_s(folder: Path) -> None:
    report = check_reference(folder)
    assert report.ok, [str(line) for line in report.lines if line.verdict != "ok"]
    names = " ".join(line.name for line in report.lines)
    for part in ("input", "lr", "loss_total", "grad_norm_all", "param_sum", "buffer_abs", "trained_that"):
        assert f".{part}" in names


def copied(source: str, name: str, tmp_path: Path) -> Path:
    folder = tmp_path / source / name
    shutil.copytree(TRAINING / source / name, folder)
    shutil.copytree(TRAINING / "train_data", tmp_path / "train_data")
    return folder


def test_another_loss_rate_and_input_are_found(tmp_path: Path) -> None:
    folder = copied("detectron_pytorch", "e2e_mask_rcnn_R-50-FPN_2x", tmp_path)
    arrays = dict(np.load(folder / "train_steps.npz"))
    arrays["iter_size2|loss|loss_mask"][1] *= 1.001
    arrays["iter_size2|lr"][0] *= 1.1
    arrays["iter_size2|input|0|samples"][3] += 1
    np.savez(folder / "train_steps.npz", **arrays)
    meta = json.loads((folder / "train_steps.json").read_text())
    meta["runs"]["iter_size2"] |= {"updates": 1, "forwards": 2}
    (folder / "train_steps.json").write_text(json.dumps(meta))
    wrong = [line.name for line in check_trajectory(folder).lines if line.verdict != "ok"]
    assert set(wrong) == {"iter_size2.input", "iter_size2.loss.loss_mask", "iter_size2.lr"}


def test_an_unknown_source_and_a_missing_array_say_so(tmp_path: Path) -> None:
    folder = copied("detectron_pytorch", "e2e_mask_rcnn_R-50-FPN_2x", tmp_path)
    arrays = dict(np.load(folder / "train_steps.npz"))
    del arrays["iter_size2|images|0"]
    np.savez(folder / "train_steps.npz", **arrays)
    with pytest.raises(ParityError, match=r"has no array iter_size2\|images\|0"):
        check_trajectory(folder)
    meta = json.loads((folder / "train_steps.json").read_text())
    (folder / "train_steps.json").write_text(json.dumps({**meta, "source": "some/body@1"}))
    with pytest.raises(ParityError, match="there is no adapter for source 'some/body'"):
        check_trajectory(folder)
