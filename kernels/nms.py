"""Greedy non-maximum suppression, alone, in groups, and in a fixed-size form that never waits for the host.

The rule, the same bit for bit on every backend: boxes are visited by falling score, equal scores by rising index; a visited box that
is still alive is kept and removes every later box of its group whose IoU with it exceeds the threshold (or reaches it, with
`inclusive`). IoU is inter / (area_a + area_b - inter), each operation rounded once in the boxes' type, sides x2 - x1 + offset,
the threshold rounded to that type first. 0 / 0 (two empty boxes) removes nothing.
"""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .backend import backend_for

_ALL = -1  # max_keep of the operators: no limit


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, offset: float = 0.0, inclusive: bool = False,
        max_keep: int | None = None, backend: str | None = None) -> Tensor:
    """Keep the best boxes that do not overlap a better one (greedy NMS; on a GPU the result's size is read by the host).

    Args:
        boxes: (R, 4) floating, (x1, y1, x2, y2) pixels; half types are widened to float32.
        scores: (R,) floating.
        iou_threshold: IoU above which the lower-scored box is removed.
        offset: added to every side; 1.0 for boxes with inclusive far corners.
        inclusive: remove at IoU equal to the threshold as well (CPU kernels of Detectron and maskrcnn-benchmark).
        max_keep: at most this many.
    Returns:
        (M,) int64 indices of kept boxes by falling score, ties by rising index.
    Raises:
        ValueError: wrong shapes, NaN scores, non-finite or inverted boxes.
    """
    return batched_nms(boxes, scores, None, iou_threshold, offset=offset, inclusive=inclusive, max_keep=max_keep, backend=backend)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, *, offset: float = 0.0,
                inclusive: bool = False, max_keep: int | None = None, backend: str | None = None) -> Tensor:
    """NMS inside each group, for all groups at once (image x level, image x class); groups may be ragged.

    Args:
        boxes, scores, iou_threshold, offset, inclusive: as in `nms`.
        groups: (R,) integers, any values; None for one group.
        max_keep: at most this many of EACH group (a limit over all groups is a slice of the result).
    Returns:
        (M,) int64 indices of kept boxes of all groups by falling score, ties by rising index.
    Raises:
        ValueError: wrong shapes, NaN scores, non-finite or inverted boxes.
    """
    boxes = check_rows(boxes, scores, groups, max_keep)
    chosen = backend_for(boxes, backend)
    if chosen == "torchvision":
        return _torchvision_nms(boxes, scores, groups, iou_threshold, offset, inclusive, max_keep)
    return _nms_op(boxes, scores, groups, iou_threshold, offset, inclusive, _ALL if max_keep is None else max_keep, chosen)


def nms_padded(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, *, num_groups: int = 1, max_keep: int,
               offset: float = 0.0, inclusive: bool = False, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """NMS inside each group with results of a fixed size; never waits for the host, so it can be captured in a CUDA graph.

    Nothing is raised for values: a row whose group is outside 0..num_groups-1, whose score is NaN or -inf, or whose box is
    non-finite or inverted, is absent (neither kept nor removing others).

    Args:
        boxes, scores, iou_threshold, offset, inclusive: as in `nms`.
        groups: (R,) integers in 0..num_groups-1; None for one group.
        max_keep: columns of the result, and so the most kept of a group.
    Returns:
        (num_groups, max_keep) int64 indices by falling score, -1 after the last; (num_groups,) int64 counts.
    """
    boxes = check_rows(boxes, scores, groups, max_keep)
    if num_groups < 1 or (groups is None and num_groups != 1):
        raise ValueError(f"num_groups is {num_groups}; it must be at least 1, and 1 without groups")
    chosen = backend_for(boxes, backend)
    if chosen == "torchvision":
        raise ValueError("torchvision has no padded NMS; use backend 'reference' or 'cuda'")
    return _nms_padded_op(boxes, scores, groups, iou_threshold, offset, inclusive, num_groups, max_keep, chosen)


def check_rows(boxes: Tensor, scores: Tensor, groups: Tensor | None = None, max_keep: int | None = None) -> Tensor:
    """Raise ValueError unless shapes, types and devices of boxes, scores and groups go together; return boxes at least float32."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(f"boxes must be floating (R, 4), got {boxes.dtype} {tuple(boxes.shape)}")
    if scores.ndim != 1 or scores.shape[0] != boxes.shape[0] or not scores.is_floating_point():
        raise ValueError(f"scores must be floating ({boxes.shape[0]},) to go with the boxes, got {scores.dtype} {tuple(scores.shape)}")
    if groups is not None and (groups.shape != scores.shape or groups.is_floating_point() or groups.dtype == torch.bool):
        raise ValueError(f"groups must be integers ({boxes.shape[0]},) to go with the boxes, got {groups.dtype} {tuple(groups.shape)}")
    for name, other in (("scores", scores), ("groups", groups)):
        if other is not None and other.device != boxes.device:
            raise ValueError(f"{name} are on {other.device}, boxes on {boxes.device}; move them together")
    if max_keep is not None and max_keep < 0:
        raise ValueError(f"max_keep is {max_keep}; it must not be negative")
    return boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes


def inverted_or_not_finite(boxes: Tensor, offset: float) -> Tensor:
    """Mark boxes that no arithmetic on areas can be trusted with.

    Args:
        boxes: (R, 4) floating (x1, y1, x2, y2).
        offset: added to sides; x2 may lie below x1 by 1.01 offsets, since a decoded legacy box of width 0 has x2 = x1 - 1.
    Returns:
        (R,) bool.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    return ~torch.isfinite(boxes).all(dim=1) | (sides < -1.01 * offset).any(dim=1)


def raise_for_values(boxes: Tensor, scores: Tensor, offset: float) -> None:
    """Raise ValueError that names the first NaN score or the first inverted or non-finite box; reads values, so waits for a GPU."""
    missing = torch.isnan(scores)
    if missing.any():
        raise ValueError(f"scores[{int(missing.nonzero()[0])}] is NaN ({int(missing.sum())} of {len(scores)}); filter the scores before NMS")
    wrong = inverted_or_not_finite(boxes, offset)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"boxes[{row}] = {boxes[row].tolist()} is inverted or not finite ({int(wrong.sum())} of {len(boxes)}); "
                         "boxes must be (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2")


