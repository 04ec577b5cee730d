"""A detector that runs in another engine."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.export.files import notes_of, write_onnx
from detection_zoo.zoo.export.runners import ENGINES, Run
from detection_zoo.zoo.export.whole import WholeDetector, detections
from detection_zoo.zoo.records import Detections

KEPT_SHAPES = 8  # number of batch shapes whose graphs are kept
GRID = 64  # pixels: sides of batches are padded to multiples, so that fewer graphs are made


class EngineDetector(nn.Module):
    """A detector whose network and selection run in another engine; interface as `Detector`.

    Args:
        model: exported once for each batch shape; also used for the steps after selection.
        engine: a name of runners.ENGINES. dtype: of its arithmetic.
    """

    def __init__(self, model: Detector, engine: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.engine, self.dtype = model, engine, dtype
        self.__dict__["whole"] = WholeDetector(model)  # a copy, not registered as a submodule
        self._graphs: OrderedDict[tuple[int, ...], Run] = OrderedDict()

    @property
    def class_names(self) -> tuple[str, ...]:
        """As the detector's."""
        return self.model.class_names

    def raw(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Outputs of the graph by name, for images (N, 3, H, W) and sizes (N, 2)."""
        images = self.fitted(images)
        found = self._graph(images.shape)(images.numpy(), sizes.numpy())
        return {name: torch.from_numpy(own) for name, own in zip(self.outputs, found, strict=True)}

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the graphs' outputs."""
        return self.whole.outputs

    def fitted(self, images: Tensor) -> Tensor:
        """Images as a graph takes them: padded, unless the detector takes one size (SSD) or reads heights."""
        return images if hasattr(self.model, "priors") or self.model.reads_sizes else padded(images)

    def postprocess(
        self, raw: dict[str, Tensor], sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Detections of each image from what `raw` returns."""
        return detections(self.model, raw, sizes, original_sizes)

    def predict(
        self, images: Tensor, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Detections of images (N, 3, H, W)."""
        return self.postprocess(self.raw(images, sizes), sizes, original_sizes)

    def _graph(self, shape: Sequence[int]) -> Run:
        key = tuple(shape)
        if key not in self._graphs:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                write_onnx(self.whole, key, path)
                self._graphs[key] = ENGINES[self.engine](path, self.dtype)
            while len(self._graphs) > KEPT_SHAPES:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key]


class FileDetector(EngineDetector):
    """A detector that runs in another engine as a file that was exported before; arguments as in
    EngineDetector.

    Args:
        path: of the file; images are padded to its size.
    """

    def __init__(self, model: Detector, engine: str, path: Path, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, engine, dtype)
        self.notes = notes_of(path)
        self.shape = tuple(self.notes["inputs"]["images"])
        self._run = ENGINES[engine](path, dtype)

    def fitted(self, images: Tensor) -> Tensor:
        """Images padded to the file's size.

        Raises:
            ValueError: they are larger, not as many, or of another height where the detector reads it.
        """
        if len(images) != self.shape[0] or any(
            own > its for own, its in zip(images.shape, self.shape, strict=True)
        ):
            raise ValueError(
                f"images {tuple(images.shape)} do not fit the exported file's {self.shape}; export with a"
                " larger --size"
            )
        if self.model.reads_sizes and images.shape[2] != self.shape[2]:
            raise ValueError(
                f"an image has a height of {images.shape[2]} pixels, the file is for {self.shape[2]}: this"
                " detector computes its pooling scale from the height. Export a file for each height, or use"
                " --path without --exported"
            )
        right, below = self.shape[3] - images.shape[3], self.shape[2] - images.shape[2]
        return nn.functional.pad(images, (0, right, 0, below))

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the file's outputs."""
        return self.notes["outputs"]

    def _graph(self, shape: Sequence[int]) -> Run:
        return self._run


def padded(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) padded by zeros at the right and below to multiples of GRID."""
    height, width = images.shape[2:]
    return nn.functional.pad(images, (0, -width % GRID, 0, -height % GRID))
