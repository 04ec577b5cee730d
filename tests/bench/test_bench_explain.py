"""bench.py explain: planted conventions are found, harmless changes are not blamed, and what cannot be
changed is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench import app
from detection_zoo.benchmarks.ask.explain import Measured, chance_of_rise, explain, measure_variants, text_of
from detection_zoo.benchmarks.ask.suspects import Variant, variants
from detection_zoo.benchmarks.run.subject import build_subject, open_data
from detection_zoo.zoo.build import assemble
from detection_zoo.zoo.errors import DatasetError, ManifestError
from detection_zoo.zoo.manifest import Component, ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.settings import parse_setting, with_value

RESNET, SSDLITE = "resnet50_msra_imagenet.registry", "ssdlite_mobilenetv2_300.registry"
CLASSES = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture of coloured stripes for each of 24 classes, in imagenet's form."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(8)
    (folder / "images").mkdir()
    lines = ["file,wnid,class_index,name"]
    for label in range(CLASSES):
        stripes = np.repeat(np.repeat(draw.integers(0, 256, (9, 8, 3), np.uint8), 8, 0), 8, 1)
        Image.fromarray(stripes).save(folder / "images" / f"n{label:08}.png")
        lines.append(f"images/n{label:08}.png,n{label:08},{label},class {label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def classifier(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelEntry, Path]:
    """A row and its weights: random features, and the last layer that fits the pictures by least squares
    under the row's own conventions."""
    usual = load_manifests().conventions["imagenet_caffe"]
    image = usual.image.model_copy(update={"size": 48, "resize_short": 64})
    entry = ModelEntry(
        name="stripes",
        source="tests",
        title="stripes",
        task="classification",
        classes=CLASSES,
        dataset="imagenet",
        backbone=Component(name="resnet14_slim", stride_in_1x1=True, norm="batch"),
        conventions=usual.model_copy(update={"image": image}),
    )
    torch.manual_seed(1)
    subject = build_subject(entry, "random", "cpu")
    data = open_data(entry, f"imagenet:{pictures}")
    with torch.no_grad():
        for module in subject.model.modules():  # statistics of the pictures, as training leaves them
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        subject.model.train()(
            torch.stack([subject.preprocess(data.load_image(i)).tensor for i in range(len(data))])
        )
        subject.model.eval()
        features = torch.cat(
            [
                subject.model.pooled(subject.preprocess(data.load_image(i)).tensor[None])
                for i in range(len(data))
            ]
        )
        fitted = torch.linalg.lstsq(
            torch.cat([features, torch.ones(len(data), 1)], 1).double(),
            torch.eye(CLASSES).double()[[int(data.target(i).labels[0]) for i in range(len(data))]],
        ).solution.float()
        subject.model.fc.weight.copy_(fitted[:-1].T)
        subject.model.fc.bias.copy_(fitted[-1])
    path = tmp_path_factory.mktemp("weights") / "stripes.pth"
    torch.save(subject.model.state_dict(), path)
    return entry, path


def asked(classifier: tuple[ModelEntry, Path], pictures: Path, settings: list[str], **options: object):
    entry, path = classifier
    return explain(entry, f"imagenet:{pictures}", str(path), settings=settings, **options)


@pytest.mark.parametrize(
    ("settings", "suspect"),
    [
        (["image.channel_order=rgb"], "channel order"),
        (
            ["image.value_range=0..1", "image.mean=[0.485, 0.456, 0.406]", "image.std=[0.229, 0.224, 0.225]"],
            "mean and std",
        ),
        (["backbone.stride_in_1x1=false"], "stride position"),
    ],
)
def test_a_planted_convention_is_found(
    classifier: tuple[ModelEntry, Path], pictures: Path, settings: list[str], suspect: str
) -> None:
    found = asked(
        classifier,
        pictures,
        settings,
        expected=100.0,
        only=["channel order", "mean and std", "stride position"],
    )
    assert (
        found.value < 85
        and found.named[0] == suspect
        and found.nearest.suspect == suspect
        and found.nearest.value == 100.0
    )
    best = max(found.lines, key=lambda line: line.value)
    assert (
        best.suspect == suspect
        and best.verdict.startswith("INCREASES it, p = ")
        and best.verdict.endswith("; gives the expected number")
    )
    assert f"suspected: {suspect}" in text_of(found) and "nearest to 100" in text_of(found)


def test_the_right_row_blames_nothing(classifier: tuple[ModelEntry, Path], pictures: Path) -> None:
    found = asked(classifier, pictures, [])
    assert (
        found.value == 100.0
        and found.named == []
        and found.nearest is None
        and found.halves == (100.0, 100.0)
    )
    half = next(line for line in found.lines if line.suspect == "half-loaded weights")
    assert half.value < 50 and half.verdict == "decreases it"
    assert found.untested == ["RoIAlign alignment", "padding", "score threshold"]
    assert "published: not reported" in text_of(found) and "suspected: nothing" in text_of(found)


