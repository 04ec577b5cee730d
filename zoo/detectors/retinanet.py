"""RetinaNet (Lin et al. 2017b): one dense head over a pyramid, trained with the focal loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.faster_rcnn import Frame, Options, frames, make_coders, without_crowd
from detection_zoo.zoo.necks import Neck, SingleLevel
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import BoxCoder, box_iou, clip_boxes, scale_boxes, widened
from detection_zoo.zoo.parts.losses import sigmoid_focal, smooth_l1_sum
from detection_zoo.zoo.parts.matcher import BACKGROUND, match
from detection_zoo.zoo.parts.norm import ConvNorm
from detection_zoo.zoo.parts.roi_heads import DetectionRule, suppress
from detection_zoo.zoo.parts.rpn import by_anchor
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS


class RetinaHead(nn.Module):
    """Two towers of 3x3 convolutions, for classes and for boxes, shared by all levels (Lin et al. 2017b,
    section 4).

    Args:
        channels: of every level. anchors: A. num_classes: K.
        convs: of each tower.
        prior: probability of every class that the logits start from.
    """

    def __init__(
        self, channels: int, anchors: int, num_classes: int, *, convs: int = 4, prior: float = 0.01
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_tower = nn.Sequential(*(ConvNorm(channels, channels, 3) for _ in range(convs)))
        self.box_tower = nn.Sequential(*(ConvNorm(channels, channels, 3) for _ in range(convs)))
        self.class_logits = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior) / prior))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits (N, A * K, H, W) and deltas (N, A * 4, H, W) of each level, both anchor-major."""
        return [self.class_logits(self.class_tower(x)) for x in features], [
            self.box_deltas(self.box_tower(x)) for x in features
        ]


