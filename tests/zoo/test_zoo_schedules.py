"""Whole schedules beside those of the original training scripts: every rate of every update."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from detection_zoo.benchmarks.run.parity import check_reference
from detection_zoo.zoo.build import assemble
from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.files import ParityError
from detection_zoo.zoo.training.plan import Wishes, plan_training
from detection_zoo.zoo.training.recipe import collect_scale, momentum_factor, scale_collect, total_iterations

TRAINING = Path(__file__).resolve().parents[1] / "reference" / "training"


@pytest.mark.parametrize("source", ["detectron_pytorch", "hardnet", "vovnet"])
def test_every_rate_equals_the_original_s(source: str) -> None:
    report = check_reference(TRAINING / source / "schedules")
    assert report.ok, [str(line) for line in report.lines if line.verdict != "ok"]
    recorded = json.loads((TRAINING / source / "schedules" / "schedule.json").read_text())
    assert {line.name.split(".rates")[0] for line in report.lines if ".rates" in line.name} == set(recorded)


def test_one_wrong_rate_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "hardnet" / "schedules"
    shutil.copytree(TRAINING / "hardnet" / "schedules", folder)
    arrays = dict(np.load(folder / "schedule.npz"))
    arrays["voc_300_epochs"][-1, 0] += 1  # the last step one update later
    np.savez(folder / "schedule.npz", **arrays)
    described = json.loads((folder / "schedule.json").read_text())
    shortest = min(described, key=lambda name: described[name]["iterations"])
    two = {name: described[name] for name in (shortest, "voc_300_epochs")}
    (folder / "schedule.json").write_text(json.dumps(two))
    wrong = [line.name for line in check_reference(folder).lines if line.verdict != "ok"]
    assert wrong == ["voc_300_epochs.rates.group0"]


def test_a_folder_that_no_schedule_stands_for_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "schedule.npz", a=np.zeros((1, 2)))
    described = {"a": {"command": "other_script.py --lr 1", "updates": 3}}
    (tmp_path / "schedule.json").write_text(json.dumps(described))
    with pytest.raises(ParityError, match="a: there is no schedule for the script 'other_script.py'"):
        check_reference(tmp_path)
    (tmp_path / "schedule.json").unlink()
    with pytest.raises(ParityError, match="no such file"):
        check_reference(tmp_path)


def test_proposals_are_collected_in_proportion_to_the_images_of_a_gpu() -> None:
    schedule = Schedule(images_per_batch=16, gpus=8, lr=0.02)
    assert [collect_scale(schedule, batch, gpus) for batch, gpus in ((16, 8), (8, 2), (1, 1))] == [1, 2, 0.5]
    assert collect_scale(Schedule(images_per_batch=16, lr=0.02), 2, 1) == 1


def test_the_limit_on_collected_proposals_follows_the_images_of_a_gpu() -> None:
    model = assemble(load_manifests().entry("faster_rcnn_resnet50_fpn_2x.detectron_pytorch"))
    assert scale_collect(model, 0.5) == "training_proposals.collect: 2000 -> 1000"
    assert model.rpn.rules[True].collect == 1000 and model.rpn.rules[False].collect == 1000
    assert scale_collect(model, 1.0) is None and scale_collect(Small(), 2.0) is None


class Small(nn.Module):
    """No detector."""


def test_momentum_follows_a_jump_of_the_rate_and_no_small_change() -> None:
    assert momentum_factor(0.02, 0.002) == pytest.approx(0.1)
    assert momentum_factor(0.02, 0.0199) == 1
    assert momentum_factor(0.0, 0.02) == 1


def test_asked_iterations_are_all_there_are() -> None:
    own = load_manifests().schedules["hardnet_voc"]
    assert plan_training(own, Wishes(iterations=2), 100).iterations == 2
    assert plan_training(own, Wishes(epochs=2), 64).iterations == 2 * 2 + 10


def test_updates_after_the_last_epoch_count() -> None:
    assert total_iterations(Schedule(images_per_batch=2, lr=1, epochs=3, extra_iterations=10), 5) == 25
