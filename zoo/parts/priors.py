"""Prior boxes of one-stage detectors: cell boxes of each level, as fractions of the image (Liu et al., "SSD",
ECCV 2016, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detection_zoo.zoo.registry import did_you_mean


@dataclass(frozen=True)
class PriorLevel:
    """Priors of one feature map.

    cells: cells per side with priors; pitch: cells per image side, which gives their centres (not always
        `cells`);
    boxes: (width, height) of each box of a cell, fractions of the image.
    """

    cells: int
    pitch: float
    boxes: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PriorTable:
    """Priors of every level, finest first; clamp: coordinates in (cx, cy, w, h) form are clamped to 0..1."""

    levels: tuple[PriorLevel, ...]
    clamp: bool

    @property
    def per_cell(self) -> list[int]:
        """Boxes of a cell, level by level."""
        return [len(level.boxes) for level in self.levels]

    def priors(self) -> Tensor:
        """All priors (P, 4) float32 as (cx, cy, w, h); ordered by level, row, column, box."""
        rows = [
            ((column + 0.5) / level.pitch, (row + 0.5) / level.pitch, width, height)
            for level in self.levels
            for row in range(level.cells)
            for column in range(level.cells)
            for width, height in level.boxes
        ]
        # on the CPU even if modules are built on the meta device: these are constants, not weights
        priors = torch.tensor(rows, dtype=torch.float32, device="cpu")
        return priors.clamp_(0, 1) if self.clamp else priors


def ssd_table(
    size: int,
    cells: Sequence[int],
    steps: Sequence[float],
    min_sizes: Sequence[float],
    max_sizes: Sequence[float] | None,
    ratios: Sequence[Sequence[float]],
) -> PriorTable:
    """Priors of the Caffe SSD family: the small square, the square of the geometric mean, each
    ratio and its inverse.

    Args:
        size: side of the input in pixels.
        cells: side of each map in cells; steps: pixels of a cell; min_sizes, max_sizes: pixels (without
            max_sizes there is no second square).
        ratios: width / height above 1, for each level.
    """
    levels = []
    for index, (side, step, small) in enumerate(zip(cells, steps, min_sizes, strict=True)):
        scale = small / size
        boxes = [(scale, scale)]
        if max_sizes is not None:
            mean = math.sqrt(scale * (max_sizes[index] / size))
            boxes.append((mean, mean))
        for ratio in ratios[index]:
            boxes += [
                (scale * math.sqrt(ratio), scale / math.sqrt(ratio)),
                (scale / math.sqrt(ratio), scale * math.sqrt(ratio)),
            ]
        levels.append(PriorLevel(side, size / step, tuple(boxes)))
    return PriorTable(tuple(levels), clamp=True)


def tensorflow_table(
    cells: Sequence[int],
    low: float = 0.2,
    high: float = 0.95,
    ratios: Sequence[float] = (1.0, 2.0, 0.5, 3.0, 0.3333),
    mean_place: int = 5,
) -> PriorTable:
    """Priors of TensorFlow's Object Detection API: fewer on the first map, not clamped.

    Args:
        cells: side of each map in cells.
        low, high: scales of the first and last level, fractions of the image.
        ratios: width / height.
        mean_place: index of the geometric mean's square among a cell's boxes: last, or 1 in graphs of 2017.
    """
    scales = [low + (high - low) * level / (len(cells) - 1) for level in range(len(cells))] + [1.0]

    def box(scale: float, ratio: float) -> tuple[float, float]:
        return scale * math.sqrt(ratio), scale / math.sqrt(ratio)

    levels = [PriorLevel(cells[0], cells[0], (box(0.1, 1.0), box(low, 2.0), box(low, 0.5)))]
    for side, scale, after in zip(cells[1:], scales[1:-1], scales[2:], strict=True):
        boxes = [box(scale, ratio) for ratio in ratios]
        boxes.insert(mean_place, box(math.sqrt(scale * after), 1.0))
        levels.append(PriorLevel(side, side, tuple(boxes)))
    return PriorTable(tuple(levels), clamp=False)


def _seven(sizes: Sequence[float]) -> PriorTable:
    """The tables for 512 pixels; sizes: the seven smallest and the last largest."""
    return ssd_table(
        512,
        (64, 32, 16, 8, 4, 2, 1),
        (8, 16, 32, 64, 128, 256, 512),
        sizes[:7],
        sizes[1:],
        [(2, 3)] * 5 + [(2,)] * 2,
    )


def _six(
    sizes: Sequence[float],
    cells: Sequence[int] = (38, 19, 10, 5, 3, 1),
    steps: Sequence[int] = (8, 16, 32, 64, 100, 300),
) -> PriorTable:
    """The tables for 300 pixels; sizes: the six smallest and the last largest."""
    return ssd_table(300, cells, steps, sizes[:6], sizes[1:], [(2, 3)] * 4 + [(2,)] * 2)


PRIOR_TABLES = {
    "voc_300": _six((30, 60, 111, 162, 213, 264, 315)),
    "coco_300": _six((21, 45, 99, 153, 207, 261, 315)),
    "coco_mobile_300": _six(
        (45, 90, 135, 180, 225, 270, 315), (19, 10, 5, 3, 2, 1), (16, 32, 64, 100, 150, 300)
    ),
    "voc_512": _seven((35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6)),
    "coco_512": _seven((20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72)),
    "voc_320": ssd_table(320, (40, 20, 10, 5), (8, 16, 32, 64), (32, 64, 128, 256), None, [(2,)] * 4),
    "shapes_160": ssd_table(
        160,
        (20, 10, 5, 3, 1),
        (8, 16, 32, 160 / 3, 160),
        (13, 28, 56, 90, 122),
        (28, 56, 90, 122, 156),
        [(2,)] * 5,
    ),
    "tensorflow_300": tensorflow_table((19, 10, 5, 3, 2, 1)),
    "tensorflow_2017_512": tensorflow_table((32, 16, 8, 4, 2, 1), mean_place=1),
}


def prior_table(name: str) -> PriorTable:
    """The table of that name; raises ValueError with the nearest known names."""
    if name not in PRIOR_TABLES:
        raise ValueError(f"unknown prior table {name!r}: {did_you_mean(name, PRIOR_TABLES)}")
    return PRIOR_TABLES[name]
