"""Mask R-CNN (He et al. 2017): Faster R-CNN with a mask branch on its detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.conventions import MaskConventions, PoolingConventions
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
from detection_zoo.zoo.parts.fixed_size import numbers_of, take
from detection_zoo.zoo.parts.frames import Frame
from detection_zoo.zoo.parts.mask_head import MaskHead, class_masks, mask_loss, mask_targets, paste_masks
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler
from detection_zoo.zoo.parts.targets import SampledBoxes
from detection_zoo.zoo.parts.trace import record
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS


@dataclass(frozen=True)
class MaskRcnnRules(RcnnRules):
    """The sections of conventions that Mask R-CNN uses."""

    mask: MaskConventions = MaskConventions()


class MaskRcnn(FasterRcnn):
    """Faster R-CNN and a mask head, which runs on the detections (at test time) or on the sampled objects (in
    training).

    Args:
        mask: the head; without a pooler it uses the box trunk's maps (C4).
        parts: of FasterRcnn.
    """

    def __init__(self, mask: MaskHead, rules: MaskRcnnRules, **parts: Any) -> None:
        super().__init__(rules=rules, **parts)
        self.mask, self.threshold, self.interpolation = mask, rules.mask.threshold, rules.mask.interpolation

    def mask_features(self, features: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Input of the mask head (R, C, M / 2, M / 2) for boxes in input pixels."""
        if self.mask.pooler is None:
            return self.box.trunk(self.box.pooler(features, boxes))
        return self.mask.pooler(features, boxes)

    def branch_outputs(
        self, raw: RcnnRaw, found: list[Detections], where: Sequence[Frame]
    ) -> list[Detections]:
        """Detections with the probabilities (R, M, M) of their own classes."""
        labels = torch.cat([each.labels for each in found])
        pooled = self.mask_features(raw.features, self.network_boxes(found, where))
        probabilities = class_masks(self.mask(pooled), labels)
        record("mask.probabilities", probabilities)
        return [
            replace(each, masks=masks)
            for each, masks in zip(found, probabilities.split([len(each) for each in found]), strict=True)
        ]

    def branch_poolers(self) -> list[RoiAlignPooler]:
        """The pooler of the mask head, if any."""
        return [] if self.mask.pooler is None else [self.mask.pooler]

    def branch_results(self, found: list[Detections], where: Sequence[Frame]) -> list[Detections]:
        """Detections with masks, pasted as (R, H, W) bool if the original's size is known."""
        finished = []
        for each, frame in zip(found, where, strict=True):
            each = self.in_original(each, frame)
            if frame.original is not None:
                pasted = paste_masks(
                    each.masks,
                    each.boxes,
                    frame.original,
                    threshold=self.threshold,
                    interpolation=self.interpolation,
                )
                each = replace(each, masks=pasted)
            finished.append(each)
        return finished

    def branch_losses(
        self,
        features: dict[str, Tensor],
        sampled: Sequence[SampledBoxes],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
        hidden: Tensor,
    ) -> dict[str, Tensor]:
        """Mean binary cross entropy over the sampled objects."""
        matches = [each.matches if each.mask_matches is None else each.mask_matches for each in sampled]
        used = [(each.labels > 0) & (own >= 0) for each, own in zip(sampled, matches, strict=True)]
        rule = self.sampler.rule
        rows = [numbers_of(each, int(rule.samples * rule.positive_fraction)) for each in used]
        boxes = [take(each.boxes, own, torch.nan) for each, own in zip(sampled, rows, strict=True)]
        labels = torch.cat([take(each.labels, own, -1) for each, own in zip(sampled, rows, strict=True)])
        if self.mask.pooler is None:
            parts = hidden.split([len(each.labels) for each in sampled])
            pooled = [part[own.clamp(min=0)] for part, own in zip(parts, rows, strict=True)]
            logits = self.mask(torch.cat(pooled))
        else:
            logits = self.mask(self.mask_features(features, boxes))
        wanted = [
            self.targets(own, take(match, at, 0), target, logits.shape[-1], size)
            for own, match, at, target, size in zip(boxes, matches, rows, targets, sizes, strict=True)
        ]
        return {"loss_mask": mask_loss(logits, labels, torch.cat(wanted))}

    def targets(
        self, boxes: Tensor, matches: Tensor, target: Target, side: int, size: tuple[int, int]
    ) -> Tensor:
        """Mask targets (R, side, side) of one image's sampled objects; raises ValueError if the target has no
        polygons."""
        if target.polygons is None:
            raise ValueError(
                "a mask branch is trained with polygons, and the target has none; is the row's dataset one"
                " with masks?"
            )
        if self.sampler.original_pixels:
            # in original pixels: boxes are not clipped to the image, sides are at least one original pixel
            return mask_targets(boxes, matches, target.polygons, side, None, min(target.scale))
        return mask_targets(boxes, matches, target.polygons, side, size)


def make_mask_head(
    kind: str, parts: dict[str, Any], rule: MaskConventions, pooling: PoolingConventions, norm: str
) -> MaskHead:
    """The mask head by name.

    Args:
        kind: "v1up4convs" (four convolutions), "v1up" (two), "v0upshare" (on the box trunk's maps), "v0up"
            (on its own copy of the last stage).
        parts: of FasterRcnn.
        rule: width and dilation of the convolutions. pooling: of this branch. norm: of the convolutions.
    """
    classes, neck = parts["num_classes"], parts["neck"]
    if kind == "v0upshare":
        return MaskHead(None, parts["box"].trunk.channels, classes, convs=0, width=rule.width)
    convs = {"v1up4convs": 4, "v1up": 2, "v0up": 0}
    if kind not in convs:
        raise ValueError(f"unknown mask_head {kind!r}; known: {', '.join((*convs, 'v0upshare'))}")
    stage, channels = None, neck.specs[neck.roi_levels[0]].channels
    if kind == "v0up":
        stage, channels = parts["backbone"].head_stage(stride=max(pooling.size // 7, 1))
    return MaskHead(
        make_pooler(neck, pooling),
        channels,
        classes,
        convs=convs[kind],
        norm=norm,
        width=rule.width,
        dilation=rule.dilation,
        stage=stage,
    )


@DETECTORS.register("mask_rcnn")
def mask_rcnn(
    backbone: Backbone,
    num_classes: int,
    rules: MaskRcnnRules = MaskRcnnRules(),
    *,
    neck: Neck | None = None,
    mask_head: str = "v1up4convs",
    box_head: str = "2mlp",
    norm: str = "none",
    deltas: str = "class",
    head: Options = None,
) -> MaskRcnn:
    """Mask R-CNN; `mask_head` as in make_mask_head, the rest as in rcnn_parts."""
    heads = {"box_head": box_head, "norm": norm, "deltas": deltas, "head": head}
    parts = rcnn_parts(backbone, num_classes, rules, neck, **heads)
    pooling = branch_pooling(rules, rules.mask.pooling)
    return MaskRcnn(make_mask_head(mask_head, parts, rules.mask, pooling, norm), **parts)
