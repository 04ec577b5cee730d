"""Samplers: which labelled candidates enter a loss. A sampler maps labels to (positive, negative) indices;
others of its kind may replace it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sampler = Callable[[Tensor], tuple[Tensor, Tensor]]


class BalancedSampler:
    """A fixed number of candidates an image with at most a fraction of positives, drawn without replacement
    (Ren et al. 2015, section 3.1.3).

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
            int64 indices of the positives and of the negatives, each ascending.
        """
        positive = self._pick(torch.nonzero(labels >= 1).squeeze(1), int(self.count * self.positive_fraction))
        negative = self._pick(torch.nonzero(labels == 0).squeeze(1), self.count - len(positive))
        return positive, negative

    def _pick(self, candidates: Tensor, most: int) -> Tensor:
        if len(candidates) <= most or self.draw == "first":
            return candidates[:most]
        chosen = torch.randperm(len(candidates), device=candidates.device)[:most]
        return candidates[chosen].sort().values
