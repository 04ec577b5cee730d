"""The Pareto front: the lines that no other line beats in both numbers. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Better = Literal["higher", "lower"]


def pareto_front(
    points: Sequence[tuple[float, float]], better: tuple[Better, Better] = ("lower", "higher")
) -> list[int]:
    """Places of the points that no other beats: none is at least as good in both numbers and better in one.

    Args:
        points: (x, y) of each.
        better: which way x and y are better.

    Returns:
        Places in `points`, best x first; of points that coincide, all.
    """
    signs = [1.0 if way == "lower" else -1.0 for way in better]
    cost = [(x * signs[0], y * signs[1]) for x, y in points]  # smaller is better in both
    front: list[int] = []
    for place in sorted(range(len(cost)), key=lambda place: (*cost[place], place)):
        if not front or cost[place][1] < cost[front[-1]][1] or cost[place] == cost[front[-1]]:
            front.append(place)
    return front
