"""Detectron2's detectors behind this project's contract, through Detectron2's own code where it is installed:
peers to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.faster_rcnn import without_crowd
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS

INSTALL = "https://detectron2.readthedocs.io/tutorials/install.html"


@dataclass
class Detectron2Raw:
    """What Detectron2's network computed before selection: normalised padded images, backbone maps by name,
    head outputs, proposals where it has them."""

    images: Any  # detectron2.structures.ImageList
    features: dict[str, Tensor]
    predictions: Any
    proposals: Any = None  # list of detectron2.structures.Instances


class Detectron2Detector(Detector):
    """A detector of Detectron2. It normalises and pads itself, so its inputs are plain BGR in 0..255, already
    resized.

    Args:
        model: a GeneralizedRCNN or RetinaNet of detectron2.modeling.
        num_classes: K of the row; Detectron2's labels are the same.
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """What `raw` calls for backbone, neck, rpn and heads; normalising and padding are in none of them."""
        body = (
            {"backbone": ("model.backbone.bottom_up",)}
            if hasattr(self.model.backbone, "bottom_up")
            else {"backbone": ("model.backbone",)}
        )
        if not hasattr(self.model, "roi_heads"):
            return {**body, "heads": ("model.head",)}
        names = (
            ("_shared_roi_transform", "box_predictor")
            if hasattr(self.model.roi_heads, "res5")
            else ("box_pooler", "box_head", "box_predictor")
        )
        return {
            **body,
            "rpn": ("model.proposal_generator",),
            "heads": tuple(f"model.roi_heads.{name}" for name in names),
        }

    def raw(self, images: Tensor, sizes: Tensor) -> Detectron2Raw:
        model = self.model
        inputs = model.preprocess_image(self._inputs(images, sizes))
        features = model.backbone(inputs.tensor)
        if not hasattr(model, "roi_heads"):
            return Detectron2Raw(
                inputs, features, model.head([features[name] for name in model.head_in_features])
            )
        proposals, _ = model.proposal_generator(inputs, features, None)
        heads, boxes = model.roi_heads, [each.proposal_boxes for each in proposals]
        if hasattr(heads, "res5"):
            pooled = heads._shared_roi_transform([features[name] for name in heads.in_features], boxes).mean(
                dim=[2, 3]
            )
        else:
            pooled = heads.box_head(
                heads.box_pooler([features[name] for name in heads.box_in_features], boxes)
            )
        return Detectron2Raw(inputs, features, heads.box_predictor(pooled), proposals)

    def postprocess(
        self, raw: Detectron2Raw, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        from detectron2.modeling.postprocessing import detector_postprocess

        model = self.model
        if raw.proposals is None:
            found = model.forward_inference(
                raw.images, [raw.features[name] for name in model.head_in_features], raw.predictions
            )
        else:
            found, _ = model.roi_heads.box_predictor.inference(raw.predictions, raw.proposals)
            found = model.roi_heads.forward_with_given_boxes(raw.features, found)
        for each in found:
            if original_sizes is None and each.has("pred_masks"):
                each.unpasted = each.pred_masks[:, 0]  # goes with the others where scaling drops an empty box
        shapes = (sizes if original_sizes is None else original_sizes).tolist()
        return [
            _detections(detector_postprocess(each, height, width))
            for each, (height, width) in zip(found, shapes, strict=True)
        ]

    def losses(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        from detectron2.utils.events import EventStorage

        inputs = self._inputs(images, sizes)
        for one, target, (height, width) in zip(inputs, targets, sizes.tolist(), strict=True):
            one["instances"] = _instances(target, height, width)
        with EventStorage(0):  # where Detectron2's heads log; it is thrown away
            return self.model(inputs)

    @staticmethod
    def _inputs(images: Tensor, sizes: Tensor) -> list[dict[str, Any]]:
        """Detectron2's batch: each image (3, H, W) without the padding."""
        return [
            {"image": image[:, :height, :width], "height": height, "width": width}
            for image, (height, width) in zip(images, sizes.tolist(), strict=True)
        ]


def _detections(found: Any) -> Detections:
    """Instances as Detections; masks pasted, or (R, M, M) where that was not asked for."""
    fields = found.get_fields()
    return Detections(
        found.pred_boxes.tensor,
        found.scores,
        found.pred_classes,
        masks=fields.get("unpasted", fields.get("pred_masks")),
        keypoints=fields.get("pred_keypoints"),
    )


def _instances(target: Target, height: int, width: int) -> Any:
    """A training target in Detectron2's form; crowd objects are left out."""
    from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks

    target = without_crowd(target)
    found = Instances((height, width), gt_boxes=Boxes(target.boxes), gt_classes=target.labels)
    if target.polygons is not None:
        found.gt_masks = PolygonMasks(target.polygons)
    if target.keypoints is not None:
        found.gt_keypoints = Keypoints(target.keypoints)
    return found


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ManifestError(
            f"this row runs through Detectron2's own code, which needs the package {error.name}: {INSTALL}"
        ) from None


@DETECTORS.family("detectron2")
def detectron2_detector(
    config: str, *, folder: str, num_classes: int, options: Mapping[str, Any] | None = None
) -> Detectron2Detector:
    """A detector of Detectron2's model zoo, without weights.

    Args:
        config: name of a configuration there, for example "faster_rcnn_R_50_FPN_1x".
        folder: where it lies, for example "COCO-Detection".
        num_classes: K.
        options: Detectron2's own settings over those of the configuration, by dotted name:
            "MODEL.RPN.POST_NMS_TOPK_TEST".

    Raises:
        ManifestError: Detectron2 is not installed.
        ValueError: its model zoo has no such configuration.
        KeyError: it has no such option.
    """
    with _installed():
        from detectron2 import model_zoo
        from detectron2.modeling import META_ARCH_REGISTRY
    try:
        settings = model_zoo.get_config(f"{folder}/{config}.yaml")
    except RuntimeError as error:
        raise ValueError(f"Detectron2's model zoo has no {folder}/{config}.yaml: {error}") from None
    settings.merge_from_list([part for pair in (options or {}).items() for part in pair])
    settings.MODEL.DEVICE = str(torch.empty(0).device)
    settings.MODEL.ROI_HEADS.NUM_CLASSES = settings.MODEL.RETINANET.NUM_CLASSES = num_classes
    return Detectron2Detector(META_ARCH_REGISTRY.get(settings.MODEL.META_ARCHITECTURE)(settings), num_classes)