def reference_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, offset: float, inclusive: bool,
                  max_keep: int) -> Tensor:
    """The contract of this file in NumPy, one visited box at a time; arguments as in `batched_nms`, max_keep -1 for no limit."""
    raise_for_values(boxes, scores, offset)
    order = torch.sort(scores, descending=True, stable=True).indices
    by_group = order if groups is None else order[torch.sort(groups[order], stable=True).indices]
    ends = [len(order)] if groups is None else torch.unique(groups, return_counts=True)[1].cumsum(0).tolist()
    sorted_boxes = boxes.detach()[by_group].cpu().numpy()
    alive = np.zeros(len(order), dtype=bool)
    start = 0
    for end in ends:
        alive[start:end] = _greedy(sorted_boxes[start:end], iou_threshold, offset, inclusive, max_keep)
        start = end
    kept = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    kept[by_group] = torch.from_numpy(alive).to(boxes.device)
    return order[kept[order]]


def _greedy(boxes: np.ndarray, iou_threshold: float, offset: float, inclusive: bool, max_keep: int) -> np.ndarray:
    """Which of the (n, 4) boxes, already by falling score, survive."""
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    threshold, offset, zero = boxes.dtype.type(iou_threshold), boxes.dtype.type(offset), boxes.dtype.type(0)
    exceeds = np.greater_equal if inclusive else np.greater
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    alive, kept = np.ones(len(boxes), dtype=bool), 0
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        if kept == max_keep:
            alive[i:] = False
            break
        kept += 1
        width = np.maximum(np.minimum(x2[i], x2[i + 1:]) - np.maximum(x1[i], x1[i + 1:]) + offset, zero)
        height = np.maximum(np.minimum(y2[i], y2[i + 1:]) - np.maximum(y1[i], y1[i + 1:]) + offset, zero)
        inter = width * height
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 of two empty boxes: not a number, removes nothing
            alive[i + 1:] &= ~exceeds(inter / (areas[i] + areas[i + 1:] - inter), threshold)
    return alive


def reference_nms_padded(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, offset: float, inclusive: bool,
                         num_groups: int, max_keep: int) -> tuple[Tensor, Tensor]:
    """The fixed-size form by way of `reference_nms` on the rows that are present; arguments as in `nms_padded`."""
    groups = torch.zeros_like(scores, dtype=torch.int64) if groups is None else groups.long()
    present = ~(torch.isnan(scores) | torch.isneginf(scores) | inverted_or_not_finite(boxes, offset))
    rows = (present & (groups >= 0) & (groups < num_groups)).nonzero().squeeze(1)
    kept = rows[reference_nms(boxes[rows], scores[rows], groups[rows], iou_threshold, offset, inclusive, max_keep)]
    counts = torch.bincount(groups[kept], minlength=num_groups)
    order = torch.sort(groups[kept], stable=True).indices
    column = torch.arange(len(kept), device=boxes.device) - (counts.cumsum(0) - counts)[groups[kept][order]]
    indices = torch.full((num_groups, max_keep), -1, dtype=torch.int64, device=boxes.device)
    indices[groups[kept][order], column] = kept[order]
    return indices, counts


def _torchvision_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, offset: float, inclusive: bool,
                     max_keep: int | None) -> Tensor:
    import torchvision

    if offset != 0.0 or inclusive:
        raise ValueError("torchvision's NMS knows neither offset nor inclusive; use backend 'reference' or 'cuda'")
    if groups is None:
        return torchvision.ops.nms(boxes, scores.to(boxes.dtype), iou_threshold)[:max_keep]
    if max_keep is not None:
        raise ValueError("torchvision's batched NMS has no limit a group; use backend 'reference' or 'cuda'")
    return torchvision.ops.batched_nms(boxes, scores.to(boxes.dtype), groups, iou_threshold)


@torch.library.custom_op("detection_zoo::nms", mutates_args=())
def _nms_op(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, offset: float, inclusive: bool, max_keep: int,
            backend: str) -> Tensor:
    if backend == "reference":
        return reference_nms(boxes, scores, groups, iou_threshold, offset, inclusive, max_keep)
    raise RuntimeError(f"no backend {backend!r}")


@_nms_op.register_fake
def _(boxes, scores, groups, iou_threshold, offset, inclusive, max_keep, backend):
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("detection_zoo::nms_padded", mutates_args=())
def _nms_padded_op(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, offset: float, inclusive: bool,
                   num_groups: int, max_keep: int, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        return reference_nms_padded(boxes, scores, groups, iou_threshold, offset, inclusive, num_groups, max_keep)
    raise RuntimeError(f"no backend {backend!r}")


@_nms_padded_op.register_fake
def _(boxes, scores, groups, iou_threshold, offset, inclusive, num_groups, max_keep, backend):
    return boxes.new_empty((num_groups, max_keep), dtype=torch.int64), boxes.new_empty(num_groups, dtype=torch.int64)
