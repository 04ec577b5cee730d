"""Greedy non-maximum suppression: of one group, of several groups, and with outputs of fixed size that need
no synchronisation with the host.

The rule, with bitwise equal results on every backend: boxes are visited by descending score, equal scores by
    ascending index; a visited box that has not been removed is kept and removes every later box of its group
    whose IoU with it exceeds the threshold (or equals it, with `inclusive`). IoU is inter / (area_a + area_b
    - inter), each operation rounded once in the boxes' type, sides x2 - x1 + offset; scores and threshold are
    rounded to that type first. 0 / 0 (two empty boxes) removes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detection_zoo.kernels.backend import BACKENDS, backend_for, cpu_form, is_traced
from detection_zoo.kernels.nms_cuda import cuda_nms, cuda_nms_padded
from detection_zoo.kernels.nms_reference import NmsRule, best_of_all, reference_nms, reference_nms_padded
from detection_zoo.kernels.operator import operator

_NO_LIMIT = -1  # "no limit" in the operators' schema


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    offset: float = 0.0,
    inclusive: bool = False,
    max_keep: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Keep the best boxes that do not overlap a better one (on a GPU the host waits once, for the size of the
    result).

    Args:
        boxes: (R, 4) floating, (x1, y1, x2, y2) pixels; half types are widened to float32.
        scores: (R,) floating.
        iou_threshold: IoU above which the lower-scored box is removed.
        offset: added to every side; 1.0 for boxes with inclusive far corners.
        inclusive: remove at IoU equal to the threshold as well (CPU kernels of Detectron and
            maskrcnn-benchmark).
        max_keep: at most this many.
    Returns:
        (M,) int64 indices of kept boxes by descending score, ties by ascending index.
    Raises:
        ValueError: wrong shapes, NaN scores, non-finite or inverted boxes.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
        tensor([0, 2])
    """
    return batched_nms(
        boxes,
        scores,
        None,
        iou_threshold,
        offset=offset,
        inclusive=inclusive,
        max_keep=max_keep,
        backend=backend,
    )


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    *,
    num_groups: int | None = None,
    offset: float = 0.0,
    inclusive: bool = False,
    max_keep: int | None = None,
    max_candidates: int | None = None,
    max_total: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """NMS within each group, for all groups at once (image x level, image x class); groups may differ in
    size.

    Args:
        boxes, scores, iou_threshold, offset, inclusive: as in `nms`.
        groups: (R,) integers; None for one group.
        num_groups: groups are 0..num_groups-1; None: any values, which needs a sort of the groups.
        max_keep: at most this many kept per group.
        max_candidates: only the best this many of each group by score are used.
        max_total: the best this many of all groups, and those with the same score as the last one (on a CPU,
            only the best rows are then visited).
    Returns:
        (M,) int64 indices of kept boxes of all groups by descending score, ties by ascending index.
    Raises:
        ValueError: wrong shapes, NaN scores, non-finite or inverted boxes, a group outside 0..num_groups-1.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]), 0.5)
        tensor([0, 1, 2])
    """
    boxes, scores = check_rows(boxes, scores, groups, num_groups, max_keep, max_candidates, max_total)
    chosen = backend_for(boxes, backend, operator="NMS", known=BACKENDS)
    if chosen == "torchvision":
        kept = _torchvision_nms(
            boxes, scores, groups, iou_threshold, offset, inclusive, (max_keep, max_candidates)
        )
        return best_of_all(kept, scores, len(boxes) if max_total is None else max_total)
    run = _run_nms if chosen == "cpu" and not is_traced(boxes) else _nms_op
    limits = _limit(max_keep), _limit(max_candidates), _limit(max_total)
    return run(boxes, scores, groups, iou_threshold, offset, inclusive, num_groups or 0, *limits, chosen)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    *,
    num_groups: int = 1,
    max_keep: int,
    offset: float = 0.0,
    inclusive: bool = False,
    max_candidates: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """NMS within each group with outputs of fixed size; never synchronises with the host, so it can be
    captured in a CUDA graph.

    Invalid values do not raise: a row whose group is outside 0..num_groups-1, whose score is NaN or -inf, or
        whose box is non-finite or inverted, is ignored (neither kept nor removing others).

    Args:
        boxes, scores, iou_threshold, offset, inclusive, max_candidates: as in `batched_nms`.
        groups: (R,) integers in 0..num_groups-1; None for one group.
        max_keep: number of columns of the result: the maximum kept per group.
    Returns:
        (num_groups, max_keep) int64 indices by descending score, -1 after the last; (num_groups,) int64
        counts.
    Raises:
        ValueError: wrong shapes.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> groups = torch.tensor([0, 1, 0])
        >>> nms_padded(boxes, torch.tensor([0.9, 0.8, 0.7]), groups, 0.5, num_groups=2, max_keep=2)
        (tensor([[ 0,  2],
                [ 1, -1]]), tensor([2, 1]))
    """
    boxes, scores = check_rows(boxes, scores, groups, num_groups, max_keep, max_candidates)
    if groups is None and num_groups != 1:
        raise ValueError(f"num_groups is {num_groups} without groups; give groups, or leave num_groups at 1")
    chosen = backend_for(boxes, backend, operator="padded NMS", known=("reference", "cpu", "cuda"))
    return _nms_padded_op(
        boxes,
        scores,
        groups,
        iou_threshold,
        offset,
        inclusive,
        num_groups,
        max_keep,
        _limit(max_candidates),
        chosen,
    )


