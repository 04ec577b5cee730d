"""Detectron and Detectron.pytorch: recorded outputs of the original, and the steps that differ from
maskrcnn-benchmark."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import changed
from torch import Tensor

from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.conventions import (
    DetectionConventions,
    PoolingConventions,
    RetinaNetConventions,
    RoiConventions,
    RpnConventions,
)
from detection_zoo.zoo.detectors.faster_rcnn import ProposalRules, faster_rcnn, make_rpn
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnnRules, mask_rcnn
from detection_zoo.zoo.detectors.retinanet import RetinaNetRules, retinanet
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.necks import FeaturePyramid
from detection_zoo.zoo.parity.base import parity
from detection_zoo.zoo.parity.detectron_training import settle_draws
from detection_zoo.zoo.parts.anchor_targets import DetectronAnchorSampler, SampledAnchors
from detection_zoo.zoo.parts.box_voting import vote_boxes
from detection_zoo.zoo.parts.boxes import BoxCoder
from detection_zoo.zoo.parts.detections import suppress
from detection_zoo.zoo.parts.frames import frames
from detection_zoo.zoo.parts.proposals import Proposals
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler
from detection_zoo.zoo.parts.targets import DetectronBoxSampler, masks_of
from detection_zoo.zoo.records import FeatureSpec, Target
from detection_zoo.zoo.registry import BACKBONES

pytestmark = pytest.mark.usefixtures("kept_memory", "kept_fills")

FOLDERS = Path(__file__).resolve().parents[1] / "reference" / "detectron_pytorch"


@pytest.mark.parametrize(
    ("folder", "checkpoint"),
    [
        ("processing", None),
        ("e2e_mask_rcnn_R-50-FPN_2x", "detectron_pytorch_pth"),
        ("e2e_keypoint_rcnn_R-50-FPN_s1x", "detectron_pkl"),
    ],
)
def test_every_recorded_output_is_equal(folder: str, checkpoint: str | None) -> None:
    """Stages, proposals, heads, detections, voting, augmentation, losses, gradients, and samples drawn from
    the recorded seed."""
    report = parity(FOLDERS / folder, checkpoint_format=checkpoint)
    assert report.ok, "\n".join(str(line) for line in report.lines if line.verdict != "ok")
    if checkpoint:
        drawn = {line.name for line in report.lines if line.name.startswith(("drawn.", "recipe."))}
        assert len(drawn) == 10 and report.count("skipped") == 0


def test_a_changed_record_is_found(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDERS / "processing", tmp_path / "processing"))
    with np.load(folder / "outputs.npz") as arrays:
        changed = {name: arrays[name].copy() for name in arrays.files}
    changed["vote.AVG|samples"][4] += 0.01
    np.savez(folder / "outputs.npz", **changed)
    report = parity(folder)
    assert [line.name for line in report.lines if line.verdict == "differs"] == ["vote.AVG"] and not report.ok


@pytest.mark.parametrize(("gap", "moved"), [(1e-6, 1), (1e-4, 0)])
def test_only_near_ties_are_put_in_the_recorded_order(gap: float, moved: int) -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 40, 40], [50, 5, 60, 30]])
    proposals = Proposals(boxes, torch.tensor([0.5 + gap, 0.5, 0.1]))
    rois = torch.cat([torch.zeros(2, 1), boxes[[0, 2]]], dim=1)
    recorded = torch.cat([torch.zeros(2, 1), boxes[[1, 2]]], dim=1)
    settled, count = settle_draws(rois, recorded, [proposals])
    assert count == moved
    assert torch.equal(settled, recorded if moved else rois)


def test_every_row_of_both_sources_can_be_built() -> None:
    """Only second stages alone, and a VGG-16 that its source cannot build either, stand for their numbers;
    test_every_row_builds builds the others."""
    rows = [
        row for row in load_manifests().entries.values() if row.source in ("detectron", "detectron_pytorch")
    ]
    assert len([row for row in rows if row.published_only is None]) > 90
    assert all(
        "second stage" in row.published_only or row.name.startswith("vgg16")
        for row in rows
        if row.published_only
    )


def few(boxes: list[list[float]]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


class Recorder:
    """Stands for numpy's draws: hands out the first of what there is, and notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def choice(self, rows: np.ndarray, size: int, replace: bool) -> np.ndarray:
        assert not replace
        self.asked.append(("choice", len(rows), size))
        return rows[:size]

    def randint(self, high: int, size: int) -> np.ndarray:
        self.asked.append(("randint", high, size))
        return np.zeros(size, dtype=np.int64)  # with replacement: the same row again and again


