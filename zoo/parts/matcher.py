"""Matching anchors or proposals with ground truth by IoU (Ren et al. 2015, section 3.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor

BACKGROUND, IGNORED = -1, -2


def match(
    quality: Tensor,
    foreground: float,
    background: float,
    *,
    low_quality: bool = False,
    zero_overlap: bool = True,
) -> Tensor:
    """The ground truth that each candidate is matched with.

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
        chosen = tied.any(dim=0)
        matches[chosen] = own_best[chosen]
    return matches
