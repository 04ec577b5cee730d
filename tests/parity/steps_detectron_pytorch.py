"""Detectron.pytorch's steps without a checkpoint (the folder `processing`), recomputed with this project's
parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from detection_zoo.kernels.nms import nms
from detection_zoo.kernels.roi_align import roi_align
from detection_zoo.kernels.roi_crop import affine_grid, roi_crop
from detection_zoo.kernels.roi_levels import LevelRule, assign_levels
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.kernels.soft_nms import soft_nms
from detection_zoo.zoo.conventions import DetectionConventions, ProposalConventions
from detection_zoo.zoo.data.figures import KEYPOINT_NAMES
from detection_zoo.zoo.data.resizing import ShorterSide
from detection_zoo.zoo.data.samplers import grouped_order, target_ratios
from detection_zoo.zoo.data.targets import mirrored_keypoints
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import Output, Reference, Skip
from detection_zoo.zoo.parts.anchors import AnchorGenerator, rounded_cells
from detection_zoo.zoo.parts.box_voting import vote_boxes
from detection_zoo.zoo.parts.boxes import BoxCoder, box_iou, clip_boxes
from detection_zoo.zoo.parts.detections import choose_detections
from detection_zoo.zoo.parts.keypoint_head import KeypointHead, decode_heatmaps, heatmap_targets
from detection_zoo.zoo.parts.mask_head import paste_masks, rasterise
from detection_zoo.zoo.parts.proposals import select_proposals

Outputs = dict[str, Output | Skip]
INPUT = Skip("an input, which other outputs are computed from")
RATIOS = (0.5, 1.0, 2.0)


def tensor(reference: Reference, name: str) -> Tensor:
    """A recorded array that was kept whole, as a tensor."""
    return torch.from_numpy(reference.whole(name))


def anchors(reference: Reference) -> Outputs:
    """Cell anchors of each level, of the single level, and all anchors of a small map."""
    found = {
        f"anchors.fpn{level}": rounded_cells(2**level, [32 * 2 ** (level - 2)], RATIOS)
        for level in range(2, 7)
    }
    found["anchors.c4"] = rounded_cells(16, (32, 64, 128, 256, 512), RATIOS)
    found["anchors.default_rpn"] = rounded_cells(16, (64, 128, 256, 512), RATIOS)
    found["anchors.grid_fpn3_3x4"] = AnchorGenerator([[64]], RATIOS, [8])([torch.zeros(1, 1, 3, 4)])[0]
    return {name: Output(value, 1e-6) for name, value in found.items()}


def boxes(reference: Reference) -> Outputs:
    """IoU, coding and clipping of boxes."""
    a, b, deltas = (tensor(reference, f"box.{name}") for name in ("a", "b", "deltas"))
    weighted = BoxCoder((10.0, 10.0, 5.0, 5.0))
    clipped = clip_boxes(BoxCoder().decode(deltas, a).reshape(-1, 4), (150, 200), 1.0).reshape(len(a), -1)
    return {
        "box.a": INPUT,
        "box.b": INPUT,
        "box.deltas": INPUT,
        "box.overlaps": Output(box_iou(a[:15], b, 1.0), 1e-6),
        "box.encode_1": Output(BoxCoder().encode(b, a), 1e-5),
        "box.encode_10": Output(weighted.encode(b, a), 1e-5),
        "box.decode": Output(weighted.decode(deltas, a), 1e-6),
        "box.decode_clipped": Output(clipped, 1e-6),
    }


def suppression(reference: Reference) -> Outputs:
    """NMS, soft-NMS and box voting."""
    rows = tensor(reference, "nms.dets")
    place, scores = rows[:, :4], rows[:, 4]
    found: Outputs = {"nms.dets": INPUT}
    for threshold in (0.3, 0.5, 0.7):
        found[f"nms.keep_{threshold}"] = Output(
            nms(place, scores, threshold, offset=1.0, inclusive=True).sort().values, 0.0
        )
    for method in ("linear", "gaussian", "hard"):
        kept, decayed = soft_nms(
            place, scores, method=method, iou_threshold=0.5, score_threshold=1e-4, offset=1.0
        )
        found[f"softnms.{method}.dets"] = Output(torch.cat([place[kept], decayed[:, None]], dim=1), 1e-6)
        found[f"softnms.{method}.keep"] = Output(kept, 0.0)
    top = rows[nms(place, scores, 0.5, offset=1.0, inclusive=True).sort().values]
    found["vote.top"] = Output(top, 0.0)
    for method in ("ID", "TEMP_AVG", "AVG", "IOU_AVG", "GENERALIZED_AVG", "QUASI_SUM"):
        voted, score = vote_boxes(top[:, :4], top[:, 4], place, scores, 0.4, method=method.lower())
        found[f"vote.{method}"] = Output(torch.cat([voted, score[:, None]], dim=1), 1e-6)
    return found


def proposals(reference: Reference) -> Outputs:
    """Proposals of one level and two images whose smallest side is given in original pixels."""
    draws = np.random.RandomState(5)
    scores = (
        torch.from_numpy(draws.standard_normal((2, 3, 8, 10)))
        .sigmoid()
        .float()
        .permute(0, 2, 3, 1)
        .reshape(2, -1)
    )
    deltas = (
        torch.from_numpy((0.4 * draws.standard_normal((2, 12, 8, 10))).astype("float32"))
        .permute(0, 2, 3, 1)
        .reshape(2, -1, 4)
    )
    grid = AnchorGenerator([[128]], RATIOS, [16])([torch.zeros(1, 1, 8, 10)])
    found: Outputs = {}
    for name, least in (("test", 16.0), ("train", 0.0)):
        rows, chances = [], []
        for image, (size, scale) in enumerate((((120, 150), 1.5), ((128, 160), 2.0))):
            rule = ProposalConventions(pre_nms=120, post_nms=40, min_size=least * scale, collect=0)
            one = select_proposals(
                [scores[image : image + 1]],
                [deltas[image : image + 1]],
                grid,
                [size],
                coder=BoxCoder(),
                rule=rule,
            )[0]
            rows.append(torch.cat([torch.full((len(one.boxes), 1), float(image)), one.boxes], dim=1))
            chances.append(one.scores[:, None])
        found[f"proposals.{name}.rois"] = Output(torch.cat(rows), 1e-6)
        found[f"proposals.{name}.probs"] = Output(torch.cat(chances), 1e-6)
    return found


def levels(reference: Reference) -> Outputs:
    """The pyramid level of square boxes."""
    side = tensor(reference, "levels.sizes").float()
    zero = torch.zeros_like(side)
    rois = torch.stack([zero, zero, zero, side - 1, side - 1], dim=1)
    return {"levels.sizes": INPUT, "levels.fpn": Output(assign_levels(rois, LevelRule(offset=1.0), 4), 0.0)}


def image(reference: Reference) -> Outputs:
    """Resizing after the mean is subtracted, and padding."""
    pixels = reference.whole("image.in").astype("uint8")[
        :, :, ::-1
    ]  # recorded blue first, decoded images are red first
    conventions = load_manifests().conventions["detectron"].image
    found: Outputs = {"image.in": INPUT}
    for name, short, longest in (("short", 10, 100), ("capped", 10, 11), ("down", 5, 100)):
        preprocess = Preprocess.from_conventions(
            conventions.model_copy(update={"size": short, "max_size": longest})
        )
        assert isinstance(preprocess.resize, ShorterSide)
        done = preprocess(pixels)
        found[f"image.{name}.out"] = Output(done.tensor.permute(1, 2, 0), 1e-5)
        found[f"image.{name}.scale"] = Output([done.scale[0]], 1e-6)
        if name == "short":
            padded = [-(-side // conventions.size_divisor) * conventions.size_divisor for side in done.size]
            found["image.blob_shape"] = Output([1, 3, *padded], 0.0)
            found["image.im_info"] = Output([[*padded, done.scale[0]]], 1e-6)
    return found


def pooling(reference: Reference) -> Outputs:
    """The three poolings of RoIs on one map."""
    features = torch.from_numpy(np.random.RandomState(12).standard_normal((2, 2, 8, 10)).astype("float32"))
    rois, sorted_rois = tensor(reference, "pool.rois"), tensor(reference, "pool.roi_crop_rois")
    cropped = roi_crop(features, affine_grid(sorted_rois, (8, 10), 6))
    return {
        "pool.features": Output(features, 0.0),
        "pool.rois": INPUT,
        "pool.roi_crop_rois": INPUT,
        "pool.roi_align_sr0": Output(roi_align(features, rois, 3, 1 / 16, 0), 1e-5),
        "pool.roi_align_sr2": Output(roi_align(features, rois, 3, 1 / 16, 2), 1e-5),
        "pool.roi_pool": Output(roi_pool(features, rois, 3, 1 / 16), 1e-6),
        "pool.roi_crop6": Output(cropped, 1e-5),
        "pool.roi_crop3": Output(nn.functional.max_pool2d(cropped, 2, 2), 1e-5),
    }


def losses_and_norms(reference: Reference) -> Outputs:
    """Weighted smooth L1, GroupNorm, and batch statistics folded into a scale and a shift."""
    predicted, target, inside, outside = (
        tensor(reference, f"smoothl1.{name}") for name in ("pred", "target", "inside", "outside")
    )
    found: Outputs = {f"smoothl1.{name}": INPUT for name in ("pred", "target", "inside", "outside")}
    for beta in (1.0, 1 / 9):
        terms = nn.functional.smooth_l1_loss(inside * predicted, inside * target, reduction="none", beta=beta)
        found[f"smoothl1.loss_beta{beta:.3f}"] = Output((outside * terms).sum()[None] / len(predicted), 1e-6)
    norm = nn.GroupNorm(2, 4)
    found |= {
        "gn.in": INPUT,
        "gn.out_old": Skip(
            "the unbiased variance of the fallback for torch before 0.4, which no checkpoint was published"
            " with"
        ),
    }
    from detection_zoo.zoo.weights.formats.detectron import fold_norm

    statistics = dict(
        zip(("weight", "bias", "running_mean", "running_var"), tensor(reference, "bn.in"), strict=True)
    )
    folded = [
        fold_norm(f"norm.{leaf}", {f"norm.{name}": value for name, value in statistics.items()})
        for leaf in ("weight", "bias")
    ]
    return found | {
        "gn.out": Output(norm(tensor(reference, "gn.in")), 1e-6),
        "bn.in": INPUT,
        "bn.affine": Output(torch.stack(folded), 1e-6),
    }


def batching(reference: Reference) -> Outputs:
    """Target ratios of groups of images, and the order of one epoch."""
    ratios = reference.whole("batch.ratios")
    return {
        "batch.ratios": INPUT,
        "batch.target_ratio2": Output(target_ratios(ratios, 2), 1e-12),
        "batch.target_ratio4": Output(target_ratios(ratios, 4), 1e-12),
        "batch.order_seed0": Output(grouped_order(len(ratios), 2, np.random.RandomState(0)), 0.0),
    }


def selection(reference: Reference) -> Outputs:
    """Detections from class probabilities and boxes: class by class, inside a class by row."""
    draws = np.random.RandomState(6)
    draws.dirichlet(0.5 * np.ones(6), 60)  # the scores, which are recorded
    columns = []
    for _ in range(6):
        x1, y1 = draws.rand(60) * 80, draws.rand(60) * 64
        columns += [
            x1,
            y1,
            np.minimum(x1 + draws.rand(60) * 50, 99),
            np.minimum(y1 + draws.rand(60) * 40, 79),
        ]
    place = torch.from_numpy(np.stack(columns, axis=1).astype("float32"))
    rule = DetectionConventions(score_threshold=0.05, nms_iou=0.5, max_detections=25)
    found = choose_detections(tensor(reference, "final.scores_in"), place.view(60, 6, 4), 1.0, rule)
    return {
        "final.scores_in": INPUT,
        "final.boxes_in": Output(place[:20], 1e-6),
        "final.boxes": Output(found.boxes, 1e-6),
        "final.scores": Output(found.scores, 1e-6),
        "final.labels": Output(found.labels + 1, 0.0),
    }


def masks(reference: Reference) -> Outputs:
    """Masks pasted into a small image, and polygons drawn into boxes."""
    place = tensor(reference, "mask.boxes")
    halves = [
        [tensor(reference, f"mask.{part}_{row}") for part in ("prob", "prob_right")]
        for row in range(len(place))
    ]
    maps = torch.stack([torch.cat(both, dim=1) for both in halves])
    pasted = paste_masks(maps, place, (20, 24), interpolation="cv2")
    found: Outputs = {"mask.probs28": Output(maps[:, ::4, ::4], 0.0), "mask.boxes": INPUT}
    for row, mask in enumerate(pasted):
        found |= {
            f"mask.prob_{row}": INPUT,
            f"mask.prob_right_{row}": INPUT,
            f"mask.pasted_{row}": Output(mask, 0.0),
        }
    polygon, box = [[5, 6, 40, 9, 38, 45, 20, 25, 9, 44]], (3.0, 2.0, 45.0, 50.0)
    large = rasterise(polygon, box, 28)
    return found | {
        "polygon.mask14": Output(rasterise(polygon, box, 14), 0.0),
        "polygon.mask28_top": Output(large[:14], 0.0),
        "polygon.mask28_bottom": Output(large[14:], 0.0),
    }


def keypoints(reference: Reference) -> Outputs:
    """Heat maps: decoding, mirroring, and the cells that ground truth falls into."""
    draws = np.random.RandomState(9)
    draws.standard_normal((2, 17, 56, 56))
    maps = torch.from_numpy(draws.standard_normal((3, 17, 7, 7)).astype("float32"))
    places, logits, chances = decode_heatmaps(maps, tensor(reference, "kps.rois"))
    mirrored = maps[:, mirrored_keypoints(KEYPOINT_NAMES)].flip(-1)
    truth, place = (
        tensor(reference, "kps.gt").float().transpose(1, 2),
        tensor(reference, "kps.gt_rois").float(),
    )
    cells, valid = heatmap_targets(truth, place, 56, divide=True)
    return {
        "kps.heatmaps_in": Output(maps[:, :, ::2, ::2], 0.0),
        "kps.rois": INPUT,
        "kps.gt": INPUT,
        "kps.gt_rois": INPUT,
        "kps.decoded": Output(torch.stack([places[..., 0], places[..., 1], logits, chances], dim=1), 1e-5),
        "kps.flipped": Output(mirrored[:, :, ::2, ::2], 0.0),
        "kps.labels": Output(cells, 0.0),
        "kps.weights": Output(valid.float(), 0.0),
    }


def upsampling(reference: Reference) -> Outputs:
    """The fixed bilinear kernel that doubles heat maps."""
    head = KeypointHead(nn.Identity(), 4, 2, convs=1, width=4, upsampling="deconvolution")
    whole = torch.zeros(2, 2, 4, 4)
    whole[torch.arange(2), torch.arange(2)] = head.kernel[:, 0]
    return {
        "bilinear.kernel": Output(whole, 1e-6),
        "bilinear.in": INPUT,
        "bilinear.out": Output(head.double_size(tensor(reference, "bilinear.in")), 1e-6),
    }


STEPS: tuple[Callable[[Reference], Outputs], ...] = (
    anchors,
    boxes,
    suppression,
    proposals,
    levels,
    image,
    pooling,
    losses_and_norms,
    batching,
    selection,
    masks,
    keypoints,
    upsampling,
)


def step_outputs(reference: Reference, kind: torch.dtype) -> Outputs:
    """Every output of the folder `processing`."""
    found: Outputs = {}
    for step in STEPS:
        found |= step(reference)
    return found
