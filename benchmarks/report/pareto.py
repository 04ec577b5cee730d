"""The Pareto front: points that no other point dominates. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Better = Literal["higher", "lower"]


def pareto_front(
    points: Sequence[tuple[float, float]], better: tuple[Better, Better] = ("lower", "higher")
) -> list[int]:
    """Return the indices of points that are not dominated; a dominating point is at least as good in both
    values and better in one.

    Args:
        points: (x, y) pairs.
        better: whether lower or higher is better, for x and y.

    Returns:
        Indices into `points`, best x first; equal points are all included.
    """
    signs = [1.0 if way == "lower" else -1.0 for way in better]
    cost = [(x * signs[0], y * signs[1]) for x, y in points]  # smaller is better in both
    front: list[int] = []
    for place in sorted(range(len(cost)), key=lambda place: (*cost[place], place)):
        if not front or cost[place][1] < cost[front[-1]][1] or cost[place] == cost[front[-1]]:
            front.append(place)
    return front
