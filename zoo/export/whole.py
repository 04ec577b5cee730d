"""A detector as one graph of fixed sizes, from images and their true sizes to detections."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.detectors.keypoint_rcnn import HEATMAPS, KeypointRcnn
from detection_zoo.zoo.fast import fold_norms
from detection_zoo.zoo.parts.boxes import scale_boxes
from detection_zoo.zoo.parts.frames import Frame
from detection_zoo.zoo.parts.keypoint_head import decoded_heatmaps
from detection_zoo.zoo.records import Detections

INPUTS, KEYPOINTS = ("images", "sizes"), "keypoints"


class WholeDetector(nn.Module):
    """The exported module: norms folded, boxes in pixels of the input, masks (N, D, M, M) not pasted, key
    points (N, D, P, 4) x, y, logit and probability, in pixels of the input.

    A detector that computes its pooling scale from the image's height is exported for images of height H.

    Args:
        decode: key points; else heat maps (N, D, P, S, S), of which the original's pixels are not rounded.

    Raises:
        ValueError: the detector cannot work on lists of fixed size; gives the reason.
    """

    def __init__(self, model: Detector, decode: bool = False) -> None:
        super().__init__()
        if isinstance(model, FasterRcnn) and (reason := model.needs_any_size) is not None:
            raise ValueError(f"this detector cannot be exported: {reason}")
        if not isinstance(model, Detector):
            raise ValueError(f"{type(model).__name__} is not a detector of this project")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        fold_norms(self.model)
        self.keypoints = KEYPOINTS if decode else HEATMAPS

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        own = {"masks": hasattr(self.model, "mask"), self.keypoints: isinstance(self.model, KeypointRcnn)}
        return ("boxes", "scores", "labels", *(name for name, has in own.items() if has))

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Boxes (N, D, 4), scores (N, D), labels (N, D) with -1 in the absent rows at the end, and further
        outputs; from images (N, 3, H, W) and sizes (N, 2) int64."""
        found = self.model.predict(images, sizes)
        return tuple(torch.stack([_output(each, name) for each in found]) for name in self.outputs)


def _output(found: Detections, name: str) -> Tensor:
    """An output of one image; boxes of absent rows, which are not a number inside the model, are 0."""
    if name == KEYPOINTS:
        return decoded_heatmaps(found.extra[HEATMAPS], found.boxes)
    value = found.extra[name] if name == HEATMAPS else getattr(found, name)
    return value.where(~value.isnan(), 0.0) if name == "boxes" else value


def exported(whole: WholeDetector, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """The graph for images of one shape (N, 3, H, W)."""
    images, sizes = torch.zeros(tuple(shape)), torch.tensor([shape[2:]] * shape[0])
    with torch.no_grad():
        return torch.export.export(whole, (images, sizes))


def detections(
    model: Detector, outputs: dict[str, Tensor], sizes: Tensor, original_sizes: Tensor | None = None
) -> list[Detections]:
    """Detections of each image from an exported model's outputs by name, in original pixels where sizes (N,
    2) of the originals are given; masks are pasted then, and key points decoded."""
    where = model.frames(sizes, original_sizes)
    found = []
    for image, frame in enumerate(where):
        count = int((outputs["labels"][image] >= 0).sum())
        own = {name: value[image, :count] for name, value in outputs.items()}
        extra = {HEATMAPS: own.pop(HEATMAPS)} if HEATMAPS in own else {}
        points = own.pop(KEYPOINTS, None)
        found.append(_in_frame(model, Detections(**own, extra=extra), frame))
        if points is not None:
            _put_keypoints(found[-1], points, frame)
    if not isinstance(model, FasterRcnn):
        return found
    finish = FasterRcnn.branch_results if KEYPOINTS in outputs else type(model).branch_results
    return finish(model, found, where)


def _put_keypoints(found: Detections, points: Tensor, frame: Frame) -> None:
    """Key points (R, P, 4) of the input as `KeypointRcnn` gives them, in pixels of the original."""
    across, down = frame.factor
    x, y, found.extra["keypoint_logits"], found.extra["keypoint_probabilities"] = points.unbind(-1)
    found.keypoints = torch.stack([x * across, y * down, torch.ones_like(x)], dim=-1)


def _in_frame(model: Detector, found: Detections, frame: Frame) -> Detections:
    """Boxes in the frame that `branch_results` expects."""
    if not isinstance(model, FasterRcnn) or model.frame != "network":
        found.boxes = scale_boxes(found.boxes, *frame.factor)
    return found


def description(model: Detector, entry: Any, whole: WholeDetector, shape: Sequence[int]) -> dict[str, Any]:
    """Metadata for programs that run the file: names, pre-processing, conventions, shapes."""
    return {
        "row": entry.name,
        "classes": list(model.class_names),
        "inputs": {"images": list(shape), "sizes": [shape[0], 2]},
        "outputs": list(whole.outputs),
        "preprocessing": entry.conventions.image.model_dump(mode="json"),
        "conventions": entry.conventions.model_dump(mode="json", exclude_unset=True),
    }
