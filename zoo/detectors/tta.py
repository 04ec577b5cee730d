"""Test-time augmentation of the Faster R-CNN family, as Detectron does it: flipped, resized and stretched
copies of an image.

Boxes of all copies are concatenated before suppression; masks and heat maps are then computed for the
detections on every copy, and combined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from detection_zoo.zoo.conventions import AugmentationConventions, Views
from detection_zoo.zoo.data.figures import KEYPOINT_NAMES
from detection_zoo.zoo.data.loading import pad_batch
from detection_zoo.zoo.data.resizing import ShorterSide
from detection_zoo.zoo.data.targets import mirrored_keypoints
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.detectors.keypoint_rcnn import KeypointRcnn
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnn
from detection_zoo.zoo.parts.frames import Frame
from detection_zoo.zoo.parts.mask_head import class_masks, paste_masks
from detection_zoo.zoo.records import Detections

SCALED = Views(flip=True, scales=[400, 500, 600, 700, 900, 1000, 1100, 1200], max_size=2000, scale_flip=True)
# of the one model that Detectron published with augmentation
DEFAULT = AugmentationConventions(boxes=SCALED, masks=SCALED, keypoints=SCALED)
LOGIT_LEAST = 1e-20


@dataclass(frozen=True)
class View:
    """One copy of an image: stretched in x by `aspect`, then mirrored, then preprocessed."""

    preprocess: Preprocess
    flip: bool = False
    aspect: float | None = None

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The copy (H, W', 3) uint8 of an image (H, W, 3) uint8."""
        if self.aspect is not None:
            import cv2

            image = cv2.resize(image, (int(round(self.aspect * image.shape[1])), image.shape[0]))
        return image[:, ::-1] if self.flip else image

    def into(self, boxes: Tensor, width: int) -> Tensor:
        """Boxes (..., 4) of the image in coordinates of the copy, which is `width` pixels wide."""
        stretch = boxes.new_tensor([self.aspect or 1.0, 1.0] * 2)
        return self._mirrored(boxes * stretch, width)

    def back(self, boxes: Tensor, width: int) -> Tensor:
        """Boxes (..., 4) of the copy in coordinates of the image."""
        stretch = boxes.new_tensor([1.0 / (self.aspect or 1.0), 1.0] * 2)
        return self._mirrored(boxes, width) * stretch

    def _mirrored(self, boxes: Tensor, width: int) -> Tensor:
        if not self.flip:
            return boxes
        x1, y1, x2, y2 = boxes.unbind(-1)
        return torch.stack([width - x2 - 1, y1, width - x1 - 1, y2], dim=-1)


def views(preprocess: Preprocess, wanted: Views) -> Iterator[View]:
    """The copies in addition to the image itself, in Detectron's order: flipped, at each scale (and flipped),
    at each aspect ratio (and flipped)."""
    if wanted.flip:
        yield View(preprocess, flip=True)
    for scale in wanted.scales:
        if not isinstance(preprocess.resize, ShorterSide):
            raise ValueError(
                "copies at other scales need images resized by their shorter side, and this row's are"
                f" resized by {preprocess.resize}"
            )
        scaled = replace(preprocess, resize=replace(preprocess.resize, size=scale, longest=wanted.max_size))
        yield View(scaled)
        if wanted.scale_flip:
            yield View(scaled, flip=True)
    for aspect in wanted.aspect_ratios:
        yield View(preprocess, aspect=aspect)
        if wanted.aspect_flip:
            yield View(preprocess, flip=True, aspect=aspect)


@dataclass
class Copy:
    """A view of one image as input of the network: images (1, 3, H, W), sizes (1, 2), and its coordinate
    frame; the network's levels, once they are computed."""

    view: View
    images: Tensor
    sizes: Tensor
    frame: Frame
    width: int
    features: dict[str, Tensor] | None = None


def make_copy(view: View, image: np.ndarray, device: torch.device, dtype: torch.dtype) -> Copy:
    """Preprocess one view of an image (H, W, 3) uint8 RGB."""
    pixels = view.pixels(image)
    done = view.preprocess(pixels)
    frame = Frame(done.size, pixels.shape[:2], (1 / done.scale[0], 1 / done.scale[1]))
    return Copy(
        view,
        pad_batch([done.tensor], view.preprocess.size_divisor).to(device, dtype),
        torch.tensor([done.size], device=device),
        frame,
        pixels.shape[1],
    )


