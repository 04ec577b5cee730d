"""Training images and targets of a detector: order, augmentation, cropping and padding of one source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.cropping import Draws, crop_to_ratio, fit_to_ratio
from detection_zoo.zoo.data.loading import pad_batch
from detection_zoo.zoo.data.resizing import FixedSize, ShorterSide
from detection_zoo.zoo.data.samplers import ORDERS, BatchOrder, Entry
from detection_zoo.zoo.data.ssd_augmentation import SSDAugmentation
from detection_zoo.zoo.data.targets import TargetRules, make_target, trained_images, training_boxes
from detection_zoo.zoo.data.transforms import Preprocess, PreprocessedImage
from detection_zoo.zoo.records import Target

Item = tuple[PreprocessedImage, Target]


def training_item(
    dataset: Dataset,
    index: int,
    preprocess: Preprocess,
    rules: TargetRules,
    *,
    flip: bool = False,
    vertical_flip: bool = False,
    jitter: Sequence[float] = (),
    jitter_seed: int = 0,
) -> Item:
    """One image as input of the network, and its target.

    Args:
        dataset, index: what to read.
        preprocess: resize and normalisation.
        rules: which objects, and how their boxes are written.
        flip: mirror left to right. vertical_flip: mirror top to bottom, after resizing.
        jitter: of `jittered`; none where empty.
        jitter_seed: of its draws.
    """
    pixels = dataset.load_image(index)
    if any(jitter):
        pixels = jittered(pixels, jitter, jitter_seed)
    if flip and rules.flip_first:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    image = preprocess(pixels)
    if flip and not rules.flip_first:
        image = replace(image, tensor=image.tensor.flip(-1))
    target = make_target(
        dataset.target(index),
        image.original_size,
        image.scale,
        rules,
        resized_width=image.size[1],
        flip=flip,
        keypoint_names=dataset.keypoint_names,
    )
    if vertical_flip:
        return replace(image, tensor=image.tensor.flip(-2)), upside_down(target, image.size[0], rules)
    return image, target


def jittered(pixels: np.ndarray, jitter: Sequence[float], seed: int) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed at random, in a random order (by torchvision).

    Args:
        pixels: (H, W, 3) uint8 RGB.
        jitter: the four ranges, each around no change.
        seed: of the draws; torch's global generator is not changed.
    """
    from torchvision.transforms.v2 import ColorJitter
    from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

    brightness, contrast, saturation, hue = jitter
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed = ColorJitter(brightness, contrast, saturation, hue)(to_pil_image(pixels))
    return np.ascontiguousarray(pil_to_tensor(changed).permute(1, 2, 0).numpy())


def upside_down(target: Target, height: int, rules: TargetRules) -> Target:
    """A target mirrored top to bottom in an image of so many rows; labels of left and right stay."""
    mirror = height - (1 if rules.inclusive else 0)
    boxes = target.boxes.clone()
    boxes[:, [1, 3]] = mirror - target.boxes[:, [3, 1]]
    polygons = target.polygons and [
        [[mirror - v if i % 2 else v for i, v in enumerate(part)] for part in parts]
        for parts in target.polygons
    ]
    keypoints = target.keypoints
    if keypoints is not None:
        keypoints = keypoints.clone()
        labelled = keypoints[..., 2] > 0
        keypoints[..., 1] = torch.where(labelled, mirror - keypoints[..., 1], keypoints[..., 1])
    return replace(target, boxes=boxes, polygons=polygons, keypoints=keypoints)


def augmented_item(
    dataset: Dataset, index: int, augmentation: SSDAugmentation, rules: TargetRules, draw: Random
) -> Item:
    """One image by SSD's augmentation, and its target."""
    pixels, truth = dataset.load_image(index), dataset.target(index)
    boxes, rows = training_boxes(truth, pixels.shape[:2], rules)
    image, fractions, labels = augmentation(pixels, boxes, truth.labels[rows], draw)
    height, width = image.size
    boxes = fractions * np.array([width, height, width, height])
    return image, Target(torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(labels))


def brought_to_ratio(item: Item, entry: Entry, order: str, draws: Draws, max_objects: int | None) -> Item:
    """An item cropped or padded to the aspect ratio of its batch, by the rule of the batch order; unchanged
    if the entry has no ratio."""
    if entry.ratio is None:
        return item
    if order == "padded_ratio_groups":
        height, width = item[0].original_size
        return fit_to_ratio(item, entry.ratio, width / height, draws, max_objects)
    return crop_to_ratio(item, entry.ratio, draws)