def anchors_drawn(anchors: Tensor, truth: Tensor, draws: Recorder, **rule: float) -> SampledAnchors:
    return DetectronAnchorSampler(BoxCoder(), RpnConventions(**rule), draws).sample(anchors, truth, (20, 40))


ANCHORS = few([[0, 0, 9, 9], [10, 0, 19, 9], [20, 0, 29, 9], [30, 0, 39, 9], [35, 0, 44, 9], [0, 5, 9, 14]])


def test_negatives_are_drawn_with_replacement_or_not_at_all() -> None:
    truth = few([[0, 0, 9, 9]])
    draws = Recorder()
    found = anchors_drawn(ANCHORS, truth, draws, samples=3)
    # anchor 0 is the object, anchor 4 leaves the image, anchor 5 (IoU 1/3) lies between the thresholds: three
    # candidates for two places
    assert draws.asked == [("randint", 3, 2)]
    assert found.labels.tolist() == [1, 0, -1, -1, -1, -1]  # the two draws fell on one anchor
    draws = Recorder()
    assert anchors_drawn(ANCHORS, truth, draws, samples=4).labels.tolist() == [1, -1, -1, -1, -1, -1]
    assert draws.asked == []  # not more candidates than places: none is set


def test_positives_are_thinned_first_and_ties_are_positive() -> None:
    twice = torch.cat([ANCHORS[:1], ANCHORS])
    draws = Recorder()
    found = anchors_drawn(twice, few([[0, 0, 9, 9]]), draws, samples=2, positive_fraction=0.5)
    assert draws.asked[0] == ("choice", 2, 1) and int((found.labels == 1).sum()) == 1
    assert found.targets[found.labels != 1].abs().sum() == 0


def test_an_image_without_objects_has_background_only() -> None:
    found = anchors_drawn(ANCHORS, few([]), Recorder(), samples=2)
    assert set(found.labels.tolist()) == {0, -1}


def test_rois_on_a_crowd_count_as_its_class_and_the_crowd_itself_is_no_candidate() -> None:
    boxes = few([[0, 0, 9, 9], [20, 0, 39, 9]])
    proposals = few([[20, 0, 38, 9], [60, 0, 70, 9]])
    draws = Recorder()
    rule = RoiConventions(samples=8, positive_fraction=0.5)
    target = Target(boxes, torch.tensor([4, 7]), crowd=torch.tensor([False, True]))
    found = DetectronBoxSampler(BoxCoder(), rule, draws).sample(proposals, target)
    assert draws.asked == [("choice", 2, 2), ("choice", 1, 1)]
    assert found.boxes.tolist() == [boxes[0].tolist(), proposals[0].tolist(), proposals[1].tolist()]
    assert found.labels.tolist() == [5, 8, 0] and found.matches.tolist()[:2] == [0, 1]


def test_the_keypoint_head_gets_a_draw_of_its_own() -> None:
    boxes = few([[0, 0, 9, 9], [20, 0, 29, 9]])
    keypoints = torch.tensor(
        [[[5.0, 5.0, 2.0]], [[25.0, 5.0, 0.0]]]
    )  # the second object's point is not visible
    target = Target(boxes, torch.zeros(2, dtype=torch.int64), keypoints=keypoints)
    sampler = DetectronBoxSampler(BoxCoder(), RoiConventions(), Recorder())
    found = sampler.sample(few([[0, 0, 9, 8]]), target)
    assert len(found.labels) == 3
    assert found.keypoint_boxes.tolist() == [
        [0, 0, 9, 9],
        [0, 0, 9, 8],
    ] and found.keypoint_matches.tolist() == [0, 0]


