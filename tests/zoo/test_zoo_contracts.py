"""Contracts over everything registered: each backbone, each detector, each backbone with each detector, and
every row, built."""

from __future__ import annotations

import pytest
import torch
from contracts import check_backbone, check_detector, need_package

from detection_zoo.zoo import build
from detection_zoo.zoo.build import assemble, build_model
from detection_zoo.zoo.conventions import (
    Conventions,
    DetectionConventions,
    KeypointConventions,
    RoiConventions,
)
from detection_zoo.zoo.manifest import Component, ModelEntry, load_manifests
from detection_zoo.zoo.registry import BACKBONES, DETECTORS

NECKS = {
    "retinanet": Component(name="fpn", extra="p6p7", channels=32),
    "joint_rcnn": Component(name="fpn", channels=32),
    "ssd": None,
}
ARGUMENTS = {"ssd": {"size": 300, "priors": "coco_300"}}


def entry(backbone: str, detector: str, classes: int = 3, **arguments: object) -> ModelEntry:
    """A row of a registered backbone and a registered detector, with a thin neck."""
    neck = NECKS.get(detector, Component(name="fpn", channels=32))
    return ModelEntry(
        name="pair",
        source="tests",
        title="pair",
        classes=classes,
        dataset="shapes",
        backbone=Component(name=backbone),
        neck=neck,
        detector=Component(name=detector, **ARGUMENTS.get(detector, {}), **arguments),
    )


@pytest.mark.parametrize("name", list(BACKBONES))
def test_backbone_keeps_its_contract(name: str) -> None:
    with torch.device("meta"):
        check_backbone(BACKBONES[name]().eval(), side=64 if name != "vgg16_ssd" else 128)


@pytest.mark.parametrize("detector", list(DETECTORS))
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_any_backbone_goes_with_any_detector(backbone: str, detector: str) -> None:
    with torch.device("meta"):
        model = assemble(entry(backbone, detector)).train()
    specs = model.backbone.specs
    maps = model.backbone(torch.zeros(1, 3, 128, 128, device="meta"))
    if detector == "ssd":
        return
    levels = model.neck(maps)
    assert list(levels) == list(model.neck.specs) and len(specs) == len(maps)
    for name, spec in model.neck.specs.items():
        assert (
            levels[name].shape[1] == spec.channels and abs(levels[name].shape[2] - 128 / spec.stride) <= 1
        ), name


def few() -> Conventions:
    """maskrcnn-benchmark's conventions with few RoIs, so that heads take little time."""
    usual = load_manifests().conventions["maskrcnn_benchmark"]
    fewer = {
        "roi": RoiConventions(samples=24),
        "keypoint": KeypointConventions(samples=8),
        "detections": DetectionConventions(max_detections=6),
    }
    return usual.model_copy(update=fewer)


@pytest.mark.parametrize(
    ("detector", "backbone"),
    [
        ("faster_rcnn", "resnet14_slim"),
        ("faster_rcnn", "vovnet27_tiny"),
        ("mask_rcnn", "resnet14_slim"),
        ("keypoint_rcnn", "vovnet27_tiny"),
        ("retinanet", "resnet14_slim"),
        ("retinanet", "vovnet27_tiny"),
        ("rpn", "resnet14_slim"),
    ],
)
def test_detector_keeps_its_contract(detector: str, backbone: str) -> None:
    torch.manual_seed(2)
    model = assemble(entry(backbone, detector).model_copy(update={"conventions": few()}))
    check_detector(
        model, [(64, 96), (60, 70)], polygons=detector == "mask_rcnn", keypoints=detector == "keypoint_rcnn"
    )


def distinct_rows() -> list[str]:
    """One row of each combination of parts and conventions that can be built."""
    seen: dict[str, str] = {}
    for row in load_manifests().entries.values():
        if row.published_only is None:
            parts = [
                part.model_dump_json() if part else "" for part in (row.backbone, row.neck, row.detector)
            ]
            seen.setdefault(f"{parts} {row.classes} {row.conventions_name} {row.conventions}", row.name)
    return list(seen.values())


@pytest.mark.parametrize("name", distinct_rows())
def test_every_row_is_built(name: str) -> None:
    need_package(name)
    model = build_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) > 100_000
    assert model.num_classes == load_manifests().entry(name).classes


def test_a_builder_takes_no_unknown_argument() -> None:
    with pytest.raises(
        build.ManifestError,
        match=r"row pair: field detector\.box_hed: faster_rcnn has no such argument; did you mean 'box_head'",
    ):
        assemble(entry("resnet14_slim", "faster_rcnn", box_hed="2mlp"))
