"""Launches of nms.cu: sort each group, test pairs, select the kept rows of each group, and (without padding)
merge them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.launch import launch
from detection_zoo.kernels.nms_reference import NmsRule

FILE, CHUNK, THREADS, SCAN_THREADS = "nms.cu", 4096, 128, 512
_PROBLEMS = (
    "scores[{}] is NaN",
    "boxes[{}] is inverted or not finite",
    "groups[{}] is outside 0..num_groups-1",
)


class Rows(NamedTuple):
    """Rows of the input, sorted in each group; groups are stored one after another (starts is None for a
    single group)."""

    boxes: Tensor  # (R, 4)
    rows: Tensor  # (R,) int32
    keys: Tensor  # (R,) int64
    groups_at: Tensor | None  # (R,) int32, the group of each position
    starts: Tensor | None  # (G,) int32
    counts: Tensor  # (G,) int32
    outcome: Tensor  # (4,) int32: number of kept rows, and positions of an invalid score, box and group


def cuda_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, num_groups: int, rule: NmsRule) -> Tensor:
    """Kept rows (M,) int64 by descending score; synchronises with the host once, for M and errors."""
    if min(len(boxes), rule.max_keep, rule.max_candidates) == 0:
        return boxes.new_empty(0, dtype=torch.int64)
    if groups is not None and not num_groups:
        values, groups = torch.unique(groups, return_inverse=True)
        num_groups = len(values)
    num_groups = max(num_groups, 1)
    sorted_rows = _sort(boxes, scores, groups, num_groups, rule, padded=False)
    kept = boxes.new_empty((1, rule.max_keep), dtype=torch.int64) if groups is None else None
    positions, kept_counts = _settle(sorted_rows, rule, num_groups, kept, None)
    if kept is None:
        kept = boxes.new_empty((1, len(boxes)), dtype=torch.int64)
        _launch(
            sorted_rows,
            "nms_merge",
            32 * len(boxes),
            sorted_rows.keys,
            sorted_rows.rows,
            sorted_rows.groups_at,
            sorted_rows.starts,
            sorted_rows.counts,
            positions,
            kept_counts,
            kept,
            np.int32(len(boxes)),
            np.int32(num_groups),
        )
    count, *problems = sorted_rows.outcome.tolist()
    for problem, distance in zip(_PROBLEMS, problems, strict=True):
        if distance:
            raise ValueError(f"{problem.format(len(boxes) - distance)}; filter the rows before NMS")
    return kept[0, :count]


def cuda_nms_padded(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, num_groups: int, max_keep: int, rule: NmsRule
) -> tuple[Tensor, Tensor]:
    """Indices (G, max_keep) and counts (G,), int64; only launches kernels, so that it can be captured in a
    graph."""
    indices = boxes.new_empty((num_groups, max_keep), dtype=torch.int64)
    counts = boxes.new_empty(num_groups, dtype=torch.int64)
    if min(len(boxes), max_keep, rule.max_candidates) == 0:
        return indices.fill_(-1), counts.zero_()
    _settle(
        _sort(boxes, scores, groups, num_groups, rule, padded=True),
        rule._replace(max_keep=max_keep),
        num_groups,
        indices,
        counts,
    )
    return indices, counts


def _sort(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, num_groups: int, rule: NmsRule, padded: bool
) -> Rows:
    count = len(boxes)
    if count >= 2**31 // 32:
        raise ValueError(f"{count} boxes; the kernels take fewer than {2**31 // 32} at a time")
    boxes, scores = boxes.detach().contiguous(), scores.detach().contiguous()
    groups = None if groups is None else groups.long().contiguous()
    ints = boxes.new_zeros(num_groups + 4, dtype=torch.int32)  # one memset for both
    keys = boxes.new_empty(count, dtype=torch.int64)
    arrivals = None if groups is None else boxes.new_empty(count, dtype=torch.int32)
    found = Rows(
        torch.empty_like(boxes),
        boxes.new_empty(count, dtype=torch.int32),
        torch.empty_like(keys),
        None,
        None,
        ints[:num_groups],
        ints[num_groups:],
    )
    rows = np.int32(count)
    _launch(
        found,
        "nms_keys",
        count,
        boxes,
        scores,
        groups,
        keys,
        arrivals,
        found.counts,
        found.outcome[1:],
        rows,
        np.int32(num_groups),
        number_of(boxes)(-1.01 * rule.offset),
        np.int32(padded),
    )
    segment_rows = None
    if groups is not None:
        found = found._replace(
            groups_at=boxes.new_empty(count, dtype=torch.int32), starts=torch.empty_like(found.counts)
        )
        launch(
            FILE,
            "nms_starts",
            defines_of(boxes),
            (1,),
            (1024,),
            (found.counts, found.starts, np.int32(num_groups)),
            4 * 1024,
        )
        segment_keys, segment_rows = torch.empty_like(keys), torch.empty_like(found.rows)
        _launch(
            found,
            "nms_scatter",
            count,
            keys,
            groups,
            arrivals,
            found.starts,
            segment_keys,
            segment_rows,
            found.groups_at,
            rows,
        )
        keys = segment_keys
    _launch(
        found,
        "nms_rank",
        32 * count,
        boxes,
        keys,
        segment_rows,
        found.groups_at,
        found.starts,
        found.counts,
        found.keys,
        found.rows,
        found.boxes,
        rows,
        np.int32(num_groups),
        np.int32(rule.max_candidates),
    )
    return found


def _settle(
    found: Rows, rule: NmsRule, num_groups: int, padded: Tensor | None, padded_counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Positions of kept rows (R,) and their counts (G, 2) before and after the last chunk, int32."""
    count = len(found.boxes)
    words = -(-min(rule.max_candidates, CHUNK) // 64)
    mask = found.keys.new_empty((count, words))
    chunks = -(-rule.max_candidates // CHUNK)
    removed = torch.zeros_like(found.rows, dtype=torch.uint8) if chunks > 1 else None
    positions = torch.empty_like(found.rows)
    kept_counts = found.counts.new_empty((num_groups, 2))
    where = (found.groups_at, found.starts, found.counts)
    limits = (np.int32(rule.max_candidates), np.int32(rule.max_keep))
    test = (
        number_of(found.boxes)(rule.iou_threshold),
        number_of(found.boxes)(rule.offset),
        np.int32(rule.inclusive),
    )
    sizes = (np.int32(count), np.int32(num_groups))
    for chunk in map(np.int32, range(chunks)):
        launch(
            FILE,
            "nms_mask",
            defines_of(found.boxes),
            (-(-count // THREADS), words),
            (THREADS,),
            (found.boxes, *where, mask, *sizes, np.int32(words), chunk, limits[0], *test),
        )
        launch(
            FILE,
            "nms_scan",
            defines_of(found.boxes),
            (num_groups,),
            (SCAN_THREADS,),
            (
                mask,
                found.rows,
                *where[1:],
                removed,
                positions,
                kept_counts,
                found.outcome,
                padded,
                padded_counts,
                np.int32(words),
                chunk,
                *limits,
            ),
            8 * (words + 1),
        )
        if chunk + 1 < chunks:
            _launch(
                found,
                "nms_suppress",
                32 * count,
                found.boxes,
                *where,
                positions,
                kept_counts,
                removed,
                *sizes,
                chunk,
                *limits,
                *test,
            )
    return positions, kept_counts


def _launch(found: Rows, kernel: str, threads: int, *args: object) -> None:
    launch(FILE, kernel, defines_of(found.boxes), (-(-threads // THREADS),), (THREADS,), args)


def defines_of(boxes: Tensor) -> dict[str, str]:
    """The macros of a .cu file for boxes (..., 4) of this type."""
    return {"SCALAR": "double" if boxes.dtype == torch.float64 else "float"}


def number_of(boxes: Tensor) -> type[np.floating]:
    """The NumPy type that matches boxes (..., 4)."""
    return np.float64 if boxes.dtype == torch.float64 else np.float32
