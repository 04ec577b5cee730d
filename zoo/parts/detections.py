"""Selection of detections: scores, boxes, NMS per class, box voting, and the limit of an image (Fast R-CNN,
Girshick 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from detection_zoo.kernels.nms import batched_nms
from detection_zoo.kernels.soft_nms import soft_nms
from detection_zoo.zoo.conventions import DetectionConventions
from detection_zoo.zoo.parts.box_voting import vote_boxes
from detection_zoo.zoo.parts.boxes import BoxCoder, clip_boxes, widened
from detection_zoo.zoo.parts.fixed_size import FixedDetections, best_candidates, present_rows, suppress_fixed
from detection_zoo.zoo.parts.proposals import Size
from detection_zoo.zoo.records import Detections


def select_detections(
    logits: Tensor,
    deltas: Tensor,
    boxes: Sequence[Tensor],
    sizes: Sequence[Size],
    *,
    coder: BoxCoder,
    rule: DetectionConventions,
) -> list[Detections]:
    """Detections of each image, ordered by class, then as the proposals.

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


def choose_detections(
    probability: Tensor, boxes: Tensor, offset: float, rule: DetectionConventions
) -> Detections:
    """Detections of one image from probabilities (R, K + 1) and boxes (R, K + 1 or 2, 4), ordered by class,
    then row."""
    label, row = torch.nonzero((probability[:, 1:] > rule.score_threshold).t(), as_tuple=True)  # by class
    scores = probability[row, label + 1]
    sets = boxes.shape[1]
    column = label + 1 if sets == probability.shape[1] else torch.full_like(label, sets - 1)
    known = {"classes": probability.shape[1] - 1, "class_limit": max(len(probability), 1)}
    return suppress(boxes[row, column], scores, label, offset, rule, **known)


def choose_fixed(
    probability: Tensor, boxes: Tensor, offset: float, rule: DetectionConventions
) -> FixedDetections:
    """`choose_detections` of N images with lists of fixed size.

    Args:
        probability: (N, R, K + 1). boxes: (N, R, K + 1 or 2, 4), NaN in absent rows.
        offset, rule: as there.
    """
    images, rows, sets = boxes.shape[:3]
    chances = probability[..., 1:].transpose(1, 2)  # ordered by class
    wanted = (chances > rule.score_threshold) & present_rows(boxes[..., -1, :])[:, None]
    found = best_candidates(chances.where(wanted, -torch.inf).reshape(images, -1))
    labels, row = found.rows // rows, found.rows % rows
    column = labels + 1 if sets == probability.shape[2] else torch.full_like(labels, sets - 1)
    place = (row * sets + column)[..., None].expand(-1, -1, 4)
    return suppress_fixed(
        found,
        boxes.reshape(images, -1, 4).gather(1, place),
        labels,
        found.rows,
        iou=rule.nms_iou,
        offset=offset,
        inclusive=rule.inclusive,
        most=rule.max_detections,
    )


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    offset: float,
    rule: DetectionConventions,
    *,
    classes: int | None = None,
    class_limit: int | None = None,
) -> Detections:
    """NMS per class, then the highest-scoring of the image; the order of kept rows is unchanged (soft-NMS:
    class by class, in order of selection).

    Args:
        boxes (R, 4), scores (R,), labels (R,) 0..K-1: of one image. offset: of the boxes' sides.
        classes: K. class_limit: upper bound of the rows of a class. Both make NMS faster; None: unknown.
    """
    found = Detections(boxes, scores, labels)
    if rule.soft != "none":
        found = _soft_suppress(found, offset, rule)
    elif rule.nms_iou > 0:
        # voting may change scores, so the limit is applied after it
        most = rule.max_detections if rule.vote_iou is None else None
        found = found.select(
            batched_nms(
                boxes,
                scores,
                labels,
                rule.nms_iou,
                offset=offset,
                inclusive=rule.inclusive,
                num_groups=classes,
                max_candidates=class_limit,
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


def _soft_suppress(found: Detections, offset: float, rule: DetectionConventions) -> Detections:
    parts = []
    for label in found.labels.unique().tolist():
        rows = torch.nonzero(found.labels == label).squeeze(1)
        kept, scores = soft_nms(
            found.boxes[rows],
            found.scores[rows],
            method=rule.soft,
            sigma=rule.soft_sigma,
            iou_threshold=rule.nms_iou,
            score_threshold=rule.soft_least,
            offset=offset,
        )
        parts.append(replace(found.select(rows[kept]), scores=scores))
    if not parts:
        return found
    return Detections(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels"))
    )


def _vote(
    found: Detections,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    offset: float,
    rule: DetectionConventions,
) -> Detections:
    """Boxes (with some methods also scores) refined by all boxes of the same class before suppression."""
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
