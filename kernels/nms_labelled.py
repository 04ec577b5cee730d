"""Greedy non-maximum suppression within each class, for lists already sorted by descending score: many lists
of equal size at once, outputs of fixed size, and no synchronisation with the host.

The rule is that of nms.py: the rows of a list are visited in order; a visited row that has not been removed
is kept and removes every later row of the same list and label whose IoU with it exceeds the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detection_zoo.kernels.backend import backend_for, cpu_form, is_traced
from detection_zoo.kernels.nms import check_beside
from detection_zoo.kernels.nms_reference import NmsRule
from detection_zoo.kernels.nms_sorted import MOST_ROWS, check_sorted, launch_sorted, reference_nms_sorted
from detection_zoo.kernels.operator import operator


def nms_labelled(
    boxes: Tensor,
    labels: Tensor,
    iou_threshold: float,
    *,
    max_keep: int,
    present: Tensor | None = None,
    offset: float = 0.0,
    inclusive: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Keep the best rows of each list that do not overlap a better one of their label; never synchronises
    with the host.

    Invalid values do not raise: a row that is not present, or whose box is non-finite or inverted, is ignored
        (neither kept nor removing others).

    Args:
        boxes: (N, M, 4) floating, (x1, y1, x2, y2) pixels, each list sorted by descending score; half types
            are widened to float32. On a GPU M is at most 4,096: use a top-k before.
        labels: (N, M) integers of any values.
        iou_threshold, offset, inclusive: as in `nms`.
        max_keep: number of columns of the result: the maximum kept per list, over all labels.
        present: (N, M) bool, rows to use, such as scores above a threshold; None for all.
    Returns:
        (N, max_keep) int64 rows by descending score, -1 after the last; (N,) int64 counts.
    Raises:
        ValueError: wrong shapes, types or devices; on a GPU more than 4,096 rows.

    Examples:
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 10, 10], [0, 1, 10, 10], [20, 20, 30, 30]]])
        >>> nms_labelled(boxes, torch.tensor([[3, 7, 3, 3]]), 0.5, max_keep=4)
        (tensor([[ 0,  1,  3, -1]]), tensor([3]))
    """
    boxes = check_sorted(boxes, present, max_keep)
    check_beside("labels", labels, boxes, tuple(boxes.shape[:2]), "integers")
    chosen = backend_for(boxes, backend, operator="labelled NMS", known=("reference", "cpu", "cuda"))
    if chosen == "cuda" and boxes.shape[1] > MOST_ROWS:
        raise ValueError(
            f"labelled NMS got lists of {boxes.shape[1]} rows, on a GPU it takes at most {MOST_ROWS}; take"
            " the best by a top-k before"
        )
    run = _run if chosen == "cpu" and not is_traced(boxes) else _nms_labelled_op
    return run(boxes, labels, present, iou_threshold, offset, inclusive, max_keep, chosen)


def _run(
    boxes: Tensor,
    labels: Tensor,
    present: Tensor | None,
    iou_threshold: float,
    offset: float,
    inclusive: bool,
    max_keep: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    boxes, labels, most = boxes.detach().contiguous(), labels.long().contiguous(), boxes.shape[1]
    present = None if present is None else present.contiguous()
    rule = NmsRule(iou_threshold, offset, inclusive, max_keep, most, most)
    if backend == "cpu":
        return cpu_form("nms").cpu_nms_labelled(boxes, labels, present, rule)
    return (cuda_nms_labelled if backend == "cuda" else reference_nms_labelled)(boxes, labels, present, rule)


_nms_labelled_op = operator("nms_labelled")(_run)


@torch.library.register_fake(_nms_labelled_op)
def _(boxes, labels, present, iou_threshold, offset, inclusive, max_keep, backend):
    lists = boxes.shape[0]
    return labels.new_empty((lists, max_keep), dtype=torch.int64), labels.new_empty(lists, dtype=torch.int64)


def reference_nms_labelled(
    boxes: Tensor, labels: Tensor, present: Tensor | None, rule: NmsRule
) -> tuple[Tensor, Tensor]:
    """Indices (N, max_keep) and counts (N,): `reference_nms_sorted` for each label; arguments as in
    `nms_labelled`."""
    every, most = rule._replace(max_keep=boxes.shape[1]), boxes.shape[1]
    kept = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        own = labels == label
        kept |= reference_nms_sorted(boxes, own if present is None else own & present, every)
    order = kept.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, : rule.max_keep]
    counts = kept.sum(dim=1).clamp(max=rule.max_keep)
    indices = labels.new_full((len(labels), rule.max_keep), -1)
    places = torch.arange(min(most, rule.max_keep), device=labels.device)
    indices[:, : len(places)] = order.where(places < counts[:, None], -1)
    return indices, counts


def cuda_nms_labelled(
    boxes: Tensor, labels: Tensor, present: Tensor | None, rule: NmsRule
) -> tuple[Tensor, Tensor]:
    """Indices (N, max_keep) and counts (N,) in two launches; arguments as in `nms_labelled`."""
    lists, most = labels.shape
    if most == 0:
        return labels.new_full((lists, rule.max_keep), -1), labels.new_zeros(lists)
    indices, counts = labels.new_empty((lists, rule.max_keep)), labels.new_empty(lists)
    launch_sorted(boxes, labels, present, rule, None, indices, counts)
    return indices, counts
