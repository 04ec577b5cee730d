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

from detection_zoo.kernels.machine_code import array_at, compiled
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
    _suppress_sorted_at(boxes.data_ptr(), *given, *boxes.shape[:2], *numbers, *SMALL[boxes.dtype][:2])


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
    return _suppress_at(
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
def _suppress_at(
    boxes, scores, groups, rows, num_groups, threshold, offset, inclusive,
    max_keep, max_candidates, max_total, kept, counts, part, least, bits,
):  # fmt: skip
    """`_suppress` of arrays at these addresses; `part` and `bits` set the types."""
    number = np.full(1, part).dtype
    return _suppress(
        array_at(boxes, (rows, 4), number),
        array_at(scores, (rows,), number),
        array_at(scores, (rows,), np.full(1, bits).dtype),
        array_at(groups, (rows if groups else 0,), np.int64),
        num_groups,
        (number.type(threshold), number.type(offset), number.type(-1.01 * offset)),
        (part, least),
        inclusive,
        (max_keep, max_candidates, max_total),
        array_at(kept, (num_groups * max_keep if counts else rows,), np.int64),
        array_at(counts, (num_groups if counts else 0,), np.int64),
    )


@compiled
def _suppress(boxes, scores, bits, groups, num_groups, numbers, small, inclusive, limits, kept, counts):
    """Return the number of kept rows, or -1 if a value is invalid; `counts` is empty without padding."""
    max_keep, max_candidates, max_total = limits
    offset, least_side = numbers[1:]
    padded = len(counts) > 0
    group = np.zeros(len(scores), np.int32)
    if len(groups):
        num_groups = _dense_groups(groups, num_groups, group)
    order = np.empty(len(scores), np.int32)
    sizes = np.zeros(num_groups, np.int32)
    present = 0
    for row in range(len(scores)):
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
    order = _by_falling_score(bits, order[:present])
    padding = 0
    starts = np.empty(num_groups, np.int64)
    for own in range(num_groups):  # each group has a whole number of chunks
        starts[own] = padding
        padding += (sizes[own] + CHUNK - 1) // CHUNK * CHUNK
    left, right = np.full(padding, np.inf, boxes.dtype), np.full(padding, -np.inf, boxes.dtype)
    top, bottom, areas = left.copy(), right.copy(), np.zeros(padding, boxes.dtype)
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
        x1, y1, x2, y2 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
        area = (x2 - x1 + offset) * (y2 - y1 + offset)
        start, end = starts[own], starts[own] + kept_of[own]
        if _is_removed(
            (x1, y1, x2, y2, area), (left, top, right, bottom, areas), start, end, numbers, small, inclusive
        ):
            continue
        left[end], top[end], right[end], bottom[end], areas[end] = x1, y1, x2, y2, area
        kept[own * max_keep + kept_of[own] if padded else total] = row
        kept_of[own] += 1
        total += 1
    for own in range(len(counts)):  # assigning a slice would compile the text of its error: 2 s
        counts[own] = kept_of[own]
    return total


@njit(inline="always", error_model="numpy")  # a call with so many arrays takes as long as the test itself
def _is_removed(box, kept, start, end, numbers, small, inclusive):
    """Whether a box overlaps one of the kept rows start..end-1; rows are padded to whole chunks."""
    x1, y1, x2, y2, area = box
    left, top, right, bottom, areas = kept
    threshold, offset = numbers[:2]
    part, least = small
    zero = part - part  # in the type of the boxes
    for first in range(start, end, CHUNK):
        above, below = False, True
        for lane in range(CHUNK):
            other = np.uint64(first) + np.uint64(lane)  # a signed index would prevent vector loads
            width = _least(x2, right[other]) - _most(x1, left[other]) + offset
            height = _least(y2, bottom[other]) - _most(y1, top[other]) + offset
            inter = _most(width, zero) * _most(height, zero)
            limit = threshold * (area + areas[other] - inter)
            slack = limit * part
            above |= limit > least and inter > limit + slack
            below &= limit > least and inter < limit - slack
        if above:
            return True
        if below:
            continue
        for other in range(first, min(first + CHUNK, end)):
            width = _least(x2, right[other]) - _most(x1, left[other]) + offset
            height = _least(y2, bottom[other]) - _most(y1, top[other]) + offset
            inter = _most(width, zero) * _most(height, zero)
            quotient = inter / (area + areas[other] - inter)  # 0 / 0 is NaN and removes nothing
            if quotient > threshold or (inclusive and quotient == threshold):
                return True
    return False


@compiled
def _suppress_sorted(boxes, labels, present, outcome, numbers, small, inclusive, max_keep):
    """Fill the outcome: kept (G, P) uint8, or indices (G, max_keep), initially -1, and counts (G,); unused
    arrays are empty. Boxes (G * P, 4) are sorted by descending score in each group; labels and present (G *
    P,) are empty for a single label and for all rows."""
    kept, indices, counts, groups, most = outcome
    offset, least_side = numbers[1:]
    own = np.zeros(most, np.int32)
    kept[:] = 0
    for group in range(groups if most > 0 else 0):
        first, num_labels = group * most, 1
        if len(labels):
            num_labels = _dense_groups(labels[first : first + most], 0, own)
        starts, kept_of = np.zeros(num_labels + 1, np.int64), np.zeros(num_labels, np.int64)
        for place in range(most):
            starts[own[place] + 1] += 1
        for label in range(num_labels):  # each label has a whole number of chunks
            starts[label + 1] = starts[label] + (starts[label + 1] + CHUNK - 1) // CHUNK * CHUNK
        padding = starts[num_labels]
        left, right = np.full(padding, np.inf, boxes.dtype), np.full(padding, -np.inf, boxes.dtype)
        top, bottom, areas = left.copy(), right.copy(), np.zeros(padding, boxes.dtype)
        count = 0
        for place in range(most):
            if count == max_keep:
                break
            row = first + place
            if (len(present) and not present[row]) or _is_wrong(boxes, row, least_side):
                continue
            x1, y1, x2, y2 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
            area = (x2 - x1 + offset) * (y2 - y1 + offset)
            start = starts[own[place]]
            end = start + kept_of[own[place]]
            columns = left, top, right, bottom, areas
            if _is_removed((x1, y1, x2, y2, area), columns, start, end, numbers, small, inclusive):
                continue
            left[end], top[end], right[end], bottom[end], areas[end] = x1, y1, x2, y2, area
            kept_of[own[place]] += 1
            if len(kept):
                kept[row] = 1
            else:
                indices[group * max_keep + count] = place
            count += 1
        if len(counts):
            counts[group] = count


@compiled
def _suppress_sorted_at(
    boxes, labels, present, kept, indices, counts, groups, most, threshold, offset, inclusive, max_keep,
    part, least,
):  # fmt: skip
    """`_suppress_sorted` of arrays at these addresses; `part` sets the type of boxes."""
    number = np.full(1, part).dtype
    _suppress_sorted(
        array_at(boxes, (groups * most, 4), number),
        array_at(labels, (groups * most if labels else 0,), np.int64),
        array_at(present, (groups * most if present else 0,), np.uint8),
        (
            array_at(kept, (groups * most if kept else 0,), np.uint8),
            array_at(indices, (groups * max_keep if indices else 0,), np.int64),
            array_at(counts, (groups if counts else 0,), np.int64),
            groups,
            most,
        ),
        (number.type(threshold), number.type(offset), number.type(-1.01 * offset)),
        (part, least),
        inclusive,
        max_keep,
    )


@compiled
def _least(a, b):
    return a if a < b else b


@compiled
def _most(a, b):
    return a if a > b else b


@compiled
def _is_wrong(boxes, row, least_side):
    x1, y1, x2, y2 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
    finite = np.isfinite(x1) and np.isfinite(y1) and np.isfinite(x2) and np.isfinite(y2)
    return not finite or x2 - x1 < least_side or y2 - y1 < least_side


@compiled
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


@compiled
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


@compiled
def _dense_groups(groups, num_groups, group):
    """Fill `group` with 0 .. G - 1 (-1 if outside 0 .. num_groups - 1) and return G; num_groups 0: groups of
    any values."""
    if num_groups > 0:
        for row in range(len(groups)):
            group[row] = groups[row] if 0 <= groups[row] < num_groups else -1
        return num_groups
    keys = groups.astype(np.uint64)
    order = _sorted(keys, np.arange(len(groups)).astype(np.int32))
    found = 0
    for place in range(len(order)):
        if place > 0 and groups[order[place]] != groups[order[place - 1]]:
            found += 1
        group[order[place]] = found
    return found + 1
