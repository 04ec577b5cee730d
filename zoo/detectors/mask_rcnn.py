"""Mask R-CNN (He et al. 2017): Faster R-CNN with a mask branch on its detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn, Frame, Options, RcnnRaw, rcnn_parts
from detection_zoo.zoo.necks import Neck
from detection_zoo.zoo.parts.mask_head import (
    MaskHead,
    class_masks,
    mask_loss,
    mask_options,
    mask_targets,
    paste_masks,
)
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler, SampledBoxes
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS


class MaskRcnn(FasterRcnn):
    """Faster R-CNN and a mask head, which runs on the detections (at test time) or on the sampled objects (in
    training).

    Args:
        mask: the head; one without a pooler takes the box trunk's maps (C4).
        threshold, interpolation: of paste_masks.
        parts: of FasterRcnn.
    """

    def __init__(
        self, mask: MaskHead, *, threshold: float = 0.5, interpolation: str = "torch", **parts: Any
    ) -> None:
        super().__init__(**parts)
        self.mask, self.threshold, self.interpolation = mask, threshold, interpolation

    def mask_features(self, features: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """What the mask head reads (R, C, M / 2, M / 2) of boxes in input pixels."""
        if self.mask.pooler is None:
            return self.box.trunk(self.box.pooler(features, boxes))
        return self.mask.pooler(features, boxes)

    def branch_outputs(
        self, raw: RcnnRaw, found: list[Detections], where: Sequence[Frame]
    ) -> list[Detections]:
        """Detections with masks: probabilities (R, M, M), pasted as (R, H, W) bool where the original's size
        is known."""
        found = self.with_masks(raw.features, found, self.network_boxes(found, where))
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

    def with_masks(
        self, features: dict[str, Tensor], found: Sequence[Detections], boxes: Sequence[Tensor]
    ) -> list[Detections]:
        """Detections with the probabilities (R, M, M) of their own classes, pooled from boxes in input
        pixels."""
        labels = torch.cat([each.labels for each in found])
        probabilities = class_masks(self.mask(self.mask_features(features, boxes)), labels)
        return [
            replace(each, masks=masks)
            for each, masks in zip(found, probabilities.split([len(each) for each in found]), strict=True)
        ]

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
        rows = [torch.nonzero(each).squeeze(1) for each in used]
        boxes = [each.boxes[own] for each, own in zip(sampled, rows, strict=True)]
        labels = torch.cat([each.labels[own] for each, own in zip(sampled, rows, strict=True)])
        if self.mask.pooler is None:
            logits = self.mask(hidden[torch.cat(used)])
        else:
            logits = self.mask(self.mask_features(features, boxes))
        wanted = [
            self.targets(own, match[at], target, logits.shape[-1], size)
            for own, match, at, target, size in zip(boxes, matches, rows, targets, sizes, strict=True)
        ]
        return {"loss_mask": mask_loss(logits, labels, torch.cat(wanted))}

    def targets(
        self, boxes: Tensor, matches: Tensor, target: Target, side: int, size: tuple[int, int]
    ) -> Tensor:
        """Mask targets (R, side, side) of one image's sampled objects; raises ValueError where the target has
        no polygons."""
        if target.polygons is None:
            raise ValueError(
                "a mask branch is trained with polygons, and the target has none; is the row's dataset one"
                " with masks?"
            )
        if self.sampling is not None:
            # of original pixels: boxes are not held to the image, one original pixel is the least side
            return mask_targets(boxes, matches, target.polygons, side, None, min(target.scale))
        return mask_targets(boxes, matches, target.polygons, side, size)


def make_mask_head(
    kind: str,
    parts: dict[str, Any],
    *,
    norm: str,
    pooling: dict[str, Any],
    width: int = 256,
    dilation: int = 1,
) -> MaskHead:
    """The mask head by name.

    Args:
        kind: "v1up4convs" (four convolutions), "v1up" (two), "v0upshare" (on the box trunk's maps), "v0up"
            (on a last stage of its own).
        parts: of FasterRcnn.
        norm, width, dilation: of the convolutions, see MaskHead.
        pooling: size, and of RoiAlignPooler.
    """
    if kind == "v0upshare":
        return MaskHead(None, parts["box"].trunk.channels, parts["num_classes"], convs=0, width=width)
    convs = {"v1up4convs": 4, "v1up": 2, "v0up": 0}
    if kind not in convs:
        raise ValueError(f"unknown mask_head {kind!r}; known: {', '.join((*convs, 'v0upshare'))}")
    neck: Neck = parts["neck"]
    levels = {name: neck.specs[name] for name in neck.roi_levels}
    size = pooling.pop("size")
    stage, channels = None, next(iter(levels.values())).channels
    if kind == "v0up":
        stage, channels = parts["backbone"].head_stage(stride=max(size // 7, 1))
    return MaskHead(
        RoiAlignPooler(levels, size, **pooling),
        channels,
        parts["num_classes"],
        convs=convs[kind],
        norm=norm,
        width=width,
        dilation=dilation,
        stage=stage,
    )


@DETECTORS.register("mask_rcnn")
def mask_rcnn(
    backbone: Backbone,
    num_classes: int,
    *,
    neck: Neck | None = None,
    box_head: str = "2mlp",
    mask_head: str = "v1up4convs",
    norm: str = "none",
    class_specific: bool = True,
    boxes: Options = None,
    anchors: Options = None,
    rpn: Options = None,
    proposals: Options = None,
    training_proposals: Options = None,
    pooling: Options = None,
    roi: Options = None,
    detections: Options = None,
    mask: Options = None,
    crowd: str = "drop",
    head: Options = None,
) -> MaskRcnn:
    """Mask R-CNN; `mask_head` as in make_mask_head, `mask` holds threshold, interpolation, pooling, width and
    dilation; the rest as in rcnn_parts."""
    parts = rcnn_parts(
        backbone,
        num_classes,
        neck=neck,
        box_head=box_head,
        norm=norm,
        class_specific=class_specific,
        boxes=boxes,
        anchors=anchors,
        rpn=rpn,
        proposals=proposals,
        training_proposals=training_proposals,
        pooling=pooling,
        roi=roi,
        detections=detections,
        crowd=crowd,
        head=head,
    )
    options = mask_options(mask, pooling)
    layers = {name: options.pop(name) for name in ("pooling", "width", "dilation") if name in options}
    return MaskRcnn(make_mask_head(mask_head, parts, norm=norm, **layers), **options, **parts)
