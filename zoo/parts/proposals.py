"""From objectness and deltas of every anchor to the proposals of each image (Faster R-CNN section 3.1, FPN
section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detection_zoo.kernels.nms import batched_nms
from detection_zoo.zoo.conventions import ProposalConventions
from detection_zoo.zoo.parts.boxes import BoxCoder, clip_boxes, large_enough

Size = tuple[int, int]  # (height, width) in pixels


@dataclass
class Proposals:
    """Proposals of one image: boxes (R, 4) xyxy pixels of the network's input, scores (R,)."""

    boxes: Tensor
    scores: Tensor


def decode_level(
    scores: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    sizes: Sequence[Size],
    coder: BoxCoder,
    pre_nms: int,
    stable: bool = False,
) -> tuple[Tensor, Tensor]:
    """The best anchors of one level, decoded and clipped: boxes (N, P, 4) and scores (N, P), by falling
    score.

    Args:
        scores: (N, A) probabilities. deltas: (N, A, 4). anchors: (A, 4). sizes: to clip to, one an image.
        stable: anchors of equal scores stay in their order.
    """
    if stable:
        scores, order = (part[:, :pre_nms] for part in scores.sort(dim=1, descending=True, stable=True))
    else:
        scores, order = scores.topk(min(pre_nms, scores.shape[1]), dim=1, sorted=True)
    boxes = torch.stack(
        [
            clip_boxes(coder.decode(deltas[i, order[i]], anchors[order[i]]), size, coder.offset)
            for i, size in enumerate(sizes)
        ]
    )
    return boxes, scores


def select_proposals(
    scores: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Sequence[Size],
    *,
    coder: BoxCoder,
    rule: ProposalConventions,
) -> list[Proposals]:
    """Choose the proposals of each image.

    Args:
        scores: for each level (N, A) float objectness probabilities, A all its anchors.
        deltas: for each level (N, A, 4) float.
        anchors: for each level (A, 4) float.
        sizes: (height, width) of each image, to clip to.
        coder: decodes deltas.
        rule: limits and order.
    """
    if rule.together:
        scores, deltas, anchors = (
            [torch.cat(list(scores), 1)],
            [torch.cat(list(deltas), 1)],
            [torch.cat(list(anchors))],
        )
    levels = [
        decode_level(*level, sizes, coder, rule.pre_nms, stable=rule.together)
        for level in zip(scores, deltas, anchors, strict=True)
    ]
    boxes = torch.cat([b for b, _ in levels], dim=1)  # (N, P, 4)
    chances = torch.cat([s for _, s in levels], dim=1)  # (N, P)
    images, count = chances.shape
    level = torch.cat(
        [torch.full((s.shape[1],), i, device=boxes.device) for i, (_, s) in enumerate(levels)]
    )  # (P,)
    groups = (torch.arange(images, device=boxes.device)[:, None] * len(levels) + level).reshape(-1)
    boxes, chances = boxes.reshape(-1, 4), chances.reshape(-1)
    rows = torch.nonzero(large_enough(boxes, rule.min_size, coder.offset)).squeeze(1)
    boxes, chances, groups = boxes[rows], chances[rows], groups[rows]
    kept = batched_nms(
        boxes,
        chances,
        groups,
        rule.nms_iou,
        num_groups=images * len(levels),
        offset=coder.offset,
        inclusive=rule.inclusive,
        max_keep=rule.post_nms,
        max_candidates=rule.pre_nms or None,
    )
    kept = kept.sort().values  # image by image, level by level, falling score
    return _collect(boxes[kept], chances[kept], groups[kept] // len(levels), images, rule)


def _collect(
    boxes: Tensor, scores: Tensor, image: Tensor, images: int, rule: ProposalConventions
) -> list[Proposals]:
    """Cut what all levels gave, over each image or over the batch, and split by image."""
    if rule.collect and rule.collect_over == "batch":
        best = scores.topk(min(rule.collect, len(scores)), sorted=True).indices
        best = best if rule.collect_order == "score" else best.sort().values
        boxes, scores, image = boxes[best], scores[best], image[best]
    result = []
    for i in range(images):
        rows = torch.nonzero(image == i).squeeze(1)
        if rule.collect and rule.collect_over == "image":
            best = scores[rows].topk(min(rule.collect, len(rows)), sorted=True).indices
            rows = rows[best if rule.collect_order == "score" else best.sort().values]
        result.append(Proposals(boxes[rows], scores[rows]))
    if rule.fill:
        for each in result:
            missing = rule.post_nms - len(each.boxes)
            each.boxes = functional.pad(each.boxes, (0, 0, 0, missing))
            each.scores = functional.pad(each.scores, (0, missing))
    return result
