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

from detection_zoo.kernels.machine_code import array_at, compiled, least, most, part_of_compiled
from detection_zoo.kernels.nms_reference import raise_for_values
from detection_zoo.kernels.soft_nms import GAUSSIAN, LINEAR, SoftRule


def cpu_soft_nms(boxes: Tensor, scores: Tensor, rule: SoftRule) -> tuple[Tensor, Tensor]:
    """The picked boxes and their new scores, of boxes (R, 4) and scores (R,) of their type."""
    boxes, scores, count = boxes.detach().contiguous(), scores.detach().contiguous(), scores.shape[0]
    picked, picked_scores = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=scores.dtype)
    taken = _pick(
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
def _pick(
    boxes_at, scores_at, picked_at, picked_scores_at, count, method, sigma, threshold, lowest, offset, one
):  # fmt: skip
    """Fill picked and its scores (R,); return their number, or -1 if a value is invalid. Arrays are given by
    their addresses; `one` has the type of boxes and scores."""
    boxes, scores = array_at(boxes_at, (count, 4), one), array_at(scores_at, (count,), one)
    picked, picked_scores = array_at(picked_at, (count,), np.int64), array_at(picked_scores_at, (count,), one)
    number, zero = boxes.dtype.type, one - one
    least_side = number(-1.01 * offset)
    sigma, threshold, lowest, offset = number(sigma), number(threshold), number(lowest), number(offset)
    rows, alive = np.empty(count, np.int64), np.empty(count, np.bool_)
    x1, y1, areas = np.empty(count, boxes.dtype), np.empty(count, boxes.dtype), np.empty(count, boxes.dtype)
    x2, y2, overlaps = np.empty_like(x1), np.empty_like(x1), np.empty_like(x1)
    remaining = np.empty_like(x1)
    for row in range(count):
        left, top, right, bottom = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
        finite = np.isfinite(left) and np.isfinite(top) and np.isfinite(right) and np.isfinite(bottom)
        wide, high = right - left, bottom - top
        if scores[row] != scores[row] or not finite or wide < least_side or high < least_side:
            return -1
        rows[row], alive[row] = row, True
        x1[row], y1[row], x2[row], y2[row] = left, top, right, bottom
        areas[row], remaining[row] = (wide + offset) * (high + offset), scores[row]
    taken, length, here = 0, count, count
    while here > 0:
        best = _best(remaining, alive, length)
        picked[taken], picked_scores[taken] = rows[best], remaining[best]
        taken += 1
        alive[best] = False
        left, top, right, bottom, area = x1[best], y1[best], x2[best], y2[best], areas[best]
        for row in range(np.uint64(length)):
            width = least(right, x2[row]) - most(left, x1[row]) + offset
            height = least(bottom, y2[row]) - most(top, y1[row]) + offset
            touching = (width > zero) & (height > zero)
            inter = width * height
            overlap = inter / (area + areas[row] - inter)
            overlaps[row] = overlap if touching else -one
            weight = (one - overlap if method == LINEAR else zero) if overlap > threshold else one
            score = remaining[row] * weight if touching else remaining[row]
            if method != GAUSSIAN:
                remaining[row] = score
            alive[row] &= (method == GAUSSIAN) | (not (touching & (score < lowest)))
        if method == GAUSSIAN:
            for row in range(np.uint64(length)):
                if alive[row] and not overlaps[row] < zero:
                    remaining[row] *= math.exp(-(overlaps[row] * overlaps[row]) / sigma)
                    alive[row] = not remaining[row] < lowest
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


@part_of_compiled
def _best(remaining, alive, length):
    """The first remaining row with the highest score; NaN counts as highest."""
    best, found = remaining[0], -1
    for row in range(length):
        score = remaining[row]
        if alive[row] and (found < 0 or score > best or (score != score and best == best)):
            best, found = score, row
    return found