@torch.no_grad()
def detect_augmented(
    model: Detector,
    image: np.ndarray,
    preprocess: Preprocess,
    augmentation: AugmentationConventions = DEFAULT,
    keypoint_names: Sequence[str] = KEYPOINT_NAMES,
) -> Detections:
    """Detections of one image from several copies, in original pixels; masks are pasted (R, H, W) bool.

    Args:
        model: of the Faster R-CNN family, in evaluation mode.
        image: (H, W, 3) uint8 RGB.
        preprocess: of the model's row.
        augmentation: the copies for boxes, masks and keypoints, and how they are combined; without copies of
            a kind, the image alone.
        keypoint_names: identify left and right.

    Raises:
        ValueError: the model is of another family.
    """
    if not isinstance(model, FasterRcnn):
        raise ValueError(
            f"test-time augmentation is for the Faster R-CNN family, not for {type(model).__name__}"
        )
    parameter = next(model.parameters())

    @cache
    def copy_of(view: View) -> Copy:
        return make_copy(view, image, parameter.device, parameter.dtype)

    def copies(wanted: Views | None) -> Iterator[Copy]:
        return map(copy_of, views(preprocess, wanted or Views()))

    plain = copy_of(View(preprocess))

    found = _boxes(model, [*copies(augmentation.boxes), plain])
    if isinstance(model, MaskRcnn) and len(found):
        masks = [_masks(model, copy, found) for copy in (plain, *copies(augmentation.masks))]
        merged = combine_masks(masks, augmentation.mask_combine)
        pasted = paste_masks(
            merged, found.boxes, image.shape[:2], threshold=model.threshold, interpolation=model.interpolation
        )
        found = replace(found, masks=pasted, extra={**found.extra, "mask_probabilities": merged})
    if isinstance(model, KeypointRcnn) and len(found):
        mirror = mirrored_keypoints(keypoint_names)
        maps = torch.stack(
            [_heatmaps(model, copy, found, mirror) for copy in (plain, *copies(augmentation.keypoints))]
        )
        combined = maps.mean(dim=0) if augmentation.keypoint_combine == "mean" else maps.amax(dim=0)
        found = model.with_keypoints(found, combined, Frame(image.shape[:2]))
    return found


def _boxes(model: FasterRcnn, copies: Sequence[Copy]) -> Detections:
    """Scored boxes of all copies, after suppression."""
    chances, boxes = [], []
    for copy in copies:
        raw = model.raw(copy.images, copy.sizes).trimmed()
        if isinstance(model, (MaskRcnn, KeypointRcnn)):
            copy.features = raw.features
        probability, place = model.scored_boxes(raw, [copy.frame])[0]
        if model.frame == "network":
            place = place * place.new_tensor([*copy.frame.factor, *copy.frame.factor])
        chances.append(probability)
        boxes.append(copy.view.back(place, copy.width))
    return model.choose(torch.cat(chances), torch.cat(boxes))


def _pooled_from(model: FasterRcnn, copy: Copy, found: Detections) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A copy's levels, and the detections' boxes in pixels of its network input."""
    factor = found.boxes.new_tensor([*copy.frame.factor, *copy.frame.factor])
    features = model.features(copy.images) if copy.features is None else copy.features
    return features, [copy.view.into(found.boxes, copy.width) / factor]


def _masks(model: MaskRcnn, copy: Copy, found: Detections) -> Tensor:
    """Probabilities (R, M, M) of the detections' own classes, flipped back."""
    pooled = model.mask_features(*_pooled_from(model, copy, found))
    masks = class_masks(model.mask(pooled), found.labels)
    return masks.flip(-1) if copy.view.flip else masks


def combine_masks(masks: Sequence[Tensor], method: str) -> Tensor:
    """One map of probabilities from several (R, M, M): "soft_avg", "soft_max" or "logit_avg"."""
    stacked = torch.stack(list(masks))
    if method == "soft_max":
        return stacked.amax(dim=0)
    if method == "logit_avg":
        return (-torch.log((1.0 - stacked) / stacked.clamp(min=LOGIT_LEAST))).mean(dim=0).sigmoid()
    return stacked.mean(dim=0)


def _heatmaps(model: KeypointRcnn, copy: Copy, found: Detections, mirror: Sequence[int]) -> Tensor:
    """Heat maps (R, P, S, S) of the detections, flipped back with left and right exchanged."""
    maps = model.keypoint(model.keypoint.pooler(*_pooled_from(model, copy, found))).float()
    return maps[:, mirror].flip(-1) if copy.view.flip else maps
