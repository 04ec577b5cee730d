"""Parts against hand-worked cases, the papers and torch's own layers."""

from __future__ import annotations

import math

import pytest
import torch
from parity.steps_maskrcnn_benchmark import flip_boxes, xyxy_to_xywh
from torch import nn

from detection_zoo.zoo.conventions import (
    DetectionConventions,
    PoolingConventions,
    ProposalConventions,
    RoiConventions,
)
from detection_zoo.zoo.necks import FeaturePyramid, SingleLevel
from detection_zoo.zoo.parts.anchors import AnchorGenerator, centred_cells, rounded_cells, torchvision_cells
from detection_zoo.zoo.parts.boxes import DELTA_CAP, BoxCoder, box_iou, clip_boxes, large_enough
from detection_zoo.zoo.parts.detections import select_detections
from detection_zoo.zoo.parts.keypoint_head import (
    KeypointHead,
    decode_heatmaps,
    has_visible_keypoint,
    heatmap_targets,
    keypoint_loss,
)
from detection_zoo.zoo.parts.losses import sigmoid_focal, smooth_l1_sum
from detection_zoo.zoo.parts.mask_head import mask_loss, paste_masks, rasterise
from detection_zoo.zoo.parts.matching import BalancedSampler, match
from detection_zoo.zoo.parts.norm import ConvNorm, FrozenNorm, make_norm
from detection_zoo.zoo.parts.proposals import select_proposals
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler
from detection_zoo.zoo.parts.targets import BoxSampler
from detection_zoo.zoo.records import Detections, FeatureSpec, Target


