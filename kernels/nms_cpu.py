"""The rule of nms.py for a CPU: 64 sorted rows at a time in NumPy, and no more rows than a limit over all
groups needs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.nms_reference import NmsRule, raise_for_groups, raise_for_values

BLOCK = 64  # rows whose pairs are tested together; a row of the table of pairs is one 64-bit number
BITS = tuple(1 << row for row in range(BLOCK))  # of the rows of a block
LATER = np.triu(np.ones((BLOCK, BLOCK), dtype=bool), 1)  # row, later row
FIRST_LOOK = (
    4  # rows looked at first, for each that is wanted; SSDLite needs 1.4 to 4.7 of them on real images
)


def cpu_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, num_groups: int, rule: NmsRule) -> Tensor:
    """Kept rows (M,) int64 by falling score: all of them, or at least the best `rule.max_total` with their
    ties.

    Whether a row is kept depends on better rows alone, so what is kept among the best rows is kept among all.
    """
    raise_for_values(boxes, scores, rule.offset)
    raise_for_groups(groups, num_groups)
    numbers, values = boxes.detach().cpu().numpy(), scores.detach().cpu().numpy()
    group = np.zeros(len(values), dtype=np.int64) if groups is None else groups.cpu().numpy()
    count = FIRST_LOOK * max(rule.max_total, BLOCK)
    while True:
        best = _best_rows(values, count)
        kept = best[_suppress(numbers[best], values[best], group[best], rule)]
        if len(kept) >= rule.max_total or len(best) == len(values):
            return torch.from_numpy(kept).to(boxes.device)
        count = 4 * len(best)


def _best_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """The best `count` of scores (R,) and those that tie with the last, as rising rows (M,)."""
    if count >= len(scores):
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, len(scores) - count)[len(scores) - count])


def _suppress(boxes: np.ndarray, scores: np.ndarray, group: np.ndarray, rule: NmsRule) -> np.ndarray:
    """Kept rows by falling score of boxes (R, 4), scores (R,), group (R,) of any values."""
    by_score = torch.sort(torch.from_numpy(scores), descending=True, stable=True).indices.numpy()
    rank = np.argsort(
        group[by_score], kind="stable"
    )  # place in `by_score`, by rising group, by falling score in a group
    rank = rank[_first_of_each(group[by_score[rank]], rule.max_candidates)]
    group = group[by_score[rank]]
    with np.errstate(
        invalid="ignore", divide="ignore", over="ignore"
    ):  # 0 / 0 of two empty boxes: not a number, removes nothing
        kept = _greedy(_columns(boxes[by_score[rank]], rule.offset), group, rule)
    kept = kept[
        _first_of_each(group[kept], rule.max_keep)
    ]  # a row beyond the limit removes only rows that are beyond it too
    return by_score[np.sort(rank[kept])]


def _first_of_each(group: np.ndarray, most: int) -> np.ndarray:
    """(R,) bool, which rows are among the first `most` of their group; groups (R,) rise."""
    later = (
        group[most:] != group[: max(len(group) - most, 0)]
    )  # of another group than the row `most` places before
    return np.append(np.ones(len(group) - len(later), dtype=bool), later)


def _columns(boxes: np.ndarray, offset: float) -> np.ndarray:
    """(5, R) x1, y1, x2, y2, area."""
    columns = np.empty((5, len(boxes)), dtype=boxes.dtype)
    columns[:4] = boxes.T
    width, height = columns[2:4] - columns[:2] + boxes.dtype.type(offset)
    np.multiply(width, height, out=columns[4])
    return columns


def _greedy(columns: np.ndarray, groups: np.ndarray, rule: NmsRule) -> np.ndarray:
    """Rising places (M,) that survive of columns (5, R) by rising groups (R,), by falling score in a group;
    of a full group there may be some too many.

    Each block is tested against the kept rows of its first group, which are the last kept ones, and against
    itself.
    """
    alive = np.zeros(len(groups), dtype=bool)
    kept_columns = np.empty(
        (5, len(groups) + BLOCK), dtype=columns.dtype
    )  # of the kept rows, then of the block
    start = kept = before = 0  # before: kept rows of the group of the last block's last row
    while start < len(groups):
        block, group = columns[:, start : start + BLOCK], groups[start : start + BLOCK]
        before = before if start and group[0] == groups[start - 1] else 0
        if before >= rule.max_keep:
            start += int(np.searchsorted(groups[start:], group[0], side="right"))
            continue
        kept_columns[:, kept : kept + len(group)] = block
        exceeds = _exceeds(block, kept_columns[:, kept - before : kept + len(group)], rule)
        own = np.count_nonzero(group == group[0])
        found = _settle(exceeds[:own, :before].any(axis=1), exceeds[:, before:], group)
        kept_columns[:, kept : kept + len(found)] = block[:, found]
        alive[start + found] = True
        before = np.count_nonzero(group[found] == group[-1]) + (before if own == len(group) else 0)
        kept += len(found)
        start += BLOCK
    return np.flatnonzero(alive)


def _settle(removed: np.ndarray, exceeds: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rising rows of a block that survive: removed (at most B,) from before, exceeds (B, B) by each row of
    each other, group (B,) rising."""
    size = len(group)
    removes = np.zeros((size, BLOCK), dtype=bool)
    np.logical_and(exceeds, LATER[:size, :size], out=removes[:, :size])
    if group[0] != group[-1]:
        removes[:, :size] &= group[:, None] == group
    bits = int.from_bytes(_packed(removed).tobytes(), "little")  # a bit for each row that is removed
    for bit, removed_by_it in zip(BITS[:size], _packed(removes).view("<u8")[:, 0].tolist(), strict=True):
        if removed_by_it and not bits & bit:
            bits |= removed_by_it
    return np.flatnonzero(
        np.unpackbits(np.frombuffer(bits.to_bytes(BLOCK // 8, "little"), dtype=np.uint8), bitorder="little")[
            :size
        ]
        == 0
    )


def _packed(flags: np.ndarray) -> np.ndarray:
    return np.packbits(flags, axis=-1, bitorder="little")


def _exceeds(some: np.ndarray, others: np.ndarray, rule: NmsRule) -> np.ndarray:
    """(A, B) bool, whether the IoU of two boxes removes one: columns (5, A) and (5, B), each operation of the
    rule in its order, in place."""
    number = some.dtype.type
    sides = np.minimum(some[2:4, :, None], others[2:4, None])  # (2, A, B)
    sides -= np.maximum(some[:2, :, None], others[:2, None])
    sides += number(rule.offset)
    np.maximum(sides, number(0), out=sides)
    inter, union = np.multiply(sides[0], sides[1]), np.add(some[4][:, None], others[4])
    union -= inter
    inter /= union
    return (np.greater_equal if rule.inclusive else np.greater)(inter, number(rule.iou_threshold))