def test_a_mask_is_that_of_the_polygons_around_which_a_box_lies() -> None:
    polygons = [
        [[0, 0, 40, 0, 40, 40, 0, 40]],
        [],
        [[0, 0, 20, 0, 20, 20, 0, 20], [60, 60, 80, 60, 80, 80]],
    ]  # at scale 2; the second is a crowd
    scale = torch.tensor([2.0, 2.0, 2.0, 2.0])
    assert masks_of(few([[0, 0, 20, 20], [5, 5, 40, 40]]), polygons, scale, 1.0).tolist() == [0, 2]
    assert masks_of(few([[0, 0, 20, 20]]), [[], []], scale, 1.0).tolist() == [-1]


def test_voting_is_the_mean_weighted_by_score() -> None:
    boxes, scores = few([[0, 0, 9, 9], [0, 0, 9, 11], [50, 50, 59, 59]]), torch.tensor([0.6, 0.2, 0.9])
    voted, kept = vote_boxes(boxes[:1], scores[:1], boxes, scores, 0.8)  # IoU of the first two: 100 / 120
    assert voted[0].tolist() == pytest.approx(
        [0, 0, 9, (0.6 * 9 + 0.2 * 11) / 0.8]
    ) and kept.tolist() == pytest.approx([0.6])
    assert vote_boxes(boxes[:1], scores[:1], boxes, scores, 0.8, method="avg")[1].tolist() == pytest.approx(
        [0.4]
    )
    assert (
        vote_boxes(boxes[:1], scores[:1], boxes[2:], scores[2:], 0.8)[0].tolist() == boxes[:1].tolist()
    )  # nobody votes
    with pytest.raises(ValueError, match="unknown scoring method"):
        vote_boxes(boxes, scores, boxes, scores, 0.8, method="sum")


def test_detection_rules_choose_soft_nms_and_voting() -> None:
    boxes, scores, labels = (
        few([[0, 0, 9, 9], [0, 0, 9, 11], [0, 0, 9, 9]]),
        torch.tensor([0.6, 0.5, 0.4]),
        torch.tensor([0, 0, 1]),
    )
    hard = suppress(boxes, scores, labels, 1.0, DetectionConventions())
    assert hard.labels.tolist() == [0, 1] and hard.scores.tolist() == pytest.approx([0.6, 0.4])
    soft = suppress(boxes, scores, labels, 1.0, DetectionConventions(soft="linear"))
    assert soft.labels.tolist() == [0, 0, 1] and soft.scores.tolist() == pytest.approx(
        [0.6, 0.5 * (1 - 100 / 120), 0.4]
    )
    gaussian = suppress(boxes, scores, labels, 1.0, DetectionConventions(soft="gaussian", soft_sigma=0.5))
    assert gaussian.scores.tolist() == pytest.approx([0.6, 0.5 * math.exp(-((100 / 120) ** 2) / 0.5), 0.4])
    voted = suppress(boxes, scores, labels, 1.0, DetectionConventions(vote_iou=0.8))
    assert (
        voted.boxes[0, 3].item() == pytest.approx((0.6 * 9 + 0.5 * 11) / 1.1)
        and voted.boxes[1].tolist() == boxes[2].tolist()
    )
    assert (
        len(
            suppress(
                boxes[:0], scores[:0], labels[:0], 1.0, DetectionConventions(soft="linear", vote_iou=0.9)
            )
        )
        == 0
    )


def test_the_best_of_an_image_are_those_after_voting() -> None:
    """By "avg" the first keeps (0.6 + 0.1) / 2, below the 0.4 of the third; without voting the first is the
    best, and with ties both are."""
    boxes, scores, labels = (
        few([[0, 0, 9, 9], [0, 0, 9, 11], [50, 50, 59, 59]]),
        torch.tensor([0.6, 0.1, 0.4]),
        torch.tensor([0, 0, 0]),
    )
    voted = suppress(
        boxes, scores, labels, 1.0, DetectionConventions(max_detections=1, vote_iou=0.8, vote_method="avg")
    )
    assert voted.scores.tolist() == pytest.approx([0.4])
    assert suppress(
        boxes, scores, labels, 1.0, DetectionConventions(max_detections=1)
    ).scores.tolist() == pytest.approx([0.6])
    tied = suppress(
        boxes,
        torch.tensor([0.6, 0.1, 0.6]),
        torch.tensor([1, 1, 0]),
        1.0,
        DetectionConventions(max_detections=1),
    )
    assert tied.labels.tolist() == [1, 0]


