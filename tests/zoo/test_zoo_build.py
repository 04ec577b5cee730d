"""build_model: rows, weights, conventions to parts, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from forked import run_forked

from detection_zoo.zoo.build import assemble, build_model, rules_of, sections_in_force
from detection_zoo.zoo.conventions import Conventions, DetectionConventions
from detection_zoo.zoo.errors import CheckpointError, ManifestError
from detection_zoo.zoo.manifest import Component, ModelEntry, WeightSpec
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import DETECTORS


def row(**changes: object) -> ModelEntry:
    usual = {
        "name": "small",
        "source": "tests",
        "title": "small",
        "classes": 3,
        "dataset": "shapes",
        "backbone": Component(name="resnet14_slim"),
        "neck": Component(name="fpn", channels=16),
        "detector": Component(name="faster_rcnn"),
        "conventions": load_manifests().conventions["maskrcnn_benchmark"],
    }
    return ModelEntry(**{**usual, **changes})


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = build_model(row(), "random"), build_model(row(), "random")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not first.training


def test_numbers_of_the_conventions_reach_the_parts() -> None:
    usual = load_manifests().conventions["maskrcnn_benchmark"]
    changed = usual.model_copy(
        update={
            "detections": usual.detections.model_copy(update={"nms_iou": 0.31, "max_detections": 7}),
            "proposals": usual.proposals.model_copy(update={"pre_nms": 77}),
            "boxes": usual.boxes.model_copy(update={"weights": [1.0, 2.0, 3.0, 4.0]}),
        }
    )
    model = assemble(row(conventions=changed))
    assert (model.detection_rule.nms_iou, model.detection_rule.max_detections) == (0.31, 7)
    assert model.rpn.rules[False].pre_nms == 77 and model.rpn.rules[True].pre_nms == 2000
    assert tuple(model.coder.weights) == (1.0, 2.0, 3.0, 4.0) and tuple(model.rpn.coder.weights) == (
        1.0,
        1.0,
        1.0,
        1.0,
    )


def test_sections_are_the_rules_of_the_detector() -> None:
    conventions, rules = (
        load_manifests().conventions["maskrcnn_benchmark"],
        rules_of(DETECTORS["faster_rcnn"]),
    )
    given = sections_in_force(conventions, rules, "faster_rcnn", "row")["rules"]
    assert given.rpn is conventions.rpn and given.detections is conventions.detections
    only_image = Conventions(image=conventions.image)
    assert sections_in_force(only_image, rules, "faster_rcnn", "row")["rules"] == rules


@pytest.mark.parametrize("detector", list(DETECTORS))
def test_a_limit_of_detections_is_in_force_or_an_error(detector: str) -> None:
    """No detector may take `adjust.detections.max_detections = 1` and give more."""
    arguments = {"ssd": {"size": 300, "priors": "coco_300"}}.get(detector, {})
    image = load_manifests().conventions["maskrcnn_benchmark"].image
    limited = Conventions(image=image, detections=DetectionConventions(score_threshold=0.0, max_detections=1))
    own = row(detector=Component(name=detector, **arguments), conventions=limited)
    if "detections" not in {field.name for field in dataclasses.fields(rules_of(DETECTORS[detector]))}:
        with pytest.raises(ManifestError, match=rf"{detector} does not use the section detections; it uses"):
            build_model(own)
        return
    found = build_model(own, "random").predict(torch.rand(1, 3, 64, 96), torch.tensor([[64, 96]]))
    assert len(found[0]) == 1


@pytest.mark.parametrize("name", list(load_manifests().entries))
def test_every_row_has_the_sections_of_its_detector_only(name: str) -> None:
    entry = load_manifests().entry(name)
    if entry.detector is not None and entry.conventions is not None:
        rules = rules_of(DETECTORS[entry.detector.name])
        sections_in_force(entry.conventions, rules, entry.detector.name, name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone": Component(name="resnet14_slm")},
            (
                r"tests\.toml: row small: field backbone\.name: unknown backbone .*: did you mean"
                r" 'resnet14_slim'"
            ),
        ),
        ({"neck": Component(name="fpnn")}, r"field neck\.name: unknown neck 'fpnn': did you mean"),
        (
            {"detector": Component(name="faster_rcn")},
            r"field detector\.name: unknown detector 'faster_rcn': did you mean 'faster_rcnn'",
        ),
        (
            {"backbone": Component(name="resnet14_slim", norm="grp")},
            r"backbone resnet14_slim cannot be built: unknown norm 'grp'",
        ),
        (
            {"detector": Component(name="faster_rcnn", box_head="conv5")},
            r"detector faster_rcnn cannot be built: the body ends with c5",
        ),
        (
            {"published_only": "its code was never published"},
            r"row small cannot be built: its code was never published",
        ),
    ],
)
def test_a_row_that_cannot_be_built_says_where_and_why(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        build_model(row(**changes))


def test_an_unknown_row_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ManifestError,
        match=(
            "no row is named 'faster_rcnn_vovnet39_fpn_2x'.* did you mean"
            " 'faster_rcnn_vovnet39_fpn_2x.vovnet'"
        ),
    ):
        build_model("faster_rcnn_vovnet39_fpn_2x")


def test_a_file_of_our_own_is_loaded_whatever_the_row_publishes(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = assemble(row())
    path = tmp_path / "model.pth"
    torch.save(
        {
            "model": {f"module.{name}": tensor for name, tensor in trained.state_dict().items()},
            "iteration": 5,
        },
        path,
    )
    published = WeightSpec(
        urls=["https://example.org/a.pth"], format="maskrcnn_benchmark_pth", holds="detector"
    )
    for weights in ([], [published]):
        loaded = build_model(row(weights=weights), path)
        assert all(
            torch.equal(a, b)
            for a, b in zip(trained.state_dict().values(), loaded.state_dict().values(), strict=True)
        )


def test_other_files_need_a_format(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(2)}, path)
    with pytest.raises(
        CheckpointError, match="fits the model in none of the checkpoint formats, and the row states none"
    ):
        build_model(row(), path)
    with pytest.raises(CheckpointError, match="no such file"):
        build_model(row(), tmp_path / "absent.pth")


def test_published_weights_that_are_not_here_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(tmp_path))
    spec = WeightSpec(urls=["https://example.org/a.pth"], format="maskrcnn_benchmark_pth", holds="detector")
    with pytest.raises(CheckpointError, match=r"download_weights\.py get small"):
        build_model(row(weights=[spec]), "published")
    with pytest.raises(
        CheckpointError, match="row small has no published weights; train it, or pass the path of a file"
    ):
        build_model(row(), "published")
    with pytest.raises(CheckpointError, match="no published weights: it is another model's file"):
        build_model(
            row(weights=[spec.model_copy(update={"wrong": "it is another model's file"})]), "published"
        )


def test_on_the_meta_device_nothing_is_allocated() -> None:
    model = build_model("mask_rcnn_vovnet57_fpn_2x.vovnet", device="meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert model.num_classes == 80 and len(model.class_names) in (0, 80)


def test_on_the_meta_device_torchs_compiler_is_not_imported() -> None:
    """Its import takes 1.3 s, sympy's 0.4, and some operators import them at their first call on that
    device."""
    code = """if True:
        import sys
        from detection_zoo.zoo.build import build_model
        for name in ("keypoint_rcnn_resnet50_fpn_1x.detectron_pytorch", "ssd512_hardnet68_voc.hardnet"):
            build_model(name, device="meta")
        assert not {"torch._dynamo", "sympy"} & {*sys.modules}
    """
    done = run_forked("-c", code, imports=("torch",))
    assert done.returncode == 0, done.stderr
