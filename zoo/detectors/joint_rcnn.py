"""Faster R-CNN of the faster-rcnn.pytorch lineage (DetNet_pytorch): proposals of all levels are ranked
together, zero boxes fill the list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from detection_zoo.kernels.nms import batched_nms
from detection_zoo.kernels.roi_align import roi_align_averaged
from detection_zoo.kernels.roi_levels import LevelRule, assign_levels
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.kernels.soft_nms import soft_nms
from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.faster_rcnn import Frame, Options, frames
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import BoxCoder, clip_boxes
from detection_zoo.zoo.parts.joint_proposals import (
    OFFSET,
    PairedRPNHead,
    RoISamples,
    anchor_targets,
    cells_first,
    joint_proposals,
    ranking_scores,
    sample_rois,
)
from detection_zoo.zoo.parts.roi_heads import DetectionRule
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS


@dataclass
class Pyramid:
    """What the network knows of a batch before the box head: pyramid levels, RPN maps, ranking scores (N, A),
    deltas (N, A, 4), anchors (A, 4)."""

    levels: list[Tensor]
    logits: list[Tensor]
    delta_maps: list[Tensor]
    scores: Tensor
    deltas: Tensor
    anchors: Tensor


@dataclass
class Raw:
    """Proposals (N, R, 5), class probabilities (N, R, K + 1) with background first, deltas (N, R, 4 * (K +
    1)) or (N, R, 4)."""

    rois: Tensor
    probabilities: Tensor
    deltas: Tensor


class BoxHead(nn.Module):
    """A convolution as large as the pooled map, a 1x1 convolution, then class logits and deltas.

    Args:
        channels: of the pooled features.
        num_classes: K, background not counted.
        pooled_size: cells on each side of the pooled map.
        class_agnostic: one set of deltas in place of one for each class.
    """

    def __init__(
        self, channels: int, num_classes: int, *, pooled_size: int, class_agnostic: bool, hidden: int = 1024
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, pooled_size, pooled_size)
        self.conv2 = nn.Conv2d(hidden, hidden, 1)
        self.cls_score = nn.Linear(hidden, num_classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 if class_agnostic else 4 * (num_classes + 1))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def trunk(self, pooled: Tensor) -> Tensor:
        """Pooled features (R, C, P, P) to (R, hidden)."""
        return functional.relu(self.conv2(functional.relu(self.conv1(pooled)))).mean(dim=(2, 3))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, 4 * (K + 1)) of pooled features (R, C, P, P)."""
        hidden = self.trunk(pooled)
        return self.cls_score(hidden), self.bbox_pred(hidden)


def sigma_smooth_l1(difference: Tensor, sigma: float) -> Tensor:
    """Elementwise smooth L1 of any shape (R, 4): quadratic below 1 / sigma^2 (Girshick 2015, equation 3, with
    Ren's sigma)."""
    size = difference.abs()
    return torch.where(size < 1 / sigma**2, 0.5 * sigma**2 * size**2, size - 0.5 / sigma**2)