@dataclass
class RetinaRaw:
    """Logits and deltas of each level as the head gives them, and its anchors (H * W * A, 4)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


@dataclass
class RetinaLabels:
    """Labels of one image's anchors: labels (A,) int64, 1..K, 0 background, -1 not used; targets (A, 4)
    deltas; count: matched anchors."""

    labels: Tensor
    targets: Tensor
    count: int


class RetinaNet(Detector):
    """Backbone, neck and one head.

    Args:
        backbone, neck, head, anchors, coder: the parts.
        foreground_iou, background_iou, low_quality: of zoo.parts.matcher.match.
        focal_alpha, focal_gamma: of the focal loss.
        box_weight, smooth_l1_beta: the box loss is divided by box_weight and by the positives.
        class_normalizer, box_normalizer: a loss is divided by "positives_and_images" (their sum) or
            "positives".
        weak_background: a low-quality match below background_iou is trained as background, though it is
            counted (Detectron).
        pre_nms: best (anchor, class) pairs of a level. rule: thresholds, limits and frame of the detections.
        last_score_threshold: of the coarsest level; none: as on the others.
    """

    parts = {"backbone": ("backbone",), "neck": ("neck",), "heads": ("head",)}

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        head: RetinaHead,
        anchors: AnchorGenerator,
        coder: BoxCoder,
        *,
        rule: DetectionRule,
        foreground_iou: float = 0.5,
        background_iou: float = 0.4,
        low_quality: bool = True,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_weight: float = 4.0,
        smooth_l1_beta: float = 0.11,
        class_normalizer: str = "positives_and_images",
        pre_nms: int = 1000,
        box_normalizer: str = "positives",
        weak_background: bool = False,
        last_score_threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.head, self.anchors, self.coder, self.rule = (
            backbone,
            neck,
            head,
            anchors,
            coder,
            rule,
        )
        self.num_classes = head.num_classes
        self.foreground_iou, self.background_iou, self.low_quality = (
            foreground_iou,
            background_iou,
            low_quality,
        )
        self.focal_alpha, self.focal_gamma, self.box_weight, self.smooth_l1_beta = (
            focal_alpha,
            focal_gamma,
            box_weight,
            smooth_l1_beta,
        )
        self.class_normalizer, self.pre_nms, self.box_normalizer, self.weak_background = (
            class_normalizer,
            pre_nms,
            box_normalizer,
            weak_background,
        )
        self.last_score_threshold = (
            rule.score_threshold if last_score_threshold is None else last_score_threshold
        )

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Levels (N, C, H, W) that the head reads."""
        return self.neck(self.backbone(images))

    def raw(self, images: Tensor, sizes: Tensor) -> RetinaRaw:
        """Logits, deltas and anchors of each level."""
        return self.raw_of(*self.head(list(self.features(images).values())))

    def raw_of(self, logits: list[Tensor], deltas: list[Tensor]) -> RetinaRaw:
        """The same from the head's maps (N, A * K, H, W) and (N, A * 4, H, W) of each level."""
        return RetinaRaw(logits, deltas, self.anchors(logits))

    def postprocess(
        self, raw: RetinaRaw, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Detections of each image, class rising; the order inside a class is not defined."""
        where = frames(sizes, original_sizes, self.rule.frame == "original", self.resize)
        found = [self._detect(raw, i, frame) for i, frame in enumerate(where)]
        if self.rule.frame == "network":
            for each, frame in zip(found, where, strict=True):
                each.boxes = scale_boxes(each.boxes, *frame.factor)
        return found

    def _detect(self, raw: RetinaRaw, image: int, frame: Frame) -> Detections:
        thresholds = [self.rule.score_threshold] * (len(raw.logits) - 1) + [self.last_score_threshold]
        parts = [
            self._candidates(logits[image : image + 1], deltas[image : image + 1], anchors, frame, threshold)
            for logits, deltas, anchors, threshold in zip(
                raw.logits, raw.deltas, raw.anchors, thresholds, strict=True
            )
        ]
        boxes, scores, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        order = labels.sort(stable=True).indices
        return suppress(boxes[order], scores[order], labels[order], self.coder.offset, self.rule)

    def _candidates(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, frame: Frame, threshold: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best (anchor, class) pairs of one level of one image: boxes, scores, labels."""
        chances = widened(by_anchor(logits, self.num_classes)[0]).sigmoid()  # (A, K)
        anchor, label = torch.nonzero(chances > threshold, as_tuple=True)
        scores, best = chances[anchor, label].topk(min(self.pre_nms, len(anchor)))
        anchor, label = anchor[best], label[best]
        boxes = self.coder.decode(by_anchor(deltas, 4)[0, anchor], anchors[anchor])
        size = frame.size
        if self.rule.frame == "original" and frame.original is not None:
            boxes, size = scale_boxes(boxes, *frame.factor), frame.original
        return clip_boxes(boxes, size, self.coder.offset), scores, label

    def label(self, anchors: Tensor, target: Target) -> RetinaLabels:
        """Label all anchors (A, 4) of one image."""
        boxes = target.boxes.to(anchors.dtype)
        quality = box_iou(boxes, anchors, self.coder.offset)
        matches = match(quality, self.foreground_iou, self.background_iou, low_quality=self.low_quality)
        labels = torch.zeros_like(matches)
        labels[matches < BACKGROUND] = -1
        if not len(boxes):
            return RetinaLabels(labels, torch.zeros_like(anchors), 0)
        labels = torch.where(matches >= 0, target.labels[matches.clamp(min=0)] + 1, labels)
        if self.weak_background:
            labels[quality.max(dim=0).values < self.background_iou] = 0
        return RetinaLabels(
            labels, self.coder.encode(boxes[matches.clamp(min=0)], anchors), int((matches >= 0).sum())
        )

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Summed focal loss over positives and images, smooth L1 over positives."""
        raw = self.raw(images, sizes)
        every = torch.cat(raw.anchors)
        with torch.no_grad():
            labels = [self.label(every, without_crowd(target)) for target in targets]
        return self.reduce(raw, labels)

    def reduce(self, raw: RetinaRaw, labels: Sequence[RetinaLabels]) -> dict[str, Tensor]:
        """The two losses from the head's maps and the labels of each image."""
        logits = torch.cat([by_anchor(level, self.num_classes) for level in raw.logits], dim=1).flatten(0, 1)
        deltas = torch.cat([by_anchor(level, 4) for level in raw.deltas], dim=1).flatten(0, 1)
        classes = torch.cat([each.labels for each in labels])
        positive = torch.nonzero(classes > 0).squeeze(1)
        targets = torch.cat([each.targets for each in labels])[positive]
        count = sum(each.count for each in labels)
        divisor = {"positives": count, "positives_and_images": count + len(labels)}
        focal = sigmoid_focal(logits, classes, alpha=self.focal_alpha, gamma=self.focal_gamma).sum()
        box = smooth_l1_sum(deltas[positive], targets, self.smooth_l1_beta)
        return {
            "loss_class": focal / max(divisor[self.class_normalizer], 1),
            "loss_box": box / max(divisor[self.box_normalizer] * self.box_weight, 1),
        }


@DETECTORS.register("retinanet")
def retinanet(
    backbone: Backbone,
    num_classes: int,
    *,
    neck: Neck | None = None,
    boxes: Options = None,
    anchors: Options = None,
    scales_per_octave: int = 3,
    octave: float = 2.0,
    sizes: Sequence[float] | None = None,
    prior: float = 0.01,
    score_threshold: float = 0.05,
    nms_iou: float = 0.4,
    inclusive: bool = True,
    max_detections: int = 100,
    convs: int = 4,
    detections: Options = None,
    **arguments: Any,
) -> RetinaNet:
    """RetinaNet.

    Args:
        boxes: of make_coders. anchors: ratios, rule, strides of AnchorGenerator.
        sizes: pixels, one a level, default 4 strides; each is multiplied by octave ** (i /
            scales_per_octave).
        prior, convs: of RetinaHead. score_threshold ... max_detections: of DetectionRule, as is the frame of
            `detections`. arguments: of RetinaNet.
    """
    neck = SingleLevel(backbone.specs) if neck is None else neck
    options = {
        "ratios": (0.5, 1.0, 2.0),
        "strides": [spec.stride for spec in neck.specs.values()],
        **(anchors or {}),
    }
    sizes = [4.0 * stride for stride in options["strides"]] if sizes is None else sizes
    every = [[size * octave ** (i / scales_per_octave) for i in range(scales_per_octave)] for size in sizes]
    generator = AnchorGenerator(**{**options, "sizes": every})
    head = RetinaHead(
        next(iter(neck.specs.values())).channels, generator.per_cell, num_classes, convs=convs, prior=prior
    )
    rule = DetectionRule(
        score_threshold, nms_iou, inclusive, max_detections, (detections or {}).get("frame", "network")
    )
    return RetinaNet(
        backbone, neck, head, generator, make_coders(**(boxes or {}))["box"], rule=rule, **arguments
    )
