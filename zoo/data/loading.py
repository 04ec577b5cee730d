"""Batches for evaluation and training: decode, preprocess, pad; with optional worker processes and pinned
memory."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.transforms import Preprocess, PreprocessedImage

# Ctrl-C, kill, and Slurm's signal before a requeue; not every system has all of them
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


@dataclass
class EvaluationBatch:
    """Images ready for a detector, and the sizes and scales to map its boxes to the originals.

    images (N, 3, H, W) float32, zero-padded; uint8 until `to` if the device normalises them; sizes,
    original_sizes (N, 2) int64 height and width; scales (N, 2) float64 x and y factors from original to
    resized pixels; indices: places in the dataset;
    decode_ms, resize_ms: time spent on each image, in milliseconds (resize_ms includes normalising done
        there).
    """

    images: Tensor
    sizes: Tensor
    original_sizes: Tensor
    scales: Tensor
    indices: list[int]
    decode_ms: list[float]
    resize_ms: list[float]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.indices)

    def _each(self, move: Any) -> EvaluationBatch:
        return replace(
            self,
            **{
                f.name: move(value)
                for f in fields(self)
                if isinstance(value := getattr(self, f.name), Tensor)
            },
        )

    def pin_memory(self) -> EvaluationBatch:
        """The batch in page-locked memory; DataLoader calls this."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> EvaluationBatch:
        """The batch with its images on a device, normalised; the copy overlaps with other work where memory
        is pinned. Sizes stay on the host, which alone reads them."""
        moved = replace(self, images=self.images.to(device, non_blocking=True))
        return (
            replace(moved, images=self.preprocess.finish(moved.images, moved.sizes))
            if moved.images.dtype == torch.uint8
            else moved
        )


def pad_batch(tensors: Sequence[Tensor], size_divisor: int = 1) -> Tensor:
    """Stack images of different sizes.

    Args:
        tensors: (3, h, w) each.
        size_divisor: both sides of the result are multiples of it.

    Returns:
        (N, 3, H, W) with zeros right of and below each image.
    """
    height, width = (
        -(-max(tensor.shape[axis] for tensor in tensors) // size_divisor) * size_divisor for axis in (1, 2)
    )
    if len(tensors) == 1 and tensors[0].shape[1:] == (height, width):
        return tensors[0][None]
    padded = tensors[0].new_zeros(len(tensors), tensors[0].shape[0], height, width)
    for place, tensor in enumerate(tensors):
        padded[place, :, : tensor.shape[1], : tensor.shape[2]] = tensor
    return padded


def start_worker(_: int) -> None:
    """Let each worker decode and resize with one thread (OpenCV would start one a core in every worker), and
    ignore signals, which the parent process handles: it may need another batch before it ends."""
    import cv2

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)


class _EvaluationImages(TorchDataset):
    def __init__(self, dataset: Dataset, preprocess: Preprocess, as_bytes: bool) -> None:
        self.dataset, self.preprocess = dataset, preprocess
        self.prepare = preprocess.resize_only if as_bytes else preprocess

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, PreprocessedImage, float, float]:
        start = time.perf_counter()
        pixels = self.dataset.load_image(index)
        decoded = time.perf_counter()
        image = self.prepare(pixels)
        return index, image, (decoded - start) * 1e3, (time.perf_counter() - decoded) * 1e3

    def collate(self, items: list[tuple[int, PreprocessedImage, float, float]]) -> EvaluationBatch:
        indices, images, decode_ms, resize_ms = (list(column) for column in zip(*items, strict=True))
        return EvaluationBatch(
            images=pad_batch([image.tensor for image in images], self.preprocess.size_divisor),
            sizes=torch.tensor([image.size for image in images]),
            original_sizes=torch.tensor([image.original_size for image in images]),
            scales=torch.tensor([image.scale for image in images], dtype=torch.float64),
            indices=indices,
            decode_ms=decode_ms,
            resize_ms=resize_ms,
            preprocess=self.preprocess,
        )


def evaluation_loader(
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    batch_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    normalise_on_device: bool = False,
) -> DataLoader:
    """Batches of every image once, in dataset order.

    Args:
        dataset: what to read.
        preprocess: the row's own.
        batch_size: images per batch; the last may be smaller.
        workers: processes that decode ahead; 0 decodes in this one.
        pin_memory: page-locked batches, for copies to a GPU.
        normalise_on_device: move bytes and let `EvaluationBatch.to` normalise, where the row's preprocessing
            allows it; same values.

    Returns:
        A DataLoader of `EvaluationBatch`.
    """
    images = _EvaluationImages(
        dataset, preprocess.warm_up(), normalise_on_device and preprocess.normalises_bytes
    )
    return DataLoader(
        images,
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=images.collate,
        prefetch_factor=4 if workers else None,
        worker_init_fn=start_worker,
    )


@dataclass
class DataWait:
    """How long a loop over batches waited for data: waited_s of whole_s seconds, with `workers` processes."""

    workers: int
    waited_s: float = 0.0
    whole_s: float = 0.0

    def watch(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches; the time until each is available counts as waiting."""
        begun = time.perf_counter()
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - asked
            self.whole_s = time.perf_counter() - begun
            if batch is None:
                return
            yield batch

    def __str__(self) -> str:
        share = 100 * self.waited_s / self.whole_s if self.whole_s else 0.0
        workers = f"{self.workers} worker{'' if self.workers == 1 else 's'}" if self.workers else "no workers"
        return f"the model waited for data {share:.0f} % of the time ({self.whole_s:.1f} s, {workers})"