class JointRCNN(Detector):
    """Backbone, pyramid, paired RPN head, joint proposals, box head.

    Args:
        backbone, neck: images to maps, maps to levels p2, p3, ...
        num_classes: K, background not counted.
        pooled_size: of the box head.
        pooling: RoIAlign of four averaged points, or RoIPool.
        pool_levels: how many of the finest levels RoIs are pooled from.
        anchor_sizes: one a level, in pixels, default 32, 64, 128, ...; three shapes (width / height 0.5, 1,
            2) each.
        pre_nms, post_nms: proposals before and after suppression at test time; train_pre_nms, train_post_nms
            in training.
        target_stds: deviations that box targets are divided by.
        detections: of DetectionRule; boxes are always chosen in original pixels, and box voting is not known
            here.
        class_agnostic: the box head has one set of deltas.
        seed: of the numpy draws that sample anchors and RoIs in training.
    """

    parts = {
        "backbone": ("backbone",),
        "neck": ("neck",),
        "rpn": ("rpn_head", "anchors", "propose"),
        "heads": ("pool", "box_head"),
    }

    def __init__(
        self,
        backbone: Backbone,
        neck: nn.Module,
        num_classes: int,
        *,
        pooled_size: int,
        pooling: Literal["align", "pool"] = "align",
        pool_levels: int = 4,
        anchor_sizes: Sequence[float] | None = None,
        pre_nms: int = 6000,
        post_nms: int = 300,
        train_pre_nms: int = 12000,
        train_post_nms: int = 2000,
        proposal_nms_threshold: float = 0.7,
        target_stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
        detections: Options = None,
        class_agnostic: bool = False,
        rpn_channels: int = 512,
        rois_per_image: int = 128,
        anchors_per_image: int = 256,
        seed: int = 3,
    ) -> None:
        super().__init__()
        specs = list(neck.specs.values())
        self.backbone, self.neck, self.num_classes = backbone, neck, num_classes
        anchor_sizes = (
            [32 * 2**level for level in range(len(specs))] if anchor_sizes is None else anchor_sizes
        )
        self.anchors = AnchorGenerator(
            [[size] for size in anchor_sizes],
            (0.5, 1.0, 2.0),
            [spec.stride for spec in specs],
            rule="centred",
        )
        self.rpn_head = PairedRPNHead(specs[0].channels, self.anchors.per_cell, channels=rpn_channels)
        self.box_head = BoxHead(
            specs[0].channels, num_classes, pooled_size=pooled_size, class_agnostic=class_agnostic
        )
        if pooling not in ("align", "pool"):
            raise ValueError(f"pooling {pooling!r} is unknown to this family; known: align, pool")
        self.pooled_size, self.pooling, self.pool_levels, self.class_agnostic = (
            pooled_size,
            pooling,
            pool_levels,
            class_agnostic,
        )
        self.test_proposals = {
            "pre_nms": pre_nms,
            "post_nms": post_nms,
            "nms_threshold": proposal_nms_threshold,
        }
        self.train_proposals = {
            "pre_nms": train_pre_nms,
            "post_nms": train_post_nms,
            "nms_threshold": proposal_nms_threshold,
        }
        self.coder = BoxCoder([1 / std for std in target_stds], offset=OFFSET, far_offset=0.0, cap=None)
        self.detection_rule = DetectionRule(
            **{
                "score_threshold": 0.0,
                "nms_iou": 0.3,
                "inclusive": False,
                **(detections or {}),
                "frame": "original",
            }
        )
        if self.detection_rule.vote_iou is not None:
            raise ValueError("box voting is not known to this family; leave vote_iou out")
        self.rois_per_image, self.anchors_per_image = rois_per_image, anchors_per_image
        self.draws = np.random.RandomState(seed)

    def pyramid(self, images: Tensor) -> Pyramid:
        """Everything up to the proposals, of images (N, 3, H, W)."""
        levels = list(self.neck(self.backbone(images)).values())
        logits, deltas = self.rpn_head(levels)
        scores = torch.cat([ranking_scores(level) for level in logits], dim=1)
        return Pyramid(
            levels,
            logits,
            deltas,
            scores,
            torch.cat([cells_first(level, 4) for level in deltas], dim=1),
            torch.cat(self.anchors(levels)),
        )

    def pool(self, levels: Sequence[Tensor], rois: Tensor, image_height: float) -> Tensor:
        """RoI features (R, C, P, P) of rois (R, 5); the scale of a level is its height over the first image's
        height, for x too."""
        level_of = assign_levels(rois, LevelRule(offset=OFFSET, eps=0.0), self.pool_levels) - 2
        operator = roi_pool if self.pooling == "pool" else roi_align_averaged
        pooled = levels[0].new_zeros(len(rois), levels[0].shape[1], self.pooled_size, self.pooled_size)
        for index, level in enumerate(levels[: self.pool_levels]):
            rows = torch.nonzero(level_of == index).squeeze(1)
            if len(rows):
                pooled = pooled.index_copy(
                    0, rows, operator(level, rois[rows], self.pooled_size, level.shape[2] / image_height)
                )
        return pooled

    def propose(self, found: Pyramid, sizes: Tensor) -> Tensor:
        """Proposals (N, R, 5) of test time."""
        return joint_proposals(found.scores, found.deltas, found.anchors, sizes, **self.test_proposals)

    def raw(self, images: Tensor, sizes: Tensor) -> Raw:
        """The proposals and what the box head says of them, of images (N, 3, H, W)."""
        found = self.pyramid(images)
        rois = self.propose(found, sizes)
        logits, deltas = self.box_head(self.pool(found.levels, rois.flatten(0, 1), float(sizes[0, 0])))
        return Raw(
            rois, logits.softmax(dim=1).unflatten(0, rois.shape[:2]), deltas.unflatten(0, rois.shape[:2])
        )

    def postprocess(self, raw: Raw, sizes: Tensor, original_sizes: Tensor | None = None) -> list[Detections]:
        """Per-class suppression in the pixels of the original image, at most `max_detections` over all
        classes (ties stay)."""
        where = frames(
            sizes, original_sizes, common=True
        )  # the shorter sides give the common factor that the images were resized by
        return [self.choose(*scored) for scored in self.scored_boxes(raw, where)]

    def scored_boxes(self, raw: Raw, where: Sequence[Frame]) -> list[tuple[Tensor, Tensor]]:
        """For each image, class probabilities (R, K + 1), background first, and boxes (R, K + 1, 4) in
        original pixels, before any selection."""
        rows = zip(raw.rois[..., 1:], raw.probabilities, raw.deltas, where, strict=True)
        return [
            (probabilities, self.boxes_of(rois, deltas, frame.size, frame.factor[0]))
            for rois, probabilities, deltas, frame in rows
        ]

    def boxes_of(self, rois: Tensor, deltas: Tensor, size: Sequence[float], factor: float) -> Tensor:
        """Boxes (R, K + 1, 4) in original pixels from rois (R, 4) in input pixels and their deltas; factor:
        original pixels an input pixel."""
        boxes = clip_boxes(self.coder.decode(deltas, rois).unflatten(1, (-1, 4)), size, OFFSET) / (1 / factor)
        return boxes.expand(-1, self.num_classes + 1, 4)

    def choose(self, probabilities: Tensor, boxes: Tensor) -> Detections:
        """Detections of one image, class by class, by falling score in a class.

        Args:
            probabilities: (R, K + 1) float, background first.
            boxes: (R, K + 1, 4) float.
        """
        rule = self.detection_rule
        labels, rows = torch.nonzero(probabilities[:, 1:].t() > rule.score_threshold, as_tuple=True)
        found = Detections(boxes[rows, labels + 1], probabilities[rows, labels + 1], labels)
        if rule.soft == "none":
            kept = batched_nms(
                found.boxes,
                found.scores,
                labels,
                rule.nms_iou,
                num_groups=self.num_classes,
                offset=OFFSET,
                inclusive=rule.inclusive,
                max_total=rule.max_detections or None,
            )
            return found.select(kept[labels[kept].sort(stable=True).indices])
        groups = []
        for own in (
            found.select(torch.nonzero(labels == label).squeeze(1)) for label in range(self.num_classes)
        ):
            kept, scores = soft_nms(
                own.boxes,
                own.scores,
                method=rule.soft,
                sigma=rule.soft_sigma,
                iou_threshold=rule.nms_iou,
                offset=OFFSET,
            )
            groups.append((own.boxes[kept], scores, own.labels[kept]))
        found = Detections(*(torch.cat(column) for column in zip(*groups, strict=True)))
        if rule.max_detections and len(found) > rule.max_detections:
            found = found.select(found.scores >= found.scores.topk(rule.max_detections).values[-1])
        return found

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        truth, labels = padded_truth(targets)
        found = self.pyramid(images)
        losses = self.rpn_losses(found, truth, sizes)
        rois = joint_proposals(
            found.scores.detach(), found.deltas.detach(), found.anchors, sizes, **self.train_proposals
        )
        samples = sample_rois(rois, truth, labels, self.draws, count=self.rois_per_image, coder=self.coder)
        return losses | self.box_losses(found.levels, samples, sizes)

    def rpn_losses(self, found: Pyramid, truth: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Cross entropy over the sampled anchors of the batch; smooth L1 (sigma 3) summed over anchors,
        averaged over images.

        Args:
            found: of the batch.
            truth: (N, G, 4) float boxes, filled up with zero boxes.
            sizes: (N, 2) heights and widths in pixels.
        """
        sampled = anchor_targets(
            found.anchors, truth, sizes[0].tolist(), self.draws, count=self.anchors_per_image
        )
        logits = torch.cat([cells_first(level, 2) for level in found.logits], dim=1)
        chosen = sampled.labels >= 0
        weights = (sampled.inside * sampled.outside)[..., None]
        box = (
            (weights * sigma_smooth_l1(sampled.inside[..., None] * (found.deltas - sampled.targets), 3.0))
            .sum(dim=(1, 2))
            .mean()
        )
        return {
            "loss_rpn_cls": functional.cross_entropy(logits[chosen], sampled.labels[chosen].long()),
            "loss_rpn_box": box,
        }

    def box_losses(self, levels: Sequence[Tensor], samples: RoISamples, sizes: Tensor) -> dict[str, Tensor]:
        """Cross entropy and smooth L1 (sigma 1), both averaged over all sampled RoIs; sizes (N, 2) in
        pixels."""
        logits, deltas = self.box_head(self.pool(levels, samples.rois.flatten(0, 1), float(sizes[0, 0])))
        labels, inside = samples.labels.flatten(), samples.inside.flatten(0, 1)
        own = (
            deltas
            if self.class_agnostic
            else deltas.unflatten(1, (-1, 4))[torch.arange(len(labels), device=labels.device), labels]
        )
        box = (
            (inside * sigma_smooth_l1(inside * (own - samples.targets.flatten(0, 1)), 1.0)).sum(dim=1).mean()
        )
        return {"loss_rcnn_cls": functional.cross_entropy(logits, labels), "loss_rcnn_box": box}


def padded_truth(targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """Boxes (N, G, 4) and labels (N, G) with 1 for the first class, filled up with zeros to the most objects
    of an image, at least one."""
    most = max(1, *(len(target.boxes) for target in targets))
    boxes = torch.stack(
        [functional.pad(target.boxes, (0, 0, 0, most - len(target.boxes))) for target in targets]
    )
    labels = torch.stack(
        [functional.pad(target.labels + 1, (0, most - len(target.labels))) for target in targets]
    )
    return boxes, labels


@DETECTORS.register("joint_rcnn")
def joint_rcnn(
    backbone: Backbone,
    neck: nn.Module,
    num_classes: int,
    *,
    pooled_size: int = 7,
    detections: Options = None,
    **arguments,
) -> JointRCNN:
    """Faster R-CNN as DetNet_pytorch trains and tests it; arguments as in JointRCNN."""
    return JointRCNN(backbone, neck, num_classes, pooled_size=pooled_size, detections=detections, **arguments)
