"""Contracts over everything registered: each backbone, each detector, and each backbone with each
detector."""

from __future__ import annotations

import functools

import pytest
import torch
from contracts import QuickFills, check_detector, check_maps, shared_backbones

from detection_zoo.zoo import build
from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.build import assemble, create_entry, create_model
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.manifest import Component
from detection_zoo.zoo.registry import BACKBONES, DETECTORS

pytestmark = pytest.mark.usefixtures("kept_memory")


def model_of(backbone: str, detector: str, classes: int = 3, **options: object) -> Detector:
    """A registered backbone and a registered detector with a thin neck, and few RoIs, so that heads take
    little time."""
    torch.manual_seed(2)
    entry = create_entry(backbone, detector, classes, **options)
    if entry.neck is not None:
        entry = entry.model_copy(update={"neck": Component(**{**entry.neck.model_dump(), "channels": 32})})
    few = {
        "roi": {"samples": 24},
        "proposals": {"post_nms": 64},
        "training_proposals": {"post_nms": 64},
        "keypoint": {"samples": 8, "convs": 2, "width": 32},
        "mask": {"width": 32},
        "detections": {"max_detections": 6},
        "ssd": {"clip": True},
    }
    sections = {
        name: section.model_copy(update=fields)
        for name, fields in few.items()
        if (section := getattr(entry.conventions, name)) is not None
    }
    return assemble(entry.model_copy(update={"conventions": entry.conventions.model_copy(update=sections)}))


@functools.cache
def maps_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Maps of two images of 128 pixels, without values."""
    return backbone(torch.zeros(2, 3, 128, 128, device="meta"))


@pytest.mark.parametrize("name", list(BACKBONES))
def test_backbone_keeps_its_contract(name: str) -> None:
    with shared_backbones():
        backbone = BACKBONES[name]()
    check_maps(maps_of(backbone), backbone.specs, 128)


@pytest.mark.parametrize("detector", list(DETECTORS))
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_any_backbone_goes_with_any_detector(backbone: str, detector: str) -> None:
    with shared_backbones():
        model = model_of(backbone, detector)
    maps = maps_of(model.backbone)
    check_maps(maps, model.backbone.specs, 128)
    if not hasattr(model, "neck"):
        return
    levels = model.train().neck(maps)
    assert list(levels) == list(model.neck.specs)
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
        with QuickFills():
            model = model_of(backbone, detector, classes)
        check_detector(model, sizes, polygons=True, keypoints=True, divisor=divisor)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_backbone_trains_and_detects(backbone: str) -> None:
    """Every registered backbone, in a whole detector."""
    with QuickFills():
        model = model_of(backbone, "faster_rcnn")
    check_detector(model, [(64, 64)])


def test_a_model_without_a_row_takes_any_conventions_and_options() -> None:
    model = create_model("resnet14_slim", "faster_rcnn", 5, conventions="detectron", head={"width": 16})
    assert model.num_classes == 5 and model.frame == "original" and model.box.trunk.channels == 16
    assert create_model("resnet14_slim", None, 7).fc.out_features == 7
    with pytest.raises(build.ManifestError, match="did you mean 'detectron'"):
        create_model("resnet14_slim", conventions="detectrn")
    with pytest.raises(build.ManifestError, match="unknown backbone 'resnet14': did you mean"):
        create_model("resnet14")


def test_a_builder_takes_no_unknown_argument() -> None:
    with pytest.raises(
        build.ManifestError,
        match=r"row faster_rcnn_resnet14_slim: field detector\.box_hed: faster_rcnn has no such argument; did you mean 'box_head'",
    ):
        create_model("resnet14_slim", box_hed="2mlp")
