"""Detectors of the Faster R-CNN family and RetinaNet: training targets, frames, images without objects, all
on tiny networks."""

from __future__ import annotations

import copy

import pytest
import torch
from contracts import changed, images_and_targets

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.backbones.resnet import resnet14_slim
from detection_zoo.zoo.build import create_model
from detection_zoo.zoo.detectors.faster_rcnn import faster_rcnn, without_crowd
from detection_zoo.zoo.detectors.keypoint_rcnn import KeypointRcnnRules, keypoint_rcnn
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnn, MaskRcnnRules, mask_rcnn
from detection_zoo.zoo.detectors.retinanet import RetinaNetRules, retinanet
from detection_zoo.zoo.necks import FeaturePyramid
from detection_zoo.zoo.parts.frames import Frame, frames
from detection_zoo.zoo.parts.proposals import Proposals
from detection_zoo.zoo.records import FeatureSpec, Target
from detection_zoo.zoo.registry import BACKBONES

SIZES = [(64, 96), (60, 70)]
FEW = {"roi": {"samples": 16}, "detections": {"max_detections": 5}}


def pyramid(backbone: Backbone, **arguments: object) -> FeaturePyramid:
    return FeaturePyramid(backbone.specs, channels=16, **arguments)


def tiny_mask_rcnn(**sections: dict[str, object]) -> MaskRcnn:
    torch.manual_seed(5)
    backbone = resnet14_slim()
    rules = changed(MaskRcnnRules(), **{**FEW, **sections})
    return mask_rcnn(backbone, 3, rules, neck=pyramid(backbone))


def test_images_without_objects_train_as_background() -> None:
    torch.manual_seed(5)
    backbone = resnet14_slim()
    empty = Target(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        [],
        torch.zeros(0, 17, 3),
        torch.zeros(0, dtype=torch.bool),
    )
    images, true, _ = images_and_targets(SIZES, polygons=False, keypoints=False, classes=3)
    for model in (
        tiny_mask_rcnn(),
        keypoint_rcnn(backbone, 1, changed(KeypointRcnnRules(), **FEW), neck=pyramid(backbone)),
        retinanet(backbone, 3, neck=pyramid(backbone, extra="p6p7")),
    ):
        losses = model.train()(images, true, [empty, empty])
        assert all(torch.isfinite(value) for value in losses.values()), losses
        assert (
            losses["loss_box"] == 0
            and losses.get("loss_mask", 0) == 0
            and losses.get("loss_keypoint", 0) == 0
        )
        torch.stack(list(losses.values())).sum().backward()


def test_training_without_targets_or_without_their_parts_says_so() -> None:
    model = tiny_mask_rcnn().train()
    images, true, targets = images_and_targets(SIZES, polygons=False, keypoints=False, classes=3)
    with pytest.raises(ValueError, match="training needs targets"):
        model(images, true)
    with pytest.raises(ValueError, match="trained with polygons, and the target has none"):
        model(images, true, targets)


def test_crowd_objects_are_left_out() -> None:
    target = Target(
        torch.rand(3, 4),
        torch.tensor([0, 1, 2]),
        [[[0.0]], [[1.0]], [[2.0]]],
        torch.rand(3, 17, 3),
        torch.tensor([False, True, False]),
    )
    left = without_crowd(target)
    assert (
        left.labels.tolist() == [0, 2]
        and left.polygons == [[[0.0]], [[2.0]]]
        and len(left.keypoints) == 2
        and not left.crowd.any()
    )


def test_frames_scale_by_sides_or_by_the_common_factor() -> None:
    sizes, original = torch.tensor([[800, 1199]]), torch.tensor([[427, 640]])
    assert frames(sizes, original, common=False) == [Frame((800, 1199), (427, 640), (640 / 1199, 427 / 800))]
    assert frames(sizes, original, common=True)[0].factor == (427 / 800, 427 / 800)
    assert frames(sizes, None, common=False)[0].factor == (1.0, 1.0)


def test_boxes_in_original_pixels_are_those_of_the_input_scaled() -> None:
    model = tiny_mask_rcnn().eval()
    images, true, _ = images_and_targets(SIZES, polygons=False, keypoints=False, classes=3)
    with torch.no_grad():
        here, there = model.predict(images, true), model.predict(images, true, true * torch.tensor([2, 3]))
    for a, b in zip(here, there, strict=True):
        assert torch.allclose(
            a.boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]), b.boxes, atol=1e-3
        ) and torch.equal(a.scores, b.scores)
        assert a.masks.shape[1:] == (28, 28) and b.masks.dtype == torch.bool


