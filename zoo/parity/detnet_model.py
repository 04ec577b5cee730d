"""What the comparison with DetNet_pytorch reads from the detector: maps, proposals as its fixed lists, pooled
features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detection_zoo.zoo.conventions import ProposalConventions
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.parity.near_ties import DetectionChoices
from detection_zoo.zoo.parts.boxes import BoxCoder, clip_boxes
from detection_zoo.zoo.parts.detections import choose_detections
from detection_zoo.zoo.parts.proposals import Proposals, Size, select_proposals
from detection_zoo.zoo.parts.roi_heads import with_image_index
from detection_zoo.zoo.parts.rpn import by_anchor

OFFSET = 1.0
CODER = BoxCoder(offset=OFFSET, far_offset=0.0, cap=None)


@dataclass
class Pyramid:
    """What the network computes of a batch before the box head: pyramid levels, RPN maps, ranking scores
    (N, A), deltas (N, A, 4), anchors (A, 4)."""

    levels: list[Tensor]
    logits: list[Tensor]
    delta_maps: list[Tensor]
    scores: Tensor
    deltas: Tensor
    anchors: Tensor


def pyramid(model: FasterRcnn, images: Tensor) -> Pyramid:
    """Everything up to the proposals, of images (N, 3, H, W)."""
    levels = list(model.features(images).values())
    logits, deltas = model.rpn.head(levels)
    return Pyramid(
        levels,
        logits,
        deltas,
        torch.cat([model.rpn.head.scores(level) for level in logits], dim=1),
        torch.cat([by_anchor(level, 4) for level in deltas], dim=1),
        torch.cat(model.rpn.anchors(levels)),
    )


def propose(found: Pyramid, sizes: Sequence[Size], rule: ProposalConventions) -> list[Proposals]:
    """Proposals of each image, filled with zero boxes by the rule; sizes in pixels."""
    parts = [found.scores], [found.deltas], [found.anchors]
    return select_proposals(*parts, sizes, coder=CODER, rule=rule)


def kept_anchors(found: Pyramid, image: int, size: Size, proposals: Proposals) -> Tensor:
    """The anchor (M,) int64 that each proposal of an image comes from, without the zero boxes at the end."""
    decoded = clip_boxes(CODER.decode(found.deltas[image], found.anchors), size, OFFSET)  # (A, 4)
    real = int((proposals.boxes != 0).any(dim=1).sum())
    same = (decoded[None] == proposals.boxes[:real, None]).all(dim=2)
    return (same & (found.scores[image][None] == proposals.scores[:real, None])).int().argmax(dim=1)


def as_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (R, 4) of each image as (N, R, 5), the image's index first."""
    return with_image_index(boxes).unflatten(0, (len(boxes), -1))


def pool(model: FasterRcnn, levels: Sequence[Tensor], rois: Tensor, height: float) -> Tensor:
    """RoI features (R, C, P, P) of rois (R, 5) in any order; height of the first image in pixels."""
    image = rois[:, 0].long()
    order = image.sort(stable=True).indices
    boxes = [rois[order][image[order] == i, 1:] for i in range(int(image.max()) + 1)]
    names = list(model.neck.specs)[: len(levels)]
    features = dict(zip(names, levels, strict=True))
    return model.box.pooler(features, boxes, [(height, height)])[order.argsort()]


def detection_choices(model: FasterRcnn, soft: str) -> DetectionChoices:
    """A detector's choice of detections before the cut to the best, with a kind of soft-NMS in place of its
    own."""
    rule = model.detection_rule.model_copy(update={"soft": soft, "max_detections": 0})
    return DetectionChoices(
        lambda probabilities, boxes: choose_detections(probabilities, boxes, OFFSET, rule), OFFSET, rule
    )


def detection_rows(
    model: FasterRcnn,
    rois: Tensor,
    probabilities: Tensor,
    deltas: Tensor,
    info: Sequence[float],
    choose: DetectionChoices,
) -> tuple[Tensor, int]:
    """Rows (M, 6) class, box, score of one image, and how many there were before the cut to the best.

    Args:
        model: with its thresholds.
        rois: (R, 4) float boxes in input pixels; probabilities (R, K + 1); deltas (R, 4 * (K + 1)).
        info: height, width, scale.
        choose: of `detection_choices`; the next image is its first.
    """
    placed = model.coder.decode(deltas, rois).unflatten(1, (-1, 4))
    placed = clip_boxes(placed, info[:2], OFFSET) / info[2]
    choose.start()
    found = choose(probabilities, placed)
    before, most = len(found), model.detection_rule.max_detections
    if 0 < most < before:
        found = found.select(torch.nonzero(found.scores >= found.scores.topk(most).values[-1]).squeeze(1))
    found = found.select(found.scores.sort(descending=True, stable=True).indices)
    found = found.select(found.labels.sort(stable=True).indices)
    return torch.cat(
        [found.labels[:, None].to(rois.dtype) + 1, found.boxes, found.scores[:, None]], dim=1
    ), before
