"""Outlines of the objects in the `shapes` dataset, drawn in a unit square and placed by scale and
position."""

from __future__ import annotations

import numpy as np

# Category ids have gaps, like COCO's, so that confusing ids and labels is noticed.
SHAPE_CATEGORIES = (
    *((1, "person"), (2, "circle"), (4, "square"), (7, "triangle")),
    *((8, "star"), (11, "cross"), (13, "arrow"), (16, "crescent")),
)


def hue_of(name: str) -> float:
    """The most frequent hue (0..1) of a class's objects."""
    names = [known for _, known in SHAPE_CATEGORIES]
    return names.index(name) / len(names)


_PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
KEYPOINT_NAMES = ("nose", *(f"{side}_{part}" for part in _PAIRS for side in ("left", "right")))  # COCO's
# numbered from 1, as COCO's
SKELETON = (
    (16, 14),
    (14, 12),
    (17, 15),
    (15, 13),
    (12, 13),
    (6, 12),
    (7, 13),
    (6, 7),
    (6, 8),
    (7, 9),
    (8, 10),
    (9, 11),
    (2, 3),
    (1, 2),
    (1, 3),
    (2, 4),
    (3, 5),
    (4, 6),
    (5, 7),
)
# upper and lower joint, numbered from 0, and x, y from the one to the other
_SEGMENTS = (
    *((5, 7, 0.09, 0.13), (6, 8, -0.09, 0.13), (7, 9, 0.03, 0.13), (8, 10, -0.03, 0.13)),
    *((11, 13, 0.02, 0.2), (12, 14, -0.02, 0.2), (13, 15, 0.01, 0.2), (14, 16, -0.01, 0.2)),
)
_DRAWN = (0, 2, 1, 3, 4, 6, 5, 7)  # places in _SEGMENTS, limb by limb


def outline(name: str, random: np.random.RandomState) -> tuple[list[np.ndarray], np.ndarray | None]:
    """One object in a unit square, turned and posed at random.

    Args:
        name: a class of SHAPE_CATEGORIES.
        random: source of the pose.

    Returns:
        Polygons, each (n, 2) float64 x, y, whose union is the object; keypoints (17, 2) for a person, None
        for the others.
    """
    if name == "person":
        return _person(random)
    turn = random.uniform(0, 2 * np.pi)
    if name == "circle":
        return [_ring(32, 1.0, turn)], None
    if name == "square":
        return [_ring(4, 1.0, np.pi / 4 + random.uniform(-0.3, 0.3))], None
    if name == "triangle":
        return [_ring(3, 1.0, turn)], None
    if name == "star":
        return [_ring(10, np.tile([1.0, 0.45], 5), turn)], None
    if name in _CORNERS:
        return [_turned(np.array(_CORNERS[name]), turn)], None
    if name == "crescent":
        return [_turned(_crescent(), turn)], None
    raise ValueError(f"no outline for class {name!r}")


_CORNERS = {
    "cross": [
        *((0.35, 0), (0.65, 0), (0.65, 0.35), (1, 0.35), (1, 0.65), (0.65, 0.65)),
        *((0.65, 1), (0.35, 1), (0.35, 0.65), (0, 0.65), (0, 0.35), (0.35, 0.35)),
    ],
    "arrow": [(0.5, 0), (1, 0.5), (0.68, 0.5), (0.68, 1), (0.32, 1), (0.32, 0.5), (0, 0.5)],
}


def _crescent() -> np.ndarray:
    """A disc without a second disc of four fifths of its radius, shifted to its edge."""
    outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 25)
    tips = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    centre = np.array([0.45, 0.0])
    radius = float(np.linalg.norm(tips[0] - centre))
    start = np.arctan2(*(tips[-1] - centre)[::-1]) % (2 * np.pi)
    stop = np.arctan2(*(tips[0] - centre)[::-1]) % (2 * np.pi)
    inner = np.linspace(start, stop, 19)[1:-1]
    return np.concatenate([tips, centre + radius * np.stack([np.cos(inner), np.sin(inner)], axis=1)])


def _turned(corners: np.ndarray, turn: float) -> np.ndarray:
    """Corners (n, 2) turned by an angle in radians and fitted into the unit square."""
    turned = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    low, high = turned.min(axis=0), turned.max(axis=0)
    return (turned - low) / (high - low).max()


def _ring(corners: int, radius: float | np.ndarray, turn: float) -> np.ndarray:
    """Corners on a circle around (0.5, 0.5), fitted into the unit square."""
    angle = turn + 2 * np.pi * np.arange(corners) / corners
    points = (
        np.stack([np.cos(angle), np.sin(angle)], axis=1)
        * np.broadcast_to(np.asarray(radius), (corners,))[:, None]
    )
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / (high - low).max()


def _person(random: np.random.RandomState) -> tuple[list[np.ndarray], np.ndarray]:
    """A figure facing the viewer: head, torso and four limbs of two segments each, joints at COCO's 17
    keypoints."""
    swing = random.uniform(-0.12, 0.12, size=8)
    head = np.array([0.5, 0.12])
    points = np.zeros((17, 2))
    points[0] = head + [0, 0.01]
    points[1], points[2] = head + [0.035, -0.03], head + [-0.035, -0.03]
    points[3], points[4] = head + [0.08, -0.01], head + [-0.08, -0.01]
    for left, right, x, y in ((5, 6, 0.13, 0.26), (11, 12, 0.09, 0.55)):
        points[left], points[right] = [0.5 + x, y], [0.5 - x, y]
    for place, (upper, lower, x, y) in enumerate(_SEGMENTS):
        points[lower] = points[upper] + [x + swing[place] * 0.6, y]
    polygons = [
        _ring(16, 1.0, 0.0) * 0.2 + head - 0.1,
        points[[5, 6, 12, 11]] + np.array([[0.02, -0.02], [-0.02, -0.02], [-0.02, 0.03], [0.02, 0.03]]),
    ]
    polygons += [_bar(points[a], points[b], 0.035) for a, b, _, _ in (_SEGMENTS[place] for place in _DRAWN)]
    return polygons, points


def _bar(start: np.ndarray, end: np.ndarray, half_width: float) -> np.ndarray:
    """The four corners of a thick line."""
    along = (end - start) / np.linalg.norm(end - start)
    across, along = np.array([-along[1], along[0]]) * half_width, along * half_width
    return np.stack(
        [start + across - along, end + across + along, end - across + along, start - across - along]
    )
