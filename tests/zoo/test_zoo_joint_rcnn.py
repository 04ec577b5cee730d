"""The joint Faster R-CNN at test time: soft-NMS from the conventions, and augmented copies of an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detection_zoo.benchmarks.run.subject import with_soft_nms
from detection_zoo.zoo.build import assemble
from detection_zoo.zoo.conventions import AugmentationConventions, Views
from detection_zoo.zoo.data.resizing import ShorterSide
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.detectors.tta import detect_augmented
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import Component
from detection_zoo.zoo.manifest_files import load_manifests

PREPROCESS = Preprocess(
    "rgb",
    "0..1",
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    ShorterSide(64, None, "round"),
    "cv2_bilinear",
    normalise_first=True,
)


def slim(**detections) -> FasterRcnn:
    torch.manual_seed(0)
    row = load_manifests().entry("faster_rcnn_resnet101_fpn_voc07.detnet")
    conventions = row.conventions.model_copy(
        update={
            "rpn": row.conventions.rpn.model_copy(update={"channels": 8}),
            "proposals": row.conventions.proposals.model_copy(update={"post_nms": 50}),
            "detections": row.conventions.detections.model_copy(update=detections),
        }
    )
    slim = {"backbone": Component(name="resnet14_slim"), "classes": 3, "conventions": conventions}
    model = assemble(row.model_copy(update=slim)).eval()
    with torch.no_grad():
        for layer in (
            model.rpn.head.objectness,
            model.rpn.head.deltas,
            model.box.predictor.class_logits,
            model.box.predictor.box_deltas,
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
    flipped = AugmentationConventions(boxes=Views(flip=True))
    both = detect_augmented(model, picture(), PREPROCESS, flipped)
    mirrored = (
        detect_augmented(model, picture(), PREPROCESS, flipped),
        detect_augmented(model, np.ascontiguousarray(picture()[:, ::-1]), PREPROCESS, flipped),
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
    with pytest.raises(ManifestError, match="soft-NMS works only for rows"):
        with_soft_nms(entries["ssd300_hardnet68_voc.hardnet"], "linear")


def test_box_voting_refines_boxes() -> None:
    prepared = PREPROCESS(picture())
    plain, voted = (
        model.predict(prepared.tensor[None], torch.tensor([prepared.size]))[0]
        for model in (slim(), slim(vote_iou=0.4))
    )
    assert len(plain) == len(voted) and not torch.equal(plain.boxes, voted.boxes)
