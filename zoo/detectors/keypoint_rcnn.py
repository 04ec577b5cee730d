"""Keypoint R-CNN (He et al. 2017, section 5): Faster R-CNN with heat maps of keypoints on its detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn, Frame, Options, RcnnRaw, rcnn_parts
from detection_zoo.zoo.necks import Neck
from detection_zoo.zoo.parts.boxes import box_iou, widened
from detection_zoo.zoo.parts.keypoint_head import (
    KeypointHead,
    decode_heatmaps,
    has_visible_keypoint,
    heatmap_targets,
    keypoint_loss,
)
from detection_zoo.zoo.parts.mask_head import mask_options
from detection_zoo.zoo.parts.matcher import match
from detection_zoo.zoo.parts.roi_heads import RoiAlignPooler, SampledBoxes
from detection_zoo.zoo.parts.sampler import BalancedSampler, Sampler
from detection_zoo.zoo.records import Detections, Target
from detection_zoo.zoo.registry import DETECTORS


@dataclass
class SampledKeypoints:
    """The objects of one image whose keypoints are trained: boxes (R, 4), keypoints (R, P, 3); labels of all
    candidates, and what was drawn."""

    boxes: Tensor
    keypoints: Tensor
    labels: Tensor
    positive: Tensor
    negative: Tensor


class KeypointRcnn(FasterRcnn):
    """Faster R-CNN and a keypoint head, which runs on the detections (at test time) or on sampled objects (in
    training).

    Args:
        keypoint: the head.
        keypoint_sampler: draws once more among the boxes that the box branch trains on.
        parts: of FasterRcnn.
    """

    def __init__(self, keypoint: KeypointHead, keypoint_sampler: Sampler, **parts: Any) -> None:
        super().__init__(**parts)
        self.keypoint, self.keypoint_sampler = keypoint, keypoint_sampler

    def branch_outputs(
        self, raw: RcnnRaw, found: list[Detections], where: Sequence[Frame]
    ) -> list[Detections]:
        """Detections with keypoints (R, P, 3) x, y, 1; extra: keypoint_logits and keypoint_probabilities (R,
        P)."""
        heatmaps = widened(
            self.keypoint(self.keypoint.pooler(raw.features, self.network_boxes(found, where)))
        )
        maps = heatmaps.split([len(each) for each in found])
        return [
            self.with_keypoints(each, own, frame) for each, own, frame in zip(found, maps, where, strict=True)
        ]

    def with_keypoints(self, found: Detections, heatmaps: Tensor, frame: Frame) -> Detections:
        """One image's detections, decoded in the pixels they lie in and then scaled to the original's where
        they do not lie there."""
        places, logits, chances = decode_heatmaps(heatmaps, found.boxes)
        if self.detection_rule.frame == "network" and frame.original is not None:
            places = places * places.new_tensor(frame.factor)
        keypoints = torch.cat([places, torch.ones_like(places[..., :1])], dim=2)
        found = replace(
            found,
            keypoints=keypoints,
            extra={**found.extra, "keypoint_logits": logits, "keypoint_probabilities": chances},
        )
        return self.in_original(found, frame)

    def sample_keypoints(self, sampled: SampledBoxes, target: Target) -> SampledKeypoints:
        """The draw that the boxes came with, or one of their objects, matched again; objects without a
        visible keypoint inside their box are not used."""
        if target.keypoints is None:
            raise ValueError(
                "a keypoint branch is trained with keypoints, and the target has none; is the row's dataset"
                " one with keypoints?"
            )
        if sampled.keypoint_boxes is not None and sampled.keypoint_matches is not None:
            rows = torch.arange(len(sampled.keypoint_boxes), device=sampled.boxes.device)
            return SampledKeypoints(
                sampled.keypoint_boxes,
                target.keypoints[sampled.keypoint_matches],
                torch.ones_like(rows),
                rows,
                rows[:0],
            )
        rule, boxes = self.training_rule, target.boxes.to(sampled.boxes.dtype)
        matches = match(
            box_iou(boxes, sampled.boxes, self.coder.offset), rule.foreground_iou, rule.background_iou
        )
        labels = (matches >= 0).to(torch.int64) - (matches < -1).to(torch.int64)
        if len(boxes):
            labels = torch.where(matches >= 0, target.labels[matches.clamp(min=0)] + 1, labels)
            usable = has_visible_keypoint(target.keypoints, target.boxes)[matches.clamp(min=0)]
            labels[(matches >= 0) & ~usable] = -1
        positive, negative = self.keypoint_sampler(labels)
        return SampledKeypoints(
            sampled.boxes[positive], target.keypoints[matches[positive]], labels, positive, negative
        )

    def branch_losses(
        self,
        features: dict[str, Tensor],
        sampled: Sequence[SampledBoxes],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
        hidden: Tensor,
    ) -> dict[str, Tensor]:
        """Mean cross entropy over the cells of the visible keypoints' heat maps."""
        with torch.no_grad():
            chosen = [
                self.sample_keypoints(each, target) for each, target in zip(sampled, targets, strict=True)
            ]
        boxes = [each.boxes for each in chosen]
        heatmaps = self.keypoint(self.keypoint.pooler(features, boxes))
        keypoints = torch.cat([each.keypoints for each in chosen]).to(heatmaps.dtype)
        cells, valid = heatmap_targets(
            keypoints,
            torch.cat(boxes).to(heatmaps.dtype),
            heatmaps.shape[-1],
            divide=self.sampling is not None,
        )
        return {"loss_keypoint": keypoint_loss(heatmaps, cells, valid)}


@DETECTORS.register("keypoint_rcnn")
def keypoint_rcnn(
    backbone: Backbone,
    num_classes: int,
    *,
    neck: Neck | None = None,
    box_head: str = "2mlp",
    keypoint_head: str = "v1convx",
    norm: str = "none",
    class_specific: bool = True,
    boxes: Options = None,
    anchors: Options = None,
    rpn: Options = None,
    proposals: Options = None,
    training_proposals: Options = None,
    pooling: Options = None,
    roi: Options = None,
    detections: Options = None,
    keypoint: Options = None,
    crowd: str = "drop",
    head: Options = None,
) -> KeypointRcnn:
    """Keypoint R-CNN; `keypoint_head` "v1convx"; `keypoint` is KeypointConventions; the rest as in
    rcnn_parts."""
    if keypoint_head != "v1convx":
        raise ValueError(f"unknown keypoint_head {keypoint_head!r}; known: v1convx")
    parts = rcnn_parts(
        backbone,
        num_classes,
        neck=neck,
        box_head=box_head,
        norm=norm,
        class_specific=class_specific,
        boxes=boxes,
        anchors=anchors,
        rpn=rpn,
        proposals=proposals,
        training_proposals=training_proposals,
        pooling=pooling,
        roi=roi,
        detections=detections,
        crowd=crowd,
        head=head,
    )
    options = {
        "samples": 512,
        "positive_fraction": 0.25,
        "keypoints": 17,
        "upsampling": "interpolate",
        **mask_options(keypoint, pooling),
    }
    levels = {name: parts["neck"].specs[name] for name in parts["neck"].roi_levels}
    size = options["pooling"].pop("size")
    layers = {name: options[name] for name in ("convs", "width", "upsampling") if name in options}
    branch = KeypointHead(
        RoiAlignPooler(levels, size, **options["pooling"]),
        next(iter(levels.values())).channels,
        options["keypoints"],
        **layers,
    )
    return KeypointRcnn(branch, BalancedSampler(options["samples"], options["positive_fraction"]), **parts)
