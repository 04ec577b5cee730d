"""Faster R-CNN (Ren et al. 2015), on a pyramid (Lin et al. 2017) or on one level (C4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.conventions import (
    AnchorConventions,
    BoxConventions,
    DetectionConventions,
    PoolingConventions,
    ProposalConventions,
    RoiConventions,
    RpnConventions,
)
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.necks import Neck, SingleLevel
from detection_zoo.zoo.parts.anchor_targets import SampledAnchors
from detection_zoo.zoo.parts.anchors import AnchorGenerator
from detection_zoo.zoo.parts.boxes import BoxCoder, scale_boxes
from detection_zoo.zoo.parts.detections import choose_detections, choose_fixed, score_boxes
from detection_zoo.zoo.parts.fixed_size import (
    FixedDetections,
    fixed_size,
    limits_of,
    present_rows,
    trim,
    use_fixed_size,
)
from detection_zoo.zoo.parts.frames import Frame, frames
from detection_zoo.zoo.parts.proposals import Proposals
from detection_zoo.zoo.parts.roi_heads import (
    BoxHead,
    BoxPredictor,
    ConvTrunk,
    MlpTrunk,
    PooledConvTrunk,
    RoiAlignPooler,
    StageTrunk,
    box_losses,
)
from detection_zoo.zoo.parts.rpn import PROPOSAL_NETWORKS, RPN_HEADS, RegionProposalNetwork
from detection_zoo.zoo.parts.targets import BOX_SAMPLERS, BoxSampler, NumpyBoxSampler, SampledBoxes
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS

Options = Mapping[str, Any] | None
CLASSIC_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)  # pixels; anchor sizes on a single level


@dataclass(frozen=True)
class ProposalRules:
    """The sections of conventions that a proposal network uses."""

    boxes: BoxConventions = BoxConventions()
    anchors: AnchorConventions = AnchorConventions()
    rpn: RpnConventions = RpnConventions()
    proposals: ProposalConventions = ProposalConventions()
    training_proposals: ProposalConventions = ProposalConventions(pre_nms=2000, post_nms=2000, collect=2000)


@dataclass(frozen=True)
class RcnnRules(ProposalRules):
    """The sections of conventions that Faster R-CNN uses."""

    pooling: PoolingConventions = PoolingConventions()
    roi: RoiConventions = RoiConventions()
    detections: DetectionConventions = DetectionConventions()


@dataclass
class RcnnRaw:
    """Outputs of the network before detections are selected: features by level, proposals of each image,
    logits and deltas of all. fixed: whether the lists of proposals have fixed size. anchors: of each level
    (A, 4), kept alive because a recorded graph reads them again."""

    features: dict[str, Tensor]
    proposals: list[Proposals]
    logits: Tensor
    deltas: Tensor
    fixed: bool = False
    anchors: Sequence[Tensor] = ()

    def trimmed(self) -> RcnnRaw:
        """The same without absent proposals."""
        if not self.fixed:
            return self
        rows = [torch.nonzero(present_rows(each.boxes)).squeeze(1) for each in self.proposals]
        counts = [len(each.boxes) for each in self.proposals]
        logits, deltas = (
            torch.cat([own[at] for own, at in zip(every.split(counts), rows, strict=True)])
            for every in (self.logits, self.deltas)
        )
        proposals = [
            Proposals(each.boxes[at], each.scores[at]) for each, at in zip(self.proposals, rows, strict=True)
        ]
        return RcnnRaw(self.features, proposals, logits, deltas, anchors=self.anchors)


@dataclass
class RcnnTraining:
    """One training step: proposals, labelled anchors and sampled boxes of each image, and the losses."""

    proposals: list[Proposals]
    labels: list[SampledAnchors]
    sampled: list[SampledBoxes]
    losses: dict[str, Tensor]


class FasterRcnn(Detector):
    """Backbone, neck, proposals and the box branch; families with more branches override `branch_losses` and
    `branch_outputs`.

    Args:
        backbone, neck, rpn, box: the parts.
        num_classes: K.
        rules: boxes, sampling of proposals and selection of detections.
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
        num_classes: int,
        rules: RcnnRules,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn, self.box = backbone, neck, rpn, box
        self.num_classes, self.coder = num_classes, box_coders(rules.boxes)["box"]
        self.sampler: BoxSampler = BOX_SAMPLERS[rules.roi.sampling](self.coder, rules.roi)
        self.frame, self.detection_rule = rules.boxes.frame, rules.detections
        self.box_beta = rules.roi.smooth_l1_beta

    @property
    def backbone_parts(self) -> dict[str, str]:
        """Prefix of a classifier's parameter names -> prefix of that part in this model."""
        if isinstance(self.box.trunk, StageTrunk):
            return {"backbone.": "backbone.", "backbone.c5.": "box.trunk.stage."}
        return {"backbone.": "backbone."}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Levels (N, C, H, W) that are input of the heads."""
        return self.neck(self.backbone(images))

    def raw(self, images: Tensor, sizes: Tensor) -> RcnnRaw:
        """Proposals, and the box branch on all of them."""
        fixed = fixed_size(images) and self.needs_any_size is None
        limits, features = limits_of(sizes), self.features(images)
        levels = list(features.values())
        padded, anchors = tuple(images.shape[-2:]), self.rpn.anchors(levels)
        proposals = self.rpn.propose(*self.rpn.head(levels), anchors, limits, padded, fixed)
        if torch.compiler.is_compiling():  # an exported graph is for images of its own height
            limits = [padded] * len(images)
        _, logits, deltas = self.box(features, [each.boxes for each in proposals], limits)
        return RcnnRaw(features, proposals, logits, deltas, fixed, anchors)

    @property
    def needs_any_size(self) -> str | None:
        """Why inference cannot use lists of fixed size (zoo/parts/fixed_size.py); None if it can."""
        rule = self.detection_rule
        if not self._pools_fixed:
            return "its pooling takes each level's boxes apart"
        if rule.soft != "none":
            return "soft-NMS works on the candidates that there are"
        if rule.vote_iou is not None:
            return "box voting works on the candidates that there are"
        if rule.max_detections < 1:
            return "it keeps any number of detections"
        return None

    @property
    def training_needs_any_size(self) -> str | None:
        """Why training cannot use lists of fixed size; None if it can."""
        if isinstance(self.sampler, NumpyBoxSampler):
            return "its source draws by numpy, on the host"
        return None if self._pools_fixed else "its pooling takes each level's boxes apart"

    @property
    def _poolers(self) -> list[RoiAlignPooler]:
        return [self.box.pooler, *self.branch_poolers()]

    @property
    def _pools_fixed(self) -> bool:
        return all(pooler.pools_fixed for pooler in self._poolers)

    @property
    def reads_sizes(self) -> bool:
        """Whether the scale of a pooled level is computed from the image's height."""
        return any(pooler.rule.scale == "height" for pooler in self._poolers)

    def branch_poolers(self) -> list[RoiAlignPooler]:
        """Poolers of further branches; here none."""
        return []

    def postprocess(
        self, raw: RcnnRaw, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Detections of each image, with outputs of further branches."""
        return self.finish(raw, self.frames(sizes, original_sizes))

    def frames(self, sizes: Tensor, original_sizes: Tensor | None = None) -> list[Frame]:
        """Coordinate frames of detections for images of sizes (N, 2)."""
        return frames(sizes, original_sizes, self.frame != "network", self.resize)

    def finish(self, raw: RcnnRaw, where: Sequence[Frame]) -> list[Detections]:
        """Detections of each image, for given coordinate frames."""
        if not raw.fixed:
            found = [self.choose(*scored) for scored in self.scored_boxes(raw, where)]
            return self.branch_results(self.branch_outputs(raw, found, where), where)
        chosen = self.fixed_detections(raw, where)
        return chosen.found if torch.compiler.is_compiling() else self.finish_fixed(chosen, raw, where)

    def fixed_detections(self, raw: RcnnRaw, where: Sequence[Frame]) -> FixedDetections:
        """Detections of all images with lists of fixed size, without synchronizing with the device."""
        chances, boxes = (torch.stack(part) for part in zip(*self.scored_boxes(raw, where), strict=True))
        chosen = choose_fixed(chances, boxes, self.coder.offset, self.detection_rule)
        unfit = torch.stack([torch.isnan(each.scores).sum() for each in raw.proposals]).sum()
        return replace(chosen, found=self.branch_outputs(raw, chosen.found, where), unfit=unfit)

    def finish_fixed(self, chosen: FixedDetections, raw: RcnnRaw, where: Sequence[Frame]) -> list[Detections]:
        """Detections of each image, without absent ones; selected again if the fixed size was too small."""
        found = trim(chosen)
        return self.finish(raw.trimmed(), where) if found is None else self.branch_results(found, where)

    def choose(self, probabilities: Tensor, boxes: Tensor) -> Detections:
        """Detections of one image from class probabilities (R, K + 1) and boxes (R, K + 1 or 2, 4)."""
        return choose_detections(probabilities, boxes, self.coder.offset, self.detection_rule)

    def scored_boxes(self, raw: RcnnRaw, where: Sequence[Frame]) -> list[tuple[Tensor, Tensor]]:
        """For each image, class probabilities (R, K + 1) and boxes (R, K + 1 or 2, 4) in the rule's frame,
        before any selection."""
        boxes = [each.boxes for each in raw.proposals]
        limits = [frame.size for frame in where]
        if self.frame == "original":
            boxes = [scale_boxes(each, *frame.factor) for each, frame in zip(boxes, where, strict=True)]
            limits = [frame.whole for frame in where]
        scored = score_boxes(raw.logits, raw.deltas, boxes, limits, self.coder)
        if self.frame == "scaled":
            scored = [
                (chances, placed / (1 / frame.factor[0]))
                for (chances, placed), frame in zip(scored, where, strict=True)
            ]
        return scored

    def network_boxes(self, found: Sequence[Detections], where: Sequence[Frame]) -> list[Tensor]:
        """Boxes of detections in pixels of the network's input."""
        if self.frame == "network":
            return [each.boxes for each in found]
        return [
            scale_boxes(each.boxes, 1 / frame.factor[0], 1 / frame.factor[1])
            for each, frame in zip(found, where, strict=True)
        ]

    def in_original(self, found: Detections, frame: Frame) -> Detections:
        """Detections with boxes in pixels of the original image."""
        if self.frame != "network" or frame.original is None:
            return found
        return replace(found, boxes=scale_boxes(found.boxes, *frame.factor))

    def branch_outputs(
        self, raw: RcnnRaw, found: list[Detections], where: Sequence[Frame]
    ) -> list[Detections]:
        """Detections with the outputs of further branches; here unchanged."""
        return found

    def branch_results(self, found: list[Detections], where: Sequence[Frame]) -> list[Detections]:
        """The final result from the detections of `branch_outputs`; here their boxes in original pixels."""
        return [self.in_original(each, frame) for each, frame in zip(found, where, strict=True)]

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Losses of the proposals, of the box branch and of further branches."""
        return self.training_step(images, sizes, targets).losses

    def training_step(self, images: Tensor, sizes: Tensor, targets: Sequence[Target]) -> RcnnTraining:
        """The losses, and the samples they were computed from; arguments as in `losses`."""
        with use_fixed_size(fixed_size(images) and self.training_needs_any_size is None):
            return self._training_step(images, sizes, targets)

    def _training_step(self, images: Tensor, sizes: Tensor, targets: Sequence[Target]) -> RcnnTraining:
        crowd = self.sampler.crowd
        targets = [without_crowd(target) if crowd == "drop" else target for target in targets]
        limits, features = sizes.tolist(), self.features(images)
        levels = list(features.values())
        logits, deltas = self.rpn.head(levels)
        anchors = self.rpn.anchors(levels)
        padded = tuple(images.shape[-2:])
        proposals = self.rpn.propose(logits, deltas, anchors, limits, padded, fixed_size(images))
        with torch.no_grad():
            every = torch.cat(anchors)
            objects = [without_crowd(target) if crowd == "proposals" else target for target in targets]
            labels = self.rpn.sampler(every, [target.boxes for target in objects], limits)
            sampled = self.sampler([each.boxes for each in proposals], targets)
        hidden, class_logits, box_deltas = self.box(features, [each.boxes for each in sampled], limits)
        losses = {
            **self.rpn.losses(logits, deltas, labels),
            **box_losses(class_logits, box_deltas, sampled, self.box_beta),
            **self.branch_losses(features, sampled, targets, limits, hidden),
        }
        return RcnnTraining(proposals, labels, sampled, losses)

    def branch_losses(
        self,
        features: dict[str, Tensor],
        sampled: Sequence[SampledBoxes],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
        hidden: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of further branches; here none. `hidden` is the box trunk's output for the sampled boxes."""
        return {}


def without_crowd(target: Target) -> Target:
    """The target without its crowd objects."""
    if target.crowd is None or not bool(target.crowd.any()):
        return target
    kept = torch.nonzero(~target.crowd).squeeze(1)  # on the host
    rows = kept.to(target.boxes.device, non_blocking=True)
    polygons = None if target.polygons is None else [target.polygons[i] for i in kept.tolist()]
    keypoints = None if target.keypoints is None else target.keypoints[rows]
    return replace(
        target,
        boxes=target.boxes[rows],
        labels=target.labels[rows],
        polygons=polygons,
        keypoints=keypoints,
        crowd=target.crowd[kept],
    )


def make_trunk(
    kind: str, backbone: Backbone, channels: int, size: int, norm: str, head: Options = None
) -> nn.Module:
    """The box trunk by name: "2mlp", "xconv1fc" (convolutions, with `norm`), "2conv" (no norm), each with
    options `head`, or "conv5" (the backbone's own last stage)."""
    if kind == "2mlp":
        return MlpTrunk(channels, size, norm=norm, **(head or {}))
    if kind == "xconv1fc":
        return ConvTrunk(channels, size, norm=norm, **(head or {}))
    if kind == "2conv":
        return PooledConvTrunk(channels, size, **(head or {}))
    if kind == "conv5":
        return StageTrunk(*backbone.head_stage(stride=max(size // 7, 1)))
    raise ValueError(f"unknown box_head {kind!r}; known: 2mlp, xconv1fc, 2conv, conv5")


def box_coders(rule: BoxConventions) -> dict[str, BoxCoder]:
    """The coders of the proposals ("rpn") and of the box branch ("box")."""
    return {
        name: BoxCoder(tuple(weights), rule.offset, rule.far_offset, rule.cap)
        for name, weights in (("rpn", rule.rpn_weights), ("box", rule.weights))
    }


def make_rpn(neck: Neck, rules: ProposalRules) -> RegionProposalNetwork:
    """The proposal network over a neck's levels; without sizes in the rules, anchors are of eight strides on
    a pyramid and of 32 to 512 pixels on a single level."""
    rule = rules.anchors
    strides = rule.strides or [spec.stride for spec in neck.specs.values()]
    usual = [[8.0 * stride] for stride in strides] if len(strides) > 1 else [CLASSIC_SIZES]
    anchors = AnchorGenerator(rule.sizes or usual, rule.ratios, strides, rule=rule.rule, slow=rule.slow)
    in_channels = next(iter(neck.specs.values())).channels
    return PROPOSAL_NETWORKS[rules.rpn.sampling](
        RPN_HEADS[rules.rpn.head](in_channels, anchors.per_cell, channels=rules.rpn.channels),
        anchors,
        box_coders(rules.boxes)["rpn"],
        rules.rpn,
        test=rules.proposals,
        train=rules.training_proposals,
    )


def make_pooler(neck: Neck, rule: PoolingConventions) -> RoiAlignPooler:
    """Pooling from a neck's levels."""
    return RoiAlignPooler({name: neck.specs[name] for name in neck.roi_levels}, rule)


def branch_pooling(rules: RcnnRules, own: PoolingConventions | None) -> PoolingConventions:
    """Pooling of a further branch: that of the box branch with 14 cells, with the branch's own settings
    applied."""
    changed = {} if own is None else own.model_dump(exclude_unset=True)
    return rules.pooling.model_copy(update={"size": 14, **changed})


def rcnn_parts(
    backbone: Backbone,
    num_classes: int,
    rules: RcnnRules,
    neck: Neck | None = None,
    *,
    box_head: str = "2mlp",
    norm: str = "none",
    deltas: str = "class",
    head: Options = None,
) -> dict[str, Any]:
    """The keyword arguments of FasterRcnn.

    Args:
        neck: None for the backbone's last map.
        box_head: see make_trunk; head: options of the trunk (width, convs, conv_channels).
        norm: of the heads' own layers ("none" or "group"). deltas: see BoxPredictor.
    """
    neck = SingleLevel(backbone.specs) if neck is None else neck
    rpn = make_rpn(neck, rules)
    channels = neck.specs[neck.roi_levels[0]].channels
    trunk = make_trunk(box_head, backbone, channels, rules.pooling.size, norm, head)
    predictor = BoxPredictor(trunk.channels, num_classes, deltas=deltas)
    box = BoxHead(make_pooler(neck, rules.pooling), trunk, predictor)
    return {
        "backbone": backbone,
        "neck": neck,
        "rpn": rpn,
        "box": box,
        "num_classes": num_classes,
        "rules": rules,
    }


@DETECTORS.register("faster_rcnn")
def faster_rcnn(
    backbone: Backbone,
    num_classes: int,
    rules: RcnnRules = RcnnRules(),
    *,
    neck: Neck | None = None,
    box_head: str = "2mlp",
    norm: str = "none",
    deltas: str = "class",
    head: Options = None,
) -> FasterRcnn:
    """Faster R-CNN; arguments as in `rcnn_parts`."""
    return FasterRcnn(
        **rcnn_parts(
            backbone, num_classes, rules, neck, box_head=box_head, norm=norm, deltas=deltas, head=head
        )
    )
