"""The joint Faster R-CNN at test time: soft-NMS from the conventions, and augmented copies of an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detection_zoo.benchmarks.run.subject import with_soft_nms
from detection_zoo.zoo.backbones.resnet import resnet14_slim
from detection_zoo.zoo.conventions import AugmentationConventions
from detection_zoo.zoo.data.transforms import Preprocess, ShorterSide
from detection_zoo.zoo.detectors.joint_rcnn import JointRCNN, joint_rcnn
from detection_zoo.zoo.detectors.tta import FLIPPED, detect_augmented
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import load_manifests
from detection_zoo.zoo.necks import SmoothedPyramid

PREPROCESS = Preprocess(
    "rgb",
    "0..1",
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    ShorterSide(64, None, "round"),
    "cv2_bilinear",
    normalise_first=True,
)


def slim(**detections) -> JointRCNN:
    torch.manual_seed(0)
    backbone = resnet14_slim()
    model = joint_rcnn(
        backbone,
        SmoothedPyramid(backbone.specs, extra="max_pool"),
        3,
        rpn_channels=8,
        post_nms=50,
        detections=detections or None,
    ).eval()
    with torch.no_grad():
        for layer in (
            model.rpn_head.objectness,
            model.rpn_head.deltas,
            model.box_head.cls_score,
            model.box_head.bbox_pred,
        ):
            layer.weight.mul_(30)
    return model


def picture() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (80, 100, 3), dtype=np.uint8)


def test_copies_of_an_image_are_put_together() -> None:
    model, nothing = slim(), AugmentationConventions()
    plain = detect_augmented(model, picture(), PREPROCESS, nothing)
    prepared = PREPROCESS(picture())
    expected = model.predict(
        prepared.tensor[None], torch.tensor([prepared.size]), torch.tensor([prepared.original_size])
    )[0]
    assert (
        len(plain) and torch.equal(plain.boxes, expected.boxes) and torch.equal(plain.scores, expected.scores)
    )
    both = detect_augmented(model, picture(), PREPROCESS, AugmentationConventions(boxes=FLIPPED))
    mirrored = (
        detect_augmented(model, picture(), PREPROCESS, AugmentationConventions(boxes=FLIPPED)),
        detect_augmented(
            model,
            np.ascontiguousarray(picture()[:, ::-1]),
            PREPROCESS,
            AugmentationConventions(boxes=FLIPPED),
        ),
    )
    assert not torch.equal(both.scores, plain.scores)
    first, second = mirrored  # an image and its mirror image have the same set of copies
    assert torch.allclose(first.scores.sort().values, second.scores.sort().values, atol=1e-4)


def test_soft_nms_keeps_what_nms_drops() -> None:
    hard, soft = (slim(max_detections=0, soft=kind) for kind in ("none", "linear"))
    prepared = PREPROCESS(picture())
    counts = [
        len(model.predict(prepared.tensor[None], torch.tensor([prepared.size]))[0]) for model in (hard, soft)
    ]
    assert counts[1] > counts[0] > 0


def test_soft_nms_of_a_row_stands_in_its_conventions() -> None:
    entries = load_manifests().entries
    row = with_soft_nms(entries["faster_rcnn_detnet59_fpn_voc07.detnet"], "gaussian")
    assert row.conventions.detections.soft == "gaussian" and row.conventions.detections.nms_iou == 0.3
    assert with_soft_nms(row, "none") is row
    with pytest.raises(ManifestError, match="soft-NMS is for rows"):
        with_soft_nms(entries["ssd300_hardnet68_voc.hardnet"], "linear")


def test_box_voting_is_refused() -> None:
    with pytest.raises(ValueError, match="vote_iou"):
        slim(vote_iou=0.8)
