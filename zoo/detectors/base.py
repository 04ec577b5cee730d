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
    """Base of every detector. A family implements `losses`, `raw` and `postprocess`; calling the module picks
    by mode."""

    num_classes: int  # K, background not counted
    class_names: tuple[str, ...] = ()
    # of `raw`: backbone, neck, rpn, heads -> dotted names of the modules and methods that it calls for each
    parts: Mapping[str, tuple[str, ...]] = {}
    # shorter side, bound of the longer, of images resized by one rounded factor (Detectron)
    resize: tuple[int, int | None] | None = None
    # why inference cannot work on lists of fixed size (zoo/parts/fixed_size.py); None: it can, and the last
    # three methods are there
    needs_any_size: str | None = "it chooses by lists of any size"
    reads_sizes = False  # whether `raw` needs the sizes of images as numbers, and not on a device

    def forward(
        self, images: Tensor, sizes: Tensor, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training mode, detections otherwise.

        Args:
            images: (N, 3, H, W) float, normalised and zero-padded as the conventions say.
            sizes: (N, 2) int64, the true (height, width) of each image before padding.
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
        """Detections of each image; in the pixels of `original_sizes` (N, 2) where given, of the input
        otherwise (masks are not pasted then)."""
        return self.postprocess(self.raw(images, sizes), sizes, original_sizes)

    @abstractmethod
    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Scalar losses by name; their plain sum is what training minimises."""

    @abstractmethod
    def raw(self, images: Tensor, sizes: Tensor) -> Any:
        """Everything the network computes before per-class selection: the part timed as 'forward'."""

    @abstractmethod
    def postprocess(self, raw: Any, sizes: Tensor, original_sizes: Tensor | None = None) -> list[Detections]:
        """Selection, NMS, mask pasting and scaling to original pixels: the part timed as
        'post-processing'."""

    def frames(self, sizes: Tensor, original_sizes: Tensor | None = None) -> list[Frame]:
        """Where the detections of images of sizes (N, 2) lie; needed if `needs_any_size` is None."""
        raise NotImplementedError(self._no_fixed_size())

    def fixed_detections(self, raw: Any, where: Sequence[Frame]) -> FixedDetections:
        """Detections of all images by lists of fixed size, without a wait for the device; needed if
        `needs_any_size` is None."""
        raise NotImplementedError(self._no_fixed_size())

    def finish_fixed(self, chosen: FixedDetections, raw: Any, where: Sequence[Frame]) -> list[Detections]:
        """What `postprocess` returns, from the detections of `fixed_detections`: the absent ones are cut;
        needed if `needs_any_size` is None."""
        raise NotImplementedError(self._no_fixed_size())

    def _no_fixed_size(self) -> str:
        return f"{type(self).__name__} has no detections of fixed size: {self.needs_any_size}"
