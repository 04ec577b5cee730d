"""A small mistake in a stage of the detectors is found by parity, whatever near ties it forgives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detection_zoo.zoo.detectors import ssd as ssd_detector
from detection_zoo.zoo.parity import hardnet, settings
from detection_zoo.zoo.parity.base import parity
from detection_zoo.zoo.parts import detections, proposals, roi_heads

pytestmark = pytest.mark.usefixtures("kept_memory", "kept_fills")

FOLDERS = Path(__file__).resolve().parents[1] / "reference"
RCNN = FOLDERS / "maskrcnn_benchmark" / "e2e_faster_rcnn_V_39_FPN_2x"
SSD = FOLDERS / "hardnet" / "ssd300_hardnet68_voc"
VGG = FOLDERS / "hardnet" / "ssd300_vgg16_voc"

Change = Callable[[Any], Any]


def threshold(suppress: Any) -> Any:
    """NMS at a threshold that is one per cent higher."""
    return lambda boxes, scores, groups, iou, *rest, **named: suppress(
        boxes, scores, groups, 1.01 * iou, *rest, **named
    )


def threshold_of_sorted(suppress: Any) -> Any:
    """The same of boxes that are sorted already."""
    return lambda boxes, iou, **named: suppress(boxes, 1.01 * iou, **named)


def shifted(clip: Any) -> Any:
    """Boxes one pixel to the right and down, before they are clipped."""
    return lambda boxes, size, offset: clip(boxes + 1, size, offset)


def swapped(values: Tensor) -> Tensor:
    """Two channels change places."""
    return torch.cat([values[:, [1, 0]], values[:, 2:]], dim=1)


def image_channels(make: Any) -> Any:
    return lambda seed, shape: make(seed, shape)[..., [1, 0, 2], :, :]


def pooled_channels(pool: Any) -> Any:
    return lambda self, *given: swapped(pool(self, *given))


def scaled_gradient(make: Any) -> Any:
    """The gradient of an extra layer, of which every recorded number is 0, is 1e-4 too large."""

    def optimizer(model: Any, schedule: Any) -> Any:
        model.get_parameter("pyramid.extras.1.weight").register_hook(lambda gradient: gradient * (1 + 1e-4))
        return make(model, schedule)

    return optimizer


# stages, whose recorded outputs alone are computed; an output of the last that differs
MISTAKES: dict[str, tuple[Path, Any, str, Change, str, str]] = {
    "proposals: threshold": (
        RCNN,
        proposals,
        "nms_sorted",
        threshold_of_sorted,
        "A.proposals",
        "image0.boxes.x1",
    ),
    "proposals: one pixel": (RCNN, proposals, "clip_boxes", shifted, "A.proposals", "image0.boxes.x1"),
    "detections: threshold": (
        RCNN,
        detections,
        "batched_nms",
        threshold,
        "A.proposals|A.detections",
        "image0.boxes",
    ),
    "detections: one pixel": (
        RCNN,
        detections,
        "clip_boxes",
        shifted,
        "A.proposals|A.detections",
        "image0.boxes",
    ),
    "RoIs: channels": (RCNN, roi_heads.RoiAlignPooler, "forward", pooled_channels, "A.roi", "class_logits"),
    "SSD images: channels": (SSD, settings, "normal_input", image_channels, "c", "softmax"),
    "SSD gradient": (VGG, hardnet, "build_optimizer", scaled_gradient, "f.grad.extras", "1.weight"),
    "SSD detections: threshold": (SSD, ssd_detector, "batched_nms", threshold, "d", "boxes"),
}


def part_of(folder: Path, stages: list[str], into: Path) -> Path:
    """A copy of a folder in which the outputs of some stages alone are recorded, so that only these are
    computed."""
    for path in folder.iterdir():
        if path.name != "outputs.npz":
            (into / path.name).symlink_to(path)
    with np.load(folder / "outputs.npz") as recorded:
        wanted = tuple(f"{stage}." for stage in stages)
        kept = {name: recorded[name] for name in recorded.files if name.startswith(wanted)}
    np.savez(into / "outputs.npz", **kept)
    return into


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_differs(mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, owner, name, change, stages, found = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))
    part = part_of(folder, stages.split("|"), tmp_path)
    differing = {line.name for line in parity(part).lines if line.verdict == "differs"}
    found = f"{stages.rpartition('|')[2]}.{found}"
    assert any(line == found or line.startswith(f"{found}.") for line in differing), differing
