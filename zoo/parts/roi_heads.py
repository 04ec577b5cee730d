"""RoI heads: pooling, trunks, the box predictor, sampling of proposals, and the choice of detections (Fast
R-CNN, Girshick 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection_zoo.kernels.nms import batched_nms
from detection_zoo.kernels.roi_align import multilevel_roi_align
from detection_zoo.kernels.roi_crop import affine_grid, roi_crop
from detection_zoo.kernels.roi_levels import LevelRule, assign_levels
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.kernels.soft_nms import soft_nms
from detection_zoo.zoo.parts.box_voting import vote_boxes
from detection_zoo.zoo.parts.boxes import BoxCoder, box_iou, clip_boxes, widened
from detection_zoo.zoo.parts.losses import smooth_l1_sum
from detection_zoo.zoo.parts.matcher import match
from detection_zoo.zoo.parts.norm import ConvNorm, make_norm
from detection_zoo.zoo.parts.proposals import Size
from detection_zoo.zoo.parts.sampler import Sampler
from detection_zoo.zoo.records import Detections, FeatureSpec, Target

SOFT_NMS_LEAST = 1e-4  # overlapped boxes whose decayed score is below this leave (Detectron)


def with_image_index(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (R_i, 4) of each image as RoIs (R, 5): image index, x1, y1, x2, y2."""
    return torch.cat(
        [torch.cat([each.new_full((len(each), 1), i), each], dim=1) for i, each in enumerate(boxes)]
    )


class RoiAlignPooler(nn.Module):
    """RoIAlign, or one of its forerunners, from the pyramid level that a RoI's size asks for (FPN, Lin et al.
    2017, equation 1).

    Args:
        specs: the levels RoIs are pooled from, finest first, by name.
        output_size: PH = PW.
        sampling_ratio: points a bin and axis, 0 for as many as cells. aligned: shifted by half a cell.
        canonical_scale, canonical_level, level_offset, level_eps: of kernels.roi_levels.LevelRule; the finest
            level counts as 2.
        method: "roi_align"; "roi_pool" (maximum of whole cells); "roi_crop" (points of a grid, then the
            maximum of 2 x 2 of them; its source fixes one cell to 16 pixels on every level).
    """

    def __init__(
        self,
        specs: Mapping[str, FeatureSpec],
        output_size: int,
        *,
        sampling_ratio: int = 2,
        aligned: bool = False,
        canonical_scale: float = 224.0,
        canonical_level: int = 4,
        level_offset: float = 1.0,
        level_eps: float = 1e-6,
        method: str = "roi_align",
    ) -> None:
        super().__init__()
        if method not in ("roi_align", "roi_pool", "roi_crop"):
            raise ValueError(f"unknown pooling method {method!r}; known: roi_align, roi_pool, roi_crop")
        self.method = method
        self.levels, self.scales = list(specs), [1.0 / spec.stride for spec in specs.values()]
        self.output_size, self.sampling_ratio, self.aligned = output_size, sampling_ratio, aligned
        self.rule = LevelRule(canonical_scale, canonical_level, 2, level_offset, level_eps)

    def forward(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pooled features (R, C, PH, PW) of boxes (R_i, 4) of each image, image after image."""
        rule = self.rule
        if self.method != "roi_align":
            return self._by_level(features, boxes)
        return multilevel_roi_align(
            [features[name] for name in self.levels],
            with_image_index(boxes),
            self.output_size,
            self.scales,
            self.sampling_ratio,
            self.aligned,
            canonical_scale=rule.canonical_scale,
            canonical_level=rule.canonical_level,
            min_level=rule.min_level,
            level_offset=rule.offset,
            level_eps=rule.eps,
        )

    def _by_level(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        rois, level_of, first = with_image_index(boxes), self.level_indices(boxes), features[self.levels[0]]
        pooled = first.new_zeros(len(rois), first.shape[1], self.output_size, self.output_size)
        for index, (name, scale) in enumerate(zip(self.levels, self.scales, strict=True)):
            rows = torch.nonzero(level_of == index).squeeze(1)
            if not len(rows):
                continue
            if self.method == "roi_pool":
                part = roi_pool(features[name], rois[rows], self.output_size, scale)
            else:
                grid = affine_grid(rois[rows], tuple(features[name].shape[-2:]), 2 * self.output_size)
                part = F.max_pool2d(roi_crop(features[name], grid, rois[rows, 0].long()), 2, 2)
            pooled = pooled.index_copy(0, rows, part)
        return pooled

    def level_indices(self, boxes: Sequence[Tensor]) -> Tensor:
        """Which level (R,) int64, 0 the finest, each box is pooled from."""
        return assign_levels(with_image_index(boxes), self.rule, len(self.levels)) - self.rule.min_level


def linear(in_width: int, out_width: int, norm: str = "none") -> nn.Module:
    """A fully connected layer, or one without bias with GroupNorm after it; Caffe2's "Xavier" weights."""
    layer = nn.Linear(in_width, out_width, bias=norm == "none")
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if norm == "none":
        nn.init.zeros_(layer.bias)
        return layer
    return nn.Sequential(layer, make_norm(norm, out_width))


class MlpTrunk(nn.Module):
    """Two fully connected layers with ReLU over the flattened features (FPN, section 4.2).

    Args:
        channels, size: of the pooled features. width: of both layers. norm: "none", or "group" in place of
            the biases.
    """

    def __init__(self, channels: int, size: int, *, width: int = 1024, norm: str = "none") -> None:
        super().__init__()
        self.fc6, self.fc7, self.channels = (
            linear(channels * size * size, width, norm),
            linear(width, width, norm),
            width,
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, PH, PW) to (R, width)."""
        return F.relu(self.fc7(F.relu(self.fc6(pooled.flatten(1)), inplace=True)), inplace=True)


class ConvTrunk(nn.Module):
    """3x3 convolutions with a norm and ReLU, then one fully connected layer with ReLU (Group Normalization,
    Wu and He 2018, section 5.3).

    Args:
        channels, size: of the pooled features. convs: how many. conv_channels, width: of the convolutions, of
            the layer.
        norm: a kind of make_norm; the convolutions have a bias only without one.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        convs: int = 4,
        conv_channels: int = 256,
        width: int = 1024,
        norm: str = "group",
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                ConvNorm(channels if i == 0 else conv_channels, conv_channels, 3, norm=norm)
                for i in range(convs)
            )
        )
        self.fc6, self.channels = linear(conv_channels * size * size, width), width
        for layer in self.convs:
            nn.init.normal_(layer.conv.weight, std=0.01)
            if layer.conv.bias is not None:
                nn.init.zeros_(layer.conv.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, PH, PW) to (R, width)."""
        return F.relu(self.fc6(self.convs(pooled).flatten(1)), inplace=True)


class StageTrunk(nn.Module):
    """The backbone's last stage, run on pooled features (He et al. 2015, appendix A); the predictor averages
    its map.

    Args:
        stage: module. channels: of its output.
    """

    def __init__(self, stage: nn.Module, channels: int) -> None:
        super().__init__()
        self.stage, self.channels = stage, channels

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, PH, PW) to a map (R, channels, PH / 2, PW / 2)."""
        return self.stage(pooled)


