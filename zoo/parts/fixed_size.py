"""Detections and losses with tensors whose lengths do not depend on data: data-dependent lengths synchronize
the host with a GPU and cannot be exported.

A list of fixed size is padded with absent rows at the end. An absent proposal has a NaN box; an absent
detection a NaN box, label -1 and score 0. The result is that of `detections.suppress`; if the fixed size is
too small for all candidates, `FixedDetections.exact` is false and the caller selects again with lists of
variable length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detection_zoo.kernels.nms_labelled import nms_labelled
from detection_zoo.zoo.records import Detections

MOST_CANDIDATES = 4096  # per image: the most rows of labelled NMS on a GPU
_forced: bool | None = None


@contextmanager
def use_fixed_size(wanted: bool) -> Iterator[None]:
    """Inside the block, models use lists of fixed size, or not, on any device; for the whole process."""
    global _forced
    before, _forced = _forced, wanted
    try:
        yield
    finally:
        _forced = before


def fixed_size(like: Tensor) -> bool:
    """Whether a model uses lists of fixed size: with tensors (N, ...) on a GPU, and during export or
    compilation. On a CPU variable lengths are faster, since cutting needs no synchronization."""
    if _forced is not None:
        return _forced
    return like.is_cuda or torch.compiler.is_compiling()


def limits_of(sizes: Tensor) -> Sequence[Any]:
    """(height, width) of each image of sizes (N, 2): numbers; during export or on a GPU rows of the tensor,
    which is not read."""
    return list(sizes.unbind()) if torch.compiler.is_compiling() or sizes.is_cuda else sizes.tolist()


def rows_of(mask: Tensor) -> Tensor | slice:
    """An index of the rows of a mask (R,) bool that a loss is computed from: on a CPU the marked rows; with
    fixed size all rows, and the loss ignores those not marked."""
    return slice(None) if fixed_size(mask) else torch.nonzero(mask).squeeze(1)


def numbers_of(mask: Tensor, most: int) -> Tensor:
    """Indices (S,) int64 of the marked rows of a mask (R,) bool, at most `most`; with fixed size exactly
    `most`, padded with -1."""
    if not fixed_size(mask):
        return torch.nonzero(mask).squeeze(1)
    return present_first(torch.arange(len(mask), device=mask.device).where(mask, -1), most)


def take(values: Tensor, rows: Tensor, absent: float) -> Tensor:
    """Rows (S,) int64 of values (R, ...); `absent` if a row is -1."""
    used = (rows >= 0).view(-1, *[1] * (values.ndim - 1))
    return values[rows.clamp(min=0)].where(used, absent)


def present_first(rows: Tensor, most: int, *, ascending: bool = False) -> Tensor:
    """Row indices (S,) int64 with -1 moved to the end, cut to `most`; the others in their order, or
    ascending."""
    if ascending:
        last = torch.iinfo(rows.dtype).max
        rows = rows.where(rows >= 0, last).sort().values
        return rows.where(rows < last, -1)[:most]
    return rows[(rows < 0).to(torch.uint8).argsort(stable=True)[:most]]


def present_rows(boxes: Tensor) -> Tensor:
    """Mark (...) bool the boxes (..., 4) that are not absent."""
    return torch.isfinite(boxes).all(dim=-1)


@dataclass
class Candidates:
    """The highest-scoring (box, class) pairs of each image, sorted by descending score (stable).

    scores (N, M), -inf if absent; rows (N, M) int64, indices into the input; total (N,) int64: number of
    candidates.
    """

    scores: Tensor
    rows: Tensor
    total: Tensor


def best_candidates(scores: Tensor, most: int = MOST_CANDIDATES) -> Candidates:
    """The `most` highest of scores (N, C) per image; absent ones are -inf."""
    total = (scores > -torch.inf).sum(dim=1)
    if scores.shape[1] > most:  # top-k returns equal scores in any order: restore it before the sort
        rows = scores.topk(most, dim=1).indices.sort(dim=1).values
        scores = scores.gather(1, rows)
    else:
        rows = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return Candidates(scores, rows.gather(1, order), total)


@dataclass
class FixedDetections:
    """Detections of fixed size per image, absent ones last, with the outputs of further heads.

    exact (N,) bool: whether the result is complete. unfit: () number of NaN objectness scores. counts: the
    result of `counts_of`, if already computed.
    """

    found: list[Detections]
    exact: Tensor
    unfit: Tensor | None = None
    counts: Tensor | None = None


def counts_of(chosen: FixedDetections) -> Tensor:
    """The numbers (N + 2,) int64 that the host needs to cut absent rows: present rows per image, whether all
    images are exact, number of unfit scores."""
    counts = torch.stack([(each.labels >= 0).sum() for each in chosen.found])
    none = counts.new_zeros(1) if chosen.unfit is None else chosen.unfit[None]
    return torch.cat([counts, chosen.exact.all()[None], none])


def suppress_fixed(
    candidates: Candidates,
    boxes: Tensor,
    labels: Tensor,
    places: Tensor,
    *,
    iou: float,
    offset: float,
    inclusive: bool,
    most: int,
    per_class: int | None = None,
) -> FixedDetections:
    """NMS per class, then the `most` highest-scoring per image, in the order of `places`.

    Args:
        candidates: of N images, M each. boxes (N, M, 4), labels (N, M) 0..K-1, places (N, M) int64: of them.
        iou, offset, inclusive: of the NMS; no NMS if iou is 0.
        per_class: maximum per class.
    """
    scores, length = candidates.scores, candidates.scores.shape[1]
    most = min(most, length)
    present = (scores > -torch.inf) & present_rows(boxes)
    if iou > 0:
        columns = length if per_class is not None else min(most + 1, length)
        kept, _ = nms_labelled(
            boxes, labels, iou, present=present, offset=offset, inclusive=inclusive, max_keep=columns
        )
    else:
        kept = torch.arange(length, device=scores.device).where(present, length).sort(dim=1).values
        kept = kept.where(kept < length, -1)
    if per_class is not None:
        kept = _first_of_class(kept, labels, per_class)
    rows = kept.clamp(min=0)
    chances = scores.gather(1, rows).where(kept >= 0, -torch.inf)
    least = chances[:, most - 1]
    exact = (candidates.total <= length) | (least > scores[:, -1])
    if kept.shape[1] > most:  # rows tied with the last are part of the result
        exact = exact & ((chances[:, most] < least) | (least == -torch.inf))
    chosen = kept[:, :most] >= 0
    rows = rows[:, :most]
    last = torch.iinfo(torch.int32).max  # inference engines may compute in int32
    order = places.gather(1, rows).where(chosen, last).sort(dim=1).indices
    rows, chosen = rows.gather(1, order), chosen.gather(1, order)
    scores = scores.gather(1, rows).where(chosen, 0.0)
    labels = labels.gather(1, rows).where(chosen, -1)
    boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4)).where(chosen[..., None], torch.nan)
    found = [Detections(*parts) for parts in zip(boxes, scores, labels, strict=True)]
    return FixedDetections(found, exact)


def _first_of_class(kept: Tensor, labels: Tensor, per_class: int) -> Tensor:
    """Of kept rows (N, C), -1 if absent, keep the first of each class and set the others to -1; the length is
    unchanged."""
    own = labels.gather(1, kept.clamp(min=0)).where(kept >= 0, -1)  # (N, C)
    earlier = (own[:, :, None] == own[:, None, :]).tril().sum(dim=2)
    length = labels.shape[1]
    kept = kept.where((kept >= 0) & (earlier <= per_class), length).sort(dim=1).values
    return kept.where(kept < length, -1)


def trim(chosen: FixedDetections) -> list[Detections] | None:
    """The present rows of each image, after one synchronization with the device; None if not exact.

    Raises:
        ValueError: objectness scores are NaN.
    """
    known = counts_of(chosen) if chosen.counts is None else chosen.counts
    *counts, exact, missing = known.tolist()
    raise_for_missing(missing)
    if not exact:
        return None
    return [each.select(slice(count)) for each, count in zip(chosen.found, counts, strict=True)]


def raise_for_missing(count: int) -> None:
    """Raise ValueError if `count` NaN objectness scores are not 0."""
    if count:
        raise ValueError(f"{count} objectness scores of the best anchors are NaN; check weights and images")
