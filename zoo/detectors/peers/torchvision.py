"""torchvision's detectors behind this project's contract, through torchvision's own code: peers to compare
with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.faster_rcnn import without_crowd
from detection_zoo.zoo.detectors.ssd import COCO_IDS
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS, did_you_mean

MASK_THRESHOLD = 0.5
Found = list[dict[str, Tensor]]


@dataclass
class PeerRaw:
    """What torchvision's network computed before selection: resized images, and the outputs of its heads."""

    images: Any  # torchvision's ImageList
    heads: dict[str, Any]


class TorchvisionDetector(Detector):
    """A detector of torchvision. It resizes and normalises itself, so its inputs are plain RGB in 0..1, and
    'forward' includes the resize.

    Args:
        model: of torchvision.models.detection.
        num_classes: K of the row; label k is the model's class `columns[k]`.
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes
        columns = _columns(num_classes)
        labels = torch.full((columns[-1] + 1,), -1, dtype=torch.int64, device="cpu")
        labels[columns] = torch.arange(num_classes, device="cpu")
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("columns", torch.tensor(columns, device="cpu"), persistent=False)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """What `raw` calls for backbone, neck, rpn and heads; SSD's extra layers are inside its backbone, the
        resize is in none of them."""
        body = (
            {"backbone": ("model.backbone.body",), "neck": ("model.backbone.fpn",)}
            if hasattr(self.model.backbone, "fpn")
            else {"backbone": ("model.backbone",)}
        )
        if hasattr(self.model, "rpn"):
            return {
                **body,
                "rpn": ("model.rpn",),
                "heads": tuple(
                    f"model.roi_heads.{name}" for name in ("box_roi_pool", "box_head", "box_predictor")
                ),
            }
        return {**body, "heads": ("model.head",)}

    def raw(self, images: Tensor, sizes: Tensor) -> PeerRaw:
        model = self.model
        inputs, _ = model.transform(
            [image[:, :h, :w] for image, (h, w) in zip(images, sizes.tolist(), strict=True)]
        )
        features = model.backbone(inputs.tensors)
        if hasattr(model, "rpn"):
            proposals, _ = model.rpn(inputs, features)
            pooled = model.roi_heads.box_head(
                model.roi_heads.box_roi_pool(features, proposals, inputs.image_sizes)
            )
            logits, deltas = model.roi_heads.box_predictor(pooled)
            return PeerRaw(
                inputs, {"features": features, "proposals": proposals, "logits": logits, "deltas": deltas}
            )
        maps = list(features.values())
        return PeerRaw(
            inputs,
            {
                "outputs": model.head(maps),
                "anchors": model.anchor_generator(inputs, maps),
                "cells": [m.shape[2] * m.shape[3] for m in maps],
            },
        )

    def postprocess(
        self, raw: PeerRaw, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        found = self._regions(raw) if hasattr(self.model, "rpn") else self._dense(raw)
        shapes = [tuple(size) for size in (sizes if original_sizes is None else original_sizes).tolist()]
        unpasted = (
            [each.pop("masks", None) for each in found] if original_sizes is None else [None] * len(found)
        )
        found = self.model.transform.postprocess(found, raw.images.image_sizes, shapes)
        return [self._detections(each, masks) for each, masks in zip(found, unpasted, strict=True)]

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        pairs = zip(images, sizes.tolist(), targets, strict=True)
        inputs = [(image[:, :h, :w], self._target(target, h, w)) for image, (h, w), target in pairs]
        return self.model([image for image, _ in inputs], [target for _, target in inputs])

    def _regions(self, raw: PeerRaw) -> Found:
        """Faster, Mask and Keypoint R-CNN: selection, then the further heads on what was selected."""
        from torchvision.models.detection.roi_heads import keypointrcnn_inference, maskrcnn_inference

        heads, sizes, features = self.model.roi_heads, raw.images.image_sizes, raw.heads["features"]
        boxes, scores, labels = heads.postprocess_detections(
            raw.heads["logits"], raw.heads["deltas"], raw.heads["proposals"], sizes
        )
        found = [
            {"boxes": b, "scores": s, "labels": n} for b, s, n in zip(boxes, scores, labels, strict=True)
        ]
        if heads.has_mask():
            logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, sizes)))
            for each, masks in zip(found, maskrcnn_inference(logits, labels), strict=True):
                each["masks"] = masks
        if heads.has_keypoint():
            logits = heads.keypoint_predictor(
                heads.keypoint_head(heads.keypoint_roi_pool(features, boxes, sizes))
            )
            for each, points, values in zip(found, *keypointrcnn_inference(logits, boxes), strict=True):
                each["keypoints"], each["keypoints_scores"] = points, values
        return found

    def _dense(self, raw: PeerRaw) -> Found:
        """SSD takes all levels at once; RetinaNet and FCOS take them separately."""
        outputs, anchors, cells = raw.heads["outputs"], raw.heads["anchors"], raw.heads["cells"]
        if not _has_levels(self.model):
            return self.model.postprocess_detections(outputs, anchors, raw.images.image_sizes)
        each_cell = outputs["cls_logits"].size(1) // sum(cells)
        counts = [count * each_cell for count in cells]
        return self.model.postprocess_detections(
            {name: list(values.split(counts, dim=1)) for name, values in outputs.items()},
            [list(one.split(counts)) for one in anchors],
            raw.images.image_sizes,
        )

    def _detections(self, found: dict[str, Tensor], unpasted: Tensor | None) -> Detections:
        labels = self.labels[found["labels"]]
        masks = found.get("masks")
        result = Detections(
            found["boxes"],
            found["scores"],
            labels,
            masks=None if masks is None else masks[:, 0] > MASK_THRESHOLD,
        )
        if unpasted is not None:
            result.masks = unpasted[:, 0]
        if "keypoints" in found:
            result.keypoints = torch.cat(
                [found["keypoints"][..., :2], found["keypoints_scores"][..., None]], dim=2
            )
        return result.select(labels >= 0)

    def _target(self, target: Target, height: int, width: int) -> dict[str, Tensor]:
        """A training target in torchvision's form; crowd objects are left out."""
        target = without_crowd(target)
        converted = {"boxes": target.boxes, "labels": self.columns[target.labels]}
        if hasattr(self.model, "roi_heads") and self.model.roi_heads.has_mask():
            converted["masks"] = _bitmaps(target.polygons or [], height, width).to(target.boxes.device)
        if (
            hasattr(self.model, "roi_heads")
            and self.model.roi_heads.has_keypoint()
            and target.keypoints is not None
        ):
            converted["keypoints"] = target.keypoints
        return converted


