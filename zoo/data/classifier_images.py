"""Training images and labels of a classifier: random crops, half of them mirrored (He et al. 2016,
section 3.4)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.conventions import ImageConventions
from detection_zoo.zoo.data.imagenet import ImageNetDataset
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.errors import ManifestError

Item = tuple[Tensor, int]


class ClassifierBatches:
    """Shuffled batches of each epoch, the same for the same seed.

    Args:
        dataset: images with one class each.
        image: the row's conventions; `size` is the side of the crop.
        images_per_batch: of this process.
        seed: of order, crops and flips. rank, world_size: this process's share.

    Raises:
        ManifestError: the conventions name no size.
    """

    def __init__(
        self,
        dataset: ImageNetDataset,
        image: ImageConventions,
        *,
        images_per_batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        from torchvision.transforms import v2

        if image.size is None:
            raise ManifestError("image.size is not set, so the side of the training crops is unknown")
        self.dataset, self.seed, self.rank, self.world_size = dataset, seed, rank, world_size
        self.images_per_batch, self.indices = images_per_batch, list(range(len(dataset)))
        self.crop = v2.Compose(
            [v2.RandomResizedCrop(image.size, antialias=True), v2.RandomHorizontalFlip()]  # areas 0.08 to 1
        )
        self.normalise = Preprocess.from_conventions(image.model_copy(update={"resize": "none"}))

    @property
    def entries(self) -> int:
        """Images of an epoch over all processes."""
        return len(self.indices)

    def order(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch of this process; an incomplete batch is dropped, unless it is the only
        one."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.indices), generator=generator).tolist()
        size = self.images_per_batch
        own = order[: len(order) // self.world_size * self.world_size][self.rank :: self.world_size] or order
        whole = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        return whole or [own]

    def item(self, epoch: int, index: int) -> Item:
        """The image (3, S, S) float32 of an epoch, and its label; raises DatasetError where it cannot be
        read."""
        pixels = torch.from_numpy(np.ascontiguousarray(self.dataset.load_image(index))).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1_000_003 + epoch) * 10_000_019 + index)
            pixels = self.crop(pixels)
        return self.normalise(pixels.permute(1, 2, 0).numpy()).tensor, self.dataset.label(index)

    def collate(self, items: list[Item]) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, S, S), sizes (N, 2) int64, labels (N,) int64."""
        images = torch.stack([image for image, _ in items])
        sizes = torch.tensor([list(images.shape[-2:])] * len(items))
        return images, sizes, torch.tensor([label for _, label in items])
