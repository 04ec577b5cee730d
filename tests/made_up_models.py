"""Detectors whose behaviour a test decides, on images that a program drew."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detection_zoo.benchmarks.run.subject import Subject, build_subject, open_data
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.records import Detections

ROW = "mask_rcnn_resnet14_slim_fpn.demo"


class FindsNothing(Detector):
    """No detections, whatever the network does; a test says what that is."""

    num_classes = 5

    def postprocess(
        self, raw: Tensor, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)) for _ in raw]


def subject_of(
    model: nn.Module,
    images: int | None = None,
    *,
    entry: ModelEntry | None = None,
    data: str = "shapes",
    device: str = "cpu",
) -> Subject:
    """A model with the images and the pre-processing of a row (ROW unless another is given)."""
    entry = load_manifests().entry(ROW) if entry is None else entry
    return Subject(
        entry,
        model.to(device),
        Preprocess.from_conventions(entry.conventions.image),
        torch.device(device),
        open_data(entry, data, images),
    )


def real_subject(row: str = ROW, images: int = 2) -> Subject:
    """A row's own model with random weights, on the first drawn images."""
    subject = build_subject(load_manifests().entry(row), "random", "cpu")
    subject.dataset = open_data(subject.entry, "shapes", images)
    return subject
