"""Export a row's model: written beside its place, compared with the model, and then moved there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from detection_zoo.benchmarks.run.subject import Subject
from detection_zoo.zoo.data.loading import pad_batch
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.export.files import LEAST, compare_file, write

SHARE = 0.99  # of the detections that must be found again


def export_subject(subject: Subject, kind: str, path: Path, size: tuple[int, int] | None = None) -> list[str]:
    """Write a subject's model for batches of one image.

    Args:
        subject: its dataset's images are those that are compared.
        kind: of kinds.SUFFIXES. path: of the file. size: (height, width) of the input in pixels; default:
            what holds all those images.

    Returns:
        What was written and compared, line by line.

    Raises:
        ManifestError: the model cannot be exported, an image is larger than `size`, or the file's detections
            differ.
    """
    name, images = subject.entry.name, _images(subject)
    height, width = size or tuple(max(each.shape[side] for each, _ in images) for side in (2, 3))
    for pixels, _ in images:
        if pixels.shape[2] > height or pixels.shape[3] > width:
            raise ManifestError(
                f"row {name}: an image of the data is {pixels.shape[2]}x{pixels.shape[3]} pixels after its"
                f" pre-processing, --size is {height}x{width}; give a larger one, or leave it out"
            )
    batches = [(_padded(pixels, height, width), sizes) for pixels, sizes in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        try:
            write(subject.model, subject.entry, kind, (1, 3, height, width), made)
            count, share = compare_file(subject.model, kind, made, batches)
        except ValueError as error:
            raise ManifestError(f"row {name}: {error}") from error
        found = f"{share:.1%} of {count} detections of a score of at least {LEAST} found again"
        if share < SHARE:
            raise ManifestError(
                f"row {name}: the file was not kept, for its detections differ from the model's: on"
                f" {len(batches)} images {found}, {SHARE:.0%} are asked for"
            )
        for file in sorted(Path(folder).iterdir()):
            os.replace(file, path.parent / file.name)
    compared = f"{len(batches)} images compared: {found}" if count else "the model found nothing to compare"
    return [f"{path}: input 1x3x{height}x{width}", compared]


def _images(subject: Subject) -> list[tuple[Tensor, Tensor]]:
    """Every image (1, 3, H, W) of the dataset, with its size (1, 2)."""
    found = []
    for index in range(len(subject.dataset or ())):
        item = subject.preprocess(subject.dataset.load_image(index))
        found.append((pad_batch([item.tensor], subject.preprocess.size_divisor), torch.tensor([item.size])))
    return found


def _padded(pixels: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))
