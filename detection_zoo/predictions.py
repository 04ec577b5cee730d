"""Detections of a model in one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.records import Detections

if TYPE_CHECKING:
    import pandas
    from PIL import Image


@dataclass(frozen=True)
class Prediction:
    """Detections in one image, best first, in its own pixels.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        detections: boxes (R, 4) float32 x1, y1, x2, y2, scores (R,), labels (R,) int64, and where the model
            has them masks (R, H, W) bool and keypoints (R, P, 3).
        class_names: by label.
        category_ids: by label, of `to_coco`.
        inclusive: x2 and y2 are the last pixels inside.
        path: of the file, where there is one.

    Examples:
        >>> import numpy as np, detection_zoo as dz
        >>> model = dz.load("faster_rcnn_resnet14_slim_fpn.demo", weights="random")
        >>> found = model.detect(np.zeros((120, 160, 3), np.uint8))
        >>> found.above(0.9), found[:2].boxes.shape, found.draw().size, list(found.to_pandas().columns[:3])
        (Prediction(0 detections in 160x120), torch.Size([2, 4]), (160, 120), ['name', 'label', 'score'])
        >>> sorted(found.to_coco(image_id=7)[0])
        ['bbox', 'category_id', 'image_id', 'score']
    """

    pixels: np.ndarray
    detections: Detections
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    inclusive: bool = False
    path: str | None = None

    def __len__(self) -> int:
        return len(self.detections)

    def __getitem__(self, rows: int | slice | list[int] | Tensor) -> Prediction:
        """The detections of these rows: a number, a slice, indices, or a bool mask (R,)."""
        if isinstance(rows, int):
            rows = [range(len(self))[rows]]
        if not isinstance(rows, Tensor):
            rows = torch.arange(len(self))[rows]
        return replace(self, detections=self.detections.select(rows))

    def above(self, score: float) -> Prediction:
        """The detections of at least this score, 0 to 1."""
        return self[self.scores >= score]

    @property
    def boxes(self) -> Tensor:
        """(R, 4) float32 x1, y1, x2, y2 in pixels."""
        return self.detections.boxes

    @property
    def scores(self) -> Tensor:
        """(R,) float32, 0 to 1, falling."""
        return self.detections.scores

    @property
    def labels(self) -> Tensor:
        """(R,) int64, 0 to K-1."""
        return self.detections.labels

    @property
    def names(self) -> list[str]:
        """The class of each detection."""
        known = self.class_names
        return [known[i] if i < len(known) else str(i) for i in self.labels.tolist()]

    @property
    def masks(self) -> Tensor | None:
        """(R, H, W) bool, of models with masks."""
        return self.detections.masks

    @property
    def keypoints(self) -> Tensor | None:
        """(R, P, 3) float32 x, y, 1 in pixels, of models with keypoints."""
        return self.detections.keypoints

    def draw(self, min_score: float = 0.5) -> Image.Image:
        """The image with its detections of at least this score drawn on it."""
        from PIL import Image

        from detection_zoo.benchmarks.run.drawing import draw

        return Image.fromarray(draw(self.pixels, self.detections, self.class_names, min_score))

    def to_pandas(self) -> pandas.DataFrame:
        """One line a detection: name, label, score, x1, y1, x2, y2."""
        import pandas

        corners = self.boxes.numpy().T
        columns = dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True))
        first = {"name": self.names, "label": self.labels.numpy(), "score": self.scores.numpy()}
        return pandas.DataFrame(first | columns)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Detections as entries of a COCO results file: bbox x, y, width, height; masks as RLE."""
        from detection_zoo.benchmarks.run.saving import coco_records

        return coco_records(self.detections, image_id, self.category_ids, self.inclusive)

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        best = ", ".join(
            f"{n} {s:.2f}" for n, s in zip(self.names[:3], self.scores[:3].tolist(), strict=True)
        )
        more = ", ..." if len(self) > 3 else ""
        return f"Prediction({len(self)} detections in {width}x{height}" + (
            f": {best}{more})" if best else ")"
        )