def test_detectors_share_decoding_and_network_and_change_only_selection() -> None:
    entry = load_manifests().entry("mask_rcnn_resnet14_slim_fpn.demo")
    subject = build_subject(entry, "random", "cpu")
    data = open_data(entry, "shapes", 2)
    small = with_value(with_value(entry, "image.size", 96), "image.max_size", 128)
    subject.entry = entry = small
    wanted = [
        Variant("none", "", entry),
        Variant("score threshold", "", with_value(entry, "detections.score_threshold", 0.5), "selection"),
        Variant("detections per image", "", with_value(entry, "detections.max_detections", 3), "selection"),
    ]
    calls = []
    subject.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    base, strict, few = measure_variants(wanted, subject, data)
    per_image = [sum(r["image_id"] == i for r in few.records) for i in data.image_ids]
    assert len(base.records) > 6 and not strict.records and per_image == [3, 3]
    assert not calls, "the given model lends its tensors, it is not run"


def test_suspects_of_a_two_stage_detector() -> None:
    entry = load_manifests().entry("faster_rcnn_resnet50_fpn_1x.detectron")
    with torch.device("meta"):
        named = {}
        for variant in variants(entry, assemble(entry)):
            named.setdefault(variant.suspect, []).append(variant.change)
    assert set(named) == {
        "channel order",
        "mean and std",
        "resize rule",
        "score threshold",
        "detections per image",
        "NMS threshold",
        "box ends",
        "RoIAlign alignment",
        "stride position",
        "precision",
        "half-loaded weights",
    }
    assert "in the 3x3" in named["stride position"] and named["RoIAlign alignment"] == [
        "on (shift by half a pixel)"
    ]
    assert any("imagenet_torchvision" in change or "0.485" in change for change in named["mean and std"])


def test_chance_is_the_exact_sign_test() -> None:
    entry = load_manifests().entry(RESNET)
    variant = Variant("x", "", entry)
    base = Measured(variant, 0, right=[False] * 6 + [True] * 2 + [True] * 5)
    better = Measured(variant, 0, right=[True] * 6 + [False] * 2 + [True] * 5)
    assert chance_of_rise(better, base, None) == pytest.approx((28 + 8 + 1) / 256)  # 6 or more heads of 8
    assert chance_of_rise(base, base, None) == 1.0


def test_settings_are_checked() -> None:
    entry = load_manifests().entry(SSDLITE)
    assert parse_setting("ssd.nms_iou=0.7") == ("ssd.nms_iou", 0.7) and parse_setting(
        "image.channel_order = bgr"
    ) == ("image.channel_order", "bgr")
    assert (
        with_value(entry, "ssd.nms_iou", 0.7).conventions.ssd.nms_iou == 0.7
        and entry.conventions.ssd.nms_iou == 0.6
    )
    with pytest.raises(
        ManifestError, match="image.channel_order: Input should be 'rgb' or 'bgr', but it is 'grb'"
    ):
        with_value(entry, "image.channel_order", "grb")
    with pytest.raises(
        ManifestError, match=r"'padding' is no field \(did you mean 'pooling'\?\); write SECTION.FIELD=VALUE"
    ):
        with_value(entry, "padding", "same")
    with pytest.raises(ManifestError, match="write SECTION.FIELD=VALUE"):
        parse_setting("padding")


def test_unknown_suspects_and_the_command(pictures: Path) -> None:
    with pytest.raises(DatasetError, match="has no suspect phase of the moon; choose from NMS threshold"):
        explain(
            load_manifests().entry("mask_rcnn_resnet14_slim_fpn.demo"),
            "shapes",
            "random",
            images=1,
            only=["phase of the moon"],
        )
    done = CliRunner().invoke(
        app,
        [
            "explain",
            "mask_rcnn_resnet14_slim_fpn.demo",
            "--weights",
            "random",
            "--images",
            "2",
            "--suspects",
            "box ends",
            "--json",
        ],
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (
        answer["metric"] == "box_ap"
        and answer["weights"].startswith("random, untrained")
        and [line["suspect"] for line in answer["lines"]] == ["box ends"]
    )


@pytest.mark.parametrize(
    ("row", "data", "images", "settings", "suspect"),
    [
        (RESNET, "imagenet:{}/imagenet_mini", 40, ["image.channel_order=rgb"], "channel order"),
        (
            RESNET,
            "imagenet:{}/imagenet_mini",
            12,
            ["image.value_range=0..1", "image.mean=[0.485,0.456,0.406]", "image.std=[0.229,0.224,0.225]"],
            "mean and std",
        ),
        (RESNET, "imagenet:{}/imagenet_mini", 100, ["backbone.stride_in_1x1=false"], "stride position"),
        (
            SSDLITE,
            "coco:{}/coco_mini",
            30,
            ["backbone.padding=symmetric", "detector.padding=symmetric"],
            "padding",
        ),
    ],
)
def test_wrong_conventions_of_real_models_are_found(
    row: str,
    data: str,
    images: int,
    settings: list[str],
    suspect: str,
    package_weights: Path,
    data_folder: Path,
) -> None:
    found = explain(
        load_manifests().entry(row),
        data.format(data_folder),
        images=images,
        settings=settings,
        only=[suspect],
    )
    assert found.named == [suspect], text_of(found)