def collate(items: Sequence[Item], size_divisor: int) -> tuple[Tensor, Tensor, list[Target]]:
    """Images (N, 3, H, W) padded to multiples of the divisor, sizes (N, 2), N targets."""
    images = [image for image, _ in items]
    return (
        pad_batch([image.tensor for image in images], size_divisor),
        torch.tensor([image.size for image in images]),
        [target for _, target in items],
    )


class TrainingBatches:
    """Shuffled, augmented batches of each epoch, the same for the same seed.

    Items are drawn from (seed, epoch, entry) alone, so that neither the number of workers nor their timing
    changes them.

    Args:
        dataset: what to read.
        preprocess: the row's own.
        rules: which objects and images are trained on.
        images_per_batch: of this process.
        seed: of order, flips and scales.
        batching: the source's order of images, a name of `zoo.data.samplers.ORDERS`.
        aspect_cropping: very wide and very tall images are cropped.
        flip_probability: of a horizontal flip, if the order has no flipped copies.
        vertical_flip: probability of one.
        jitter: ranges of brightness, contrast, saturation and hue; none where empty.
        short_sides: shorter sides in pixels, one drawn for each image; empty: the row's own.
        augmentation: SSD's, in place of resize and flip; boxes only.
        rank, world_size: this process's share.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        rules: TargetRules,
        *,
        images_per_batch: int,
        seed: int = 0,
        batching: str = "aspect_pairs",
        aspect_cropping: bool = False,
        flip_probability: float = 0.5,
        vertical_flip: float = 0.0,
        jitter: Sequence[float] = (),
        short_sides: Sequence[int] = (),
        augmentation: SSDAugmentation | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if short_sides and not isinstance(preprocess.resize, ShorterSide):
            raise ValueError(f"short_sides need a shorter-side resize, this row has {preprocess.resize}")
        self.dataset, self.preprocess, self.rules, self.seed = dataset, preprocess.warm_up(), rules, seed
        self.augmentation, self.short_sides, self.batching = augmentation, list(short_sides), batching
        self.flip_probability, self.vertical_flip, self.jitter = flip_probability, vertical_flip, jitter
        # this order shuffles objects before limiting them, so that all are made first
        shuffled = batching == "padded_ratio_groups"
        self.item_rules = rules.model_copy(update={"max_objects": None}) if shuffled else rules
        self.indices = trained_images(dataset, rules)
        one_shape = isinstance(preprocess.resize, FixedSize)  # no groups
        sizes = [(1, 1) if one_shape else dataset.image_size(index) for index in self.indices]
        self.batch_order: BatchOrder = ORDERS[batching](
            self.indices,
            sizes,
            images_per_batch,
            rank=rank,
            world_size=world_size,
            aspect_cropping=aspect_cropping,
        )
        self._empty = self._without_objects() if batching == "aspect_pairs" and not one_shape else frozenset()

    def _without_objects(self) -> frozenset[int]:
        """Trained images without a trained object (for example, only crowds)."""
        dataset = self.dataset
        return frozenset(
            index
            for index in self.indices
            if not len(training_boxes(dataset.target(index), dataset.image_size(index), self.rules)[1])
        )

    @property
    def entries(self) -> int:
        """Images of an epoch over all processes, flipped copies counted."""
        return self.batch_order.entries

    def order(self, epoch: int) -> list[list[Entry]]:
        """The batches of an epoch; maskrcnn-benchmark leaves out those with an image without objects."""
        batches = self.batch_order.batches(self.seed + epoch)
        return [batch for batch in batches if not any(entry.index in self._empty for entry in batch)]

    def item(self, epoch: int, entry: Entry) -> Item:
        """One image of an epoch and its target."""
        index = entry.index
        random = np.random.default_rng([self.seed, epoch, index, int(entry.flip or 0)])
        if self.augmentation is not None:
            draw = Random(int(random.integers(2**62)))
            return augmented_item(self.dataset, index, self.augmentation, self.rules, draw)
        flip = random.random() < self.flip_probability if entry.flip is None else entry.flip
        preprocess = self.preprocess
        if self.short_sides:
            preprocess = preprocess.with_short_side(int(random.choice(self.short_sides)))
        item = training_item(
            self.dataset,
            index,
            preprocess,
            self.item_rules,
            flip=flip,
            vertical_flip=random.random() < self.vertical_flip,
            jitter=self.jitter,
            jitter_seed=int(random.integers(2**62)),
        )
        return brought_to_ratio(item, entry, self.batching, random, self.rules.max_objects)

    def collate(self, items: Sequence[Item]) -> tuple[Tensor, Tensor, list[Target]]:
        """Images (N, 3, H, W) padded, sizes (N, 2) int64, N targets."""
        return collate(items, self.preprocess.size_divisor)
