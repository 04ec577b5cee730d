"""The model of one of Detectron.pytorch's reference folders, loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.parity.base import Output, Reference, Skip
from detection_zoo.zoo.parity.near_ties import ProposalChoices
from detection_zoo.zoo.parity.standin import read_checkpoint_description, standin_model
from detection_zoo.zoo.parts.targets import SampledBoxes

FORMATS = {"detectron_pytorch_pth": "checkpoint.json", "detectron_pkl": "checkpoint_pkl.json"}


class LoadedModel:
    """The model of a folder, loaded from its stand-in checkpoint."""

    def __init__(
        self, reference: Reference, row: ModelEntry, kind: torch.dtype, checkpoint_format: str
    ) -> None:
        self.reference, self.meta, self.kind, self.row = reference, reference.meta, kind, row
        self.computed: dict[str, Output | Skip] = {}
        self.choices: dict[str, ProposalChoices] = {}  # by input
        file = FORMATS[checkpoint_format]
        model, translation = standin_model(reference.folder, row, FasterRcnn, checkpoint_format, file)
        self.model = model.to(kind).eval()
        self.origin = translation.origin  # Detectron.pytorch's names of this model's parameters
        if checkpoint_format == "detectron_pkl":
            entries = read_checkpoint_description(reference.folder, file)["tensors"]
            theirs = {entry["name"]: entry["maps_to"] for entry in entries}
            self.origin = {ours: theirs[name] for ours, name in translation.origin.items()}
        reference.notes.append(f"built as row {row.name}, loaded as {checkpoint_format}")
        self.dtype = str(kind).removeprefix("torch.")


def recorded_boxes(rois: Tensor, labels: Tensor, targets: Tensor, images: int) -> list[SampledBoxes]:
    """The recorded RoIs (R, 5), labels (R,) and deltas (R, 4) as the samples of each image."""
    found = []
    for image in range(images):
        rows = torch.nonzero(rois[:, 0] == image).squeeze(1)
        own, place = labels[rows], torch.arange(len(rows))
        none = torch.zeros_like(rows)
        found.append(SampledBoxes(rois[rows, 1:], own, targets[rows], none, place, place, place, own))
    return found
