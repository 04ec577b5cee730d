"""Soft-NMS: overlapping boxes lose score instead of being removed (Bodla et al. 2017, section 3, figure 2).

The rule of Detectron and DetNet_pytorch: the best remaining box (equal scores: lowest index) is picked; the
    score of every other remaining box that overlaps it is multiplied by a weight, and the box is removed if
    the new score is below `score_threshold`. A box that overlaps no picked box keeps its score, however low.
    Boxes are returned in the order picked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.backend import backend_for, cpu_form, is_traced
from detection_zoo.kernels.launch import launch
from detection_zoo.kernels.nms import check_rows
from detection_zoo.kernels.nms_cuda import defines_of, number_of
from detection_zoo.kernels.nms_reference import raise_for_values
from detection_zoo.kernels.operator import operator

METHODS = ("linear", "gaussian", "hard")
LINEAR, GAUSSIAN, HARD = range(3)


class SoftRule(NamedTuple):
    """Parameters of soft-NMS, as in `soft_nms`; method: an index into METHODS."""

    method: int
    sigma: float
    iou_threshold: float
    score_threshold: float
    offset: float


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: str = "linear",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.001,
    offset: float = 0.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Pick boxes by descending decayed score (on a GPU the host reads the size of the result).

    Args:
        boxes: (R, 4) floating, (x1, y1, x2, y2) pixels.
        scores: (R,) floating.
        method: weight of a box with IoU o: "linear" 1 - o above the threshold (equation 1), "gaussian"
            exp(-o^2 / sigma), "hard" 0.
        sigma: of the gaussian.
        iou_threshold: IoU above which "linear" and "hard" have an effect.
        score_threshold: overlapped boxes with a new score below it are removed.
        offset: added to every side; 1.0 for boxes with inclusive far corners.
    Returns:
        (M,) int64 indices in the order picked; (M,) new scores of the scores' type.
    Raises:
        ValueError: wrong shapes, unknown method, sigma not above 0, NaN scores, non-finite or inverted boxes.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]))
        (tensor([0, 2, 1]), tensor([0.9000, 0.7000, 0.1520]))
    """
    type_of_scores = scores.dtype
    boxes, scores = check_rows(boxes, scores)
    if method not in METHODS:
        raise ValueError(f"unknown soft-NMS method {method!r}; choose one of {', '.join(METHODS)}")
    if sigma <= 0:
        raise ValueError(f"sigma is {sigma}; it must be above 0")
    chosen = backend_for(boxes, backend, operator="soft-NMS", known=("reference", "cpu", "cuda"))
    run = _run_soft_nms if chosen == "cpu" and not is_traced(boxes) else _soft_nms_op
    kept, new_scores = run(boxes, scores, method, sigma, iou_threshold, score_threshold, offset, chosen)
    return kept, new_scores.to(type_of_scores)


def reference_soft_nms(boxes: Tensor, scores: Tensor, rule: SoftRule) -> tuple[Tensor, Tensor]:
    """The rule of this file in NumPy, one picked box at a time; boxes (R, 4), scores (R,) of their type."""
    raise_for_values(boxes, scores, rule.offset)
    number = boxes.detach().cpu().numpy().dtype.type
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.detach().cpu().numpy().T)
    remaining, offset = scores.detach().cpu().numpy().copy(), number(rule.offset)
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    rows, picked, picked_scores = np.arange(len(remaining)), [], []
    while len(rows):
        best = rows[np.argmax(remaining[rows])]  # the first of equal scores; rows stay in ascending order
        picked.append(best)
        picked_scores.append(remaining[best])
        rows = rows[rows != best]
        width = np.minimum(x2[best], x2[rows]) - np.maximum(x1[best], x1[rows]) + offset
        height = np.minimum(y2[best], y2[rows]) - np.maximum(y1[best], y1[rows]) + offset
        touching = (width > 0) & (height > 0)
        inter = np.where(touching, width * height, number(0))
        with np.errstate(invalid="ignore", divide="ignore"):
            overlap = inter / (areas[best] + areas[rows] - inter)
        lower = remaining[rows] * _weight(overlap, rule, number)
        remaining[rows] = np.where(touching, lower, remaining[rows])
        rows = rows[~(touching & (remaining[rows] < number(rule.score_threshold)))]
    kept = torch.from_numpy(np.asarray(picked, dtype=np.int64)).to(boxes.device)
    return kept, torch.from_numpy(np.asarray(picked_scores, dtype=number)).to(boxes.device)


def _weight(overlap: np.ndarray, rule: SoftRule, number: type) -> np.ndarray:
    if rule.method == GAUSSIAN:
        return np.exp(-(overlap * overlap) / number(rule.sigma))
    above = overlap > number(rule.iou_threshold)
    return np.where(above, number(1) - overlap if rule.method == LINEAR else number(0), number(1))


def cuda_soft_nms(boxes: Tensor, scores: Tensor, rule: SoftRule) -> tuple[Tensor, Tensor]:
    """One launch of soft_nms.cu, then the host reads the number picked; boxes (R, 4), scores (R,)."""
    rows, number = len(boxes), number_of(boxes)
    picked, picked_scores = boxes.new_empty(rows, dtype=torch.int64), boxes.new_empty(rows)
    count = boxes.new_zeros(2, dtype=torch.int32)
    threads = min(1024, -(-rows // 32) * 32)
    launch(
        "soft_nms.cu",
        "soft_nms",
        defines_of(boxes),
        (min(rows, 1),),
        (threads,),
        (
            boxes.detach().contiguous(),
            scores.detach().clone(),
            boxes.new_empty(rows, dtype=torch.uint8),
            picked,
            picked_scores,
            count,
            np.int32(rows),
            np.int32(rule.method),
            *map(number, rule[1:]),
            number(-1.01 * rule.offset),
        ),
        16 * 32,
    )
    taken, distance = count.tolist()
    if distance:
        raise ValueError(
            f"row {rows - distance} has a NaN score, or a box that is inverted or not finite; filter the rows"
            " before NMS"
        )
    return picked[:taken].clone(), picked_scores[:taken].clone()


def _run_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    method: str,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
    offset: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    rule = SoftRule(METHODS.index(method), sigma, iou_threshold, score_threshold, offset)
    if backend == "cpu":
        return cpu_form("soft_nms").cpu_soft_nms(boxes, scores, rule)
    return (cuda_soft_nms if backend == "cuda" else reference_soft_nms)(boxes, scores, rule)


_soft_nms_op = operator("soft_nms")(_run_soft_nms)


@torch.library.register_fake(_soft_nms_op)
def _(boxes, scores, *_):
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64), scores.new_empty(kept)
