"""Contracts over everything registered: each backbone, each detector, each backbone with each detector, and
every row, built."""

from __future__ import annotations

import pytest
import torch
from contracts import check_backbone, check_detector, need_package

from detection_zoo.zoo import build
from detection_zoo.zoo.build import assemble, build_model, create_entry, create_model
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.manifest import Component
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import BACKBONES, DETECTORS


def model_of(backbone: str, detector: str, classes: int = 3, **options: object) -> Detector:
    """A registered backbone and a registered detector with a thin neck, and few RoIs, so that heads take
    little time."""
    torch.manual_seed(2)
    entry = create_entry(backbone, detector, classes, **options)
    if entry.neck is not None:
        entry = entry.model_copy(update={"neck": Component(**{**entry.neck.model_dump(), "channels": 32})})
    few = {
        "roi": {"samples": 24},
        "keypoint": {"samples": 8, "convs": 2, "width": 32},
        "detections": {"max_detections": 6},
        "ssd": {"clip": True},
    }
    sections = {
        name: section.model_copy(update=fields)
        for name, fields in few.items()
        if (section := getattr(entry.conventions, name)) is not None
    }
    return assemble(entry.model_copy(update={"conventions": entry.conventions.model_copy(update=sections)}))


@pytest.mark.parametrize("name", list(BACKBONES))
def test_backbone_keeps_its_contract(name: str) -> None:
    with torch.device("meta"):
        check_backbone(BACKBONES[name]().eval(), side=64 if name != "vgg16_ssd" else 128)


@pytest.mark.parametrize("detector", list(DETECTORS))
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_any_backbone_goes_with_any_detector(backbone: str, detector: str) -> None:
    with torch.device("meta"):
        model = model_of(backbone, detector).train()
    specs = model.backbone.specs
    maps = model.backbone(torch.zeros(1, 3, 128, 128, device="meta"))
    if not hasattr(model, "neck"):
        return
    levels = model.neck(maps)
    assert list(levels) == list(model.neck.specs) and len(specs) == len(maps)
    for name, spec in model.neck.specs.items():
        assert (
            levels[name].shape[1] == spec.channels and abs(levels[name].shape[2] - 128 / spec.stride) <= 1
        ), name


@pytest.mark.parametrize("detector", list(DETECTORS))
def test_detector_keeps_its_contract(detector: str) -> None:
    """Every registered detector trains and detects, on a small backbone; targets have masks and keypoints."""
    classes = 1 if detector == "keypoint_rcnn" else 3
    image = create_entry("resnet14_slim", detector).conventions.image
    fixed = image.resize == "fixed"
    sizes, divisor = ([(image.size, image.size)] * 2, 1) if fixed else ([(64, 96), (60, 70)], 32)
    for backbone in ("resnet14_slim",) if fixed else ("resnet14_slim", "vovnet27_tiny"):
        model = model_of(backbone, detector, classes)
        check_detector(model, sizes, polygons=True, keypoints=True, divisor=divisor)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_backbone_trains_and_detects(backbone: str) -> None:
    """Every registered backbone, in a whole detector."""
    check_detector(model_of(backbone, "faster_rcnn"), [(64, 64)])


def test_a_model_without_a_row_takes_any_conventions_and_options() -> None:
    model = create_model("resnet14_slim", "faster_rcnn", 5, conventions="detectron", head={"width": 16})
    assert model.num_classes == 5 and model.frame == "original" and model.box.trunk.channels == 16
    assert create_model("resnet14_slim", None, 7).fc.out_features == 7
    with pytest.raises(build.ManifestError, match="did you mean 'detectron'"):
        create_model("resnet14_slim", conventions="detectrn")
    with pytest.raises(build.ManifestError, match="unknown backbone 'resnet14': did you mean"):
        create_model("resnet14")


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
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    assert model.num_classes == load_manifests().entry(name).classes


def test_a_builder_takes_no_unknown_argument() -> None:
    with pytest.raises(
        build.ManifestError,
        match=r"row faster_rcnn_resnet14_slim: field detector\.box_hed: faster_rcnn has no such argument; did you mean 'box_head'",
    ):
        create_model("resnet14_slim", box_hed="2mlp")
