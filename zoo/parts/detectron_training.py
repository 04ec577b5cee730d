"""Training of the proposal network and of the box branch by Detectron's rules; see
zoo.parts.detectron_targets for what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detection_zoo.zoo.parts.boxes import BoxCoder
from detection_zoo.zoo.parts.detectron_targets import (
    AnchorRules,
    Draws,
    RoIRules,
    RoISamples,
    anchor_targets,
    masks_of,
    sample_rois,
)
from detection_zoo.zoo.parts.losses import smooth_l1_sum
from detection_zoo.zoo.parts.proposals import Size
from detection_zoo.zoo.parts.roi_heads import SampledBoxes
from detection_zoo.zoo.parts.rpn import RegionProposalNetwork, RpnLabels, by_anchor
from detection_zoo.zoo.records import Target


class DetectronProposalNetwork(RegionProposalNetwork):
    """The proposal network with Detectron's labels and losses; arguments as in RegionProposalNetwork.

    Args:
        count, fraction: anchors of an image that are drawn, and at most how many of them on objects.
        over: what the objectness loss is divided by: the anchors "sampled", or those "configured" (count
            times images).
        draws: source of random numbers; default: numpy's own state, which a training's checkpoints save.
    """

    def __init__(
        self, *arguments: Any, count: int, fraction: float, over: str, draws: Draws = np.random, **rest: Any
    ) -> None:
        super().__init__(*arguments, **rest)
        straddle = -1.0 if self.straddle is None else self.straddle
        self.rules_of_anchors = AnchorRules(
            self.foreground_iou, self.background_iou, count, fraction, straddle
        )
        self.over, self.draws = over, draws

    def label(self, anchors: Tensor, boxes: Tensor, size: Size) -> RpnLabels:
        """Label and draw the anchors (A, 4) of one image with ground truth boxes (G, 4), crowds left out."""
        found = anchor_targets(anchors, boxes, size, self.draws, self.rules_of_anchors)
        return RpnLabels(
            found.labels.to(anchors.dtype),
            found.deltas,
            torch.nonzero(found.labels == 1).squeeze(1),
            torch.nonzero(found.labels == 0).squeeze(1),
        )

    def losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], labels: Sequence[RpnLabels]
    ) -> dict[str, Tensor]:
        """Summed objectness loss over a count of anchors; smooth L1 of the positives over the image's own
        count, mean over images."""
        by_level = self.level_losses(logits, deltas, labels)
        return {name: sum(level[name] for level in by_level) for name in by_level[0]}

    def level_losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], labels: Sequence[RpnLabels]
    ) -> list[dict[str, Tensor]]:
        """The losses of each level, finest first; their sum is the loss."""
        drawn = [max(len(each.positive) + len(each.negative), 1) for each in labels]
        whole = self.rules_of_anchors.count * len(labels) if self.over == "configured" else sum(drawn)
        found, start = [], 0
        for level, boxes in zip(
            [self.head.flat(level) for level in logits],
            [by_anchor(level, 4) for level in deltas],
            strict=True,
        ):
            end = start + level.shape[1]
            objectness, box = level.sum() * 0, boxes.sum() * 0
            for image, each in enumerate(labels):
                wanted, targets = each.labels[start:end], each.targets[start:end]
                used, positive = wanted >= 0, wanted == 1
                objectness = objectness + F.binary_cross_entropy_with_logits(
                    level[image, used], wanted[used].to(level), reduction="sum"
                )
                box = (
                    box
                    + smooth_l1_sum(boxes[image, positive], targets[positive], self.smooth_l1_beta)
                    / drawn[image]
                )
            found.append({"loss_rpn_objectness": objectness / whole, "loss_rpn_box": box / len(labels)})
            start = end
        return found


class DetectronSampling:
    """Draws the proposals that the heads are trained on, in pixels of the original image.

    Args:
        coder: of the box branch. rules: thresholds and counts. draws: as in DetectronProposalNetwork.
    """

    def __init__(self, coder: BoxCoder, rules: RoIRules, draws: Draws = np.random) -> None:
        self.coder, self.rules, self.draws = coder, rules, draws

    def __call__(self, proposals: Tensor, target: Target) -> SampledBoxes:
        """Sample one image's proposals (R, 4), in pixels of the network's input as the target's boxes are."""
        scale = proposals.new_tensor([*target.scale, *target.scale])
        truth = target.boxes.to(proposals.dtype) / scale
        crowd = (
            torch.zeros(len(truth), dtype=torch.bool, device=truth.device)
            if target.crowd is None
            else target.crowd
        )
        keypoints = (
            None if target.keypoints is None else target.keypoints / torch.cat([scale[:2], scale.new_ones(1)])
        )
        drawn = sample_rois(proposals / scale, truth, target.labels, crowd, self.draws, self.rules, keypoints)
        found = self.sampled(drawn, truth, scale)
        if target.polygons is not None:
            found.mask_matches = torch.full_like(found.labels, -1)
            found.mask_matches[found.positive] = masks_of(drawn.boxes[found.positive], target.polygons, scale)
        return found

    def sampled(self, drawn: RoISamples, truth: Tensor, scale: Tensor) -> SampledBoxes:
        """What was drawn (boxes (S, 4) in original pixels) as the heads' training takes it."""
        objects = int((drawn.labels >= 0).sum())
        targets = torch.zeros_like(drawn.boxes)
        if objects:
            targets[:objects] = self.coder.encode(truth[drawn.objects[:objects]], drawn.boxes[:objects])
        rows = torch.arange(len(drawn.boxes), device=scale.device)
        keypoint_boxes = None if drawn.keypoint_boxes is None else drawn.keypoint_boxes * scale
        return SampledBoxes(
            drawn.boxes * scale,
            drawn.labels + 1,
            targets,
            drawn.objects,
            rows,
            rows[:objects],
            rows[objects:],
            drawn.labels + 1,
            keypoint_boxes=keypoint_boxes,
            keypoint_matches=drawn.keypoint_objects,
        )
