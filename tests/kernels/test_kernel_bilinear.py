"""Enlarging images: every byte is Pillow's, whatever the sizes; without numba Pillow itself does it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from detection_zoo.kernels.bilinear_cpu import enlarge_bilinear
from detection_zoo.zoo.data import resizing
from detection_zoo.zoo.data.resizing import ResizePlan, ShorterSide, resize_pixels


def pillow(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def image(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise, or black and white, where sums are largest and smallest."""
    kind = random.integers(2)
    values = (
        random.integers(0, 256, (height, width, 3)) if kind else random.choice([0, 255], (height, width, 3))
    )
    return values.astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_every_byte_is_pillows(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(100):
        height, width = random.integers(2, 6 if random.integers(4) == 0 else 120, 2).tolist()
        to = [int(random.integers(side, side * random.integers(2, 9))) for side in (height, width)]
        pixels = image(random, height, width)
        assert np.array_equal(enlarge_bilinear(pixels, *to), pillow(pixels, *to)), (pixels.shape, to)


@pytest.mark.parametrize("given", [(449, 640), (480, 640), (640, 427), (333, 500), (800, 1066), (2, 4000)])
def test_detectors_sizes(given: tuple[int, int]) -> None:
    pixels, plan = image(np.random.default_rng(0), *given), ShorterSide(800, 1333).plan(*given)
    turned = np.ascontiguousarray(pixels[::-1, :, ::-1])[
        ::-1, :, ::-1
    ]  # BGR read from below: strides below 0
    expected = pillow(pixels, plan.height, plan.width)
    for each in (pixels, turned):
        assert np.array_equal(resize_pixels(each, plan, "pil_bilinear"), expected)


@pytest.mark.parametrize("to", [(40, 50), (40, 20), (12, 50), (30, 50), (40, 33), (1, 1)])
def test_what_shrinks_on_an_axis_is_pillows_own(to: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = image(np.random.default_rng(1), 30, 33)
    plan = ResizePlan(*to, (1.0, 1.0))
    expected = pillow(pixels, *to)
    assert np.array_equal(resize_pixels(pixels, plan, "pil_bilinear"), expected)
    assert np.array_equal(resize_pixels(pixels[:1], plan, "pil_bilinear"), pillow(pixels[:1], *to))
    resizing._enlargement.cache_clear()
    monkeypatch.delitem(sys.modules, "detection_zoo.kernels.bilinear_cpu")
    monkeypatch.delitem(sys.modules, "detection_zoo.kernels.machine_code")
    monkeypatch.setitem(sys.modules, "numba", None)  # Python's own way of making an import fail
    try:
        assert np.array_equal(resize_pixels(pixels, plan, "pil_bilinear"), expected)
        assert resizing._enlargement() is None
    finally:
        resizing._enlargement.cache_clear()
