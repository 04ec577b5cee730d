"""Faster R-CNN (Ren et al. 2015), on a pyramid (Lin et al. 2017) or on one level (C4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.necks import Neck, SingleLevel
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import BoxCoder, scale_boxes
from detection_zoo.zoo.parts.detectron_targets import RoIRules
from detection_zoo.zoo.parts.detectron_training import DetectronProposalNetwork, DetectronSampling
from detection_zoo.zoo.parts.proposals import ProposalRule, Proposals
from detection_zoo.zoo.parts.roi_heads import (
    BoxHead,
    BoxPredictor,
    BoxTraining,
    ConvTrunk,
    DetectionRule,
    MlpTrunk,
    RoiAlignPooler,
    SampledBoxes,
    StageTrunk,
    box_losses,
    choose_detections,
    sample_boxes,
    score_boxes,
)
from detection_zoo.zoo.parts.rpn import RegionProposalNetwork, RpnHead, RpnLabels
from detection_zoo.zoo.parts.sampler import BalancedSampler, Sampler
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS

Options = Mapping[str, Any] | None


@dataclass
class RcnnRaw:
    """What the network computed before detections are chosen: features by level, proposals of each image,
    logits and deltas of all."""

    features: dict[str, Tensor]
    proposals: list[Proposals]
    logits: Tensor
    deltas: Tensor


@dataclass
class RcnnTraining:
    """One training step: proposals, labelled anchors and sampled boxes of each image, and the losses."""

    proposals: list[Proposals]
    labels: list[RpnLabels]
    sampled: list[SampledBoxes]
    losses: dict[str, Tensor]


@dataclass
class Frame:
    """Where the detections of one image lie: the true size of the input, and what turns its pixels into the
    original's (x, y)."""

    size: tuple[int, int]
    original: tuple[int, int] | None = None
    factor: tuple[float, float] = (1.0, 1.0)


def frames(
    sizes: Tensor, original_sizes: Tensor | None, common: bool, resize: tuple[int, int | None] | None = None
) -> list[Frame]:
    """The frame of each image of sizes (N, 2); factors are the ratio of the sides, or for both axes one
    factor (`common`).

    That factor is the one of `resize` (shorter side, bound of the longer) where the sizes are its result,
    else the ratio of the shorter
    sides: the sizes themselves are rounded, so they do not tell it exactly.
    """
    found = [Frame((h, w)) for h, w in sizes.tolist()]
    if original_sizes is not None:
        for frame, (height, width) in zip(found, original_sizes.tolist(), strict=True):
            frame.original = (height, width)
            frame.factor = (width / frame.size[1], height / frame.size[0])
            if common:
                frame.factor = (_unscaled(frame.size, (height, width), resize),) * 2
    return found


def _unscaled(
    size: tuple[int, int], original: tuple[int, int], resize: tuple[int, int | None] | None
) -> float:
    """From input pixels to original pixels."""
    if resize is not None:
        short, longest = resize
        scale = short / min(original)
        if longest is not None and round(scale * max(original)) > longest:
            scale = longest / max(original)
        if tuple(round(side * scale) for side in original) == tuple(size):
            return 1 / scale
    return min(original) / min(size)


