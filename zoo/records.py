"""Records that parts, detectors, data and evaluation share: feature maps, targets, detections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

ON_HOST = {"on_host": True}  # metadata of fields that `zoo.training.loop.move` does not move


@dataclass(frozen=True)
class FeatureSpec:
    """One feature map of a backbone: its channels, and how many input pixels one cell spans."""

    channels: int
    stride: int


@dataclass
class Target:
    """The objects of one training image, in the pixels of the network's input.

    boxes (R, 4) float32 xyxy; labels (R,) int64 in 0..K-1; polygons: for each object a list of flat [x, y,
    ...] lists; keypoints (R, P, 3) float32 with x, y, visibility (0, 1 or 2); crowd (R,) bool, which stays
    on the host; scale: (x, y) factors from original pixels to these.
    """

    boxes: Tensor
    labels: Tensor
    polygons: list[list[list[float]]] | None = None
    keypoints: Tensor | None = None
    crowd: Tensor | None = field(default=None, metadata=ON_HOST)
    scale: tuple[float, float] = (1.0, 1.0)

    def pin_memory(self) -> Target:
        """The target in page-locked memory, so that copies to a GPU do not wait; torch's DataLoader calls
        this."""
        pinned = {name: one.pin_memory() for name, one in vars(self).items() if isinstance(one, Tensor)}
        return replace(self, **pinned)


@dataclass
class Detections:
    """Detections in one image.

    boxes (R, 4) float32 xyxy pixels; scores (R,) float32; labels (R,) int64 in 0..K-1 (background is no
    label);
    masks: (R, M, M) float32 probabilities before pasting, then (R, H, W) bool; keypoints (R, P, 3)
        float32 with x, y, score.
    extra: additional outputs of a detector (for example keypoint logits), each with R rows.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: Tensor | slice) -> Detections:
        """The given rows (int64 indices, a bool mask or a slice), in their order."""
        return self._each(lambda value: value[rows])

    def clone(self) -> Detections:
        """A copy with memory of its own."""
        return self._each(Tensor.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Detections:
        """The same with every tensor changed."""
        changed = {
            name: change(value)
            for name in ("boxes", "scores", "labels", "masks", "keypoints")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **changed, extra={name: change(value) for name, value in self.extra.items()})


def tensors_in(value: Any, skipped: str | None = None) -> Iterator[Tensor]:
    """Tensors, alone or in lists, mappings and dataclasses of any depth; anything else is ignored, as are
    values named `skipped`."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one, skipped)
    elif isinstance(value, Mapping):
        yield from tensors_in([one for name, one in value.items() if name != skipped], skipped)
    elif is_dataclass(value):
        yield from tensors_in({one.name: getattr(value, one.name) for one in fields(value)}, skipped)
