"""The order in which images are seen: batches of like aspect ratio, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from detection_zoo.zoo.data.base import Dataset


def aspect_ratios(dataset: Dataset) -> list[float]:
    """Height over width of every image."""
    return [height / width for height, width in (dataset.image_size(index) for index in range(len(dataset)))]


class GroupedBatchSampler(Sampler[list[int]]):
    """Shuffled batches whose images are all upright (height/width at least 1) or all wide, as
    maskrcnn-benchmark makes them.

    Args:
        ratios: height over width of each image.
        batch_size: images a batch of this process.
        seed, epoch: the order follows from their sum.
        rank, world_size: this process's share of every epoch.
        drop_last: leave out incomplete batches (one a group at most).
        indices: what the batches hold in place of 0..n-1.
    """

    def __init__(
        self,
        ratios: Sequence[float],
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        indices: Sequence[int] | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size {batch_size} must be positive and rank {rank} below world_size {world_size}"
            )
        order = torch.randperm(len(ratios), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        self.batches = _group(
            order[rank::world_size], [ratio >= 1 for ratio in ratios], batch_size, drop_last
        )
        if indices is not None:
            self.batches = [[indices[place] for place in batch] for batch in self.batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _group(order: Sequence[int], groups: Sequence[bool], batch_size: int, drop_last: bool) -> list[list[int]]:
    """Batches of one group each, in the order in which their first images come."""
    open_batches: dict[bool, list[int]] = {}
    batches: list[list[int]] = []
    for index in order:
        batch = open_batches.get(groups[index])
        if batch is None:
            batch = open_batches[groups[index]] = []
            batches.append(batch)
        batch.append(index)
        if len(batch) == batch_size:
            del open_batches[groups[index]]
    return [batch for batch in batches if len(batch) == batch_size or not drop_last]


def target_ratios(ratios: np.ndarray, images_per_gpu: int) -> np.ndarray:
    """The one width/height ratio each group of consecutive images aims at, as Detectron.pytorch chooses it.

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
    """One epoch of Detectron.pytorch: places in the ratio-sorted list, groups shuffled whole, left-over
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