class FasterRcnn(Detector):
    """Backbone, neck, proposals and the box branch; families with more branches add to `branch_losses` and
    `branch_outputs`.

    Args:
        backbone, neck, rpn, box: the parts.
        num_classes: K.
        coder: of the box branch.
        sampler: which labelled proposals are trained on.
        training_rule, detection_rule: of the box branch.
        crowd: "drop" leaves crowd objects out of the targets, "keep" trains on them, "proposals" lets them
            count for the box branch alone.
        sampling: draws one image's proposals for the box branch in place of `sample_boxes`.
    """

    parts = {
        "backbone": ("backbone",),
        "neck": ("neck",),
        "rpn": ("rpn.head", "rpn.anchors", "rpn.propose"),
        "heads": ("box",),
    }

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        rpn: RegionProposalNetwork,
        box: BoxHead,
        *,
        num_classes: int,
        coder: BoxCoder,
        sampler: Sampler,
        training_rule: BoxTraining,
        detection_rule: DetectionRule,
        crowd: str = "drop",
        sampling: Callable[[Tensor, Target], SampledBoxes] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn, self.box = backbone, neck, rpn, box
        self.num_classes, self.coder, self.sampler, self.crowd = num_classes, coder, sampler, crowd
        self.training_rule, self.detection_rule, self.sampling = training_rule, detection_rule, sampling

    @property
    def backbone_parts(self) -> dict[str, str]:
        """Prefixes of a classifier's names -> where that part stands in this model."""
        if isinstance(self.box.trunk, StageTrunk):
            return {"backbone.": "backbone.", "backbone.c5.": "box.trunk.stage."}
        return {"backbone.": "backbone."}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Levels (N, C, H, W) that the heads read."""
        return self.neck(self.backbone(images))

    def raw(self, images: Tensor, sizes: Tensor) -> RcnnRaw:
        """Proposals, and the box branch on all of them."""
        features = self.features(images)
        levels = list(features.values())
        proposals = self.rpn.propose(
            *self.rpn.head(levels), self.rpn.anchors(levels), sizes.tolist(), tuple(images.shape[-2:])
        )
        _, logits, deltas = self.box(features, [each.boxes for each in proposals])
        return RcnnRaw(features, proposals, logits, deltas)

    def postprocess(
        self, raw: RcnnRaw, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Detections of each image, and what further branches find in them."""
        return self.finish(
            raw, frames(sizes, original_sizes, self.detection_rule.frame == "original", self.resize)
        )

    def finish(self, raw: RcnnRaw, where: Sequence[Frame]) -> list[Detections]:
        """Detections of each image, given how its pixels relate to the original's."""
        return self.branch_outputs(
            raw, [self.choose(*scored) for scored in self.scored_boxes(raw, where)], where
        )

    def choose(self, probabilities: Tensor, boxes: Tensor) -> Detections:
        """Detections of one image from class probabilities (R, K + 1) and boxes (R, K + 1 or 2, 4)."""
        return choose_detections(probabilities, boxes, self.coder.offset, self.detection_rule)

    def scored_boxes(self, raw: RcnnRaw, where: Sequence[Frame]) -> list[tuple[Tensor, Tensor]]:
        """For each image, class probabilities (R, K + 1) and boxes (R, K + 1 or 2, 4) in the rule's frame,
        before any selection."""
        boxes = [each.boxes for each in raw.proposals]
        limits = [frame.size for frame in where]
        if self.detection_rule.frame == "original":
            boxes = [scale_boxes(each, *frame.factor) for each, frame in zip(boxes, where, strict=True)]
            limits = [frame.original or frame.size for frame in where]
        return score_boxes(raw.logits, raw.deltas, boxes, limits, self.coder)

    def network_boxes(self, found: Sequence[Detections], where: Sequence[Frame]) -> list[Tensor]:
        """Boxes of detections in pixels of the network's input."""
        if self.detection_rule.frame == "network":
            return [each.boxes for each in found]
        return [
            scale_boxes(each.boxes, 1 / frame.factor[0], 1 / frame.factor[1])
            for each, frame in zip(found, where, strict=True)
        ]

    def in_original(self, found: Detections, frame: Frame) -> Detections:
        """Detections with boxes in pixels of the original image."""
        if self.detection_rule.frame == "original" or frame.original is None:
            return found
        return replace(found, boxes=scale_boxes(found.boxes, *frame.factor))

    def branch_outputs(
        self, raw: RcnnRaw, found: list[Detections], where: Sequence[Frame]
    ) -> list[Detections]:
        """What is returned, from the detections of `choose_detections`: here, their boxes in original
        pixels."""
        return [self.in_original(each, frame) for each, frame in zip(found, where, strict=True)]

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the proposals, of the box branch and of further branches."""
        return self.training_step(images, sizes, targets).losses

    def training_step(self, images: Tensor, sizes: Tensor, targets: Sequence[Target]) -> RcnnTraining:
        """The losses, and what was drawn to compute them; arguments as in `losses`."""
        targets = [without_crowd(target) if self.crowd == "drop" else target for target in targets]
        features = self.features(images)
        levels, limits = list(features.values()), sizes.tolist()
        logits, deltas = self.rpn.head(levels)
        anchors = self.rpn.anchors(levels)
        proposals = self.rpn.propose(logits, deltas, anchors, limits, tuple(images.shape[-2:]))
        with torch.no_grad():
            every = torch.cat(anchors)
            objects = [without_crowd(target) if self.crowd == "proposals" else target for target in targets]
            labels = [
                self.rpn.label(every, target.boxes.to(every.dtype), size)
                for target, size in zip(objects, limits, strict=True)
            ]
            sampled = self.sample(proposals, targets)
        hidden, class_logits, box_deltas = self.box(features, [each.boxes for each in sampled])
        losses = {
            **self.rpn.losses(logits, deltas, labels),
            **box_losses(class_logits, box_deltas, sampled, self.training_rule.smooth_l1_beta),
            **self.branch_losses(features, sampled, targets, limits, hidden),
        }
        return RcnnTraining(proposals, labels, sampled, losses)

    def sample(self, proposals: Sequence[Proposals], targets: Sequence[Target]) -> list[SampledBoxes]:
        """The proposals of each image that the box branch is trained on."""
        if self.sampling is not None:
            return [
                self.sampling(each.boxes, target) for each, target in zip(proposals, targets, strict=True)
            ]
        return [
            sample_boxes(each.boxes, target, coder=self.coder, sampler=self.sampler, rule=self.training_rule)
            for each, target in zip(proposals, targets, strict=True)
        ]

    def branch_losses(
        self,
        features: dict[str, Tensor],
        sampled: Sequence[SampledBoxes],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
        hidden: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of further branches: here none. `hidden` is the box trunk's output for the sampled boxes."""
        return {}


