"""What the folders of DetNet_pytorch say in words: seeds, thresholds, sizes, arrays of single steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.parity.prose import Text


def arrays(text: Text, kind: torch.dtype, count: int) -> list[Tensor]:
    """The first arrays (N, ...) of "normal_input(60,(1,3,7,9)) plus normal_input(61,(1,3,13,17))"."""
    return [torch.from_numpy(text.call(place).array()).to(kind) for place in range(count)]


def array(text: Text, kind: torch.dtype) -> Tensor:
    """The first array (N, ...) of "normal_input(3, (2, 3, 96, 128))"."""
    return arrays(text, kind, 1)[0]


def seed(text: Text) -> int:
    """From "np.random.seed(3) just before the forward"."""
    return text.scan("seed({whole})")


def decay_epochs(text: Text) -> int:
    """Epochs between two decays, from "README command (..., default step 5, ...)" or "(lr_decay 10)"."""
    return text.scan("step {whole}", "lr_decay {whole}")


def image_info(text: Text) -> list[float]:
    """Height, width and where given scale, from "im_info (128,160,1.6)"."""
    return text.scan("im_info ({numbers})")


@dataclass(frozen=True)
class SoftNms:
    """The numbers of soft-NMS, by the original's names of them."""

    sigma: float
    iou_threshold: float
    score_threshold: float

    @classmethod
    def of(cls, text: Text) -> SoftNms:
        """From "sigma 0.5, Nt 0.3, threshold 0.001"."""
        return cls(*text.scan("sigma {number}, Nt {number}, threshold {number}"))


def anchor_samples(text: Text) -> tuple[int, int]:
    """Anchors of an image and the seed of their draw, from "RPN_BATCHSIZE 256, np.random.seed(3)"."""
    return text.scan("RPN_BATCHSIZE {whole}, np.random.seed({whole})")


@dataclass(frozen=True)
class SmoothL1:
    """Arrays (N, R, 4) of a loss, its inside weights (N, R, 1), and what the outside weights divide by."""

    predicted: Tensor
    target: Tensor
    inside: Tensor
    parts: float

    @classmethod
    def of(cls, text: Text, kind: torch.dtype) -> SmoothL1:
        """From "pred normal_input(30,(2,50,4)), target normal_input(31,(2,50,4)), inside weight 1 where
        RandomState(32).random_sample((2,50,1))<0.3, outside weight inside/256"."""
        number, shape, part = text.scan("RandomState({whole}).random_sample(({wholes}))<{number}")
        inside = torch.from_numpy(np.random.RandomState(number).random_sample(shape) < part).to(kind)
        return cls(*arrays(text, kind, 2), inside, text.scan("inside/{whole}"))


def scale(text: Text) -> float:
    """Of a map, from "spatial scale 1/16"."""
    return 1 / text.scan("1/{whole}")


def lowered_by(text: Text) -> float:
    """From "RoIPool on the map minus 2.0"."""
    return text.scan("minus {number}")


def pyramid_maps(text: Text, shapes: list[list[int]], kind: torch.dtype) -> list[Tensor]:
    """Maps (1, C, h, w) of these (h, w), from "maps normal_input(50+i,(1,4,h,w))"."""
    call = text.call()
    return [
        torch.from_numpy(call.array(level, h=height, w=width)).to(kind)
        for level, (height, width) in enumerate(shapes)
    ]


def pooled_size(text: Text) -> int:
    """From "pooled size 14"."""
    return text.scan("pooled size {whole}")


_SHORTER = ("target <size |of |to ><(>{whole}", "shorter side <size |of |to ><(>{whole}")
_LONGEST = ("longest side <of |to ><(>{whole}",)


def resizing(text: Text, first: Text, *, longest: bool) -> tuple[int, int | None]:
    """The shorter side that an image is scaled to, and the most that its longer side may have, in pixels.

    Args:
        text: of the output: "target 60", "the longest side (80) IS applied". first: of the first output of
            the same image, where the text itself names no number. longest: whether the longer side is bounded
            too.
    """

    def side(templates: tuple[str, ...]) -> int:
        for said in (text, first):
            if (found := said.scan(*templates, default=None)) is not None:
                return found
        raise text.error("'target N' or 'longest side (N)', which the size of an image follows from")

    return side(_SHORTER), side(_LONGEST) if longest else None