def test_c4_mask_head_reads_the_box_heads_stage() -> None:
    torch.manual_seed(5)
    backbone = BACKBONES["resnet14_slim"](last="c4")
    rules = changed(MaskRcnnRules(), pooling={"size": 14, "sampling_ratio": 0}, **FEW)
    model = mask_rcnn(backbone, 3, rules, box_head="conv5", mask_head="v0upshare")
    images, true, targets = images_and_targets(SIZES, polygons=True, keypoints=False, classes=3)
    losses = model.train()(images, true, targets)
    losses["loss_mask"].backward()
    assert model.box.trunk.stage[0].conv1.conv.weight.grad.abs().sum() > 0
    assert model.backbone_parts == {"backbone.": "backbone.", "backbone.c5.": "box.trunk.stage."}
    with torch.no_grad():
        found = model.eval().predict(images, true)
    assert found[0].masks.shape[1:] == (14, 14)


def test_a_step_in_training_is_the_sum_of_its_parts() -> None:
    model = tiny_mask_rcnn().train()
    images, true, targets = images_and_targets(SIZES, polygons=True, keypoints=False, classes=3)
    step = model.training_step(images, true, targets)
    assert set(step.losses) == {"loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"}
    for each, target in zip(step.sampled, targets, strict=True):
        assert len(each.labels) <= 16 and (each.labels > 0).sum() <= 4
        positive = each.labels > 0
        assert torch.equal(target.labels[each.matches[positive]] + 1, each.labels[positive])


def test_no_proposal_at_all_gives_no_detection() -> None:
    model = tiny_mask_rcnn(proposals={"min_size": 1e6}).eval()
    images, true, _ = images_and_targets(SIZES, polygons=False, keypoints=False, classes=3)
    with torch.no_grad():
        assert [len(each) for each in model.predict(images, true, true)] == [0, 0]


def test_retinanet_starts_from_its_prior() -> None:
    torch.manual_seed(5)
    backbone = resnet14_slim()
    rules = changed(RetinaNetRules(), retinanet={"prior": 0.02})
    model = retinanet(backbone, 4, rules, neck=pyramid(backbone, extra="p6p7")).eval()
    raw = model.raw(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
    assert raw.logits[0].sigmoid().mean().item() == pytest.approx(0.02, rel=0.05)
    assert len(raw.anchors[0]) == 8 * 8 * 9 and model.anchors.strides == [8, 16, 32, 64, 128]
    assert [len(each) for each in model.postprocess(raw, torch.tensor([[64, 64]]))] == [
        0
    ]  # 0.02 is below the threshold 0.05


def test_pooling_levels_and_anchors_follow_the_neck() -> None:
    class TwoMaps(Backbone):
        specs = {"a": FeatureSpec(8, 8), "b": FeatureSpec(8, 16)}

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {
                "a": images.new_ones(len(images), 8, images.shape[2] // 8, images.shape[3] // 8),
                "b": images.new_ones(len(images), 8, images.shape[2] // 16, images.shape[3] // 16),
            }

    backbone = TwoMaps()
    model = faster_rcnn(backbone, 2, neck=FeaturePyramid(backbone.specs, channels=8)).eval()
    assert model.box.pooler.levels == ["pa", "pb"] and model.rpn.anchors.strides == [8, 16, 32]
    with torch.no_grad():
        assert len(model.predict(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))) == 1
    alone = faster_rcnn(backbone, 2).eval()
    assert alone.box.pooler.levels == ["b"] and alone.rpn.anchors.per_cell == 15
    assert isinstance(alone.raw(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]])).proposals[0], Proposals)


@pytest.mark.parametrize("conventions", ["maskrcnn_benchmark", "detectron", "detnet"])
def test_a_detector_can_be_copied(conventions: str) -> None:
    """Whatever draws its samples, a copy detects the same."""
    model = create_model("resnet14_slim", "faster_rcnn", 3, conventions=conventions, device="meta")
    assert type(copy.deepcopy(model).sampler) is type(model.sampler)