def without_crowd(target: Target) -> Target:
    """The target without its crowd objects."""
    if target.crowd is None or not bool(target.crowd.any()):
        return target
    rows = torch.nonzero(~target.crowd).squeeze(1)
    polygons = None if target.polygons is None else [target.polygons[i] for i in rows.tolist()]
    keypoints = None if target.keypoints is None else target.keypoints[rows]
    return replace(
        target,
        boxes=target.boxes[rows],
        labels=target.labels[rows],
        polygons=polygons,
        keypoints=keypoints,
        crowd=target.crowd[rows],
    )


def make_trunk(
    kind: str, backbone: Backbone, channels: int, size: int, norm: str, head: Options = None
) -> nn.Module:
    """The box trunk by name: "2mlp", "xconv1fc" (convolutions, with `norm`), both with options `head`, or
    "conv5" (the backbone's own last stage)."""
    if kind == "2mlp":
        return MlpTrunk(channels, size, norm=norm, **(head or {}))
    if kind == "xconv1fc":
        return ConvTrunk(channels, size, norm=norm, **(head or {}))
    if kind == "conv5":
        return StageTrunk(*backbone.head_stage(stride=max(size // 7, 1)))
    raise ValueError(f"unknown box_head {kind!r}; known: 2mlp, xconv1fc, conv5")


def rcnn_parts(
    backbone: Backbone,
    num_classes: int,
    *,
    neck: Neck | None = None,
    box_head: str = "2mlp",
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
    crowd: str = "drop",
    head: Options = None,
) -> dict[str, Any]:
    """The keyword arguments of FasterRcnn, made from a backbone and from plain numbers.

    Args:
        neck: none for the backbone's last map.
        box_head: "2mlp", "xconv1fc" or "conv5"; norm: of the heads' own layers ("none" or "group");
            class_specific: see BoxPredictor.
        boxes: offset, far_offset, cap of every BoxCoder, and its weights for the box branch (weights) and the
            proposals (rpn_weights).
        anchors: sizes (one list a level, or one number for the finest, doubling), ratios, rule, strides.
        rpn: of RegionProposalNetwork, with channels, samples and positive_fraction.
        proposals, training_proposals: of ProposalRule.
        pooling: size, and of RoiAlignPooler.
        roi: of BoxTraining, with samples and positive_fraction.
        detections: of DetectionRule.
        head: of MlpTrunk or ConvTrunk: width, convs, conv_channels.
    """
    neck = SingleLevel(backbone.specs) if neck is None else neck
    coders = make_coders(**(boxes or {}))
    generator = make_anchors(neck, **(anchors or {}))
    rpn_module = make_rpn(
        neck,
        generator,
        coders["rpn"],
        test=ProposalRule(**(proposals or {})),
        train=ProposalRule(**(training_proposals or {"pre_nms": 2000, "post_nms": 2000, "collect": 2000})),
        **(rpn or {}),
    )
    pooling = {"size": 7, **(pooling or {})}
    size = pooling.pop("size")
    levels = {name: neck.specs[name] for name in neck.roi_levels}
    trunk = make_trunk(box_head, backbone, next(iter(levels.values())).channels, size, norm, head)
    roi = {"samples": 512, "positive_fraction": 0.25, "sampling": "balanced", **(roi or {})}
    samples, fraction, kind = (roi.pop(name) for name in ("samples", "positive_fraction", "sampling"))
    rule, sampler, sampling = BoxTraining(**roi), BalancedSampler(samples, fraction), None
    if kind == "detectron":
        rules = RoIRules(samples, fraction, rule.foreground_iou, rule.background_iou, rule.background_low)
        crowd, sampling = "proposals", DetectronSampling(coders["box"], rules)
    box = BoxHead(
        RoiAlignPooler(levels, size, **pooling),
        trunk,
        BoxPredictor(trunk.channels, num_classes, class_specific=class_specific),
    )
    return {
        "backbone": backbone,
        "neck": neck,
        "rpn": rpn_module,
        "box": box,
        "num_classes": num_classes,
        "coder": coders["box"],
        "sampler": sampler,
        "training_rule": rule,
        "detection_rule": DetectionRule(**(detections or {})),
        "crowd": crowd,
        "sampling": sampling,
    }


def make_coders(
    *,
    weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    rpn_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    **rest: Any,
) -> dict[str, BoxCoder]:
    """The coders of the proposals ("rpn") and of the box branch ("box"); `rest` as in BoxCoder."""
    return {"rpn": BoxCoder(tuple(rpn_weights), **rest), "box": BoxCoder(tuple(weights), **rest)}


def make_anchors(
    neck: Neck,
    *,
    sizes: Sequence[Sequence[float]] | None = None,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    rule: str = "rounded",
    strides: Sequence[int] | None = None,
    slow: str = "rule",
) -> AnchorGenerator:
    """Anchors for a neck's levels.

    Args:
        sizes: one list a level; default: eight strides on each level of a pyramid, 32 to 512 on a single
            level.
        strides: default: those of the levels.
    """
    strides = [spec.stride for spec in neck.specs.values()] if strides is None else strides
    if sizes is None:
        sizes = (
            [[8.0 * stride] for stride in strides]
            if len(strides) > 1
            else [[32.0, 64.0, 128.0, 256.0, 512.0]]
        )
    return AnchorGenerator(sizes, ratios, strides, rule=rule, slow=slow)


def make_rpn(
    neck: Neck,
    anchors: AnchorGenerator,
    coder: BoxCoder,
    *,
    channels: int | None = None,
    samples: int = 256,
    positive_fraction: float = 0.5,
    sampling: str = "balanced",
    objectness_over: str = "sampled",
    **rest: Any,
) -> RegionProposalNetwork:
    """The proposal network over a neck's levels.

    Args:
        sampling: "balanced", or "detectron" for zoo.parts.detectron_training's labels and losses, with
            objectness_over of that class.
        rest: as in RegionProposalNetwork.
    """
    in_channels = next(iter(neck.specs.values())).channels
    head = RpnHead(in_channels, anchors.per_cell, channels=channels)
    sampler = BalancedSampler(samples, positive_fraction)
    if sampling == "detectron":
        return DetectronProposalNetwork(
            head,
            anchors,
            coder,
            sampler,
            count=samples,
            fraction=positive_fraction,
            over=objectness_over,
            **rest,
        )
    return RegionProposalNetwork(head, anchors, coder, sampler, **rest)


@DETECTORS.register("faster_rcnn")
def faster_rcnn(
    backbone: Backbone,
    num_classes: int,
    *,
    neck: Neck | None = None,
    box_head: str = "2mlp",
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
    crowd: str = "drop",
    head: Options = None,
) -> FasterRcnn:
    """Faster R-CNN; arguments as in `rcnn_parts`."""
    return FasterRcnn(**rcnn_parts(**locals()))