def test_pooling_methods_agree_on_a_constant_map_and_differ_on_a_ramp() -> None:
    specs = {"p2": FeatureSpec(1, 4), "p3": FeatureSpec(1, 8)}
    boxes = [few([[4, 4, 40, 40], [0, 0, 200, 200]])]
    level = RoiAlignPooler(specs, PoolingConventions(size=2)).level_indices(boxes).tolist()
    assert level == [0, 1]
    ones = {"p2": torch.ones(1, 1, 64, 64), "p3": torch.ones(1, 1, 32, 32)}
    ramp = {
        name: torch.arange(value.shape[-1], dtype=torch.float32).expand_as(value)
        for name, value in ones.items()
    }
    for method in ("roi_align", "roi_pool"):
        assert RoiAlignPooler(specs, PoolingConventions(size=2, method=method))(ones, boxes).eq(1).all()
    align, pool = (
        RoiAlignPooler(specs, PoolingConventions(size=2, method=method))(ramp, boxes)
        for method in ("roi_align", "roi_pool")
    )
    assert align[0, 0, 0].tolist() == [
        3.25,
        7.75,
    ]  # from cell 1 to cell 10 without a half-cell shift, two points a bin
    assert pool[0, 0, 0].tolist() == [5.0, 10.0]  # cells 1 to 10, ten of them, in two bins of five
    crop = RoiAlignPooler({"c4": FeatureSpec(1, 16)}, PoolingConventions(size=2, method="roi_crop"))(
        {"c4": ramp["p3"]}, [few([[16, 16, 64, 64]])]
    )
    assert crop[0, 0, 0].tolist() == pytest.approx(
        [2.0, 4.0]
    )  # points at cells 1, 2, 3, 4; the larger of each two
    with pytest.raises(ValueError, match="method"):
        PoolingConventions(size=2, method="average")


