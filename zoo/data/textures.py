"""Backgrounds, clutter and textures of the `shapes` dataset. Each class has its own outline, and most of its
objects have the class's hue."""

from __future__ import annotations

import colorsys

import numpy as np

OWN_HUE = 0.8  # share of the objects that are painted in their class's hue
HUE_SPREAD = 0.045  # of the colour circle, standard deviation around that hue
CONTRAST = 45  # least distance of an object's colour from what it covers, of 255, in its strongest channel


def background(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """An image (H, W, 3) uint8: a colour gradient, sometimes with broad stripes, always with noise."""
    corners = random.uniform(20, 180, size=(2, 2, 3)).astype(np.float32)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    top = corners[0, 0] * (1 - across) + corners[0, 1] * across
    bottom = corners[1, 0] * (1 - across) + corners[1, 1] * across
    smooth = top * (1 - down) + bottom * down
    if random.uniform() < 0.5:
        smooth = smooth + random.uniform(8, 30) * _waves(random, height, width, random.uniform(10, 40))
    return np.clip(smooth + random.normal(0, random.uniform(3, 12), smooth.shape), 0, 255).astype(np.uint8)


def clutter(pixels: np.ndarray, random: np.random.RandomState) -> None:
    """Draw lines, blobs and open strokes of no class onto an image (H, W, 3) uint8, in place."""
    import cv2

    height, width = pixels.shape[:2]

    def point() -> tuple[int, int]:
        return int(random.randint(width)), int(random.randint(height))

    for _ in range(random.randint(2, 8)):
        colour = tuple(int(c) for c in random.randint(0, 256, size=3))
        kind, thickness = random.randint(3), int(random.randint(1, 4))
        if kind == 0:
            cv2.line(pixels, point(), point(), colour, thickness, cv2.LINE_AA)
        elif kind == 1:
            axes = (int(random.randint(8, 30)), int(random.randint(2, 5)))  # flat, so that none is a circle
            cv2.ellipse(pixels, point(), axes, random.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            corners = np.array([point() for _ in range(4)], np.int32)
            corners = corners[0] + (corners - corners[0]) // 4
            cv2.polylines(pixels, [corners], False, colour, thickness, cv2.LINE_AA)


def _colour(random: np.random.RandomState, hue: float) -> np.ndarray:
    """A colour (3,) in 0..255 near a hue (0..1), or of any hue."""
    own = random.uniform() < OWN_HUE
    hue = (hue + random.normal(0, HUE_SPREAD) if own else random.uniform()) % 1.0
    return 255 * np.array(colorsys.hsv_to_rgb(hue, random.uniform(0.5, 1.0), random.uniform(0.45, 1.0)))


def texture(
    random: np.random.RandomState, height: int, width: int, around: np.ndarray, hue: float
) -> np.ndarray:
    """A paint (H, W, 3) float32 in 0..255: plain, striped, checked, dotted or noisy, or a gradient.

    Args:
        around: (3,) mean colour of what is covered; the paint's first colour keeps a distance from it.
        hue: 0..1, that of the class.
    """
    first = _colour(random, hue)
    for _ in range(20):  # the background may have a similar colour
        if np.abs(first - around).max() >= CONTRAST:
            break
        first = _colour(random, hue)
    second = first * random.uniform(0.35, 1.0)
    kind = random.randint(6)
    if kind == 0:
        mix = np.zeros((height, width, 1), np.float32)
    elif kind == 1:
        mix = (_waves(random, height, width, random.uniform(4, 10)) > 0).astype(np.float32)
    elif kind == 2:
        period = random.uniform(5, 12)
        mix = (_waves(random, height, width, period) * _waves(random, height, width, period) > 0) * 1.0
    elif kind == 3:
        period, (y, x) = random.uniform(5, 10), np.mgrid[:height, :width]
        mix = (((x % period - period / 2) ** 2 + (y % period - period / 2) ** 2) < (period / 3.5) ** 2)[
            ..., None
        ]
    elif kind == 4:
        mix = random.uniform(0, 1, size=(height, width, 1))
    else:
        mix = 0.5 + 0.5 * _waves(random, height, width, 4.0 * max(height, width))
    paint = first * (1 - mix) + second * mix + random.normal(0, 5, size=(height, width, 1))
    return np.clip(paint, 0, 255).astype(np.float32)


def _waves(random: np.random.RandomState, height: int, width: int, period: float) -> np.ndarray:
    """A plane sine wave (H, W, 1) of a random direction and phase; period in pixels."""
    angle, phase = random.uniform(0, 2 * np.pi, size=2)
    down, across = np.arange(height) * np.sin(angle), np.arange(width) * np.cos(angle)
    return np.sin(2 * np.pi / period * (down[:, None] + across[None]) + phase)[..., None]
