"""A region proposal network alone (Ren et al. 2015, section 3); its proposals are detections of one class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.faster_rcnn import ProposalRules, make_rpn, without_crowd
from detection_zoo.zoo.necks import Neck, SingleLevel
from detection_zoo.zoo.parts.boxes import scale_boxes
from detection_zoo.zoo.parts.frames import frames
from detection_zoo.zoo.parts.proposals import Proposals
from detection_zoo.zoo.parts.rpn import RegionProposalNetwork
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS


class ProposalDetector(Detector):
    """Backbone, neck and proposal network; detections are proposals, with label 0.

    Args:
        backbone, neck, rpn: the parts.
        num_classes: K of the dataset; proposals have no class.
        frame: of BoxConventions; unless "network", boxes are scaled to the original with one factor for both
            axes.
    """

    parts = {"backbone": ("backbone",), "neck": ("neck",), "rpn": ("rpn.head", "rpn.anchors", "rpn.propose")}

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        rpn: RegionProposalNetwork,
        *,
        num_classes: int,
        frame: str = "network",
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn = backbone, neck, rpn
        self.num_classes, self.frame = num_classes, frame

    def raw(self, images: Tensor, sizes: Tensor) -> list[Proposals]:
        """Proposals of images (N, 3, H, W)."""
        levels = list(self.neck(self.backbone(images)).values())
        return self.rpn.propose(
            *self.rpn.head(levels), self.rpn.anchors(levels), sizes.tolist(), tuple(images.shape[-2:])
        )

    def postprocess(
        self, raw: list[Proposals], sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Proposals sorted by descending score, in pixels of the original images."""
        where = frames(sizes, original_sizes, self.frame != "network", self.resize)
        found = []
        for each, frame in zip(raw, where, strict=True):
            order = each.scores.argsort(descending=True, stable=True)
            boxes = scale_boxes(each.boxes[order], *frame.factor)
            found.append(Detections(boxes, each.scores[order], torch.zeros_like(order)))
        return found

    def losses(self, images: Tensor, sizes: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Objectness and box losses; crowds are ignored."""
        levels = list(self.neck(self.backbone(images)).values())
        every = torch.cat(self.rpn.anchors(levels))
        with torch.no_grad():
            truth = [without_crowd(target).boxes for target in targets]
            labels = self.rpn.sampler(every, truth, sizes.tolist())
        return self.rpn.losses(*self.rpn.head(levels), labels)


USUAL = ProposalRules()


@DETECTORS.register("rpn")
def rpn(
    backbone: Backbone, num_classes: int, rules: ProposalRules = USUAL, *, neck: Neck | None = None
) -> ProposalDetector:
    """A proposal network; without a neck, on the backbone's last map."""
    neck = SingleLevel(backbone.specs) if neck is None else neck
    network = make_rpn(neck, rules)
    return ProposalDetector(backbone, neck, network, num_classes=num_classes, frame=rules.boxes.frame)
