"""A region proposal network by itself (Ren et al. 2015, section 3): its proposals are the detections, of one
class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.faster_rcnn import (
    Options,
    frames,
    make_anchors,
    make_coders,
    make_rpn,
    without_crowd,
)
from detection_zoo.zoo.necks import Neck, SingleLevel
from detection_zoo.zoo.parts.boxes import scale_boxes
from detection_zoo.zoo.parts.proposals import ProposalRule, Proposals
from detection_zoo.zoo.parts.rpn import RegionProposalNetwork
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS


@dataclass
class RpnRaw:
    """The proposals of each image."""

    proposals: list[Proposals]


class ProposalDetector(Detector):
    """Backbone, neck and proposal network; detections are proposals, with label 0.

    Args:
        backbone, neck, rpn: the parts.
        num_classes: K of the dataset; proposals tell none of them apart.
        common: one factor for both axes brings boxes back to the original (Detectron), not one an axis.
    """

    parts = {"backbone": ("backbone",), "neck": ("neck",), "rpn": ("rpn.head", "rpn.anchors", "rpn.propose")}

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        rpn: RegionProposalNetwork,
        *,
        num_classes: int,
        common: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn, self.num_classes, self.common = (
            backbone,
            neck,
            rpn,
            num_classes,
            common,
        )

    def raw(self, images: Tensor, sizes: Tensor) -> RpnRaw:
        """Proposals of images (N, 3, H, W)."""
        levels = list(self.neck(self.backbone(images)).values())
        return RpnRaw(
            self.rpn.propose(
                *self.rpn.head(levels), self.rpn.anchors(levels), sizes.tolist(), tuple(images.shape[-2:])
            )
        )

    def postprocess(
        self, raw: RpnRaw, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Proposals by falling score, in the pixels of the original images."""
        where = frames(sizes, original_sizes, self.common, self.resize)
        found = []
        for each, frame in zip(raw.proposals, where, strict=True):
            order = each.scores.argsort(descending=True, stable=True)
            boxes = scale_boxes(each.boxes[order], *frame.factor)
            found.append(Detections(boxes, each.scores[order], torch.zeros_like(order)))
        return found

    def losses(self, images: Tensor, sizes: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Objectness and box losses; crowds are left out."""
        levels = list(self.neck(self.backbone(images)).values())
        every = torch.cat(self.rpn.anchors(levels))
        with torch.no_grad():
            labels = [
                self.rpn.label(every, without_crowd(target).boxes.to(every.dtype), size)
                for target, size in zip(targets, sizes.tolist(), strict=True)
            ]
        return self.rpn.losses(*self.rpn.head(levels), labels)


@DETECTORS.register("rpn")
def rpn(
    backbone: Backbone,
    num_classes: int,
    *,
    neck: Neck | None = None,
    boxes: Options = None,
    anchors: Options = None,
    rpn: Options = None,
    proposals: Options = None,
    training_proposals: Options = None,
    detections: Options = None,
) -> ProposalDetector:
    """A proposal network; arguments as in zoo.detectors.faster_rcnn.rcnn_parts, of `detections` only the
    frame."""
    neck = SingleLevel(backbone.specs) if neck is None else neck
    coder = make_coders(**(boxes or {}))["rpn"]
    network = make_rpn(
        neck,
        make_anchors(neck, **(anchors or {})),
        coder,
        test=ProposalRule(**(proposals or {})),
        train=ProposalRule(**(training_proposals or {})),
        **(rpn or {}),
    )
    return ProposalDetector(
        backbone, neck, network, num_classes=num_classes, common=(detections or {}).get("frame") == "original"
    )
