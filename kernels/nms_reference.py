"""The rule of nms.py in NumPy, one visited box at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class NmsRule(NamedTuple):
    """Parameters of NMS; the limits per group and in total are at most the number of rows."""

    iou_threshold: float
    offset: float
    inclusive: bool
    max_keep: int
    max_candidates: int
    max_total: int


def reference_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, num_groups: int, rule: NmsRule
) -> Tensor:
    """Kept rows (M,) int64 by descending score; arguments as in `kernels.nms.batched_nms`, num_groups 0 for
    groups of any values."""
    raise_for_values(boxes, scores, rule.offset)
    raise_for_groups(groups, num_groups)
    order = torch.sort(scores, descending=True, stable=True).indices
    by_group = order if groups is None else order[torch.sort(groups[order], stable=True).indices]
    ends = [len(order)] if groups is None else torch.unique(groups, return_counts=True)[1].cumsum(0).tolist()
    sorted_boxes = boxes.detach()[by_group].cpu().numpy()
    alive = np.zeros(len(order), dtype=bool)
    start = 0
    for end in ends:
        last = min(end, start + rule.max_candidates)
        alive[start:last] = greedy(sorted_boxes[start:last], rule)
        start = end
    kept = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    kept[by_group] = torch.from_numpy(alive).to(boxes.device)
    return order[kept[order]]


def best_of_all(kept: Tensor, scores: Tensor, most: int) -> Tensor:
    """The first `most` of kept rows (M,) int64, sorted by descending score (R,), and those with the same
    score as the last one."""
    if most == 0 or len(kept) <= most:
        return kept[:most]
    best = scores[kept]
    return kept[best >= best[most - 1]]


def reference_nms_padded(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, num_groups: int, max_keep: int, rule: NmsRule
) -> tuple[Tensor, Tensor]:
    """Indices (G, max_keep) and counts (G,): `reference_nms` of the valid rows; arguments as in
    `kernels.nms.nms_padded`."""
    groups = torch.zeros_like(scores, dtype=torch.int64) if groups is None else groups.long()
    present = ~(torch.isnan(scores) | torch.isneginf(scores) | inverted_or_not_finite(boxes, rule.offset))
    rows = (present & (groups >= 0) & (groups < num_groups)).nonzero().squeeze(1)
    kept = rows[reference_nms(boxes[rows], scores[rows], groups[rows], num_groups, rule)]
    counts = torch.bincount(groups[kept], minlength=num_groups)
    order = torch.sort(groups[kept], stable=True).indices
    column = torch.arange(len(kept), device=boxes.device) - (counts.cumsum(0) - counts)[groups[kept][order]]
    indices = torch.full((num_groups, max_keep), -1, dtype=torch.int64, device=boxes.device)
    indices[groups[kept][order], column] = kept[order]
    return indices, counts


def greedy(boxes: np.ndarray, rule: NmsRule) -> np.ndarray:
    """Which of the (n, 4) boxes, sorted by descending score, are kept."""
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    threshold, offset, zero = (boxes.dtype.type(number) for number in (rule.iou_threshold, rule.offset, 0))
    exceeds = np.greater_equal if rule.inclusive else np.greater
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    alive, kept = np.ones(len(boxes), dtype=bool), 0
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        if kept == rule.max_keep:
            alive[i:] = False
            break
        kept += 1
        width = np.maximum(np.minimum(x2[i], x2[i + 1 :]) - np.maximum(x1[i], x1[i + 1 :]) + offset, zero)
        height = np.maximum(np.minimum(y2[i], y2[i + 1 :]) - np.maximum(y1[i], y1[i + 1 :]) + offset, zero)
        inter = width * height
        with np.errstate(
            invalid="ignore", divide="ignore", over="ignore"
        ):  # 0 / 0 of two empty boxes is NaN and removes nothing
            alive[i + 1 :] &= ~exceeds(inter / (areas[i] + areas[i + 1 :] - inter), threshold)
    return alive


def inverted_or_not_finite(boxes: Tensor, offset: float) -> Tensor:
    """Mark inverted or non-finite boxes.

    Args:
        boxes: (R, 4) floating (x1, y1, x2, y2).
        offset: added to sides; x2 may be below x1 by 1.01 offsets, because a decoded legacy box of width 0
            has x2 = x1 - 1.
    Returns:
        (R,) bool.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    return ~torch.isfinite(boxes).all(dim=1) | (sides < -1.01 * offset).any(dim=1)


def raise_for_groups(groups: Tensor | None, num_groups: int) -> None:
    """Raise ValueError if one of groups (R,) is outside 0..num_groups-1; num_groups 0 allows any."""
    if groups is not None and num_groups and ((groups < 0) | (groups >= num_groups)).any():
        raise ValueError(
            f"groups reach from {int(groups.min())} to {int(groups.max())}; with num_groups they must lie in"
            f" 0..{num_groups - 1}"
        )


def raise_for_values(boxes: Tensor, scores: Tensor, offset: float) -> None:
    """Raise ValueError with the first NaN score of (R,), or the first inverted or non-finite box of (R, 4);
    synchronises with a GPU."""
    missing = torch.isnan(scores)
    if missing.any():
        raise ValueError(
            f"scores[{int(missing.nonzero()[0])}] is NaN ({int(missing.sum())} of {len(scores)}); filter the"
            " rows before NMS"
        )
    wrong = inverted_or_not_finite(boxes, offset)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"boxes[{row}] = {boxes[row].tolist()} is inverted or not finite ({int(wrong.sum())} of"
            f" {len(boxes)}); boxes must be (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2"
        )