class BoxPredictor(nn.Module):
    """Class logits and box deltas, background first.

    Args:
        channels: of the trunk. num_classes: K. class_specific: deltas for each class, or for background and
            object only.
    """

    def __init__(self, channels: int, num_classes: int, *, class_specific: bool = True) -> None:
        super().__init__()
        self.class_logits = nn.Linear(channels, num_classes + 1)
        self.box_deltas = nn.Linear(channels, 4 * (num_classes + 1 if class_specific else 2))
        for layer, std in ((self.class_logits, 0.01), (self.box_deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C) or a map (R, C, H, W), which is averaged, to logits (R, K + 1) and deltas (R, 4 * (K +
        1))."""
        x = x if x.ndim == 2 else F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.class_logits(x), self.box_deltas(x)


class BoxHead(nn.Module):
    """Pooler, trunk and predictor of the box branch; `trunk` is shared with a C4 mask head."""

    def __init__(self, pooler: nn.Module, trunk: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.pooler, self.trunk, self.predictor = pooler, trunk, predictor

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The trunk's output for every box, class logits (R, K + 1), deltas (R, 4 * (K + 1))."""
        hidden = self.trunk(self.pooler(features, boxes))
        return hidden, *self.predictor(hidden)


@dataclass
class SampledBoxes:
    """The proposals of one image that are trained on.

    boxes (S, 4); labels (S,) int64, 0 background, 1..K; targets (S, 4) deltas; matches (S,) int64, the ground
    truth (0 for background); rows (S,): their positions among the candidates; positive, negative: indices
    among the candidates; candidate_labels: of all candidates. mask_matches (S,): whose mask an object is
    trained on, where that is not its match; -1 for none. keypoint_boxes (T, 4), keypoint_matches (T,): a draw
    of its own for the keypoint branch, where the source makes one.
    """

    boxes: Tensor
    labels: Tensor
    targets: Tensor
    matches: Tensor
    rows: Tensor
    positive: Tensor
    negative: Tensor
    candidate_labels: Tensor
    mask_matches: Tensor | None = None
    keypoint_boxes: Tensor | None = None
    keypoint_matches: Tensor | None = None


@dataclass(frozen=True)
class BoxTraining:
    """How proposals are labelled and weighed in training.

    foreground_iou, background_iou: of the matcher; below background_low a proposal is not used.
    ground_truth: boxes of the ground truth are appended "last" or put "first" among the proposals.
    order: sampled proposals stay in "position" order, or come "foreground_first".
    smooth_l1_beta: of the box loss, which is divided by the number of all sampled proposals.
    """

    foreground_iou: float = 0.5
    background_iou: float = 0.5
    background_low: float = 0.0
    ground_truth: str = "last"
    order: str = "position"
    smooth_l1_beta: float = 1.0


def sample_boxes(
    proposals: Tensor, target: Target, *, coder: BoxCoder, sampler: Sampler, rule: BoxTraining
) -> SampledBoxes:
    """Label the proposals (R, 4) of one image, ground truth boxes among them, and draw those to train on."""
    parts = [proposals, target.boxes.to(proposals.dtype)]
    boxes = torch.cat(parts if rule.ground_truth == "last" else parts[::-1])
    quality = box_iou(target.boxes.to(boxes.dtype), boxes, coder.offset)
    matches = match(quality, rule.foreground_iou, rule.background_iou)
    labels = _labels(matches, target.labels)
    if rule.background_low > 0 and len(quality):
        labels[(labels == 0) & (quality.max(dim=0).values < rule.background_low)] = -1
    positive, negative = sampler(labels)
    rows = torch.cat([positive, negative])
    rows = rows.sort().values if rule.order == "position" else rows
    matches = matches.clamp(min=0)
    targets = (
        coder.encode(target.boxes.to(boxes.dtype)[matches[rows]], boxes[rows])
        if len(target.boxes)
        else torch.zeros_like(boxes[rows])
    )
    return SampledBoxes(boxes[rows], labels[rows], targets, matches[rows], rows, positive, negative, labels)


def _labels(matches: Tensor, classes: Tensor) -> Tensor:
    """Labels (R,) int64 from matches: 1..K, 0 for background, -1 for what lies between the thresholds."""
    if not len(classes):
        return torch.zeros_like(matches)
    return torch.where(matches >= 0, classes[matches.clamp(min=0)] + 1, matches + 1)


def box_losses(
    logits: Tensor, deltas: Tensor, sampled: Sequence[SampledBoxes], beta: float
) -> dict[str, Tensor]:
    """Mean cross entropy and smooth L1 of the true class's deltas over the number of all sampled boxes
    (Girshick 2015, equation 1)."""
    labels = torch.cat([each.labels for each in sampled])
    targets = torch.cat([each.targets for each in sampled])
    rows = torch.nonzero(labels > 0).squeeze(1)
    classes = deltas.shape[1] // 4
    column = labels[rows] if classes > 2 else torch.ones_like(labels[rows])
    chosen = deltas.view(len(deltas), classes, 4)[rows, column]
    box = smooth_l1_sum(chosen, targets[rows], beta) / max(len(labels), 1)
    classification = F.cross_entropy(logits, labels) if len(labels) else logits.sum() * 0
    return {"loss_class": classification, "loss_box": box}


@dataclass(frozen=True)
class DetectionRule:
    """How detections are chosen from class probabilities.

    score_threshold: a probability must be above it; nms_iou, inclusive: of the NMS of each class;
        max_detections: of an image,
    by the threshold of the last one's score, so that ties may leave more. frame: boxes are decoded and
    clipped in pixels of the
    "network" input, or of the "original" image. soft: "none", or soft-NMS by "linear" or "gaussian" decay (of
    soft_sigma) in place of
    the NMS. vote_iou: boxes are refined by box voting among those of this IoU; none: they are not.
        vote_method: see zoo.parts.box_voting.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    inclusive: bool = True
    max_detections: int = 100
    frame: str = "network"
    soft: str = "none"
    soft_sigma: float = 0.5
    vote_iou: float | None = None
    vote_method: str = "id"


def select_detections(
    logits: Tensor,
    deltas: Tensor,
    boxes: Sequence[Tensor],
    sizes: Sequence[Size],
    *,
    coder: BoxCoder,
    rule: DetectionRule,
) -> list[Detections]:
    """Detections of each image: class rising, inside a class in the order of the proposals.

    Args:
        logits: (R, K + 1) and deltas (R, 4 * (K + 1)), image after image.
        boxes: proposals (R_i, 4) of each image.
        sizes: (height, width) of each image, to clip to.
        coder: decodes deltas.
        rule: thresholds and limits.
    """
    return [
        choose_detections(*scored, coder.offset, rule)
        for scored in score_boxes(logits, deltas, boxes, sizes, coder)
    ]


def score_boxes(
    logits: Tensor, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[Size], coder: BoxCoder
) -> list[tuple[Tensor, Tensor]]:
    """For each image, class probabilities (R_i, K + 1) and decoded, clipped boxes (R_i, K + 1 or 2, 4);
    arguments as in `select_detections`."""
    chances = F.softmax(widened(logits), dim=1)
    counts = [len(each) for each in boxes]
    decoded = coder.decode(deltas, torch.cat(list(boxes))).split(counts)
    return [
        (probability, clip_boxes(each.view(len(each), each.shape[1] // 4, 4), size, coder.offset))
        for probability, each, size in zip(chances.split(counts), decoded, sizes, strict=True)
    ]


def choose_detections(probability: Tensor, boxes: Tensor, offset: float, rule: DetectionRule) -> Detections:
    """Detections of one image from probabilities (R, K + 1) and boxes (R, K + 1 or 2, 4): class rising,
    inside a class in the order of the rows."""
    label, row = torch.nonzero(
        (probability[:, 1:] > rule.score_threshold).t(), as_tuple=True
    )  # class after class
    scores = probability[row, label + 1]
    column = label + 1 if boxes.shape[1] == probability.shape[1] else torch.ones_like(label)
    return suppress(boxes[row, column], scores, label, offset, rule)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, offset: float, rule: DetectionRule) -> Detections:
    """NMS inside each class, then the best of the image; what is kept stays in its order (soft-NMS: class by
    class, as picked).

    Args:
        boxes (R, 4), scores (R,), labels (R,) 0..K-1: of one image. offset: of the boxes' sides.
    """
    found = Detections(boxes, scores, labels)
    if rule.soft != "none":
        found = _soft_suppress(found, offset, rule)
    elif rule.nms_iou > 0:
        most = (
            rule.max_detections if rule.vote_iou is None else None
        )  # voting may change scores, so the best are known after it
        found = found.select(
            batched_nms(
                boxes,
                scores,
                labels,
                rule.nms_iou,
                offset=offset,
                inclusive=rule.inclusive,
                max_total=most or None,
            )
            .sort()
            .values
        )
    if rule.vote_iou is not None:
        found = _vote(found, boxes, scores, labels, offset, rule)
    if 0 < rule.max_detections < len(found):
        least = found.scores.kthvalue(len(found) - rule.max_detections + 1).values
        found = found.select(torch.nonzero(found.scores >= least).squeeze(1))
    return found


def _soft_suppress(found: Detections, offset: float, rule: DetectionRule) -> Detections:
    parts = []
    for label in found.labels.unique().tolist():
        rows = torch.nonzero(found.labels == label).squeeze(1)
        kept, scores = soft_nms(
            found.boxes[rows],
            found.scores[rows],
            method=rule.soft,
            sigma=rule.soft_sigma,
            iou_threshold=rule.nms_iou,
            score_threshold=SOFT_NMS_LEAST,
            offset=offset,
        )
        parts.append(replace(found.select(rows[kept]), scores=scores))
    if not parts:
        return found
    return Detections(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels"))
    )


def _vote(
    found: Detections, boxes: Tensor, scores: Tensor, labels: Tensor, offset: float, rule: DetectionRule
) -> Detections:
    """Boxes (and by some methods scores) refined by all boxes of the same class before suppression."""
    refined, changed = found.boxes.clone(), found.scores.clone()
    for label in found.labels.unique().tolist():
        rows, rivals = found.labels == label, labels == label
        refined[rows], changed[rows] = vote_boxes(
            found.boxes[rows],
            found.scores[rows],
            boxes[rivals],
            scores[rivals],
            rule.vote_iou,
            method=rule.vote_method,
            offset=offset,
        )
    return replace(found, boxes=refined, scores=changed)
