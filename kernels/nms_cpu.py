"""The rule of nms.py for a CPU: 64 sorted rows at a time in NumPy, and no more rows than a limit over all groups needs."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .nms_reference import NmsRule, raise_for_groups, raise_for_values

BLOCK = 64  # rows whose pairs are tested together; a row of the table of pairs is one 64-bit number
BITS = tuple(1 << row for row in range(BLOCK))  # of the rows of a block
FIRST_LOOK = 4  # rows looked at first, for each that is wanted; SSDLite needs 1.4 to 4.7 of them on real images


class SortedRows(NamedTuple):
    """Rows by rising group, by falling score in a group; groups are numbered 0, 1, ..."""

    columns: np.ndarray  # (5, R) floating: x1, y1, x2, y2, area
    group: np.ndarray  # (R,) int64
    ends: list[int]  # of each group


def cpu_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, num_groups: int, rule: NmsRule) -> Tensor:
    """Kept rows (M,) int64 by falling score: all of them, or at least the best `rule.max_total` with their ties.

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
    rank = np.argsort(group[by_score], kind="stable")  # of the rows by group, place in `by_score`
    group = group[by_score][rank]
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    sizes = np.diff(np.append(starts, len(group)))
    within = np.arange(len(group)) - np.repeat(starts, sizes) < rule.max_candidates
    rank, sizes = rank[within], np.minimum(sizes, rule.max_candidates)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # 0 / 0 of two empty boxes: not a number, removes nothing
        columns = _columns(boxes[by_score[rank]], rule.offset)
        kept = _greedy(SortedRows(columns, np.repeat(np.arange(len(sizes)), sizes), sizes.cumsum().tolist()), rule)
    return by_score[np.sort(rank[kept])]


def _columns(boxes: np.ndarray, offset: float) -> np.ndarray:
    columns = np.empty((5, len(boxes)), dtype=boxes.dtype)
    columns[:4] = boxes.T
    width, height = columns[2:4] - columns[:2] + boxes.dtype.type(offset)
    np.multiply(width, height, out=columns[4])
    return columns


def _greedy(rows: SortedRows, rule: NmsRule) -> list[int]:
    """Places in rows that survive, rising: each block is tested against the kept rows of its first group and against itself."""
    count = len(rows.group)
    columns = np.empty((5, count + BLOCK), dtype=rows.columns.dtype)  # of the kept rows, then of the block
    places, counts, start = [], [0] * len(rows.ends), 0
    while start < count:
        first = int(rows.group[start])
        if counts[first] >= rule.max_keep:
            start = rows.ends[first]
            continue
        block, group = rows.columns[:, start:start + BLOCK], rows.group[start:start + BLOCK]
        columns[:, len(places):len(places) + len(group)] = block
        before = counts[first]  # kept rows of a group that began before this block; they are the last kept ones
        exceeds = _exceeds(block, columns[:, len(places) - before:len(places) + len(group)], rule)
        removed = _as_bits(exceeds[:rows.ends[first] - start, :before].any(axis=1))
        found = []
        for row, (bit, number, removes) in enumerate(zip(BITS, group.tolist(), _pairs_as_bits(exceeds[:, before:], group), strict=False)):
            if not removed & bit and counts[number] < rule.max_keep:
                removed |= removes
                counts[number] += 1
                found.append(row)
        columns[:, len(places):len(places) + len(found)] = block[:, found]
        places += [start + row for row in found]
        start += BLOCK
    return places


def _pairs_as_bits(exceeds: np.ndarray, group: np.ndarray) -> list[int]:
    """For each row of a block, pairs (B, B) and groups (B,), a bit for each row that it removes (bits of itself and of better rows mean nothing)."""
    table = np.zeros((len(group), BLOCK), dtype=bool)
    table[:, :len(group)] = exceeds if group[0] == group[-1] else exceeds & (group[:, None] == group)
    return np.packbits(table, axis=1, bitorder="little").view("<u8")[:, 0].tolist()


def _as_bits(flags: np.ndarray) -> int:
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


def _exceeds(some: np.ndarray, others: np.ndarray, rule: NmsRule) -> np.ndarray:
    """(A, B) bool, whether the IoU of two boxes removes one: columns (5, A) and (5, B), each operation of the rule in its order, in place."""
    number = some.dtype.type
    sides = np.minimum(some[2:4, :, None], others[2:4, None])  # (2, A, B)
    sides -= np.maximum(some[:2, :, None], others[:2, None])
    sides += number(rule.offset)
    np.maximum(sides, number(0), out=sides)
    inter, union = np.multiply(sides[0], sides[1]), np.add(some[4][:, None], others[4])
    union -= inter
    inter /= union
    return (np.greater_equal if rule.inclusive else np.greater)(inter, number(rule.iou_threshold))
