"""Matching of candidates with ground truth, and the draw of a fixed number of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detection_zoo.zoo.parts.fixed_size import fixed_size, present_first

BACKGROUND, IGNORED = -1, -2  # of `match`


def match(
    quality: Tensor,
    foreground: float,
    background: float,
    *,
    low_quality: bool = False,
    zero_overlap: bool = True,
) -> Tensor:
    """The ground truth that each candidate is matched with (Ren et al. 2015, section 3.1.2).

    Args:
        quality: (G, A) float, IoU of each ground truth with each candidate.
        foreground: a best IoU of at least this is a match.
        background: a best IoU below this is background; between the two, ignored.
        low_quality: every candidate that has some ground truth's best IoU (ties too) is matched, with ITS own
            best ground truth.
        zero_overlap: low_quality holds even where a ground truth's best IoU is 0.

    Returns:
        (A,) int64: 0..G-1 a ground truth, -1 background, -2 ignored.
    """
    if quality.shape[0] == 0:
        return torch.full((quality.shape[1],), BACKGROUND, dtype=torch.int64, device=quality.device)
    best, matches = quality.max(dim=0)
    own_best = matches.clone()
    matches[best < background] = BACKGROUND
    matches[(best >= background) & (best < foreground)] = IGNORED
    if low_quality and quality.shape[1]:
        highest = quality.max(dim=1, keepdim=True).values  # (G, 1)
        tied = quality == highest
        if not zero_overlap:
            tied &= highest > 0
        matches = torch.where(tied.any(dim=0), own_best, matches)  # a mask as index would wait on a GPU
    return matches


class BalancedSampler:
    """A fixed number of candidates an image with at most a fraction of positives, drawn without replacement
    (Ren et al. 2015, section 3.1.3).

    On a CPU by torch.randperm, as maskrcnn-benchmark draws; of fixed size, where the number of candidates is
    not known to the host, by the least of as many random keys.

    Args:
        count: candidates an image.
        positive_fraction: at most int(count * fraction) positives; negatives fill up.
        draw: "random", or "first" for the first ones in index order (a fixed choice, for comparisons with
            recorded outputs).
    """

    def __init__(self, count: int, positive_fraction: float, draw: str = "random") -> None:
        if draw not in ("random", "first"):
            raise ValueError(f"draw must be 'random' or 'first', not {draw!r}")
        self.count, self.positive_fraction, self.draw = count, positive_fraction, draw

    def __call__(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pick from one image.

        Args:
            labels: (A,) numbers, at least 1 positive, 0 negative, below 0 never drawn.

        Returns:
            int64 indices of the positives and of the negatives, each ascending; of fixed size as many as can
            be drawn at most, -1 in absent rows, the last.
        """
        return self.batch([labels])[0]

    def batch(self, labels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Pick from each image, as for one."""
        if fixed_size(labels[0]):
            return [self._fixed(own) for own in labels]
        marks = [mark for own in labels for mark in (own >= 1, own == 0)]
        counts = torch.stack([mark.sum() for mark in marks]).tolist()
        rows = [
            torch.nonzero_static(mark, size=count).squeeze(1)
            for mark, count in zip(marks, counts, strict=True)
        ]
        found = []
        for positive, negative in zip(rows[::2], rows[1::2], strict=True):
            positive = self._pick(positive, int(self.count * self.positive_fraction))
            found.append((positive, self._pick(negative, self.count - len(positive))))
        return found

    def _fixed(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.draw == "first":
            keys = torch.arange(len(labels), device=labels.device, dtype=torch.float64)
        else:  # in double precision two of a quarter million are hardly ever equal
            keys = torch.rand(len(labels), device=labels.device, dtype=torch.float64)
        positive = _least(keys, labels >= 1, int(self.count * self.positive_fraction))
        negative = _least(keys, labels == 0, self.count)
        room = self.count - (positive >= 0).sum()
        negative = negative.where(torch.arange(len(negative), device=labels.device) < room, -1)
        return tuple(present_first(rows, len(rows), ascending=True) for rows in (positive, negative))

    def _pick(self, candidates: Tensor, most: int) -> Tensor:
        if len(candidates) <= most or self.draw == "first":
            return candidates[:most]
        chosen = torch.randperm(len(candidates), device=candidates.device)[:most]
        return candidates[chosen].sort().values


def _least(keys: Tensor, marked: Tensor, most: int) -> Tensor:
    """Rows of the `most` least keys (A,) among those marked (A,) bool, -1 where there are not so many."""
    values, rows = keys.where(marked, torch.inf).topk(min(most, len(keys)), largest=False)
    return rows.where(values < torch.inf, -1)
