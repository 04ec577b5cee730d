"""Training of classifiers, and detectors that start from one: a file, or timm's own weights."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.data.classifier_images import ClassifierBatches
from detection_zoo.zoo.data.imagenet import ImageNetDataset
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.settings import with_value
from detection_zoo.zoo.training import checkpoints

CLASSIFIER = "hardnet39ds_imagenet.hardnet"
SMALL = ("--eval-every", 0, "--batch", 2, "--threads", 1, "--log-every", 1)


def train(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output.replace("\n  ", " ")


def labelled(folder: Path) -> Path:
    """Red and blue noise, four images each, as train/ and val/ with a folder a class."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for channel, name in ((0, "n01"), (2, "n02")):
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = draw.integers(0, 60, (48, 64, 3), dtype=np.uint8)
                pixels[..., channel] += 180
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def test_batches_depend_on_seed_and_place_alone(tmp_path: Path) -> None:
    image = load_manifests().entry(CLASSIFIER).conventions.image.model_copy(update={"size": 32})
    dataset = ImageNetDataset(labelled(tmp_path) / "train")
    batches = ClassifierBatches(dataset, image, images_per_batch=3, seed=5)
    assert [len(batch) for batch in batches.order(0)] == [3, 3] and batches.order(0) != batches.order(1)
    (first, label), (again, _) = batches.item(1, 6), batches.item(1, 6)
    assert first.shape == (3, 32, 32) and label == 1 and torch.equal(first, again)
    assert not torch.equal(first, batches.item(2, 6)[0])
    ranks = [ClassifierBatches(dataset, image, images_per_batch=2, rank=r, world_size=2) for r in (0, 1)]
    assert {i for each in ranks for batch in each.order(0) for i in batch} == set(range(8))


def test_a_classifier_learns_its_own_folder_and_its_file_starts_a_detector(tmp_path: Path) -> None:
    data, out = labelled(tmp_path / "data"), tmp_path / "out"
    said = train(
        *(CLASSIFIER, "--data", f"imagenet:{data}", "--out", out, "--weights", "random", *SMALL),
        *("--set", "image.size=32", "--set", "image.resize_short=36", "--iterations", 3, "--lr", 0.01),
        *("--eval-every", 3, "--seed", 1),
    )
    assert "classes: 1000 of imagenet -> 2 (n01, n02)" in said and "update 3: top1" in said
    with (out / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 and all(0 < float(line["loss_class"]) < 5 for line in lines)
    where = ("--weights", out / "best", "--data", f"imagenet:{data}/val", "--metrics", "top1", "--json")
    where += ("--in-process", "--store", tmp_path / "store")
    done = CliRunner().invoke(app, ["run", CLASSIFIER, *map(str, where)])
    assert done.exit_code == 0, done.output
    with (out / "evaluations.csv").open(newline="") as file:
        top1 = float(list(csv.DictReader(file))[-1]["top1"])
    assert json.loads(done.stdout)[0]["measurements"]["top1"]["value"] == pytest.approx(top1)
    assert "is a classifier" in train(CLASSIFIER, "--out", tmp_path / "no", *SMALL, code=2)


def test_timm_s_weights_bring_their_mean_and_std(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    row, out = "mask_rcnn_resnet10t_fpn_slim.timm", tmp_path / "out"
    torch.manual_seed(3)
    own = timm.create_model("resnet10t").state_dict()
    torch.save(own, tmp_path / "timm.pth")
    common = ("--data", "shapes", "--schedule", "demo", "--iterations", 1, "--lr", 1e-12, "--warmup", 0)
    common += (*SMALL, "--images", 4, "--set", "image.size=64", "--set", "image.max_size=96")
    train(row, *common, "--out", out, "--weights", f"backbone:{tmp_path / 'timm.pth'}")
    state = checkpoints.read(out / "last.pth")["model"]
    torch.testing.assert_close(state["backbone.body.layer4.0.conv1.weight"], own["layer4.0.conv1.weight"])
    known = timm.get_pretrained_cfg("resnet10t")
    changes = json.loads((out / "recipe.json").read_text())["changes"]
    for field in ("mean", "std"):
        assert any(c.startswith(f"image.{field}:") and str(list(getattr(known, field))) in c for c in changes)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    said = train(row, *common, "--out", out / "2", "--weights", f"backbone:{tmp_path / 'other.pth'}", code=1)
    assert "weights of timm.resnet10t could not be loaded" in said


def test_a_library_model_says_that_timm_s_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    import detection_zoo as dz

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client tries ten times
    with pytest.raises(CheckpointError, match="weights of timm.resnet10t could not be loaded"):
        dz.create("timm.resnet10t", classes=2, pretrained=True, device="cpu")


def test_a_trained_classifier_s_file_fills_a_backbone(tmp_path: Path) -> None:
    narrow = {"widths": [[8, 16], [8, 16], [8, 16], [8, 16]], "stem_channels": [8, 8, 16]}
    classifier = load_manifests().entry("vovnet39_imagenet.vovnet")
    for name, channels in narrow.items():
        classifier = with_value(classifier, f"backbone.{name}", channels)
    state = build_model(classifier).state_dict()
    torch.save(state, tmp_path / "classifier.pth")
    row, out = "faster_rcnn_vovnet39_fpn_2x.vovnet", tmp_path / "out"
    train(
        *(row, "--data", "shapes", "--schedule", "maskrcnn_benchmark_2x", "--out", out, "--iterations", 1),
        *(*SMALL, "--lr", 1e-12, "--images", 4, "--warmup", 0, "--set", "image.size=64"),
        *("--weights", f"backbone:{tmp_path / 'classifier.pth'}"),
        *(word for name, channels in narrow.items() for word in ("--set", f"backbone.{name}={channels}")),
        *("--set", "neck.channels=32", "--set", "pooling.size=2"),
    )
    found = checkpoints.read(out / "last.pth")["model"]
    torch.testing.assert_close(found["backbone.stem.0.conv.weight"], state["backbone.stem.0.conv.weight"])
