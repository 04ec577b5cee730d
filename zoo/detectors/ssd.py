"""SSD (Liu et al., ECCV 2016) and its family: RFB heads on any backbone, SSDLite (MobileNetV2, section
6.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from detection_zoo.kernels.nms import batched_nms
from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.conventions import SSDConventions
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.parts.boxes import scale_boxes, widened
from detection_zoo.zoo.parts.fixed_size import (
    FixedDetections,
    best_candidates,
    fixed_size,
    suppress_fixed,
    trim,
)
from detection_zoo.zoo.parts.frames import Frame, frames
from detection_zoo.zoo.parts.mobile_convs import Padding
from detection_zoo.zoo.parts.multibox import BACKGROUND, MultiBoxLoss, PriorCoder
from detection_zoo.zoo.parts.priors import PriorTable, prior_table
from detection_zoo.zoo.parts.rfb import RFBPyramid
from detection_zoo.zoo.parts.ssd_pyramid import HeadKind, Heads, SSDLitePyramid, SSDPyramid
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS

# category ids of COCO's 80 classes, by label: ten of 1..90 are not used
COCO_IDS = tuple(i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
HEAD_KINDS: dict[str, HeadKind] = {
    "ssd": "plain",
    "rfb": "plain",
    "ssdlite": "separable",
    "mobile": "pointwise",
}
Pyramid = SSDPyramid | RFBPyramid | SSDLitePyramid


@dataclass(frozen=True)
class SSDOutput:
    """Output of the network per prior: boxes (N, P, 4) float, fractions of the image; scores (N, P, C)
    float, channel 0 is background."""

    boxes: Tensor
    scores: Tensor


@dataclass(frozen=True)
class SSDRules:
    """The section of conventions that SSD uses."""

    ssd: SSDConventions = SSDConventions()


def select_priors(boxes: Tensor, scores: Tensor, columns: Tensor, rule: SSDConventions) -> Detections:
    """Detections of one image, ordered by class, then descending score.

    Args:
        boxes: (P, 4) float, in original pixels (which matters for NMS with an offset).
        scores: (P, C) float.
        columns: (K,) int64, channel of each label.
        rule: thresholds and limits.
    """
    wanted = wanted_priors(boxes, scores, columns, rule)
    priors, labels = wanted.nonzero(as_tuple=True)
    found = Detections(boxes[priors], scores[priors, columns[labels]], labels)
    kept = batched_nms(
        found.boxes,
        found.scores,
        labels,
        rule.nms_iou,
        num_groups=len(columns),
        offset=rule.nms_offset,
        max_keep=rule.per_class_keep,
        max_candidates=len(boxes),
        max_total=rule.per_image_keep,
    )
    return found.select(kept[labels[kept].sort(stable=True).indices])


def wanted_priors(boxes: Tensor, scores: Tensor, columns: Tensor, rule: SSDConventions) -> Tensor:
    """Mark (..., P, K) bool the candidates, from boxes (..., P, 4) and scores (..., P, C)."""
    # sizes are unbounded exponentials: boxes that overflow are excluded
    allowed = torch.isfinite(boxes).all(dim=-1)
    if rule.background_filter is not None:
        best = scores.amax(dim=-1)
        allowed = allowed & ((scores[..., BACKGROUND] != best) | (best < rule.background_filter))
    return (scores.index_select(-1, columns) > rule.score_threshold) & allowed[..., None]


def select_fixed(boxes: Tensor, scores: Tensor, columns: Tensor, rule: SSDConventions) -> FixedDetections:
    """`select_priors` of N images with lists of fixed size, from boxes (N, P, 4) and scores (N, P, C)."""
    classes = len(columns)
    chances = scores.index_select(-1, columns)
    wanted = wanted_priors(boxes, scores, columns, rule)
    found = best_candidates(chances.where(wanted, -torch.inf).flatten(1))
    priors, labels = found.rows // classes, found.rows % classes
    length = found.scores.shape[1]
    return suppress_fixed(
        found,
        boxes.gather(1, priors[..., None].expand(-1, -1, 4)),
        labels,
        labels * length + torch.arange(length, device=labels.device),  # per class, sorted by descending score
        iou=rule.nms_iou,
        offset=rule.nms_offset,
        inclusive=False,
        most=rule.per_image_keep,
        per_class=rule.per_class_keep,
    )


class SSD(Detector):
    """A one-stage detector over two backbone maps and extra ones.

    Args:
        backbone: images -> maps; fine, coarse: names of the two maps used.
        pyramid: (fine, coarse) -> maps for the heads; has their `channels`.
        table: priors of those maps.
        num_classes: K.
        rule: channels, scores, training and selection.
        heads: kind of the prediction heads.
    """

    parts = {"backbone": ("backbone",), "neck": ("pyramid",), "heads": ("box_head", "class_head")}
    needs_any_size = None

    def __init__(
        self,
        backbone: Backbone,
        pyramid: Pyramid,
        table: PriorTable,
        *,
        fine: str,
        coarse: str,
        num_classes: int,
        rule: SSDConventions,
        heads: HeadKind,
    ) -> None:
        super().__init__()
        columns = list(COCO_IDS if rule.channels == "coco_ids" else range(1, num_classes + 1))
        if len(columns) != num_classes:
            raise ValueError(f"channels={rule.channels!r} go with {len(columns)} classes, not {num_classes}")
        self.num_classes = num_classes
        self.backbone, self.pyramid, self.fine, self.coarse = backbone, pyramid, fine, coarse
        self.box_head = Heads(pyramid.channels, table.per_cell, 4, kind=heads)
        self.class_head = Heads(pyramid.channels, table.per_cell, max(columns) + 1, kind=heads)
        self.rule = rule
        self.loss = MultiBoxLoss(
            PriorCoder((rule.variances[0], rule.variances[1])),
            threshold=rule.match_iou,
            negatives=rule.negatives,
            scores=rule.scores,
        )
        self.register_buffer("priors", table.priors(), persistent=False)
        self.register_buffer("columns", torch.tensor(columns, device="cpu"), persistent=False)

    def network(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (N, P, 4) and class logits (N, P, C) of images (N, 3, S, S)."""
        features = self.backbone(images)
        maps = self.pyramid(features[self.fine], features[self.coarse])
        offsets, logits = self.box_head(maps), self.class_head(maps)
        if offsets.shape[1] != len(self.priors):
            raise ValueError(
                f"inputs of {tuple(images.shape[2:])} pixels give {offsets.shape[1]} boxes, but there are"
                f" {len(self.priors)} priors; resize images to the size in the row's conventions"
            )
        return offsets, logits

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        offsets, logits = self.network(images)
        height, width = images.shape[2:]
        scale = images.new_full((2, 2), height)  # filled on the device: a copy would synchronize
        scale[:, 0].fill_(width)
        return self.loss(
            widened(offsets),
            widened(logits),
            self.priors,
            [t.boxes / scale.flatten() for t in targets],
            [self.columns[t.labels] for t in targets],
        )

    def raw(self, images: Tensor, sizes: Tensor) -> SSDOutput:
        offsets, logits = self.network(images)
        scores = (
            widened(logits).softmax(dim=2) if self.rule.scores == "softmax" else widened(logits).sigmoid()
        )
        boxes = torch.stack([self.loss.coder.decode(one, self.priors) for one in widened(offsets)])
        return SSDOutput(boxes.clamp(0, 1) if self.rule.clip else boxes, scores)

    def postprocess(
        self, raw: SSDOutput, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        where = self.frames(sizes, original_sizes)
        if not fixed_size(raw.scores):
            return self._select(raw, where)
        chosen = self.fixed_detections(raw, where)
        return chosen.found if torch.compiler.is_compiling() else self.finish_fixed(chosen, raw, where)

    def frames(self, sizes: Tensor, original_sizes: Tensor | None = None) -> list[Frame]:
        """Coordinate frames of detections for images of sizes (N, 2)."""
        return frames(sizes, original_sizes, common=False)

    def fixed_detections(self, raw: SSDOutput, where: Sequence[Frame]) -> FixedDetections:
        """Detections of all images with lists of fixed size, without synchronizing with the device."""
        return select_fixed(torch.stack(_placed(raw, where)), raw.scores, self.columns, self.rule)

    def finish_fixed(
        self, chosen: FixedDetections, raw: SSDOutput, where: Sequence[Frame]
    ) -> list[Detections]:
        """Detections of each image, without absent ones; selected again if the fixed size was too small."""
        found = trim(chosen)
        return self._select(raw, where) if found is None else found

    def _select(self, raw: SSDOutput, where: Sequence[Frame]) -> list[Detections]:
        return [
            select_priors(own, scores, self.columns, self.rule)
            for own, scores in zip(_placed(raw, where), raw.scores, strict=True)
        ]

    def initialise(self) -> None:
        """Initialise new layers as the authors' training script: biases of extras and heads zero,
        convolutions with a norm Kaiming normal.

        Plain convolutions (SSD's extras and heads) keep torch's default weights, since the script does not
        initialise them.
        """
        bridge = getattr(self.backbone, "bridge", None)
        for part in (self.pyramid, self.box_head, self.class_head, bridge):
            for module in part.modules() if part is not None else ():
                if isinstance(module, nn.Conv2d) and module.bias is not None:
                    nn.init.zeros_(module.bias)
                elif isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out")


def _placed(raw: SSDOutput, where: Sequence[Frame]) -> list[Tensor]:
    """Boxes (P, 4) of each image in pixels of its original."""
    sides = [frame.whole for frame in where]
    return [scale_boxes(own, width, height) for own, (height, width) in zip(raw.boxes, sides, strict=True)]


def two_maps(backbone: Backbone, size: int, table: PriorTable) -> tuple[str, str]:
    """Names of the map whose stride is nearest to the first level's step, and of the next coarser one.

    Args:
        backbone: at least two maps.
        size: side of the input in pixels.
        table: priors.
    """
    names = list(backbone.specs)
    step = size / table.levels[0].pitch
    if len(names) < 2:
        raise ValueError(f"SSD needs two maps of its backbone, this one has {', '.join(names)}")
    place = min(range(len(names) - 1), key=lambda index: abs(backbone.specs[names[index]].stride - step))
    return names[place], names[place + 1]


@DETECTORS.register("ssd")
def ssd(
    backbone: Backbone,
    num_classes: int,
    rules: SSDRules = SSDRules(),
    *,
    size: int = 300,
    priors: str = "coco_300",
    heads: Literal["ssd", "rfb", "ssdlite", "mobile"] = "ssd",
    padding: Padding = "same",
) -> SSD:
    """Build a detector of the SSD family.

    Args:
        backbone: with at least two maps.
        num_classes: K.
        rules: coding, scores, training and selection.
        size: side of the input in pixels.
        priors: a name of zoo.parts.priors.PRIOR_TABLES.
        heads: "ssd", "rfb", "ssdlite", or "mobile": extra layers with norms and 1x1 heads, as TensorFlow's
            SSD on MobileNetV1.
        padding: of the strided convolutions of "ssdlite" and "mobile"; TensorFlow's is "same".
    """
    table = prior_table(priors)
    fine, coarse = two_maps(backbone, size, table)
    widths = backbone.specs[fine].channels, backbone.specs[coarse].channels
    pyramid: Pyramid
    if heads in ("ssdlite", "mobile"):
        pyramid = SSDLitePyramid(*widths, padding=padding, separable=heads == "ssdlite")
    else:
        pyramid = {"ssd": SSDPyramid, "rfb": RFBPyramid}[heads](*widths, size=size)
    detector = SSD(
        backbone,
        pyramid,
        table,
        fine=fine,
        coarse=coarse,
        num_classes=num_classes,
        rule=rules.ssd,
        heads=HEAD_KINDS[heads],
    )
    detector.initialise()
    return detector
