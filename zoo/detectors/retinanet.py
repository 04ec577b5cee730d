"""RetinaNet (Lin et al. 2017b): one dense head over a pyramid, trained with the focal loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.conventions import (
    AnchorConventions,
    BoxConventions,
    DetectionConventions,
    RetinaNetConventions,
)
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.faster_rcnn import box_coders, without_crowd
from detection_zoo.zoo.necks import Neck, SingleLevel
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import box_iou, clip_boxes, scale_boxes, widened
from detection_zoo.zoo.parts.detections import suppress
from detection_zoo.zoo.parts.fixed_size import (
    FixedDetections,
    best_candidates,
    fixed_size,
    rows_of,
    suppress_fixed,
    trim,
)
from detection_zoo.zoo.parts.frames import Frame, frames
from detection_zoo.zoo.parts.losses import sigmoid_focal, smooth_l1_sum
from detection_zoo.zoo.parts.matching import BACKGROUND, match
from detection_zoo.zoo.parts.norm import ConvNorm
from detection_zoo.zoo.parts.rpn import by_anchor
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS


@dataclass(frozen=True)
class RetinaNetRules:
    """The sections of conventions that RetinaNet uses."""

    boxes: BoxConventions = BoxConventions()
    anchors: AnchorConventions = AnchorConventions()
    retinanet: RetinaNetConventions = RetinaNetConventions()


class RetinaHead(nn.Module):
    """Two towers of 3x3 convolutions, for classes and for boxes, shared by all levels (Lin et al. 2017b,
    section 4).

    Args:
        channels: of every level. anchors: A. num_classes: K.
        convs: of each tower.
        prior: initial probability of every class.
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
    """Logits and deltas of each level from the head, and its anchors (H * W * A, 4)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


@dataclass
class RetinaLabels:
    """Labels of one image's anchors: labels (A,) int64, 1..K, 0 background, -1 not used; targets (A, 4)
    deltas; count: matched anchors."""

    labels: Tensor
    targets: Tensor
    count: Tensor


class RetinaNet(Detector):
    """Backbone, neck and one head.

    Args:
        backbone, neck, head, anchors: the parts.
        rules: training and selection; boxes are coded by `weights`.
    """

    parts = {"backbone": ("backbone",), "neck": ("neck",), "heads": ("head",)}
    needs_any_size = None

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        head: RetinaHead,
        anchors: AnchorGenerator,
        rules: RetinaNetRules,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.head, self.anchors = backbone, neck, head, anchors
        self.num_classes = head.num_classes
        self.rule, self.frame = rules.retinanet, rules.boxes.frame
        self.coder = box_coders(rules.boxes)["box"]
        self.detection_rule = DetectionConventions(
            score_threshold=self.rule.score_threshold,
            nms_iou=self.rule.nms_iou,
            inclusive=self.rule.inclusive,
            max_detections=self.rule.max_detections,
        )

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Levels (N, C, H, W) that are input of the head."""
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
        """Detections of each image, ordered by class; the order within a class is undefined."""
        where = self.frames(sizes, original_sizes)
        if not fixed_size(raw.logits[0]):
            return self._in_original([self._detect(raw, i, frame) for i, frame in enumerate(where)], where)
        chosen = self.fixed_detections(raw, where)
        if torch.compiler.is_compiling():
            return self._in_original(chosen.found, where)
        return self.finish_fixed(chosen, raw, where)

    def frames(self, sizes: Tensor, original_sizes: Tensor | None = None) -> list[Frame]:
        """Coordinate frames of detections for images of sizes (N, 2)."""
        return frames(sizes, original_sizes, self.frame != "network", self.resize)

    def finish_fixed(
        self, chosen: FixedDetections, raw: RetinaRaw, where: Sequence[Frame]
    ) -> list[Detections]:
        """Detections of each image, without absent ones; selected again if the fixed size was too small."""
        found = trim(chosen)
        if found is None:
            found = [self._detect(raw, i, frame) for i, frame in enumerate(where)]
        return self._in_original(found, where)

    def _in_original(self, found: list[Detections], where: Sequence[Frame]) -> list[Detections]:
        if self.frame == "network":
            for each, frame in zip(found, where, strict=True):
                each.boxes = scale_boxes(each.boxes, *frame.factor)
        return found

    def _thresholds(self, raw: RetinaRaw) -> list[float]:
        """Of the scores of each level."""
        usual, last = self.rule.score_threshold, self.rule.last_score_threshold
        return [usual] * (len(raw.logits) - 1) + [usual if last is None else last]

    def _chances(self, logits: Tensor) -> Tensor:
        """Probabilities (N, A, K) of one level."""
        return widened(by_anchor(logits, self.num_classes)).sigmoid()

    def _detect(self, raw: RetinaRaw, image: int, frame: Frame) -> Detections:
        parts = []
        for logits, deltas, anchors, threshold in zip(
            raw.logits, raw.deltas, raw.anchors, self._thresholds(raw), strict=True
        ):
            chances = self._chances(logits[image : image + 1])[0]
            anchor, label = torch.nonzero(chances > threshold, as_tuple=True)
            scores, best = chances[anchor, label].topk(min(self.rule.pre_nms, len(anchor)))
            anchor, label = anchor[best], label[best]
            boxes = self._place(by_anchor(deltas[image : image + 1], 4)[0, anchor], anchors[anchor], frame)
            parts.append((boxes, scores, label))
        boxes, scores, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        order = labels.sort(stable=True).indices
        kept = boxes[order], scores[order], labels[order]
        return suppress(*kept, self.coder.offset, self.detection_rule, classes=self.num_classes)

    def fixed_detections(self, raw: RetinaRaw, where: Sequence[Frame]) -> FixedDetections:
        """Detections of all images with lists of fixed size, without synchronizing with the device."""
        parts = []
        for logits, deltas, anchors, threshold in zip(
            raw.logits, raw.deltas, raw.anchors, self._thresholds(raw), strict=True
        ):
            chances = self._chances(logits).flatten(1)
            chances = chances.where(chances > threshold, -torch.inf)
            scores, best = chances.topk(min(self.rule.pre_nms, chances.shape[1]), dim=1)
            anchor, label = best // self.num_classes, best % self.num_classes
            places = zip(by_anchor(deltas, 4), anchor, where, strict=True)
            boxes = [self._place(own[at], anchors[at], frame) for own, at, frame in places]
            parts.append((torch.stack(boxes), scores, label))
        boxes, scores, labels = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        found = best_candidates(scores)
        own = labels.gather(1, found.rows)
        return suppress_fixed(
            found,
            boxes.gather(1, found.rows[..., None].expand(-1, -1, 4)),
            own,
            own * scores.shape[1] + found.rows,
            iou=self.detection_rule.nms_iou,
            offset=self.coder.offset,
            inclusive=self.detection_rule.inclusive,
            most=self.detection_rule.max_detections,
        )

    def _place(self, deltas: Tensor, anchors: Tensor, frame: Frame) -> Tensor:
        """Boxes (R, 4) from anchors (R, 4) of one image, clipped to it."""
        boxes, size = self.coder.decode(deltas, anchors), frame.size
        if self.frame == "original" and frame.original is not None:
            boxes, size = scale_boxes(boxes, *frame.factor), frame.original
        return clip_boxes(boxes, size, self.coder.offset)

    def label(self, anchors: Tensor, target: Target) -> RetinaLabels:
        """Label all anchors (A, 4) of one image."""
        boxes = target.boxes.to(anchors.dtype)
        quality = box_iou(boxes, anchors, self.coder.offset)
        rule = self.rule
        matches = match(quality, rule.foreground_iou, rule.background_iou, low_quality=rule.low_quality)
        labels = torch.zeros_like(matches)
        labels[matches < BACKGROUND] = -1
        if not len(boxes):
            return RetinaLabels(labels, torch.zeros_like(anchors), labels.new_zeros(()))
        labels = torch.where(matches >= 0, target.labels[matches.clamp(min=0)] + 1, labels)
        if rule.weak_background:
            labels[quality.max(dim=0).values < rule.background_iou] = 0
        return RetinaLabels(
            labels, self.coder.encode(boxes[matches.clamp(min=0)], anchors), (matches >= 0).sum()
        )

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Summed focal loss and smooth L1, each divided by its normalizer (see the rule)."""
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
        positive = classes > 0
        rows = rows_of(positive)
        targets = torch.cat([each.targets for each in labels])[rows]
        count = sum(each.count for each in labels)
        divisor = {"positives": count, "positives_and_images": count + len(labels)}
        rule = self.rule
        focal = sigmoid_focal(logits, classes, alpha=rule.focal_alpha, gamma=rule.focal_gamma).sum()
        box = smooth_l1_sum(deltas[rows], targets, rule.smooth_l1_beta, positive[rows])
        return {
            "loss_class": focal / divisor[rule.class_normalizer].clamp(min=1),
            "loss_box": box / (divisor[rule.box_normalizer] * rule.box_weight).clamp(min=1),
        }


@DETECTORS.register("retinanet")
def retinanet(
    backbone: Backbone,
    num_classes: int,
    rules: RetinaNetRules = RetinaNetRules(),
    *,
    neck: Neck | None = None,
    convs: int = 4,
) -> RetinaNet:
    """RetinaNet; without a neck, on the backbone's last map. convs: number in each tower of the head."""
    neck = SingleLevel(backbone.specs) if neck is None else neck
    rule, anchors = rules.retinanet, rules.anchors
    strides = anchors.strides or [spec.stride for spec in neck.specs.values()]
    octaves = [rule.octave ** (i / rule.scales_per_octave) for i in range(rule.scales_per_octave)]
    sizes = [[size * step for step in octaves] for size in rule.sizes or [4.0 * stride for stride in strides]]
    generator = AnchorGenerator(sizes, anchors.ratios, strides, rule=anchors.rule, slow=anchors.slow)
    channels = next(iter(neck.specs.values())).channels
    head = RetinaHead(channels, generator.per_cell, num_classes, convs=convs, prior=rule.prior)
    return RetinaNet(backbone, neck, head, generator, rules)
