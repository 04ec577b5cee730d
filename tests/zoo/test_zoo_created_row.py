"""Rows without a manifest, by a name that any process can build them from."""

from __future__ import annotations

import pytest

from detection_zoo.benchmarks.ask.fit_find import check_row
from detection_zoo.benchmarks.run.subject import identify_weights
from detection_zoo.zoo.build import build_model, create_entry
from detection_zoo.zoo.created_row import created_name, row_named
from detection_zoo.zoo.errors import ManifestError, UnknownName
from detection_zoo.zoo.manifest import load_manifests
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
    build_model(entry, device="meta")
    own = [row for row in load_manifests().entries.values() if row.source == "demo"]
    like = next((row for row in own if row.detector.name == detector), None)
    if like is not None and like.backbone.name == backbone:
        assert (entry.conventions, entry.neck) == (like.conventions, like.neck)
        assert entry.detector == like.detector


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
