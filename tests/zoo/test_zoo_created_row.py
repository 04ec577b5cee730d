"""Rows without a manifest, by a name that any process can build them from."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from contracts import shared_backbones

from detection_zoo.benchmarks.ask.fit_find import check_row
from detection_zoo.benchmarks.run.subject import identify_weights, inclusive_boxes
from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.build import assemble, build_model, create_entry, create_model
from detection_zoo.zoo.conventions import BoxConventions, Conventions
from detection_zoo.zoo.created_row import created_name, row_named
from detection_zoo.zoo.data.training_loader import target_rules
from detection_zoo.zoo.detectors.ssd import SSD
from detection_zoo.zoo.errors import ManifestError, UnknownName
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import BACKBONES, DETECTORS


@pytest.mark.parametrize(
    ("backbone", "detector", "data", "name", "classes"),
    [
        ("resnet14_slim", "faster_rcnn", "shapes", "faster_rcnn_resnet14_slim_shapes.created", 8),
        ("vovnet27_tiny", "retinanet", "coco:x", "retinanet_vovnet27_tiny_coco.created", 80),
        ("resnet14_slim", "mask_rcnn", "some/folder", "mask_rcnn_resnet14_slim_coco.created", 80),
        ("resnet14_slim", "faster_rcnn", "voc:x:2007:test", "faster_rcnn_resnet14_slim_voc.created", 20),
        (
            "resnet14_slim",
            "keypoint_rcnn",
            "shapes:val",
            "keypoint_rcnn_resnet14_slim_shapes_keypoints.created",
            1,
        ),
        ("resnet18", "classifier", "imagenet:x", "classifier_resnet18_imagenet.created", 1000),
        ("timm.resnet18", "faster_rcnn", "shapes", "faster_rcnn_timm.resnet18_shapes.created", 8),
    ],
)
def test_a_name_is_the_row(backbone: str, detector: str, data: str, name: str, classes: int) -> None:
    assert created_name(backbone, detector, data) == name
    entry = row_named(name)
    assert (entry.name, entry.backbone.name, entry.classes) == (name, backbone, classes)
    assert (entry.detector.name if entry.detector else "classifier") == detector
    assert build_model(entry, device="meta").training is False


def test_rows_of_manifests_are_found_too() -> None:
    assert row_named("resnet18_imagenet.registry").source == "registry"
    for name, said in (
        ("faster_rcnn_resnet14_slm_shapes.created", "did you mean 'resnet14_slim'"),
        ("fast_resnet14_slim_shapes.created", "unknown detector"),
        ("faster_rcnn_resnet14_slim_nowhere.created", "unknown dataset"),
        ("no_such_row", "no row is named"),
    ):
        with pytest.raises(UnknownName, match=said):
            row_named(name)


@pytest.mark.parametrize("backbone", list(BACKBONES))
@pytest.mark.parametrize("detector", list(DETECTORS))
def test_on_shapes_a_row_is_as_small_as_the_demo_rows(detector: str, backbone: str) -> None:
    """Images, boxes and anchors are the demo's; any backbone can be built so."""
    entry, demo = row_named(created_name(backbone, detector, "shapes")), load_manifests().conventions["demo"]
    assert entry.conventions.image.size == demo.image.size == 160 and entry.conventions.targets is not None
    with shared_backbones():
        assemble(entry)
    own = [row for row in load_manifests().entries.values() if row.source == "demo"]
    like = next((row for row in own if row.detector.name == detector), None)
    if like is not None and like.backbone.name == backbone:
        assert (entry.conventions, entry.neck) == (like.conventions, like.neck)
        assert entry.detector == like.detector


@pytest.mark.parametrize("detector", list(DETECTORS))
@pytest.mark.parametrize("dataset", ["coco", "shapes"])
def test_training_and_evaluation_agree_where_boxes_end(detector: str, dataset: str) -> None:
    entry = create_entry("resnet14_slim", detector, 8, dataset=dataset)
    data = SimpleNamespace(keypoint_names=())
    assert target_rules(entry, data).inclusive == inclusive_boxes(entry)


def test_a_detector_without_its_own_box_ends_needs_them_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class EdgeRules:
        boxes: BoxConventions = BoxConventions(offset=0.0, far_offset=0.0)

    def edges(backbone: Backbone, num_classes: int, rules: EdgeRules = EdgeRules()) -> SSD:
        return create_model("resnet14_slim", "ssd", num_classes)

    monkeypatch.setitem(DETECTORS._builders, "edges", edges)
    for dataset in ("coco", "shapes"):
        entry = create_entry("resnet14_slim", "edges", 8, dataset=dataset)
        assert not inclusive_boxes(entry)
        assert not target_rules(entry, SimpleNamespace(keypoint_names=())).inclusive
        build_model(entry)
    bare = entry.model_copy(update={"conventions": Conventions(image=entry.conventions.image)})
    with pytest.raises(ManifestError, match="no section says where boxes end; add targets.inclusive"):
        build_model(bare)


def test_a_neck_for_a_detector_without_one_is_refused() -> None:
    with pytest.raises(ManifestError, match="ssd takes no neck; leave out neck="):
        create_entry("resnet14_slim", "ssd", 8, neck={"name": "fpn"})


def test_messages_name_the_manifest_of_a_row_or_say_that_it_has_none() -> None:
    entry = row_named("faster_rcnn_resnet14_slim_shapes.created")
    assert (
        row_named("resnet18_imagenet.registry").where
        == "manifests/registry.toml: row resnet18_imagenet.registry"
    )
    for call in (lambda: check_row(entry, train=True), lambda: identify_weights(entry, "published")):
        with pytest.raises(ManifestError, match=rf"^no manifest \(created from .*\): row {entry.name} "):
            call()
    with pytest.raises(
        ManifestError, match=r"no manifest \(created .* detector\.siz: ssd has no such argument; did"
    ):
        build_model(create_entry("resnet14_slim", "ssd", 8, siz=160), device="meta")
