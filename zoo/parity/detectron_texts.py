"""What the folders of Detectron.pytorch say in words: inputs, test paths, augmentation, training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.conventions import AugmentationConventions, Views
from detection_zoo.zoo.parity.prose import Text

KINDS = ("boxes", "masks", "keypoints")


@dataclass(frozen=True)
class Images:
    """A batch (N, 3, H, W) float32, and the (height, width) that proposals of each image are clipped to."""

    images: Tensor
    sizes: list[tuple[float, float]]

    @classmethod
    def of(cls, text: Text) -> Images:
        """From "normal_input(1,(2,3,96,96)); im_info [[96,96,1]] twice"; one row counts for every image."""
        images = torch.from_numpy(text.call().array())
        rows = [(row[0], row[1]) for row in text.scan("im_info {list}")]
        return cls(images, rows if len(rows) == len(images) else rows * len(images))


@dataclass(frozen=True)
class FixedRows:
    """Which of the fixed boxes an input uses, and the image of each."""

    numbers: list[int]
    images: list[int]

    @classmethod
    def of(cls, text: Text, name: str) -> FixedRows:
        """From "input b uses boxes number 0,1,3,5 with batch indices 0,1,1,0"."""
        return cls(*text.scan(f"input {name} uses boxes number {{wholes}} with batch indices {{wholes}}"))


@dataclass(frozen=True)
class TestPath:
    """The scale of an input, and the (height, width) of the image that its detections are clipped to."""

    scale: float
    original: tuple[int, int]

    @classmethod
    def of(cls, text: Text) -> TestPath:
        """From "input a ... with im_scale 1 and a 128x160 image for the final clip"."""
        return cls(text.scan("im_scale {number}"), text.scan("{whole}x{whole} image"))


@dataclass(frozen=True)
class NoisyImage:
    """An image of the mean colour with noise, and the sides (pixels) that it is resized to."""

    noise: float
    seed: int
    shape: tuple[int, ...]
    short: int
    longest: int

    @classmethod
    def of(cls, text: Text) -> NoisyImage:
        """From "clip(round(means + 1.5*RandomState(7).standard_normal((90,120,3))),0,255); TEST.SCALE=120,
        TEST.MAX_SIZE=150"."""
        noise, seed, shape = text.scan("means + {number}*RandomState({whole}).standard_normal(({wholes}))")
        sides = (text.scan(f"TEST.{option}={{whole}}") for option in ("SCALE", "MAX_SIZE"))
        return cls(noise, seed, tuple(shape), *sides)

    def pixels(self, means: list[float]) -> np.ndarray:
        """(H, W, 3) uint8 in RGB; means: of the channels, recorded blue first."""
        noise = self.noise * np.random.RandomState(self.seed).standard_normal(self.shape)
        return np.clip(np.round(np.array(means) + noise), 0, 255).astype("uint8")[:, :, ::-1]


@dataclass(frozen=True)
class Training:
    """The batch of a training step: images, scale of the ground truth, seed of the samplers' draws."""

    images: Tensor
    scale: float
    seed: int

    @classmethod
    def of(cls, text: Text, count: int) -> Training:
        """From "normal_input(2,(N,3,128,160)), ... at scale 2.0; numpy seed 3"; count: images, N."""
        images = torch.from_numpy(text.call().array(N=count))
        return cls(images, text.scan("at scale {number}"), text.scan("numpy seed {whole}"))


def vote_threshold(text: Text) -> float:
    """The least IoU of boxes that vote, from "TEST.BBOX_VOTE.ENABLED (VOTE_TH 0.8, method ID)"."""
    return text.scan("VOTE_TH {number}")


def augmentation(text: Text) -> AugmentationConventions:
    """The options of "... (boxes and masks): H_FLIP, SCALES (96,160) with MAX_SIZE 220 and SCALE_H_FLIP,
    ASPECT_RATIOS (0.75,) with ASPECT_RATIO_H_FLIP"; "(boxes: off; keypoints: on)" turns boxes off."""
    options = text.names()
    wanted = Views(
        flip="H_FLIP" in options,
        scales=text.scan("SCALES ({wholes}<,>)") if "SCALES" in options else [],
        max_size=text.scan("MAX_SIZE {whole}") if "MAX_SIZE" in options else 4000,
        scale_flip="SCALE_H_FLIP" in options,
        aspect_ratios=text.scan("ASPECT_RATIOS ({numbers}<,>)") if "ASPECT_RATIOS" in options else [],
        aspect_flip="ASPECT_RATIO_H_FLIP" in options,
    )
    named = {kind: text.scan(f"({{inside}}{kind}{{inside}})", default=None) for kind in KINDS}
    if not any(named.values()):
        raise text.error("(in brackets) which of boxes, masks and keypoints are augmented")
    return AugmentationConventions(
        **{kind: wanted for kind, said in named.items() if said and not said[1].startswith(": off")}
    )
