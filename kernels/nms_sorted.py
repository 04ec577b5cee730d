"""Greedy non-maximum suppression of groups that are already sorted by descending score, such as top-k
outputs: many groups of equal size at once, without a sort or a synchronisation with the host.

The rule is that of nms.py: rows of each group are visited in order; a visited row that has not been removed
is kept and removes every later row of its group whose IoU with it exceeds the threshold.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detection_zoo.kernels.backend import backend_for, cpu_form, is_traced
from detection_zoo.kernels.launch import launch
from detection_zoo.kernels.nms import check_beside
from detection_zoo.kernels.nms_cuda import cuda_nms_padded, defines_of, number_of
from detection_zoo.kernels.nms_reference import NmsRule, greedy, inverted_or_not_finite
from detection_zoo.kernels.operator import operator

_FILE, _THREADS, _WORD, _WARPS = "nms_sorted.cu", 256, 64, 8
MOST_ROWS = 64 * _WORD  # maximum rows of a group for nms_walk


def nms_sorted(
    boxes: Tensor,
    iou_threshold: float,
    *,
    present: Tensor | None = None,
    offset: float = 0.0,
    inclusive: bool = False,
    max_keep: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mark the rows that NMS keeps in each group; never synchronises with the host.

    Invalid values do not raise: a row that is not present, or whose box is non-finite or inverted, is ignored
        (neither kept nor removing others).

    Args:
        boxes: (G, P, 4) floating, (x1, y1, x2, y2) pixels, each group sorted by descending score; half types
            are widened to float32.
        iou_threshold, offset, inclusive: as in `nms`.
        present: (G, P) bool, rows to use; None for all.
        max_keep: at most this many of each group.
    Returns:
        (G, P) bool.
    Raises:
        ValueError: wrong shapes, types or devices.

    Examples:
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]]])
        >>> nms_sorted(boxes, 0.5)
        tensor([[ True, False,  True]])
        >>> nms_sorted(boxes, 0.5, present=torch.tensor([[False, True, True]]))
        tensor([[False,  True,  True]])
    """
    boxes = check_sorted(boxes, present, max_keep)
    chosen = backend_for(boxes, backend, operator="sorted NMS", known=("reference", "cpu", "cuda"))
    run = _run if chosen == "cpu" and not is_traced(boxes) else _nms_sorted_op
    most = boxes.shape[1]
    limit = most if max_keep is None else min(max_keep, most)
    return run(boxes, present, iou_threshold, offset, inclusive, limit, chosen)


def _run(
    boxes: Tensor,
    present: Tensor | None,
    iou_threshold: float,
    offset: float,
    inclusive: bool,
    max_keep: int,
    backend: str,
) -> Tensor:
    boxes, most = boxes.detach().contiguous(), boxes.shape[1]
    present = None if present is None else present.contiguous()
    rule = NmsRule(iou_threshold, offset, inclusive, max_keep, most, most)
    if backend == "cpu":
        return cpu_form("nms").cpu_nms_sorted(boxes, present, rule)
    return (cuda_nms_sorted if backend == "cuda" else reference_nms_sorted)(boxes, present, rule)


_nms_sorted_op = operator("nms_sorted")(_run)


@torch.library.register_fake(_nms_sorted_op)
def _(boxes, *_):
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


def check_sorted(boxes: Tensor, present: Tensor | None, max_keep: int | None) -> Tensor:
    """Return boxes (G, P, 4) in at least float32; raises ValueError unless shapes, types, devices and limit
    match."""
    if boxes.ndim != 3 or boxes.shape[2] != 4 or not boxes.is_floating_point():
        raise ValueError(f"boxes must be floating (G, P, 4), got {boxes.dtype} {tuple(boxes.shape)}")
    if present is not None:
        check_beside("present", present, boxes, tuple(boxes.shape[:2]), "bool")
    if max_keep is not None and max_keep < 0:
        raise ValueError(f"max_keep is {max_keep}; it must be at least 0")
    return boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes


def reference_nms_sorted(boxes: Tensor, present: Tensor | None, rule: NmsRule) -> Tensor:
    """Kept rows (G, P) bool, group by group; arguments as in `nms_sorted`."""
    alive = ~inverted_or_not_finite(boxes.reshape(-1, 4), rule.offset).reshape(boxes.shape[:2])
    if present is not None:
        alive &= present
    for group, own in zip(boxes, alive, strict=True):
        rows = torch.nonzero(own).squeeze(1)
        own[rows] = torch.from_numpy(greedy(group[rows].cpu().numpy(), rule)).to(boxes.device)
    return alive


def cuda_nms_sorted(boxes: Tensor, present: Tensor | None, rule: NmsRule) -> Tensor:
    """Kept rows (G, P) bool in two launches; groups of more than 4,096 rows are processed by nms.cu."""
    groups, most = boxes.shape[:2]
    if most > MOST_ROWS:
        return _longer(boxes, present, rule)
    kept = boxes.new_empty((groups, most), dtype=torch.bool)
    launch_sorted(boxes, None, present, rule, kept, None, None)
    return kept


def launch_sorted(
    boxes: Tensor,
    labels: Tensor | None,
    present: Tensor | None,
    rule: NmsRule,
    kept: Tensor | None,
    indices: Tensor | None,
    counts: Tensor | None,
) -> None:
    """Fill kept (G, P) bool, or indices (G, max_keep) and counts (G,) int64, in two launches.

    Args:
        boxes, present, rule: as in `cuda_nms_sorted`; at most MOST_ROWS rows a group.
        labels: (G, P) int64; None for a single label.
    """
    groups, most = boxes.shape[:2]
    words = -(-most // _WORD)
    number, defines = number_of(boxes), defines_of(boxes)
    mask = boxes.new_empty((groups, words * _WORD, words), dtype=torch.int64)
    tests = number(rule.iou_threshold), number(rule.offset), number(-1.01 * rule.offset)
    launch(
        _FILE,
        "nms_tiles",
        defines,
        (groups, words * (words + 1) // 2),
        (_THREADS,),
        (boxes, labels, present, mask, np.int32(most), np.int32(words), *tests, np.int32(rule.inclusive)),
        _WORD * (5 * boxes.element_size() + 16),  # per row of a word: box, area, label, word
    )
    launch(
        _FILE,
        "nms_walk",
        defines,
        (groups if words else 0,),
        (_THREADS,),
        (mask, kept, indices, counts, np.int32(most), np.int32(words), np.int32(rule.max_keep)),
        2 * _WARPS * 8,
    )


def _longer(boxes: Tensor, present: Tensor | None, rule: NmsRule) -> Tensor:
    groups, most = boxes.shape[:2]
    scores = torch.arange(most, 0, -1, dtype=boxes.dtype, device=boxes.device).repeat(groups)
    owners = torch.arange(groups, device=boxes.device).repeat_interleave(most)
    if present is not None:
        owners = owners.where(present.reshape(-1), -1)
    indices, _ = cuda_nms_padded(boxes.reshape(-1, 4), scores, owners, groups, rule.max_keep, rule)
    kept = boxes.new_zeros(groups * most + 1, dtype=torch.bool)
    kept[indices.reshape(-1)] = True  # index -1 (no row) writes to the last element
    return kept[:-1].view(groups, most)