def test_p2_only_reads_the_finest_level_of_a_whole_pyramid() -> None:
    specs = {f"c{i}": FeatureSpec(8, 2**i) for i in range(2, 6)}
    maps = {name: torch.randn(1, 8, 64 // spec.stride, 64 // spec.stride) for name, spec in specs.items()}
    whole, only = FeaturePyramid(specs, channels=4), FeaturePyramid(specs, channels=4, only="p2")
    only.load_state_dict(whole.state_dict())
    assert list(only.specs) == ["p2"] and only.roi_levels == ("p2",)
    assert torch.equal(only(maps)["p2"], whole(maps)["p2"])
    with pytest.raises(ValueError, match="no level 'p9'"):
        FeaturePyramid(specs, only="p9")


def test_the_v0up_head_has_a_stage_of_its_own_and_v0upshare_the_box_heads() -> None:
    for kind, own in (("v0up", True), ("v0upshare", False)):
        backbone = BACKBONES["resnet14_slim"](norm="affine", last="c4")
        rules = changed(MaskRcnnRules(), pooling={"size": 14, "sampling_ratio": 0})
        model = mask_rcnn(backbone, 3, rules, box_head="conv5", mask_head=kind).eval()
        assert any(name.startswith("mask.stage.") for name in model.state_dict()) == own
        with torch.no_grad():
            found = model.predict(torch.randn(1, 3, 64, 64), torch.tensor([[64, 64]]))[0]
        assert found.masks is None or found.masks.shape[1:] == (14, 14)


def test_detectrons_retinanet_lays_its_anchors_size_by_size() -> None:
    model = build_model("retinanet_resnet50_fpn_1x.detectron", device="meta")
    cells = model.anchors.cells()[0]
    sides = cells[:, 2:] - cells[:, :2] + 1
    # stride 8: ratios 1, 2, 0.5 of 32 pixels first, as rounded at 8: (8, 8), (6, 12), (11, 6) times 4
    assert sides[:3].tolist() == [[32, 32], [24, 48], [44, 24]]
    assert (sides[3] / sides[0]).tolist() == pytest.approx([2 ** (1 / 3)] * 2)
    assert model.coder.weights == (1.0, 1.0, 1.0, 1.0) and model.rule.nms_iou == 0.5


def test_detectrons_retinanet_keeps_what_the_coarsest_level_has_at_any_score() -> None:
    backbone = BACKBONES["resnet14_slim"]()
    neck = FeaturePyramid(backbone.specs, channels=8, extra="p6p7")
    usual = changed(RetinaNetRules(), anchors={"ratios": [1.0]}, retinanet={"scales_per_octave": 1})
    images, sizes = torch.randn(1, 3, 128, 128), torch.tensor([[128, 128]])
    with torch.no_grad():
        strict = retinanet(backbone, 2, usual, neck=neck).eval().predict(images, sizes)[0]
        rules = changed(usual, retinanet={"last_score_threshold": 0.0, "nms_iou": 0.99})
        lenient = retinanet(backbone, 2, rules, neck=neck).eval().predict(images, sizes)[0]
    assert len(strict) == 0 and len(lenient) == 2  # one cell, one anchor, two classes at about 0.01


def test_a_weak_match_of_retinanet_is_counted_and_trained_as_background() -> None:
    backbone = BACKBONES["resnet14_slim"]()
    neck = FeaturePyramid(backbone.specs, channels=8, extra="p6p7")
    models = [
        retinanet(
            backbone, 2, RetinaNetRules(retinanet=RetinaNetConventions(weak_background=weak)), neck=neck
        )
        for weak in (False, True)
    ]
    anchors, target = (
        few([[0, 0, 9, 9], [50, 50, 59, 59]]),
        Target(few([[0, 0, 29, 9]]), torch.tensor([1])),
    )  # IoU 1/3 is the best
    plain, weak = (model.label(anchors, target) for model in models)
    assert (plain.labels.tolist(), weak.labels.tolist()) == (
        [2, 0],
        [0, 0],
    ) and plain.count == weak.count == 1


def test_training_on_crowds_follows_the_rows_rule() -> None:
    """Crowds are left out of the proposals' labels, and count for the box head."""
    model = build_model("faster_rcnn_resnet50_fpn_1x.detectron_pytorch", device="meta")
    assert model.sampler.crowd == "proposals" and model.sampler.original_pixels
    usual = faster_rcnn(BACKBONES["resnet14_slim"](), 3)
    assert usual.sampler.crowd == "drop" and not usual.sampler.original_pixels


def test_the_default_anchor_sizes_follow_the_levels() -> None:
    backbone = BACKBONES["resnet14_slim"]()
    generator = make_rpn(FeaturePyramid(backbone.specs, channels=4), ProposalRules()).anchors
    areas = [math.sqrt(((cells[1, 2:] - cells[1, :2] + 1).prod()).item()) for cells in generator.cells()]
    assert areas == [32.0, 64.0, 128.0, 256.0, 512.0]


@pytest.mark.parametrize(
    ("original", "size", "scale"),
    [
        ((427, 640), (800, 1199), 800 / 427),
        ((360, 640), (750, 1333), 1333 / 640),
        ((640, 360), (1333, 750), 1333 / 640),
        ((480, 640), (480, 640), 1.0),  # not a result of the rule: the ratio of the shorter sides
    ],
)
def test_boxes_come_back_by_the_factor_that_images_were_resized_by(
    original: tuple[int, int], size: tuple[int, int], scale: float
) -> None:
    frame = frames(torch.tensor([size]), torch.tensor([original]), True, (800, 1333))[0]
    assert frame.factor == pytest.approx((1 / scale, 1 / scale), rel=1e-12)
    model = build_model("faster_rcnn_resnet50_fpn_1x.detectron_pytorch", device="meta")
    assert model.resize == (800, 1333)
