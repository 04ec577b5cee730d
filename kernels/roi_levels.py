"""Assignment of RoIs to pyramid levels (Lin et al. 2017, equation 1), and where RoIAlign samples a level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RULES = ("legacy", "aligned", "points")  # of RoIAlign's sample points
LEGACY, ALIGNED, POINTS = range(3)


class LevelRule(NamedTuple):
    """level = floor(canonical_level + log2(sqrt(area) / canonical_scale + eps)), clamped to the existing
    levels.

    The formula is evaluated as a comparison, sqrt(area) / canonical_scale + eps >= 2^(level -
    canonical_level), which is rounded equally on all devices; float32 (float64 with float64 maps). area = (x2
    - x1 + offset) * (y2 - y1 + offset) in pixels, negative areas are 0.
    """

    canonical_scale: float = 224.0
    canonical_level: int = 4
    min_level: int = 2
    offset: float = 0.0
    eps: float = 1e-6

    def numbers(self) -> list[float]:
        """Return the rule as floats, for the schema of the operators."""
        return [float(number) for number in self]

    @classmethod
    def of(cls, numbers: list[float]) -> LevelRule:
        """Return the rule from `numbers`."""
        scale, level, least, offset, eps = numbers
        return cls(scale, int(level), int(least), offset, eps)


class Sampling(NamedTuple):
    """Where RoIAlign samples: map cells per pixel of each level, points per bin and axis (0: as many as
    cells), the index of a rule in RULES, and the level of each RoI."""

    scales: Sequence[float]
    ratio: int
    rule: int
    levels: LevelRule


def assign_levels(rois: Tensor, rule: LevelRule, num_levels: int) -> Tensor:
    """Return the level of each RoI.

    Args:
        rois: (R, 5) floating, (image index, x1, y1, x2, y2) in image pixels.
        rule: see `LevelRule`.
        num_levels: L, levels min_level .. min_level + L - 1 exist.
    Returns:
        (R,) int64 levels; a RoI with a NaN coordinate gets min_level.
    """
    x1, y1, x2, y2 = rois[:, 1:].unbind(1)
    area = (x2 - x1 + rule.offset) * (y2 - y1 + rule.offset)
    size = torch.sqrt(area.clamp(min=0)) / torch.full_like(area, rule.canonical_scale) + rule.eps
    level = torch.full_like(size, rule.min_level, dtype=torch.int64)
    for candidate in range(rule.min_level + 1, rule.min_level + num_levels):
        level += size >= 2.0 ** (candidate - rule.canonical_level)
    return level
