"""Records that parts, detectors, data and evaluation share: feature maps, targets, detections."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

ON_HOST = {"on_host": True}  # metadata of fields that `zoo.training.loop.move` leaves where they are


@dataclass(frozen=True)
class FeatureSpec:
    """One feature map of a backbone: its channels, and how many input pixels one cell spans."""

    channels: int
    stride: int


@dataclass
class Target:
    """The objects of one training image, in the pixels of the network's input.

    boxes (R, 4) float32 xyxy; labels (R,) int64 in 0..K-1; polygons: for each object a list of flat [x, y,
    ...] lists; keypoints (R, P, 3) float32 with x, y, visibility (0, 1 or 2); crowd (R,) bool, which the host
    reads and which stays there; scale: (x, y) factors from original pixels to these.
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
    """What was found in one image.

    boxes (R, 4) float32 xyxy pixels; scores (R,) float32; labels (R,) int64 in 0..K-1 (background is no
    label);
    masks: (R, M, M) float32 probabilities until they are pasted, then (R, H, W) bool; keypoints (R, P, 3)
        float32 with x, y, score.
    extra: what a family records besides (for example keypoint heat values), each with R rows.
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
        picked = {
            name: value[rows]
            for name in ("boxes", "scores", "labels", "masks", "keypoints")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **picked, extra={name: value[rows] for name, value in self.extra.items()})