def _columns(num_classes: int) -> list[int]:
    """The model's class of each label: COCO's category ids where the row has COCO's classes, else one more
    than the label."""
    return list(COCO_IDS if num_classes == len(COCO_IDS) else range(1, num_classes + 1))


def _has_levels(model: nn.Module) -> bool:
    from torchvision.models.detection import FCOS, RetinaNet

    return isinstance(model, (FCOS, RetinaNet))


def _bitmaps(polygons: Sequence[list[list[float]]], height: int, width: int) -> Tensor:
    """Polygons of each object as (R, H, W) uint8."""
    import numpy as np
    from pycocotools import mask as coco_mask

    masks = np.zeros((len(polygons), height, width), np.uint8)
    for row, rings in enumerate(polygons):
        masks[row] = coco_mask.decode(
            coco_mask.merge(
                coco_mask.frPyObjects([np.asarray(ring, float).tolist() for ring in rings], height, width)
            )
        )
    return torch.as_tensor(masks)


@DETECTORS.family("torchvision")
def torchvision_detector(
    builder: str,
    *,
    num_classes: int,
    frozen_norm_eps: float | None = None,
    frozen: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> TorchvisionDetector:
    """A detector of torchvision.models.detection, without weights.

    Args:
        builder: name of its function there, for example "fasterrcnn_resnet50_fpn".
        num_classes: K; 80 means COCO's, for which the model has a class for each category id up to 90.
        frozen_norm_eps: the body's batch norms are frozen ones with this eps, as torchvision builds them
            around trained weights.
        frozen: beginnings of the body's parameter names that are not trained.
        options: torchvision's own keyword arguments, min_size (pixels) or box_detections_per_img say.
    """
    from torchvision.models import detection
    from torchvision.ops import FrozenBatchNorm2d

    known = [
        name
        for name in vars(detection)
        if name.islower() and "_" in name and callable(getattr(detection, name))
    ]
    if builder not in known:
        raise ValueError(f"torchvision.models.detection has no {builder!r}: {did_you_mean(builder, known)}")
    model = getattr(detection, builder)(
        weights=None, weights_backbone=None, num_classes=_columns(num_classes)[-1] + 1, **(options or {})
    )
    if frozen_norm_eps is not None:
        _replace_norms(model.backbone, lambda norm: FrozenBatchNorm2d(norm.num_features, eps=frozen_norm_eps))
    body = model.backbone.body if hasattr(model.backbone, "body") else model.backbone
    for name, parameter in body.named_parameters():
        if name.startswith(tuple(frozen)):
            parameter.requires_grad = False
    return TorchvisionDetector(model, num_classes)


def _replace_norms(module: nn.Module, make: Any) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, make(child))
        else:
            _replace_norms(child, make)