def check_rows(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    num_groups: int | None = None,
    max_keep: int | None = None,
    max_candidates: int | None = None,
    max_total: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return boxes (R, 4) in at least float32 and scores (R,) in the same type; raises ValueError unless
    shapes, types, devices and limits match."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(f"boxes must be floating (R, 4), got {boxes.dtype} {tuple(boxes.shape)}")
    rows = (boxes.shape[0],)
    check_beside("scores", scores, boxes, rows, "floating")
    if groups is not None:
        check_beside("groups", groups, boxes, rows, "integers")
    if num_groups is not None and num_groups < 1:
        raise ValueError(f"num_groups is {num_groups}; it must be at least 1")
    limits = {"max_keep": max_keep, "max_candidates": max_candidates, "max_total": max_total}
    for name, number in limits.items():
        if number is not None and number < 0:
            raise ValueError(f"{name} is {number}; it must be at least 0")
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes = boxes.float()
    return boxes, scores if scores.dtype == boxes.dtype else scores.to(boxes.dtype)


def check_beside(name: str, value: Tensor, boxes: Tensor, shape: tuple[int, ...], kind: str) -> None:
    """Raise ValueError unless a tensor (R, ...) has this shape, is of this kind ("floating", "integers",
    "bool"), and is on the device of the boxes."""
    integers = not value.is_floating_point() and value.dtype != torch.bool
    fits = {"floating": value.is_floating_point(), "integers": integers, "bool": value.dtype == torch.bool}
    if tuple(value.shape) != shape or not fits[kind]:
        raise ValueError(
            f"{name} must be {kind} {shape} to go with the boxes, got {value.dtype} {tuple(value.shape)}"
        )
    if value.device != boxes.device:
        raise ValueError(f"{name} on {value.device}, boxes on {boxes.device}; move them together")


def _limit(number: int | None) -> int:
    return _NO_LIMIT if number is None else number


def _rule(
    rows: int,
    iou_threshold: float,
    offset: float,
    inclusive: bool,
    max_keep: int,
    max_candidates: int,
    max_total: int = _NO_LIMIT,
) -> NmsRule:
    return NmsRule(
        iou_threshold,
        offset,
        inclusive,
        rows if max_keep == _NO_LIMIT else min(max_keep, rows),
        rows if max_candidates == _NO_LIMIT else min(max_candidates, rows),
        rows if max_total == _NO_LIMIT else min(max_total, rows),
    )


def _torchvision_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    offset: float,
    inclusive: bool,
    limits: tuple[int | None, int | None],
) -> Tensor:
    import torchvision

    if offset != 0.0 or inclusive:
        raise ValueError(
            "torchvision's NMS has neither offset nor inclusive; use backend 'reference', 'cpu' or 'cuda'"
        )
    if groups is None:
        return torchvision.ops.nms(boxes, scores, iou_threshold)[: limits[0]]
    if limits != (None, None):
        raise ValueError(
            "torchvision's batched NMS has no limits per group; use backend 'reference', 'cpu' or 'cuda'"
        )
    return torchvision.ops.batched_nms(boxes, scores, groups, iou_threshold)


def _run_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    offset: float,
    inclusive: bool,
    num_groups: int,
    max_keep: int,
    max_candidates: int,
    max_total: int,
    backend: str,
) -> Tensor:
    rule = _rule(boxes.shape[0], iou_threshold, offset, inclusive, max_keep, max_candidates, max_total)
    if backend == "cpu":
        return cpu_form("nms").cpu_nms(boxes, scores, groups, num_groups, rule)
    run = cuda_nms if backend == "cuda" else reference_nms
    return best_of_all(run(boxes, scores, groups, num_groups, rule), scores, rule.max_total)


_nms_op = operator("nms")(_run_nms)


@torch.library.register_fake(_nms_op)
def _(boxes, *_):
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@operator("nms_padded")
def _nms_padded_op(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    offset: float,
    inclusive: bool,
    num_groups: int,
    max_keep: int,
    max_candidates: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    rule = _rule(boxes.shape[0], iou_threshold, offset, inclusive, max_keep, max_candidates)
    if backend == "cpu":
        return cpu_form("nms").cpu_nms_padded(boxes, scores, groups, num_groups, max_keep, rule)
    run = cuda_nms_padded if backend == "cuda" else reference_nms_padded
    return run(boxes, scores, groups, num_groups, max_keep, rule)


@torch.library.register_fake(_nms_padded_op)
def _(boxes, scores, groups, iou_threshold, offset, inclusive, num_groups, max_keep, max_candidates, backend):
    return boxes.new_empty((num_groups, max_keep), dtype=torch.int64), boxes.new_empty(
        num_groups, dtype=torch.int64
    )
