"""Own classes, evaluation while training, and what a run leaves behind."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from train_folders import small_folder
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.trained_row import row_of_checkpoint
from detection_zoo.zoo.training import checkpoints

ROW = "faster_rcnn_vovnet27_tiny_fpn.demo"
SMALL = ("--set", "image.size=64", "--set", "image.max_size=96", "--batch", 2, "--log-every", 1)


def bench(*arguments: object, code: int = 0) -> str:
    """Everything that a command prints."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output.replace("\n  ", " ")  # long messages are wrapped


def train(*arguments: object, row: str = ROW, code: int = 0) -> str:
    return bench("train", row, "--threads", 1, *SMALL, *arguments, code=code)


def test_other_classes_rebuild_the_head_and_the_file_knows_them(tmp_path: Path) -> None:
    data = small_folder(tmp_path / "data", classes=("circle", "star"))
    old = build_model(ROW, weights="random")
    torch.save(old.state_dict(), tmp_path / "old.pth")
    out = tmp_path / "out"
    said = train(
        *("--data", data, "--eval-data", data, "--weights", tmp_path / "old.pth", "--out", out),
        *("--iterations", 3, "--lr", 1e-9),
    )
    assert "classes: 8 of shapes -> 2 (my_circle, my_star)" in said
    assert (
        "schedule: demo -> fine_tune" in said
        and "head rebuilt; 4 tensors of the weights are left out" in said
    )
    value = checkpoints.read(out / "last.pth")
    shapes = {name: tensor.shape for name, tensor in old.state_dict().items()}
    other = [name for name, tensor in value["model"].items() if tensor.shape != shapes[name]]
    assert len(other) == 4
    body = next(name for name in shapes if name.endswith("conv.weight") or "backbone" in name)
    torch.testing.assert_close(value["model"][body], old.state_dict()[body], atol=1e-5, rtol=0)
    entry = row_of_checkpoint(load_manifests().entry(ROW), str(out / "best.pth"))
    assert entry.class_names == ["my_circle", "my_star"] and entry.conventions.image.size == 64
    where = ("--weights", out / "best", "--json")
    where += ("--metrics", "ap", "--in-process", "--store", tmp_path / "store")
    done = CliRunner().invoke(app, [*map(str, ("run", ROW, "--data", data, *where))])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found[0]["status"] == "finished"
    with (out / "evaluations.csv").open(newline="") as file:
        evaluated = list(csv.DictReader(file))
    assert found[0]["measurements"]["box_ap"]["value"] == pytest.approx(float(evaluated[-1]["box_ap"]))
    picture = next((tmp_path / "data" / "train").iterdir())
    bench("detect", ROW, picture, "--out", tmp_path / "drawn", "--weights", out / "best.pth")


def test_classes_in_common_keep_the_head_and_leave_out_the_rest(tmp_path: Path) -> None:
    data = small_folder(tmp_path / "data", classes=("circle", "star"))
    renamed = ("--data", data, "--eval-data", data, "--map", "my_circle=circle", "--classes", "common")
    out = tmp_path / "out"
    said = train(*renamed, "--out", out, "--iterations", 1, "--weights", "random", "--lr-steps", "9")
    assert "data: limited to the 1 classes in common: circle; left out of the data: my_star;" in said
    assert "classes: 8" not in said and "head rebuilt" not in said and "update 1: box_ap" in said
    shapes = {name: tensor.shape for name, tensor in build_model(ROW).state_dict().items()}
    value = checkpoints.read(out / "last.pth")
    assert {name: tensor.shape for name, tensor in value["model"].items()} == shapes
    assert json.loads((out / "recipe.json").read_text())["dataset"]["classes"] == list(
        load_manifests().datasets["shapes"].classes
    )


def test_classes_are_renamed_before_the_head_is_rebuilt(tmp_path: Path) -> None:
    data = small_folder(tmp_path / "data", classes=("circle", "star"))
    said = train("--data", data, "--map", "my_circle=thing,my_star=thing", "--dry-run", "--out", tmp_path)
    assert "classes: 8 of shapes -> 1 (thing)" in said
    said = train("--data", data, "--map", "my_cirle=thing", "--out", tmp_path, code=2)
    assert "--map names the class 'my_cirle', which is not there; did you mean 'my_circle'" in said
    said = train("--data", data, "--map", "my_circle", "--out", tmp_path, code=2)
    assert "each part is DATA_CLASS=MODEL_CLASS" in said


def test_own_folders_are_trained_on_their_training_split(tmp_path: Path) -> None:
    small_folder(tmp_path / "data", classes=("circle", "star"))
    own = tmp_path / "own"
    for split in ("train", "valid"):
        shutil.copytree(tmp_path / "data" / "train", own / split)
        shutil.copy(
            tmp_path / "data" / "annotations" / "instances_train.json", own / split / "_annotations.coco.json"
        )
    said = train("--data", own, "--out", tmp_path / "out", "--iterations", 1, "--weights", "random")
    assert "coco:own:train, float32" in said
    assert "data: recognised as COCO as Roboflow exports it" in said and "update 1: box_ap" in said
    shutil.rmtree(own / "valid")
    said = train("--data", own, "--out", tmp_path / "alone", "--iterations", 1, "--weights", "random")
    assert "the data has only the training split, so nothing is evaluated" in said


@pytest.mark.parametrize(
    "held",
    [
        {"classes": 7, "settings": []},
        {"classes": ["a"], "settings": None},
        {"classes": [], "settings": []},
        {"settings": [1]},
        ["classes"],
    ],
)
def test_a_file_that_only_looks_like_a_training_is_refused(held: object, tmp_path: Path) -> None:
    torch.save({"entry": ROW, "row": held}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="odd.pth: its classes and settings are not lists of strings"):
        row_of_checkpoint(load_manifests().entry(ROW), str(tmp_path / "odd.pth"))


