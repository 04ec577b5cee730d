"""Input batches and tolerances of the folders of maskrcnn-benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detection_zoo.zoo.parity.base import ParityError, Reference
from detection_zoo.zoo.parity.settings import Note


@dataclass
class Batch:
    """Images (N, 3, H, W) as the network gets them, and their true (height, width)."""

    images: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, note: Note, divisor: int) -> Batch:
        """The batch of a note's arrays: one of all images, or of single images that are zero-padded.

        Args:
            note: the arrays; where images are padded, to what, and their true sizes.
            divisor: padded sides are multiples of it where the note does not state them.
        """
        note.draw()
        arrays = [torch.from_numpy(draw.array()) for draw in note.arrays]
        images = [image for array in arrays for image in (array if array.ndim == 4 else array[None])]
        height, width = (
            -(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (1, 2)
        )
        batch = torch.zeros(len(images), 3, note.padded_height or height, note.padded_width or width)
        for i, image in enumerate(images):
            batch[i, :, : image.shape[1], : image.shape[2]] = image
        sizes = note.true_sizes or [tuple(image.shape[1:]) for image in images]
        if len(sizes) != len(images):
            raise ParityError(f"{len(sizes)} true sizes are stated for {len(images)} images")
        return cls(batch, torch.tensor(sizes))


@dataclass(frozen=True)
class Tolerances:
    """Relative L2 differences that a folder advises for maps and head outputs, for lists of boxes and scores,
    and for gradients."""

    maps: float = 1e-4
    lists: float = 1e-4
    gradients: float = 5e-3

    @classmethod
    def of(cls, reference: Reference) -> Tolerances:
        """Those of the folder's advice; the defaults where it has none."""
        note = reference.settings.notes.get("tolerance.advice")
        return cls() if note is None else cls(*note.need("maps", "lists", "gradients"))


def batches(reference: Reference, divisor: int) -> dict[str, Batch]:
    """Every input of a folder that a note describes by arrays; divisor: as of `Batch.of`."""
    notes = reference.settings.under("inputs")
    return {name: Batch.of(note, divisor) for name, note in notes.items() if note.arrays}
