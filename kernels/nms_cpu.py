"""The rule of nms.py, compiled for CPU: rows are visited by descending score, and each is tested against the
kept rows of its group.

The kept rows of a group are contiguous in memory, so that vector instructions test 8 or 16 of them at once.
Whether a row is kept depends only on better rows, so the loop ends when a limit over all groups is reached.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from detection_zoo.kernels.machine_code import array_at, compiled, least, most, part_of_compiled
from detection_zoo.kernels.nms_reference import NmsRule, raise_for_groups, raise_for_values

CHUNK = 32  # kept rows tested together before the result is read
# by type of the boxes: relative tolerance and smallest area of the fast test, 0 of the type of score bits
SMALL = {
    torch.float32: (np.float32(4.8e-7), np.float32(1e-30), np.uint32(0)),
    torch.float64: (np.float64(8.9e-16), np.float64(1e-290), np.uint64(0)),
}


def cpu_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, num_groups: int, rule: NmsRule) -> Tensor:
    """Kept rows (M,) int64 by descending score; arguments as in `kernels.nms_reference.reference_nms`."""
    kept = torch.empty(scores.shape[0], dtype=torch.int64)
    count = _run(boxes, scores, groups, num_groups, rule, rule.max_keep, kept, None)
    if count < 0:
        raise_for_values(boxes, scores, rule.offset)
        raise_for_groups(groups, num_groups)
    return kept.resize_(count)


def cpu_nms_padded(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, num_groups: int, max_keep: int, rule: NmsRule
) -> tuple[Tensor, Tensor]:
    """Indices (G, max_keep) and counts (G,), int64; arguments as in `kernels.nms.nms_padded`."""
    indices, counts = torch.full((num_groups, max_keep), -1), torch.zeros(num_groups, dtype=torch.int64)
    _run(boxes, scores, groups, num_groups, rule, max_keep, indices, counts)
    return indices, counts


def cpu_nms_sorted(boxes: Tensor, present: Tensor | None, rule: NmsRule) -> Tensor:
    """Kept rows (G, P) bool of boxes (G, P, 4), both contiguous; arguments as in
    `kernels.nms_sorted.nms_sorted`."""
    kept = torch.empty(boxes.shape[:2], dtype=torch.bool)
    _run_sorted(boxes, None, present, rule, kept, None, None)
    return kept


def cpu_nms_labelled(
    boxes: Tensor, labels: Tensor, present: Tensor | None, rule: NmsRule
) -> tuple[Tensor, Tensor]:
    """Indices (N, max_keep) and counts (N,), int64, of boxes (N, M, 4), all contiguous; arguments as in
    `kernels.nms_labelled.nms_labelled`."""
    indices = torch.full((boxes.shape[0], rule.max_keep), -1)
    counts = torch.zeros(boxes.shape[0], dtype=torch.int64)
    _run_sorted(boxes, labels, present, rule, None, indices, counts)
    return indices, counts


def _run_sorted(
    boxes: Tensor,
    labels: Tensor | None,
    present: Tensor | None,
    rule: NmsRule,
    kept: Tensor | None,
    indices: Tensor | None,
    counts: Tensor | None,
) -> None:
    given = (0 if each is None else each.data_ptr() for each in (labels, present, kept, indices, counts))
    numbers = rule.iou_threshold, rule.offset, rule.inclusive, rule.max_keep
    _suppress_sorted(boxes.data_ptr(), *given, *boxes.shape[:2], *numbers, *SMALL[boxes.dtype][:2])


def _run(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    num_groups: int,
    rule: NmsRule,
    max_keep: int,
    kept: Tensor,
    counts: Tensor | None,
) -> int:
    boxes, scores = boxes.contiguous(), scores.contiguous()
    groups = None if groups is None else groups.long().contiguous()
    return _suppress(
        boxes.data_ptr(),
        scores.data_ptr(),
        0 if groups is None else groups.data_ptr(),
        scores.shape[0],
        1 if groups is None else num_groups,
        rule.iou_threshold,
        rule.offset,
        rule.inclusive,
        max_keep,
        rule.max_candidates,
        rule.max_total,
        kept.data_ptr(),
        0 if counts is None else counts.data_ptr(),
        *SMALL[boxes.dtype],
    )


@compiled
def _suppress(
    boxes_at, scores_at, groups_at, rows, num_groups, threshold, offset, inclusive,
    max_keep, max_candidates, max_total, kept_at, counts_at, part, small, bits,
):  # fmt: skip
    """Return the number of kept rows, or -1 if a value is invalid. Arrays are given by their addresses, 0 for
    none; `counts` only with padding. `part` and `bits` set the types of boxes and of the bits of scores."""
    boxes, scores = array_at(boxes_at, (rows, 4), part), array_at(scores_at, (rows,), part)
    groups = array_at(groups_at, (rows if groups_at else 0,), np.int64)
    kept = array_at(kept_at, (num_groups * max_keep if counts_at else rows,), np.int64)
    counts = array_at(counts_at, (num_groups if counts_at else 0,), np.int64)
    number = boxes.dtype.type
    numbers = number(threshold), number(offset), part, small
    least_side = number(-1.01 * offset)
    padded = len(counts) > 0
    group = np.zeros(rows, np.int32)
    if len(groups) and num_groups > 0:
        for row in range(rows):
            group[row] = groups[row] if 0 <= groups[row] < num_groups else -1
    elif len(groups):
        num_groups = _dense_groups(groups, group)
    order = np.empty(rows, np.int32)
    sizes = np.zeros(num_groups, np.int32)
    present = 0
    for row in range(rows):
        score = scores[row]
        wrong = score != score or group[row] < 0 or _is_wrong(boxes, row, least_side)
        if wrong and not padded:
            return -1
        if wrong or (padded and score == -np.inf):
            continue
        order[present] = row
        present += 1
        sizes[group[row]] += 1
    if present == 0:
        return 0
    order = _by_falling_score(array_at(scores_at, (rows,), bits), order[:present])
    padding = np.int64(0)  # `_columns` would be compiled for a plain 0, too
    starts = np.empty(num_groups, np.int64)
    for own in range(num_groups):  # each group has a whole number of chunks
        starts[own] = padding
        padding += (sizes[own] + CHUNK - 1) // CHUNK * CHUNK
    columns = _columns(padding, part)
    visited, kept_of = np.zeros(num_groups, np.int32), np.zeros(num_groups, np.int32)
    total = 0
    for row in order:
        if (
            not padded
            and total >= max_total
            and (max_total == 0 or scores[row] != scores[kept[max_total - 1]])
        ):
            break
        own = group[row]
        if visited[own] == max_candidates or kept_of[own] == max_keep:
            continue
        visited[own] += 1
        start, end = starts[own], starts[own] + kept_of[own]
        if _is_removed(boxes, row, columns, start, end, numbers, inclusive):
            continue
        kept[own * max_keep + kept_of[own] if padded else total] = row
        kept_of[own] += 1
        total += 1
    for own in range(len(counts)):
        counts[own] = kept_of[own]
    return total


@part_of_compiled
def _columns(padding, number):
    """Kept rows (5, padding) for `_is_removed`: left, top, right, bottom, area; absent ones overlap none."""
    columns = np.empty((5, padding), type(number))
    for place in range(padding):
        columns[0, place] = columns[1, place] = np.inf
        columns[2, place] = columns[3, place] = -np.inf
        columns[4, place] = 0
    return columns


@njit(inline="always", error_model="numpy")  # a call with so many arrays takes as long as the test itself
def _is_removed(boxes, row, columns, start, end, numbers, inclusive):
    """Whether a box overlaps one of the kept rows start..end-1 of the columns, padded to whole chunks;
    otherwise it becomes row `end`."""
    threshold, offset, part, small = numbers
    x1, y1, x2, y2 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
    area = (x2 - x1 + offset) * (y2 - y1 + offset)
    zero = part - part  # in the type of the boxes
    for first in range(start, end, CHUNK):
        above, below = False, True
        for lane in range(CHUNK):
            other = np.uint64(first) + np.uint64(lane)  # a signed index would prevent vector loads
            width = least(x2, columns[2, other]) - most(x1, columns[0, other]) + offset
            height = least(y2, columns[3, other]) - most(y1, columns[1, other]) + offset
            inter = most(width, zero) * most(height, zero)
            limit = threshold * (area + columns[4, other] - inter)
            slack = limit * part
            above |= limit > small and inter > limit + slack
            below &= limit > small and inter < limit - slack
        if above:
            return True
        if below:
            continue
        for other in range(first, min(first + CHUNK, end)):
            width = least(x2, columns[2, other]) - most(x1, columns[0, other]) + offset
            height = least(y2, columns[3, other]) - most(y1, columns[1, other]) + offset
            inter = most(width, zero) * most(height, zero)
            quotient = inter / (area + columns[4, other] - inter)  # 0 / 0 is NaN and removes nothing
            if quotient > threshold or (inclusive and quotient == threshold):
                return True
    columns[0, end], columns[1, end], columns[2, end], columns[3, end] = x1, y1, x2, y2
    columns[4, end] = area
    return False


@compiled
def _suppress_sorted(
    boxes_at, labels_at, present_at, kept_at, indices_at, counts_at, groups, rows, threshold, offset,
    inclusive, max_keep, part, small,
):  # fmt: skip
    """Fill kept (G, P) uint8, or indices (G, max_keep), initially -1, and counts (G,). Boxes (G * P, 4) are
    sorted by descending score in each group; without labels and present (G * P,), all rows have one label and
    are there. Arrays are given by their addresses, 0 for none; `part` sets the type of boxes."""
    every = groups * rows
    boxes, labels = array_at(boxes_at, (every, 4), part), array_at(labels_at, (every,), np.int64)
    present, kept = array_at(present_at, (every,), np.uint8), array_at(kept_at, (every,), np.uint8)
    indices = array_at(indices_at, (groups * max_keep,), np.int64)
    counts = array_at(counts_at, (groups,), np.int64)
    number = boxes.dtype.type
    numbers = number(threshold), number(offset), part, small
    least_side = number(-1.01 * offset)
    own = np.zeros(rows, np.int32)
    for row in range(every if kept_at else 0):
        kept[row] = 0
    for group in range(groups if rows > 0 else 0):
        first, num_labels = group * rows, 1
        if labels_at:
            num_labels = _dense_groups(labels[first : first + rows], own)
        starts, kept_of = np.zeros(num_labels + 1, np.int64), np.zeros(num_labels, np.int64)
        for place in range(rows):
            starts[own[place] + 1] += 1
        for label in range(num_labels):  # each label has a whole number of chunks
            starts[label + 1] = starts[label] + (starts[label + 1] + CHUNK - 1) // CHUNK * CHUNK
        columns = _columns(starts[num_labels], part)
        count = 0
        for place in range(rows):
            if count == max_keep:
                break
            row = first + place
            if (present_at and not present[row]) or _is_wrong(boxes, row, least_side):
                continue
            start = starts[own[place]]
            end = start + kept_of[own[place]]
            if _is_removed(boxes, row, columns, start, end, numbers, inclusive):
                continue
            kept_of[own[place]] += 1
            if kept_at:
                kept[row] = 1
            else:
                indices[group * max_keep + count] = place
            count += 1
        if counts_at:
            counts[group] = count


@part_of_compiled
def _is_wrong(boxes, row, least_side):
    x1, y1, x2, y2 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
    finite = np.isfinite(x1) and np.isfinite(y1) and np.isfinite(x2) and np.isfinite(y2)
    return not finite or x2 - x1 < least_side or y2 - y1 < least_side


@part_of_compiled
def _by_falling_score(bits, rows):
    """Rows by descending score, stable; `bits` are the scores as unsigned integers."""
    sign = np.uint64(1) << np.uint64(8 * bits.itemsize - 1)
    keys = np.empty(len(rows), bits.dtype)
    for place in range(len(rows)):
        key = np.uint64(bits[rows[place]])
        if key == sign:  # -0 equals 0
            key = np.uint64(0)
        keys[place] = key if key & sign else ~key & (sign - np.uint64(1))
    return _sorted(keys, rows)


@part_of_compiled
def _sorted(keys, rows):
    """Rows by ascending key, stable: a radix sort by bytes, starting with the last."""
    length, places = len(rows), keys.itemsize
    counts = np.zeros((places, 256), np.int32)
    for key in keys:
        for place in range(places):
            counts[place, (np.uint64(key) >> np.uint64(8 * place)) & np.uint64(255)] += 1
    other_keys, other_rows = np.empty_like(keys), np.empty_like(rows)
    for place in range(places):
        shift = np.uint64(8 * place)
        if counts[place, (np.uint64(keys[0]) >> shift) & np.uint64(255)] == length:
            continue  # all keys are equal in this byte
        before = 0
        for digit in range(256):
            before, counts[place, digit] = before + counts[place, digit], before
        for index in range(length):
            digit = (np.uint64(keys[index]) >> shift) & np.uint64(255)
            to = counts[place, digit]
            other_keys[to], other_rows[to] = keys[index], rows[index]
            counts[place, digit] = to + 1
        keys, other_keys, rows, other_rows = other_keys, keys, other_rows, rows
    return rows


@part_of_compiled
def _dense_groups(groups, group):
    """Fill `group` with 0 .. G - 1, in the order of the values of groups, and return G."""
    keys, order = np.empty(len(groups), np.uint64), np.empty(len(groups), np.int32)
    for row in range(len(groups)):
        keys[row], order[row] = groups[row], row
    order = _sorted(keys, order)
    found = 0
    for place in range(len(order)):
        if place > 0 and groups[order[place]] != groups[order[place - 1]]:
            found += 1
        group[order[place]] = found
    return found + 1
