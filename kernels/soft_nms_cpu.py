"""The rule of soft_nms.py, compiled for CPU: each picked box lowers the scores of all remaining boxes, 8 or
16 at a time; removed boxes are deleted from the arrays when they are half of them.

"linear" and "hard" equal the reference bitwise. "gaussian" differs by up to 2 ulps of exp per pick, because
NumPy and the C library round exp differently.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.machine_code import array_at, compiled
from detection_zoo.kernels.nms_reference import raise_for_values
from detection_zoo.kernels.soft_nms import GAUSSIAN, LINEAR, SoftRule


def cpu_soft_nms(boxes: Tensor, scores: Tensor, rule: SoftRule) -> tuple[Tensor, Tensor]:
    """The picked boxes and their new scores, of boxes (R, 4) and scores (R,) of their type."""
    boxes, scores, count = boxes.detach().contiguous(), scores.detach().contiguous(), scores.shape[0]
    picked, picked_scores = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=scores.dtype)
    taken = _pick_at(
        boxes.data_ptr(),
        scores.data_ptr(),
        picked.data_ptr(),
        picked_scores.data_ptr(),
        count,
        *rule,
        np.float64(1) if scores.dtype == torch.float64 else np.float32(1),
    )
    if taken < 0:
        raise_for_values(boxes, scores, rule.offset)
    return picked.resize_(taken), picked_scores.resize_(taken)


@compiled
def _pick_at(boxes, scores, picked, picked_scores, count, method, sigma, threshold, least, offset, one):
    """`_pick` of arrays at these addresses; `one` sets the type of boxes and scores."""
    number = np.full(1, one).dtype
    return _pick(
        array_at(boxes, (count, 4), number),
        array_at(scores, (count,), number),
        array_at(picked, (count,), np.int64),
        array_at(picked_scores, (count,), number),
        method,
        (number.type(sigma), number.type(threshold), number.type(least), number.type(offset)),
        number.type(-1.01 * offset),
    )


@compiled
def _any_wrong(boxes, scores, least_side):
    for row in range(len(scores)):
        x1, y1, x2, y2 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
        finite = np.isfinite(x1) and np.isfinite(y1) and np.isfinite(x2) and np.isfinite(y2)
        if scores[row] != scores[row] or not finite or x2 - x1 < least_side or y2 - y1 < least_side:
            return True
    return False


@compiled
def _pick(boxes, scores, picked, picked_scores, method, numbers, least_side):
    """Fill picked and its scores (R,); return their number, or -1 if a value is invalid."""
    if _any_wrong(boxes, scores, least_side):
        return -1
    count, number = len(scores), boxes.dtype
    sigma, threshold, least, offset = numbers
    rows = np.arange(count)
    x1, y1, x2, y2 = boxes[:, 0].copy(), boxes[:, 1].copy(), boxes[:, 2].copy(), boxes[:, 3].copy()
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    remaining, overlaps = scores.copy(), np.empty(count, number)
    alive = np.ones(count, np.bool_)
    taken, length, here = 0, count, count
    zero, one = offset - offset, areas.dtype.type(1)
    while here > 0:
        best = _best(remaining, alive, length)
        picked[taken], picked_scores[taken] = rows[best], remaining[best]
        taken += 1
        alive[best] = False
        left, top, right, bottom, area = x1[best], y1[best], x2[best], y2[best], areas[best]
        for row in range(np.uint64(length)):
            width = (right if right < x2[row] else x2[row]) - (left if left > x1[row] else x1[row]) + offset
            height = (bottom if bottom < y2[row] else y2[row]) - (top if top > y1[row] else y1[row]) + offset
            touching = (width > zero) & (height > zero)
            inter = width * height
            overlap = inter / (area + areas[row] - inter)
            overlaps[row] = overlap if touching else -one
            weight = (one - overlap if method == LINEAR else zero) if overlap > threshold else one
            score = remaining[row] * weight if touching else remaining[row]
            if method != GAUSSIAN:
                remaining[row] = score
            alive[row] &= (method == GAUSSIAN) | (not (touching & (score < least)))
        if method == GAUSSIAN:
            for row in range(np.uint64(length)):
                if alive[row] and not overlaps[row] < zero:
                    remaining[row] *= math.exp(-(overlaps[row] * overlaps[row]) / sigma)
                    alive[row] = not remaining[row] < least
        here = 0
        for row in range(np.uint64(length)):
            here += alive[row]
        if 2 * here < length:
            place = 0
            for row in range(length):
                if alive[row]:
                    rows[place], remaining[place], areas[place] = rows[row], remaining[row], areas[row]
                    x1[place], y1[place], x2[place], y2[place] = x1[row], y1[row], x2[row], y2[row]
                    alive[place] = True
                    place += 1
            length = place
    return taken


@compiled
def _best(remaining, alive, length):
    """The first remaining row with the highest score; NaN counts as highest."""
    best, found = remaining[0], -1
    for row in range(length):
        score = remaining[row]
        if alive[row] and (found < 0 or score > best or (score != score and best == best)):
            best, found = score, row
    return found
