"""Proposals of each image from objectness and deltas of all anchors (Faster R-CNN section 3.1, FPN
section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detection_zoo.kernels.nms_sorted import nms_sorted
from detection_zoo.zoo.conventions import ProposalConventions
from detection_zoo.zoo.parts.boxes import BoxCoder, clip_boxes, large_enough
from detection_zoo.zoo.parts.fixed_size import raise_for_missing

Size = tuple[int, int]  # (height, width) in pixels


@dataclass
class Proposals:
    """Proposals of one image: boxes (R, 4) xyxy pixels of the network's input, scores (R,). In a list of
    fixed size absent rows have NaN boxes."""

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
    """The highest-scoring anchors of one level, decoded and clipped: boxes (N, P, 4) and scores (N, P),
    sorted by descending score.

    Args:
        scores: (N, A) probabilities. deltas: (N, A, 4). anchors: (A, 4). sizes: to clip to, one per image.
        stable: keep the order of anchors with equal scores.
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
    fixed: bool = False,
) -> list[Proposals]:
    """Select the proposals of each image.

    Args:
        scores: for each level (N, A) float objectness probabilities, A all its anchors.
        deltas: for each level (N, A, 4) float.
        anchors: for each level (A, 4) float.
        sizes: (height, width) of each image, to clip to.
        coder: decodes deltas.
        rule: limits and order.
        fixed: the same number of rows per image, without synchronizing with a GPU, padded with NaN boxes.

    Raises:
        ValueError: objectness scores of the best anchors are NaN (with `fixed` the caller must check).
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
    boxes, chances = boxes.reshape(images, -1, 4), chances.reshape(images, -1)
    boxes, chances, counts = _collect(boxes, chances, kept.view(images, -1), rule, len(levels))
    if fixed:
        return [Proposals(*parts) for parts in zip(boxes, chances, strict=True)]
    *counts, missing = torch.cat([counts, torch.isnan(chances).sum()[None]]).tolist()
    raise_for_missing(missing)
    return [
        Proposals(own[:count], score[:count])
        for own, score, count in zip(boxes, chances, counts, strict=True)
    ]


def _same_length(levels: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Boxes (N, L, P, 4) and scores (N, L, P) of all levels; NaN boxes beyond a level's end."""
    most = max(scores.shape[1] for _, scores in levels)
    missing = [most - scores.shape[1] for _, scores in levels]
    boxes = [
        functional.pad(boxes, (0, 0, 0, more), value=math.nan)
        for (boxes, _), more in zip(levels, missing, strict=True)
    ]
    scores = [functional.pad(scores, (0, more)) for (_, scores), more in zip(levels, missing, strict=True)]
    return torch.stack(boxes, 1), torch.stack(scores, 1)


def _collect(
    boxes: Tensor, scores: Tensor, kept: Tensor, rule: ProposalConventions, levels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Limit the proposals (N, M) of all levels, per image or per batch.

    Returns:
        Boxes (N, R, 4), padded with NaN rows; scores (N, R); counts (N,) of present rows.
    """
    ranked = scores.where(kept, -math.inf)
    length = ranked.shape[1]
    if rule.collect and rule.collect_over == "batch":
        best = ranked.view(-1).topk(min(rule.collect, ranked.numel())).indices
        chosen = torch.zeros_like(kept.view(-1)).index_fill(0, best, True)
        ranked = ranked.where(chosen.view(kept.shape), -math.inf)
    if rule.collect:
        rows = ranked.topk(min(rule.collect, length), dim=1, sorted=True).indices
    else:  # level by level, descending score
        rows = torch.arange(length, device=kept.device).expand_as(kept)
    present = ranked.gather(1, rows) != -math.inf  # NaN counts as present and is reported by the caller
    if not rule.collect or rule.collect_order == "level":
        rows = rows.where(present, length).sort(dim=1).values[:, : rule.post_nms * levels]
        present, rows = rows < length, rows.clamp(max=length - 1)
    boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
    scores, counts = scores.gather(1, rows).where(present, 0.0), present.sum(dim=1)
    absent = 0.0 if rule.fill else math.nan
    boxes = boxes.where(present[..., None], absent)
    if rule.fill:
        missing = rule.post_nms - rows.shape[1]
        boxes, scores = functional.pad(boxes, (0, 0, 0, missing)), functional.pad(scores, (0, missing))
        counts = torch.full_like(counts, rule.post_nms)
    return boxes, scores, counts
