"""What the folders of PytorchSSD-HarDNet and Pytorch-HarDNet say in words: arrays, images, the test loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.conventions import SSDConventions
from detection_zoo.zoo.parity.prose import Text


def image(text: Text) -> np.ndarray:
    """The (H, W, 3) uint8 image of "clip(rint((104,117,123) + 2.0*RandomState(4).standard_normal((9,7,3)))",
    its channels turned, or of "RandomState(3).randint(0,256,(40,30,3)) ... repeated 8 times"."""
    noisy = "clip(rint({list} + {number}*RandomState({whole}).standard_normal({list})"
    if found := text.scan(noisy, default=None):
        means, size, seed, shape = found
        noise = np.random.RandomState(seed).standard_normal(shape)
        return np.clip(np.rint(np.array(means) + size * noise), 0, 255).astype(np.uint8)[:, :, ::-1]
    seed, shape = text.scan("RandomState({whole}).randint(0,256,{list})")
    times = text.scan("repeated {whole} times", default=1)
    small = np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
    return small.repeat(times, axis=0).repeat(times, axis=1)


def selection(rules: dict[str, Any], background: Text | None) -> SSDConventions:
    """The test loop that a folder's `postprocess` describes.

    Args:
        rules: its numbers.
        background: "... the background probability is at least 0.9"; None: no prior is dropped for it.
    """
    return SSDConventions(
        score_threshold=rules["score_threshold"],
        nms_iou=rules["nms_iou"],
        per_class_keep=rules["per_class_keep"],
        per_image_keep=rules["per_image_keep"],
        nms_offset=0.0 if "no +1" in rules["nms"] else 1.0,
        background_filter=background.scan("at least {number}") if background else None,
    )


def logits(text: Text) -> Tensor:
    """Logits (N, P, C) or (P, C) float32 of "2*normal_input(22,(2,11620,21)), then 2 added to column 0"."""
    found = torch.from_numpy(text.call().array())
    found[..., 0] += np.float32(text.scan("{whole} added to column 0"))
    return found


def scored_boxes(text: Text) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) and scores (N,) float32 of "RandomState(41): xy=uniform(0,40,(200,2)),
    wh=uniform(2,14,(200,2)), then scores=permutation(200)/200"."""
    seed, low, high, count, least, most = text.scan(
        "RandomState({whole}): xy=uniform({whole},{whole},({whole},2)), wh=uniform({whole},{whole}"
    )
    draw = np.random.RandomState(seed)
    corners, sides = draw.uniform(low, high, (count, 2)), draw.uniform(least, most, (count, 2))
    scores = torch.from_numpy((draw.permutation(count) / count).astype(np.float32))
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=1).astype(np.float32)), scores
