"""Matching of candidates with ground truth, and sampling of a fixed number of them."""

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
        low_quality: every candidate with the best IoU of some ground truth (ties included) is matched, with
            the candidate's OWN best ground truth.
        zero_overlap: low_quality applies even if a ground truth's best IoU is 0.

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
        # a boolean index would synchronize with a GPU
        matches = torch.where(tied.any(dim=0), own_best, matches)
    return matches


class BalancedSampler:
    """A fixed number of candidates per image with at most a fraction of positives, sampled without
    replacement (Ren et al. 2015, section 3.1.3).

    On a CPU with torch.randperm, as maskrcnn-benchmark; with fixed size, where the host does not know the
    number of candidates, by the smallest random keys.

    Args:
        count: candidates per image.
        positive_fraction: at most int(count * fraction) positives; the rest are negatives.
        draw: "random", or "first" for the first ones in index order (a fixed choice, for comparisons with
            recorded outputs).
    """

    def __init__(self, count: int, positive_fraction: float, draw: str = "random") -> None:
        if draw not in ("random", "first"):
            raise ValueError(f"draw must be 'random' or 'first', not {draw!r}")
        self.count, self.positive_fraction, self.draw = count, positive_fraction, draw

    def __call__(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sample one image.

        Args:
            labels: (A,) numbers, at least 1 positive, 0 negative, below 0 never sampled.

        Returns:
            int64 indices of the positives and of the negatives, each ascending; with fixed size the maximum
            number, padded with -1.
        """
        return self.batch([labels])[0]

    def batch(self, labels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Sample each image, as for one."""
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
        else:  # in double precision ties among a quarter million keys are very unlikely
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
    """Rows of the `most` smallest keys (A,) among those marked (A,) bool, padded with -1."""
    values, rows = keys.where(marked, torch.inf).topk(min(most, len(keys)), largest=False)
    return rows.where(values < torch.inf, -1)