def boxes(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


# ---- boxes ----


def test_iou_with_and_without_inclusive_pixels() -> None:
    first, second = boxes((0, 0, 9, 9)), boxes((0, 5, 9, 14), (20, 20, 30, 30))
    assert box_iou(first, second, 1.0)[0].tolist() == pytest.approx(
        [50 / 150, 0]
    )  # 10 x 10 pixels each, 10 x 5 shared
    assert box_iou(first, second, 0.0)[0].tolist() == pytest.approx([36 / 126, 0])


def test_clip_flip_and_sides_know_the_last_pixel() -> None:
    wide = boxes((-5, -6, 200, 90))
    assert clip_boxes(wide, (80, 160), 1.0)[0].tolist() == [0, 0, 159, 79]
    assert clip_boxes(wide, (80, 160), 0.0)[0].tolist() == [0, 0, 160, 80]
    assert flip_boxes(boxes((10, 2, 19, 5)), 100, 1.0)[0].tolist() == [80, 2, 89, 5]
    assert xyxy_to_xywh(boxes((10, 2, 19, 5)), 1.0)[0].tolist() == [10, 2, 10, 4]
    assert large_enough(boxes((0, 0, 7, 7), (0, 0, 6, 20)), 8, 1.0).tolist() == [True, False]


def test_coder_by_hand() -> None:
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    anchor, box = (
        boxes((0, 0, 9, 19)),
        boxes((5, 0, 24, 19)),
    )  # 10 x 20 around (5, 10); 20 x 20 around (15, 10)
    assert coder.encode(box, anchor)[0].tolist() == pytest.approx([10.0, 0.0, 5 * math.log(2), 0.0])
    assert coder.decode(coder.encode(box, anchor), anchor)[0].tolist() == pytest.approx(
        box[0].tolist(), abs=1e-4
    )


def test_decoding_is_capped_after_the_division_and_only_above() -> None:
    anchor = boxes((0, 0, 15, 15))
    huge = BoxCoder((1.0, 1.0, 5.0, 5.0)).decode(torch.tensor([[0.0, 0.0, 1000.0, -1000.0]]), anchor)[0]
    assert huge[2] - huge[0] + 1 == pytest.approx(1000, rel=1e-5)  # 16 * exp(log(1000 / 16))
    assert huge[3] - huge[1] == pytest.approx(
        -1
    )  # no lower bound: the height vanishes, and inclusive corners cross
    free = BoxCoder(cap=None, far_offset=0.0).decode(torch.tensor([[0.0, 0.0, DELTA_CAP + 1, 0.0]]), anchor)[
        0
    ]
    assert free[2] - free[0] == pytest.approx(1000 * math.e, rel=1e-5)


def test_decoding_of_several_classes_and_of_nothing() -> None:
    coder, anchors = BoxCoder(), boxes((0, 0, 15, 15), (10, 10, 41, 25))
    deltas = torch.randn(2, 12)
    alone = torch.cat([coder.decode(deltas[:, i : i + 4], anchors) for i in (0, 4, 8)], dim=1)
    assert torch.equal(coder.decode(deltas, anchors), alone)
    assert coder.decode(torch.zeros(0, 12), torch.zeros(0, 4)).shape == (0, 12)


# ---- anchors ----


def test_rounded_anchors_are_those_of_the_first_faster_rcnn() -> None:
    # the nine anchors printed in generate_anchors.py of py-faster-rcnn (counted from 1 there in Matlab, from
    # 0 here)
    published = [
        [-84, -40, 99, 55],
        [-176, -88, 191, 103],
        [-360, -184, 375, 199],
        [-56, -56, 71, 71],
        [-120, -120, 135, 135],
        [-248, -248, 263, 263],
        [-36, -80, 51, 95],
        [-80, -168, 95, 183],
        [-168, -344, 183, 359],
    ]
    assert rounded_cells(16, (128, 256, 512), (0.5, 1.0, 2.0)).tolist() == published


def test_centred_and_torchvision_anchors() -> None:
    root = math.sqrt(2)
    assert centred_cells(4, (32,), (0.5, 1.0)).tolist() == [
        pytest.approx([-8 * root, -16 * root, 8 * root, 16 * root]),
        [-16, -16, 16, 16],
    ]
    assert torchvision_cells(4, (32,), (0.5, 1.0, 2.0)).tolist() == [
        [-23, -11, 23, 11],
        [-16, -16, 16, 16],
        [-11, -23, 11, 23],
    ]


def test_anchors_go_row_by_row_and_column_by_column() -> None:
    laid = AnchorGenerator([[8.0]], [1.0], [8])([torch.zeros(1, 1, 2, 3)])[0]
    assert laid[:, :2].tolist() == [[x, y] for y in (0, 8) for x in (0, 8, 16)]
    with pytest.raises(ValueError, match="2 levels, but there are 1"):
        AnchorGenerator([[8.0], [16.0]], [1.0], [8])


# ---- matching and sampling ----

QUALITY = torch.tensor([[0.9, 0.35, 0.1, 0.0, 0.29], [0.2, 0.6, 0.6, 0.0, 0.1]])


def test_matching_thresholds() -> None:
    assert match(QUALITY, 0.7, 0.3).tolist() == [0, -2, -2, -1, -1]
    assert match(QUALITY, 0.5, 0.5).tolist() == [0, 1, 1, -1, -1]


def test_best_candidates_are_matched_with_their_own_best_ground_truth() -> None:
    assert match(QUALITY, 0.7, 0.3, low_quality=True).tolist() == [
        0,
        1,
        1,
        -1,
        -1,
    ]  # ground truth 1 has its best IoU twice
    shared = torch.tensor(
        [[0.4, 0.1], [0.5, 0.2]]
    )  # ground truth 0 has its best at candidate 0, whose own best is ground truth 1
    assert match(shared, 0.7, 0.3, low_quality=True).tolist() == [1, -1]


def test_a_best_overlap_of_zero_counts_or_not() -> None:
    nothing = torch.tensor([[0.0, 0.0], [0.8, 0.0]])
    assert match(nothing, 0.7, 0.3, low_quality=True).tolist() == [1, 0]
    assert match(nothing, 0.7, 0.3, low_quality=True, zero_overlap=False).tolist() == [1, -1]
    assert match(torch.zeros(0, 3), 0.7, 0.3, low_quality=True).tolist() == [-1, -1, -1]


def test_sampler_fills_up_with_negatives_and_never_takes_ignored() -> None:
    labels = torch.tensor([1.0] * 10 + [0.0] * 100 + [-1.0] * 50)
    positive, negative = BalancedSampler(16, 0.25)(labels)
    assert len(positive) == 4 and len(negative) == 12
    assert (
        (labels[positive] == 1).all() and (labels[negative] == 0).all() and len(set(negative.tolist())) == 12
    )
    assert [part.tolist() for part in BalancedSampler(6, 0.5, draw="first")(labels)] == [
        [0, 1, 2],
        [10, 11, 12],
    ]
    assert len(BalancedSampler(16, 0.5)(torch.zeros(5))[1]) == 5
    with pytest.raises(ValueError, match="'random' or 'first'"):
        BalancedSampler(1, 0.5, draw="last")


def test_ground_truth_boxes_are_candidates_at_either_end() -> None:
    target = Target(boxes((0, 0, 9, 9)), torch.tensor([4]))
    proposals = boxes((0, 0, 9, 12), (50, 50, 60, 60))
    rule = RoiConventions(samples=8, positive_fraction=0.5)
    last = BoxSampler(BoxCoder(), rule).sample(proposals, target)
    assert last.candidate_labels.tolist() == [5, 0, 5] and last.labels.tolist() == [5, 0, 5]
    other = rule.model_copy(update={"ground_truth": "first", "order": "foreground_first"})
    first = BoxSampler(BoxCoder(), other).sample(proposals, target)
    assert first.candidate_labels.tolist() == [5, 5, 0] and first.labels.tolist() == [5, 5, 0]
    nothing = Target(boxes(), torch.zeros(0, dtype=torch.int64))
    none = BoxSampler(BoxCoder(), rule).sample(proposals, nothing)
    assert none.labels.tolist() == [0, 0] and none.targets.shape == (2, 4)


# ---- norms ----


def test_frozen_norm_has_no_eps_and_frozen_eps_is_torchs() -> None:
    reference = nn.BatchNorm2d(5).eval()
    for tensor in (reference.weight.data, reference.bias.data, reference.running_mean, reference.running_var):
        tensor.copy_(torch.rand(5) + 0.5)
    x = torch.randn(2, 5, 3, 4)
    state = {name: value for name, value in reference.state_dict().items() if name != "num_batches_tracked"}
    with_eps, without = make_norm("frozen_eps", 5), FrozenNorm(5)
    with_eps.load_state_dict(state)
    without.load_state_dict(state)
    assert torch.allclose(with_eps(x), reference(x), atol=1e-6)
    reference.eps = 0.0
    assert torch.allclose(without(x), reference(x), atol=1e-6)
    assert not list(without.parameters())


def test_conv_norm_has_a_bias_only_without_a_norm() -> None:
    assert ConvNorm(3, 8, 3).conv.bias is not None and ConvNorm(3, 8, 3, norm="group").conv.bias is None
    assert make_norm("group", 48).num_groups == 16  # 32 groups do not divide 48 channels
    with pytest.raises(ValueError, match="unknown norm 'grup'"):
        make_norm("grup", 8)


# ---- necks ----

SPECS = {
    "c2": FeatureSpec(8, 4),
    "c3": FeatureSpec(16, 8),
    "c4": FeatureSpec(24, 16),
    "c5": FeatureSpec(32, 32),
}


def maps(height: int, width: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(1, spec.channels, -(-height // spec.stride), -(-width // spec.stride))
        for name, spec in SPECS.items()
    }


def test_pyramid_levels_sums_and_extra_levels() -> None:
    neck, given = FeaturePyramid(SPECS, channels=6), maps(64, 96)
    levels = neck(given)
    assert {name: (spec.stride, tuple(levels[name].shape)) for name, spec in neck.specs.items()} == {
        "p2": (4, (1, 6, 16, 24)),
        "p3": (8, (1, 6, 8, 12)),
        "p4": (16, (1, 6, 4, 6)),
        "p5": (32, (1, 6, 2, 3)),
        "p6": (64, (1, 6, 1, 2)),
    }
    assert torch.equal(levels["p6"], levels["p5"][:, :, ::2, ::2])
    top = neck.lateral["c5"](given["c5"])
    merged = neck.lateral["c4"](given["c4"]) + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(levels["p4"], neck.output["c4"](merged), atol=1e-6)
    assert neck.roi_levels == ("p2", "p3", "p4", "p5")


def test_retinanet_pyramid_starts_at_p3_and_p7_reads_relu_of_p6() -> None:
    neck, given = FeaturePyramid(SPECS, channels=6, extra="p6p7"), maps(128, 128)
    levels = neck(given)
    assert list(levels) == ["p3", "p4", "p5", "p6", "p7"]
    assert torch.equal(levels["p6"], neck.extra["p6"](given["c5"])) and (levels["p6"] < 0).any()
    assert torch.equal(levels["p7"], neck.extra["p7"](levels["p6"].relu()))


def test_pyramid_takes_odd_sizes_and_group_norm() -> None:
    neck = FeaturePyramid(SPECS, channels=32, norm="group")
    assert neck(maps(70, 90))["p2"].shape == (1, 32, 18, 23)
    assert neck.lateral["c2"].conv.bias is None and isinstance(neck.output["c5"].norm, nn.GroupNorm)
    with pytest.raises(ValueError, match="the backbone has no map 'c9'"):
        SingleLevel(SPECS, level="c9")


# ---- proposals and detections ----


def flat_anchors(rows: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Two images with the same anchors on two levels, deltas 0, and scores 0.9, 0.8, ... in the first image,
    half of that in the second."""
    scores = torch.linspace(0.9, 0.2, len(rows))
    both = torch.stack([scores, scores / 2])
    half = len(rows) // 2
    return (
        [both[:, :half], both[:, half:]],
        [torch.zeros(2, half, 4), torch.zeros(2, len(rows) - half, 4)],
        [rows[:half], rows[half:]],
    )


APART = torch.stack([torch.tensor([x, 0.0, x + 9, 9.0]) for x in range(0, 160, 20)])


def test_collecting_over_a_batch_keeps_the_order_of_levels_and_starves_an_image() -> None:
    scores, deltas, anchors = flat_anchors(APART)
    rule = ProposalConventions(collect=6, collect_over="batch", collect_order="level")
    found = select_proposals(scores, deltas, anchors, [(50, 200), (50, 200)], coder=BoxCoder(), rule=rule)
    assert [each.scores.tolist() for each in found] == [
        pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5]),
        pytest.approx([0.45]),
    ]
    rising = [1 - part for part in scores]  # now the coarser level has the better anchors
    kept = {}
    for order in ("score", "level"):
        rule = ProposalConventions(collect=5, collect_order=order)
        kept[order] = select_proposals(rising, deltas, anchors, [(50, 200)] * 2, coder=BoxCoder(), rule=rule)[
            0
        ].scores.tolist()
    assert kept == {
        "score": pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4]),
        "level": pytest.approx([0.4, 0.8, 0.7, 0.6, 0.5]),
    }
    per_image = select_proposals(
        scores, deltas, anchors, [(50, 200), (50, 200)], coder=BoxCoder(), rule=ProposalConventions(collect=3)
    )
    assert [each.scores.tolist() for each in per_image] == [
        pytest.approx([0.9, 0.8, 0.7]),
        pytest.approx([0.45, 0.4, 0.35]),
    ]


def test_limits_are_of_each_level_and_small_boxes_go() -> None:
    scores, deltas, anchors = flat_anchors(APART)
    found = select_proposals(
        scores,
        deltas,
        anchors,
        [(50, 200)] * 2,
        coder=BoxCoder(),
        rule=ProposalConventions(pre_nms=3, post_nms=2, collect=0),
    )[0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.5, 0.4])
    clipped = select_proposals(
        scores,
        deltas,
        anchors,
        [(50, 45)] * 2,
        coder=BoxCoder(),
        rule=ProposalConventions(min_size=6, collect=0),
    )[0]
    assert len(clipped.boxes) == 2  # at x = 40 the image leaves 5 pixels


def test_proposals_are_clipped_to_what_the_rule_says() -> None:
    scores, deltas, anchors = flat_anchors(APART)
    together = select_proposals(
        scores,
        deltas,
        anchors,
        [(5, 200)] * 2,
        coder=BoxCoder(),
        rule=ProposalConventions(together=True, post_nms=5, collect=0),
    )[0]
    assert len(together.boxes) == 5 and together.boxes[:, 3].max() == 4


def test_detections_come_class_by_class_and_ties_at_the_cut_stay() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.3]])).repeat(3, 1)
    proposals = boxes((0, 0, 9, 9), (40, 0, 49, 9), (80, 0, 89, 9))
    rule = DetectionConventions(score_threshold=0.05, max_detections=2)
    found = select_detections(
        logits, torch.zeros(3, 12), [proposals], [(50, 100)], coder=BoxCoder(), rule=rule
    )[0]
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]  # all six share the second best score 0.3
    assert found.boxes[:, 0].tolist() == [0, 40, 80, 0, 40, 80]
    assert (
        len(
            select_detections(
                logits,
                torch.zeros(3, 12),
                [proposals],
                [(50, 100)],
                coder=BoxCoder(),
                rule=DetectionConventions(score_threshold=0.3001),
            )[0]
        )
        == 0
    )


def test_class_agnostic_deltas_serve_every_class() -> None:
    deltas = torch.zeros(1, 8)
    deltas[0, 4] = 1.0  # moves by one width
    found = select_detections(
        torch.tensor([[0.0, 1.0, 1.0]]),
        deltas,
        [boxes((0, 0, 9, 9))],
        [(50, 100)],
        coder=BoxCoder(),
        rule=DetectionConventions(),
    )[0]
    assert found.boxes[:, 0].tolist() == [10, 10]


def test_rois_go_to_the_level_of_their_size() -> None:
    specs = {f"p{level}": FeatureSpec(4, 2**level) for level in range(2, 6)}
    pooler = RoiAlignPooler(specs, PoolingConventions())
    sizes = boxes(
        (0, 0, 111, 111), (0, 0, 110, 110), (0, 0, 223, 223), (0, 0, 222, 222), (0, 0, 447, 447), (0, 0, 5, 5)
    )
    # k = floor(4 + log2(sqrt(wh) / 224)), w and h with the last pixel: 112 -> 3, 111 -> 2, 224 -> 4, 223 ->
    # 3, 448 -> 5, small -> 2
    assert pooler.level_indices([sizes]).tolist() == [1, 0, 2, 1, 3, 0]
    other = RoiAlignPooler(specs, PoolingConventions(level_offset=0.0))
    assert other.level_indices([sizes]).tolist() == [0, 0, 1, 1, 2, 0]


# ---- losses ----


def test_smooth_l1_and_focal_loss_by_hand() -> None:
    assert smooth_l1_sum(torch.tensor([0.05, 2.0]), torch.zeros(2), 0.1).item() == pytest.approx(
        0.5 * 0.05**2 / 0.1 + 2.0 - 0.05
    )
    logits = torch.tensor([[0.0, 2.0], [0.0, 0.0], [5.0, 5.0]])
    loss = sigmoid_focal(logits, torch.tensor([2, 0, -1]), alpha=0.25, gamma=2.0)
    p = 1 / (1 + math.exp(-2))
    assert loss[0].tolist() == pytest.approx([0.75 * 0.25 * math.log(2), 0.25 * (1 - p) ** 2 * -math.log(p)])
    assert loss[1].tolist() == pytest.approx([0.75 * 0.25 * math.log(2)] * 2) and loss[2].tolist() == [0, 0]


# ---- masks ----


def test_polygons_are_moved_into_the_box_and_scaled() -> None:
    square = [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]]
    assert rasterise(square, (10, 10, 30, 30), 4).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert rasterise(square, (-20, 10, 20, 30), 4, (40, 40)).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert rasterise([], (0, 0, 5, 5), 2).sum() == 0


def test_pasted_mask_fills_its_box_and_is_cropped_at_the_border() -> None:
    whole = torch.ones(3, 28, 28)
    pasted = paste_masks(whole, boxes((10, 10, 37, 37), (-20, -20, 7, 7), (60, 60, 70, 70)), (50, 40))
    assert (
        pasted[0].sum() == pytest.approx(28 * 28, abs=60)
        and pasted[0, 11:37, 11:37].all()
        and not pasted[0, :, 39:].any()
    )
    assert pasted[1, :7, :7].all() and not pasted[1, 9:].any()
    assert not pasted[2].any()
    assert paste_masks(torch.zeros(0, 28, 28), boxes(), (5, 6)).shape == (0, 5, 6)
    slow = paste_masks(
        torch.rand(4, 28, 28), boxes(*[(3.2, 4.7, 20.1, 30.9)] * 4), (50, 40), interpolation="cv2"
    )
    assert slow.shape == (4, 50, 40) and slow.any()


def test_mask_loss_reads_the_own_class_only() -> None:
    logits = torch.full((1, 3, 2, 2), 9.0)
    logits[0, 2] = 0.0
    assert mask_loss(logits, torch.tensor([2]), torch.ones(1, 2, 2)).item() == pytest.approx(math.log(2))
    assert mask_loss(logits[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 2)).item() == 0


# ---- keypoints ----


def test_keypoint_cells_and_visibility() -> None:
    points = torch.tensor(
        [[[10.0, 10.0, 2.0], [19.0, 10.0, 1.0], [30.0, 30.0, 2.0], [12.0, 12.0, 0.0], [31.0, 10.0, 2.0]]]
    )
    cells, valid = heatmap_targets(points, boxes((10, 10, 30, 30)), 10)
    assert valid.tolist() == [[True, True, True, False, False]]
    assert cells.tolist() == [
        [0, 4, 99, 0, 0]
    ]  # a cell is 2 pixels wide; a point on the far edge belongs to the last
    assert has_visible_keypoint(points, boxes((10, 10, 30, 30))).tolist() == [True]
    assert has_visible_keypoint(points, boxes((11, 11, 13, 13))).tolist() == [False]


def test_heat_maps_are_decoded_in_the_middle_of_pixels() -> None:
    heat = torch.full((1, 1, 56, 56), -10.0)
    heat[0, 0, 20, 40] = 10.0
    places, logits, chances = decode_heatmaps(
        heat, boxes((100, 200, 156, 256))
    )  # 56 pixels wide: cells are pixels
    assert (
        places[0, 0].tolist() == [140.5, 220.5]
        and logits.item() == pytest.approx(10.0)
        and 0.99 < chances.item() <= 1
    )
    tiny = decode_heatmaps(heat, boxes((100, 200, 100.2, 200.1)))[0]
    assert tiny[0, 0].tolist() == pytest.approx([100.5, 200.5])


def test_fixed_deconvolution_is_bilinear_inside_and_fades_at_the_border() -> None:
    pooler = nn.Identity()
    head = KeypointHead(pooler, 4, 3, convs=1, width=4, upsampling="deconvolution")
    plain = KeypointHead(pooler, 4, 3, convs=1, width=4)
    plain.load_state_dict(head.state_dict())
    x = torch.randn(2, 4, 6, 6)
    assert head(x).shape == plain(x).shape == (2, 3, 24, 24)
    assert torch.allclose(head(x)[..., 2:-2, 2:-2], plain(x)[..., 2:-2, 2:-2], atol=1e-5)
    assert not torch.allclose(head(x)[..., 0, :], plain(x)[..., 0, :], atol=1e-3)
    assert (
        keypoint_loss(
            head(x), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool)
        ).item()
        == 0
    )
    flat = torch.zeros(1, 1, 56, 56)
    assert keypoint_loss(flat, torch.tensor([[5]]), torch.tensor([[True]])).item() == pytest.approx(
        math.log(56 * 56)
    )


def test_selecting_rows_takes_everything_along() -> None:
    found = Detections(
        torch.rand(3, 4),
        torch.rand(3),
        torch.arange(3),
        torch.rand(3, 2, 2),
        extra={"logits": torch.arange(3.0)},
    )
    picked = found.select(torch.tensor([2, 0]))
    assert (
        picked.labels.tolist() == [2, 0]
        and picked.masks.shape == (2, 2, 2)
        and picked.extra["logits"].tolist() == [2, 0]
    )


@pytest.mark.parametrize("size", [(48, 64), (50, 70)])
def test_a_pyramid_without_a_gradient_is_the_same(size: tuple[int, int]) -> None:
    """Upsampled maps are then added in place, where sizes double."""
    torch.manual_seed(0)
    neck = FeaturePyramid(
        {"c2": FeatureSpec(8, 4), "c3": FeatureSpec(8, 8), "c4": FeatureSpec(8, 16)}, channels=16
    )
    height, width = size
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = {
            name: torch.randn(2, 8, -(-height // step), -(-width // step)).contiguous(memory_format=layout)
            for name, step in (("c2", 1), ("c3", 2), ("c4", 4))
        }
        kept = {name: each.clone() for name, each in maps.items()}
        trained = neck(maps)
        with torch.inference_mode():
            found = neck(maps)
        assert all(torch.equal(found[name], trained[name]) for name in trained)
        assert all(torch.equal(maps[name], kept[name]) for name in maps)
