"""From objectness and deltas of every anchor to the proposals of each image (Faster R-CNN section 3.1, FPN
section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from detection_zoo.kernels.nms_sorted import nms_sorted
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
    boxes, chances = _same_length(levels)  # (N, L, P, 4), (N, L, P)
    images = boxes.shape[0]
    present = large_enough(boxes.reshape(-1, 4), rule.min_size, coder.offset).view(chances.shape)
    kept = nms_sorted(
        boxes.flatten(0, 1),
        rule.nms_iou,
        present=present.flatten(0, 1),
        offset=coder.offset,
        inclusive=rule.inclusive,
        max_keep=rule.post_nms,
    )
    rows = torch.nonzero(kept.view(-1)).squeeze(1)  # image by image, level by level, falling score
    boxes, chances = boxes.reshape(-1, 4)[rows], chances.reshape(-1)[rows]
    missing = torch.isnan(chances).sum()  # such rows are the first of their level, and so are kept
    *counts, missing = torch.cat([kept.view(images, -1).sum(1), missing[None]]).tolist()
    if missing:
        raise ValueError(f"{missing} objectness scores of the best anchors are NaN; check weights and images")
    return _collect(boxes, chances, counts, rule)


def _same_length(levels: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Boxes (N, L, P, 4) and scores (N, L, P) of all levels; boxes beyond a level's end are not a number."""
    most = max(scores.shape[1] for _, scores in levels)
    missing = [most - scores.shape[1] for _, scores in levels]
    boxes = [
        functional.pad(boxes, (0, 0, 0, more), value=math.nan)
        for (boxes, _), more in zip(levels, missing, strict=True)
    ]
    scores = [functional.pad(scores, (0, more)) for (_, scores), more in zip(levels, missing, strict=True)]
    return torch.stack(boxes, 1), torch.stack(scores, 1)


def _collect(
    boxes: Tensor, scores: Tensor, counts: Sequence[int], rule: ProposalConventions
) -> list[Proposals]:
    """Cut what all levels gave, over each image or over the batch, and split by image; counts: rows of
    each."""
    if rule.collect and rule.collect_over == "batch":
        best = scores.topk(min(rule.collect, len(scores)), sorted=True).indices
        best = best if rule.collect_order == "score" else best.sort().values
        ends = list(accumulate(counts))
        owned = [best[(best >= end - count) & (best < end)] for end, count in zip(ends, counts, strict=True)]
        parts = [(boxes[own], scores[own]) for own in owned]
    else:
        parts = zip(boxes.split(counts), scores.split(counts), strict=True)
    result = []
    for own, chances in parts:
        if rule.collect and rule.collect_over == "image":
            best = chances.topk(min(rule.collect, len(chances)), sorted=True).indices
            best = best if rule.collect_order == "score" else best.sort().values
            own, chances = own[best], chances[best]
        result.append(Proposals(own, chances))
    if rule.fill:
        for each in result:
            missing = rule.post_nms - len(each.boxes)
            each.boxes = functional.pad(each.boxes, (0, 0, 0, missing))
            each.scores = functional.pad(each.scores, (0, missing))
    return result