def test_torch_does_not_read_a_foreign_file_to_find_its_row(tmp_path: Path, monkeypatch) -> None:
    torch.save({"entry": ROW, "row": {"classes": ["a", "b"], "settings": []}}, tmp_path / "own.pth")
    monkeypatch.setattr(torch, "load", None)
    entry = row_of_checkpoint(load_manifests().entry(ROW), str(tmp_path / "own.pth"))
    assert entry.class_names == ["a", "b"]


def test_a_run_leaves_its_best_checkpoint_its_curves_and_its_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data = small_folder(tmp_path / "data")
    out = tmp_path / "out"
    common = ("--data", data, "--eval-data", data, "--weights", "random", "--lr-steps", "9", "--warmup", 1)
    said = train(*common, "--out", out, "--iterations", 4, "--eval-every", 2, "--ema", 0.5)
    assert "update 2: box_ap" in said and "update 4: box_ap" in said
    with (out / "evaluations.csv").open(newline="") as file:
        evaluated = list(csv.DictReader(file))
    assert [line["iteration"] for line in evaluated] == ["2", "4"]
    best = checkpoints.read(out / "best.pth")
    assert best["best"]["value"] == max(float(line["box_ap"]) for line in evaluated)
    assert best["iteration"] == best["best"]["iteration"]
    assert best["averaged"].keys() == best["model"].keys()
    table = (out / "results.md").read_text()
    assert "| GPUs | batch | lr | lr_decay | max_epoch | speed/epoch | memory/GPU | mAP |" in table
    assert f"{float(evaluated[-1]['box_ap']):.1f} (box_ap)" in table and table.strip() in said
    assert "<svg" in (out / "curves.svg").read_text()
    # an evaluation changes nothing of the training
    plain = tmp_path / "plain"
    train(*common, "--out", plain, "--iterations", 4, "--eval-every", 0)
    ours, theirs = (checkpoints.read(folder / "last.pth")["model"] for folder in (out, plain))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_event_files_hold_what_the_csv_files_hold(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = small_folder(tmp_path / "data")
    train("--data", data, "--eval-data", data, "--out", tmp_path, "--iterations", 2, "--tensorboard")
    read = events.EventAccumulator(str(tmp_path / "events")).Reload()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [e.value for e in read.Scalars("total_loss")] == pytest.approx([float(li["loss"]) for li in lines])
    assert {"lr", "box_ap"} <= set(read.Tags()["scalars"])


def test_a_dry_run_shows_groups_schedule_memory_and_time_and_writes_nothing(tmp_path: Path) -> None:
    data, out = small_folder(tmp_path / "data"), tmp_path / "out"
    said = train("--data", data, "--out", out, "--iterations", 10, "--dry-run")
    assert "group 1:" in said and "learning rate of iteration 1:" in said and "memory:" in said
    assert "for 10 iterations" in said and not out.exists()


def test_a_loss_that_is_not_finite_stops_is_left_out_or_goes_back(tmp_path: Path) -> None:
    data = small_folder(tmp_path / "data")
    common = ("--data", data, "--iterations", 6, "--save-every", 1, "--eval-every", 0, "--lr-steps", "9")
    common += ("--lr", 1e30, "--warmup", 0)
    said = train(*common, "--out", tmp_path / "stop", code=1)
    assert "is not finite" in said and "step_00000001.pth is from before" in said
    assert checkpoints.read(tmp_path / "stop" / "last.pth")["iteration"] == 1
    train(*common, "--out", tmp_path / "skip", "--on-nan", "skip")
    with (tmp_path / "skip" / "metrics.csv").open(newline="") as file:
        assert [line["skipped"] for line in csv.DictReader(file)] == ["0", "1", "1", "1", "1", "1"]
    said = train(*common, "--out", tmp_path / "back", "--on-nan", "back", code=1)
    assert said.count("back to step_00000001.pth") == 3


def test_data_without_anything_to_train_on_is_an_error(tmp_path: Path) -> None:
    small_folder(tmp_path / "data")
    file = tmp_path / "data" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for objects, problem in (
        ([], "no annotations"),
        ([{**content["annotations"][0], "category_id": 99}], "99"),
        ([{**content["annotations"][0], "bbox": [0, 0, 0, 0]}], "none of its 4 images has an object"),
    ):
        file.write_text(json.dumps(content | {"annotations": objects}))
        where = ("--data", f"coco:{tmp_path / 'data'}:train", "--out", tmp_path / "out", "--iterations", 2)
        assert problem in train(*where, code=2).replace("\n", " ")


def test_a_row_without_a_manifest_is_trained_evaluated_and_used(tmp_path: Path) -> None:
    """By the name that `run --backbone --detector` prints, which `run` and `detect` take too."""
    name, out = "faster_rcnn_vovnet27_tiny_shapes.created", tmp_path / "out"
    data = small_folder(tmp_path / "data", classes=("circle", "star"))
    said = train("--data", data, "--out", out, "--iterations", 2, row=name)
    assert "classes: 8 of shapes -> 2 (my_circle, my_star)" in said and "saved as" in said
    picture = next((tmp_path / "data" / "train").iterdir())
    bench("detect", name, picture, "--out", tmp_path / "drawn", "--weights", out / "last.pth")
    assert "unknown detector" in train("--data", data, "--out", out, row="none_shapes.created", code=2)
