"""The model of one of Detectron.pytorch's reference folders, loaded."""

from __future__ import annotations

from typing import Any

import torch

from detection_zoo.zoo.build import assemble
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.parity.base import ParityError, Reference
from detection_zoo.zoo.parity.standin import read_checkpoint_description
from detection_zoo.zoo.weights import load as weights

FORMATS = {"detectron_pytorch_pth": "checkpoint.json", "detectron_pkl": "checkpoint_pkl.json"}


class LoadedModel:
    """The model of a folder, loaded from its stand-in checkpoint."""

    def __init__(
        self, reference: Reference, row: ModelEntry, kind: torch.dtype, checkpoint_format: str
    ) -> None:
        self.reference, self.meta, self.kind, self.row = reference, reference.meta, kind, row
        model = assemble(row)
        if not isinstance(model, FasterRcnn):
            raise ParityError(f"{reference.folder}: row {row.name} is no Faster R-CNN; give the right row")
        arrays = reference.checkpoint(FORMATS[checkpoint_format])
        self.origin = self._origin(arrays, checkpoint_format)
        weights.load_arrays(
            model,
            arrays,
            checkpoint_format,
            where=f"stand-in checkpoint of {reference.folder} ({checkpoint_format})",
        )
        self.model = model.to(kind).eval()
        reference.notes.append(f"built as row {row.name}, loaded as {checkpoint_format}")
        self.dtype = str(kind).removeprefix("torch.")

    def _origin(self, arrays: dict[str, Any], checkpoint_format: str) -> dict[str, str]:
        """Detectron.pytorch's names of this model's parameters."""
        origin = weights.checkpoint_format(checkpoint_format).translate(arrays).origin
        if checkpoint_format == "detectron_pkl":
            theirs = {entry["name"]: entry["maps_to"] for entry in self.reference_pkl["tensors"]}
            return {ours: theirs[name] for ours, name in origin.items()}
        return origin

    @property
    def reference_pkl(self) -> dict[str, Any]:
        """The description of the pickle."""
        return read_checkpoint_description(self.reference.folder, FORMATS["detectron_pkl"])
