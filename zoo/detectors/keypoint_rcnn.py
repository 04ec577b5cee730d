"""Keypoint R-CNN (He et al. 2017, section 5): Faster R-CNN with heat maps of keypoints on its detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.conventions import KeypointConventions
from detection_zoo.zoo.detectors.faster_rcnn import (
    FasterRcnn,
    Options,
    RcnnRaw,
    RcnnRules,
    branch_pooling,
    make_pooler,
    rcnn_parts,
)
from detection_zoo.zoo.necks import Neck
from detection_zoo.zoo.parts.boxes import box_iou, widened
from detection_zoo.zoo.parts.fixed_size import present_rows, take
from detection_zoo.zoo.parts.frames import Frame
from detection_zoo.zoo.parts.keypoint_head import (
    KeypointHead,
    decode_heatmaps,
    has_visible_keypoint,
    heatmap_targets,
    keypoint_loss,
)
from detection_zoo.zoo.parts.matching import BalancedSampler, match
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler
from detection_zoo.zoo.parts.targets import SampledBoxes
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS

HEATMAPS = "heatmaps"  # (R, P, S, S) of detections before their keypoints are decoded


@dataclass(frozen=True)
class KeypointRcnnRules(RcnnRules):
    """The sections of conventions that Keypoint R-CNN uses."""

    keypoint: KeypointConventions = KeypointConventions()


@dataclass
class SampledKeypoints:
    """The objects of one image for training keypoints: boxes (R, 4), keypoints (R, P, 3); labels of all
    candidates, and the sampled rows; with fixed size padded with absent rows, which have no visible
    keypoint."""

    boxes: Tensor
    keypoints: Tensor
    labels: Tensor
    positive: Tensor
    negative: Tensor


class KeypointRcnn(FasterRcnn):
    """Faster R-CNN and a keypoint head, which runs on the detections (at test time) or on sampled objects (in
    training).

    Args:
        keypoint: the head.
        parts: of FasterRcnn.
    """

    def __init__(self, keypoint: KeypointHead, rules: KeypointRcnnRules, **parts: Any) -> None:
        super().__init__(rules=rules, **parts)
        self.keypoint = keypoint
        # samples again from the boxes sampled for the box branch
        self.keypoint_sampler = BalancedSampler(rules.keypoint.samples, rules.keypoint.positive_fraction)

    def branch_outputs(
        self, raw: RcnnRaw, found: list[Detections], where: Sequence[Frame]
    ) -> list[Detections]:
        """Detections with heat maps (R, P, S, S) as extra."""
        heatmaps = widened(
            self.keypoint(self.keypoint.pooler(raw.features, self.network_boxes(found, where)))
        )
        maps = heatmaps.split([len(each) for each in found])
        return [
            replace(each, extra={**each.extra, HEATMAPS: own}) for each, own in zip(found, maps, strict=True)
        ]

    def branch_poolers(self) -> list[RoiAlignPooler]:
        """The pooler of the keypoint head."""
        return [self.keypoint.pooler]

    def branch_results(self, found: list[Detections], where: Sequence[Frame]) -> list[Detections]:
        """Detections with keypoints (R, P, 3) x, y, 1; extra: keypoint_logits and keypoint_probabilities (R,
        P)."""
        return [
            self.with_keypoints(each, each.extra.pop(HEATMAPS), frame)
            for each, frame in zip(found, where, strict=True)
        ]

    def with_keypoints(self, found: Detections, heatmaps: Tensor, frame: Frame) -> Detections:
        """One image's detections, decoded in their own frame and then scaled to original pixels if
        necessary."""
        places, logits, chances = decode_heatmaps(heatmaps, found.boxes)
        if self.frame == "network" and frame.original is not None:
            across, down = frame.factor
            places = torch.stack([places[..., 0] * across, places[..., 1] * down], dim=-1)
        keypoints = torch.cat([places, torch.ones_like(places[..., :1])], dim=2)
        found = replace(
            found,
            keypoints=keypoints,
            extra={**found.extra, "keypoint_logits": logits, "keypoint_probabilities": chances},
        )
        return self.in_original(found, frame)

    def sample_keypoints(self, sampled: SampledBoxes, target: Target) -> SampledKeypoints:
        """The keypoint samples that came with the boxes, or samples of their objects, matched again; objects
        without a visible keypoint inside their box are not used."""
        if target.keypoints is None:
            raise ValueError(
                "a keypoint branch is trained with keypoints, and the target has none; is the row's dataset"
                " one with keypoints?"
            )
        if sampled.keypoint_boxes is not None and sampled.keypoint_matches is not None:
            rows = torch.arange(len(sampled.keypoint_boxes), device=sampled.boxes.device)
            return SampledKeypoints(
                sampled.keypoint_boxes,
                target.keypoints[sampled.keypoint_matches],
                torch.ones_like(rows),
                rows,
                rows[:0],
            )
        rule, boxes = self.sampler.rule, target.boxes.to(sampled.boxes.dtype)
        matches = match(
            box_iou(boxes, sampled.boxes, self.coder.offset), rule.foreground_iou, rule.background_iou
        )
        labels = (matches >= 0).to(torch.int64) - (matches < -1).to(torch.int64)
        keypoints = target.keypoints
        if len(boxes):
            labels = torch.where(matches >= 0, target.labels[matches.clamp(min=0)] + 1, labels)
            usable = has_visible_keypoint(keypoints, target.boxes)[matches.clamp(min=0)]
            labels[(matches >= 0) & ~usable] = -1
        else:
            keypoints = keypoints.new_zeros(1, *keypoints.shape[1:])
        labels = labels.where(present_rows(sampled.boxes), -1)
        positive, negative = self.keypoint_sampler(labels)
        own = take(keypoints[matches.clamp(min=0)], positive, 0.0)  # absent ones are not visible
        drawn = take(sampled.boxes, positive, torch.nan)
        return SampledKeypoints(drawn, own, labels, positive, negative)

    def branch_losses(
        self,
        features: dict[str, Tensor],
        sampled: Sequence[SampledBoxes],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
        hidden: Tensor,
    ) -> dict[str, Tensor]:
        """Mean cross entropy over the cells of the visible keypoints' heat maps."""
        with torch.no_grad():
            chosen = [
                self.sample_keypoints(each, target) for each, target in zip(sampled, targets, strict=True)
            ]
        boxes = [each.boxes for each in chosen]
        heatmaps = self.keypoint(self.keypoint.pooler(features, boxes))
        keypoints = torch.cat([each.keypoints for each in chosen]).to(heatmaps.dtype)
        cells, valid = heatmap_targets(
            keypoints,
            torch.cat(boxes).to(heatmaps.dtype),
            heatmaps.shape[-1],
            divide=self.sampler.original_pixels,
        )
        return {"loss_keypoint": keypoint_loss(heatmaps, cells, valid)}


@DETECTORS.register("keypoint_rcnn")
def keypoint_rcnn(
    backbone: Backbone,
    num_classes: int,
    rules: KeypointRcnnRules = KeypointRcnnRules(),
    *,
    neck: Neck | None = None,
    box_head: str = "2mlp",
    keypoint_head: str = "v1convx",
    norm: str = "none",
    deltas: str = "class",
    head: Options = None,
) -> KeypointRcnn:
    """Keypoint R-CNN; `keypoint_head` "v1convx"; the rest as in rcnn_parts."""
    if keypoint_head != "v1convx":
        raise ValueError(f"unknown keypoint_head {keypoint_head!r}; known: v1convx")
    heads = {"box_head": box_head, "norm": norm, "deltas": deltas, "head": head}
    parts, rule = rcnn_parts(backbone, num_classes, rules, neck, **heads), rules.keypoint
    neck = parts["neck"]
    branch = KeypointHead(
        make_pooler(neck, branch_pooling(rules, rule.pooling)),
        neck.specs[neck.roi_levels[0]].channels,
        rule.keypoints,
        convs=rule.convs,
        width=rule.width,
        upsampling=rule.upsampling,
    )
    return KeypointRcnn(branch, **parts)
