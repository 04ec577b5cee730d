"""Interface of detectors: a dict of losses in training, `Detections` for each image at inference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detection_zoo.zoo.parts.fixed_size import FixedDetections
from detection_zoo.zoo.parts.frames import Frame
from detection_zoo.zoo.records import Detections, Target


class Detector(nn.Module):
    """Base of every detector. A family implements `losses`, `raw` and `postprocess`; calling the module
    selects by mode."""

    num_classes: int  # K, without background
    class_names: tuple[str, ...] = ()
    # of `raw`: backbone, neck, rpn, heads -> dotted names of the modules and methods called for each
    parts: Mapping[str, tuple[str, ...]] = {}
    # shorter side, bound of the longer, of images resized by one rounded factor (Detectron)
    resize: tuple[int, int | None] | None = None
    # why inference cannot use lists of fixed size (zoo/parts/fixed_size.py); None: it can, and the last
    # three methods are implemented
    needs_any_size: str | None = "it chooses by lists of any size"
    reads_sizes = False  # whether `raw` needs the sizes of images as numbers on the host

    def forward(
        self, images: Tensor, sizes: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training mode, detections otherwise.

        Args:
            images: (N, 3, H, W) float, normalised and zero-padded according to the conventions.
            sizes: (N, 2) int64, (height, width) of each image before padding.
            targets: one `Target` per image; needed in training.
        """
        if self.training:
            if targets is None:
                raise ValueError("training needs targets, one for each image")
            return self.losses(images, sizes, targets)
        return self.predict(images, sizes)

    def predict(
        self, images: Tensor, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Detections of each image, in pixels of `original_sizes` (N, 2) if given, otherwise of the input
        (without pasting masks)."""
        return self.postprocess(self.raw(images, sizes), sizes, original_sizes)

    @abstractmethod
    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Scalar losses by name; training minimises their sum."""

    @abstractmethod
    def raw(self, images: Tensor, sizes: Tensor) -> Any:
        """All outputs of the network before per-class selection; timed as 'forward'."""

    @abstractmethod
    def postprocess(self, raw: Any, sizes: Tensor, original_sizes: Tensor | None = None) -> list[Detections]:
        """Selection, NMS, mask pasting and scaling to original pixels; timed as 'post-processing'."""

    def frames(self, sizes: Tensor, original_sizes: Tensor | None = None) -> list[Frame]:
        """Coordinate frames of detections for images of sizes (N, 2); needed if `needs_any_size` is None."""
        raise NotImplementedError(self._no_fixed_size())

    def fixed_detections(self, raw: Any, where: Sequence[Frame]) -> FixedDetections:
        """Detections of all images with lists of fixed size, without synchronizing with the device; needed if
        `needs_any_size` is None."""
        raise NotImplementedError(self._no_fixed_size())

    def finish_fixed(self, chosen: FixedDetections, raw: Any, where: Sequence[Frame]) -> list[Detections]:
        """What `postprocess` returns, from the detections of `fixed_detections`, without absent ones;
        needed if `needs_any_size` is None."""
        raise NotImplementedError(self._no_fixed_size())

    def _no_fixed_size(self) -> str:
        return f"{type(self).__name__} has no detections of fixed size: {self.needs_any_size}"
