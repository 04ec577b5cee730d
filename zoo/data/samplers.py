"""Order of the training images: one class for each source's rule; the same seed gives the same batches.

A class takes the sizes of the images and returns the batches of an epoch of one process. The source of
randomness is an argument of `arranged` or `drawn`, so that the draws of an original can be passed in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch

LEGACY_SEEDS = 2**32  # numpy's legacy generator takes seeds below this


@dataclass(frozen=True)
class Entry:
    """One image of a batch.

    index: of the dataset. flip: mirrored left to right or not; None: drawn when it is read. ratio: target
    width over height of its batch; None: images keep their own.
    """

    index: int
    flip: bool | None = None
    ratio: float | None = None


def permutation(count: int, seed: int) -> list[int]:
    """0..count-1 in the order of torch.randperm."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass
class BatchOrder(ABC):
    """The batches of an epoch of one process.

    Args:
        indices: of the dataset, the images that are trained on.
        sizes: (height, width) of each of them.
        batch_size: images per batch of this process.
        rank, world_size: this process among all.
        aspect_cropping: images beyond ratios of 1/2 to 2 are cropped to the ratio of their group; only orders
            by ratio read it.

    `entries`: images of an epoch over all processes, flipped copies counted.
    """

    indices: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    batch_size: int
    _: KW_ONLY
    rank: int = 0
    world_size: int = 1
    aspect_cropping: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be positive and rank {self.rank} below world_size"
                f" {self.world_size}"
            )
        self.entries = len(self.indices)

    @abstractmethod
    def batches(self, seed: int) -> list[list[Entry]]:
        """The batches of an epoch, drawn from a seed."""

    def shares(self, order: Sequence[Any]) -> list[Sequence[Any]]:
        """This process's part of every whole batch of all processes."""
        whole = self.batch_size * self.world_size
        starts = range(self.batch_size * self.rank, len(order) // whole * whole, whole)
        return [order[start : start + self.batch_size] for start in starts]


class AspectPairs(BatchOrder):
    """Batches of upright images (height/width at least 1) or of wide ones, as maskrcnn-benchmark makes them.

    A permutation of all images is cut into contiguous shares, one a process, its start repeated at the end so
    that shares are equal. A batch takes the place of its first image; incomplete ones stay.
    """

    def batches(self, seed: int) -> list[list[Entry]]:
        """The batches of an epoch, drawn from a seed."""
        return self.arranged(permutation(self.entries, seed))

    def arranged(self, order: Sequence[int]) -> list[list[Entry]]:
        """The batches of an epoch for a given order (positions in `indices`)."""
        share = math.ceil(len(order) / self.world_size)
        whole = [*order, *order[: share * self.world_size - len(order)]]
        open_batches: dict[bool, list[Entry]] = {}
        batches: list[list[Entry]] = []
        for place in whole[share * self.rank : share * (self.rank + 1)]:
            height, width = self.sizes[place]
            batch = open_batches.get(height >= width)
            if batch is None:
                batch = open_batches[height >= width] = []
                batches.append(batch)
            batch.append(Entry(self.indices[place]))
            if len(batch) == self.batch_size:
                del open_batches[height >= width]
        return batches


class Shuffled(BatchOrder):
    """A plain shuffle of all images without the incomplete batch at the end (SSD: floor(N / batch) updates an
    epoch); each process takes its part of every batch."""

    def batches(self, seed: int) -> list[list[Entry]]:
        """The batches of an epoch, drawn from a seed."""
        return self.arranged(permutation(self.entries, seed))

    def arranged(self, order: Sequence[int]) -> list[list[Entry]]:
        """The batches of an epoch for a given order (positions in `indices`)."""
        return [[Entry(self.indices[place]) for place in batch] for batch in self.shares(order)]


SMALLEST_RATIO, LARGEST_RATIO = 0.5, 2.0  # width over height; images beyond them are cropped


class RatioGroups(BatchOrder):
    """Batches of neighbours in the list of images sorted by width over height: Detectron.pytorch's.

    Flipped copies are appended to the images before they are sorted. Groups of `batch_size` neighbours are
    shuffled whole; what is left over at the end of the list is dropped. Consecutive groups make up the batch
    of all processes.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.group_size = self._group_size()
        own = np.array([width / height for height, width in self.sizes], np.float64)
        limits = (SMALLEST_RATIO, LARGEST_RATIO) if self.aspect_cropping else (0.0, np.inf)
        ratios = np.tile(np.clip(own, *limits), 2)
        places = np.argsort(ratios, kind="heapsort")  # ties in the order of the original
        targets = target_ratios(ratios[places], self.group_size)
        self.sorted = [
            Entry(
                self.indices[place % len(own)],
                bool(place >= len(own)),
                self._ratio(float(target), own[place % len(own)] != ratios[place]),
            )
            for place, target in zip(places.tolist(), targets, strict=True)
        ]
        self.entries = len(self.sorted)

    def _group_size(self) -> int:
        """Images that are shuffled as one: those of a process."""
        return self.batch_size

    def _ratio(self, target: float, cropped: bool) -> float | None:
        return target if cropped else None

    def batches(self, seed: int) -> list[list[Entry]]:
        """The batches of an epoch."""
        return self.drawn(np.random.RandomState(seed % LEGACY_SEEDS))

    def drawn(self, draws: np.random.RandomState) -> list[list[Entry]]:
        """The batches of an epoch, groups shuffled by numpy's legacy generator."""
        places = grouped_order(self.entries, self.batch_size, draws)
        return self.shares([self.sorted[place] for place in places])


class PaddedRatioGroups(RatioGroups):
    """The same as DetNet_pytorch makes them: a group is the batch of all processes, its order is torch's
    permutation, and every image is padded to its group's ratio, or cut to a square where that is 1."""

    def _group_size(self) -> int:
        return self.batch_size * self.world_size

    def _ratio(self, target: float, cropped: bool) -> float | None:
        return target

    def batches(self, seed: int) -> list[list[Entry]]:
        """The batches of an epoch."""
        return self.arranged(permutation(self.entries // self.group_size, seed))

    def arranged(self, order: Sequence[int]) -> list[list[Entry]]:
        """The batches of an epoch for a given order of groups."""
        starts = [group * self.group_size + self.rank * self.batch_size for group in order]
        return [self.sorted[start : start + self.batch_size] for start in starts]


ORDERS: dict[str, type[BatchOrder]] = {
    "aspect_pairs": AspectPairs,
    "ratio_groups": RatioGroups,
    "padded_ratio_groups": PaddedRatioGroups,
    "shuffled": Shuffled,
}


def target_ratios(ratios: np.ndarray, images_per_gpu: int) -> np.ndarray:
    """The target width/height ratio of each group of consecutive images, as in Detectron.pytorch.

    Args:
        ratios: (N,) width over height, rising.
        images_per_gpu: images of a group; the last group may be smaller.

    Returns:
        (N,) float64: the group's first ratio where all are below 1, its last where all are above 1, and 1
        otherwise.
    """
    targets = np.empty(len(ratios))
    for start in range(0, len(ratios), images_per_gpu):
        group = ratios[start : start + images_per_gpu]
        targets[start : start + images_per_gpu] = (
            group[0] if group[-1] < 1 else group[-1] if group[0] > 1 else 1.0
        )
    return targets


def grouped_order(images: int, images_per_gpu: int, random: np.random.RandomState) -> np.ndarray:
    """One epoch of Detectron.pytorch: positions in the ratio-sorted list, groups shuffled as units, left-over
    images last.

    Args:
        images: N.
        images_per_gpu: images of a group.
        random: numpy's legacy generator, which the original uses.

    Returns:
        (N,) int64.
    """
    whole = images // images_per_gpu * images_per_gpu
    order = np.arange(whole)
    random.shuffle(order.reshape(-1, images_per_gpu))
    return np.append(order, np.arange(whole, images))
