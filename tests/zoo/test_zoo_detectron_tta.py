"""Test-time augmentation: where boxes, masks and heat maps of altered copies lie in the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from detection_zoo.zoo.backbones.resnet import resnet14_slim
from detection_zoo.zoo.conventions import (
    AugmentationConventions,
    BoxConventions,
    DetectionConventions,
    KeypointConventions,
    MaskConventions,
    ProposalConventions,
    Views,
)
from detection_zoo.zoo.data.resizing import ShorterSide
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.keypoint_rcnn import KeypointRcnnRules, keypoint_rcnn
from detection_zoo.zoo.detectors.mask_rcnn import MaskRcnnRules, mask_rcnn
from detection_zoo.zoo.detectors.retinanet import retinanet
from detection_zoo.zoo.detectors.tta import View, combine_masks, detect_augmented, make_copy, views
from detection_zoo.zoo.necks import FeaturePyramid

PLAIN = Preprocess(
    "bgr",
    "0..255",
    (102.9801, 115.9465, 122.7717),
    (1.0, 1.0, 1.0),
    ShorterSide(64, 96, "round"),
    "cv2_bilinear",
    True,
    32,
)
EVERY = Views(
    flip=True, scales=[48, 80], max_size=120, scale_flip=True, aspect_ratios=[0.75], aspect_flip=True
)


def small(kind: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(1)
    backbone = resnet14_slim()
    arguments = {"neck": FeaturePyramid(backbone.specs, channels=16), "head": {"width": 16}}
    sections = {
        "boxes": BoxConventions(frame=options.pop("frame", "original")),
        "proposals": ProposalConventions(pre_nms=20, post_nms=10, collect=10),
        "detections": DetectionConventions(**{"score_threshold": 0.2, "max_detections": 5, **options}),
    }
    if kind == "mask":
        rules = MaskRcnnRules(**sections, mask=MaskConventions(width=8, interpolation="cv2"))
        return mask_rcnn(backbone, 2, rules, **arguments).eval()
    rules = KeypointRcnnRules(**sections, keypoint=KeypointConventions(convs=1, width=8))
    return keypoint_rcnn(backbone, 1, rules, **arguments).eval()


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 255, (height, width, 3)).astype("uint8")


def test_copies_come_in_detectrons_order() -> None:
    found = [
        (view.preprocess.resize.size, view.preprocess.resize.longest, view.flip, view.aspect)
        for view in views(PLAIN, EVERY)
    ]
    assert found == [
        (64, 96, True, None),
        (48, 120, False, None),
        (48, 120, True, None),
        (80, 120, False, None),
        (80, 120, True, None),
        (64, 96, False, 0.75),
        (64, 96, True, 0.75),
    ]
    assert list(views(PLAIN, Views())) == []


@pytest.mark.parametrize("view", [View(PLAIN), *views(PLAIN, EVERY)], ids=str)
def test_boxes_go_into_a_copy_and_back(view: View) -> None:
    boxes = torch.tensor([[[4.0, 5.0, 20.0, 30.0]], [[0.0, 0.0, 79.0, 59.0]]])
    width = view.pixels(picture()).shape[1]
    torch.testing.assert_close(view.back(view.into(boxes, width), width), boxes)


def test_mirroring_and_stretching_by_hand() -> None:
    box = torch.tensor([[4.0, 5.0, 20.0, 30.0]])
    assert View(PLAIN, flip=True).into(box, 80).tolist() == [[59.0, 5.0, 75.0, 30.0]]  # x' = W - x - 1
    assert View(PLAIN, aspect=0.75).into(box, 60).tolist() == [[3.0, 5.0, 15.0, 30.0]]
    assert View(PLAIN, flip=True, aspect=0.75).into(box, 60).tolist() == [[44.0, 5.0, 56.0, 30.0]]
    assert View(PLAIN, aspect=0.75).pixels(picture()).shape == (60, 60, 3)
    assert np.array_equal(View(PLAIN, flip=True).pixels(picture()), picture()[:, ::-1])


def test_masks_are_combined_as_asked() -> None:
    first, second = torch.tensor([[[0.2]]]), torch.tensor([[[0.8]]])
    assert combine_masks([first, second], "soft_avg").item() == pytest.approx(0.5)
    assert combine_masks([first, second], "soft_max").item() == pytest.approx(0.8)
    third = torch.tensor([[[0.5]]])  # logits -1.386 and 0: their mean is the logit of 1/3
    assert combine_masks([first, third], "logit_avg").item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", ["mask", "keypoint"])
@pytest.mark.parametrize("frame", ["original", "network"])
def test_without_copies_nothing_changes(kind: str, frame: str) -> None:
    model, image = small(kind, frame=frame), picture()
    preprocess = (
        PLAIN
        if frame == "original"
        else replace(PLAIN, resize=ShorterSide(64, 96), interpolation="pil_bilinear", normalise_first=False)
    )
    copy = make_copy(View(preprocess), image, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        plain = model.predict(copy.images, copy.sizes, torch.tensor([image.shape[:2]]))[0]
    augmented = detect_augmented(model, image, preprocess, AugmentationConventions())
    assert len(plain) and torch.equal(plain.labels, augmented.labels)
    torch.testing.assert_close(augmented.boxes, plain.boxes, rtol=1e-4, atol=1e-3)
    if kind == "mask" and frame == "original":
        assert torch.equal(augmented.masks, plain.masks)
    if kind == "keypoint" and frame == "original":
        torch.testing.assert_close(augmented.keypoints, plain.keypoints)


@pytest.mark.parametrize("kind", ["mask", "keypoint"])
def test_every_copy_counts(kind: str) -> None:
    augmentation = AugmentationConventions(boxes=EVERY, masks=EVERY, keypoints=EVERY)
    model, image = small(kind, max_detections=0), picture()
    alone, more = (
        detect_augmented(model, image, PLAIN, each) for each in (AugmentationConventions(), augmentation)
    )
    assert len(more) > len(alone) and torch.isfinite(more.boxes).all()
    assert (
        more.boxes.min() >= -1e-3
        and more.boxes[:, 0::2].max() <= 79.01
        and more.boxes[:, 1::2].max() <= 59.01
    )
    if kind == "mask":
        assert more.masks.shape == (len(more), 60, 80) and more.masks.dtype == torch.bool
    else:
        assert more.keypoints.shape == (len(more), 17, 3)


def test_a_mirrored_picture_gives_mirrored_detections() -> None:
    """With the mirrored copy beside the plain one, an image and its mirror image are the same to the
    detector, but for NMS order."""
    both = AugmentationConventions(boxes=Views(flip=True), masks=Views(flip=True), keypoints=Views(flip=True))
    model, image = small("keypoint", nms_iou=0.0, max_detections=0), picture()
    here, there = (
        detect_augmented(model, image, PLAIN, both),
        detect_augmented(model, np.ascontiguousarray(image[:, ::-1]), PLAIN, both),
    )
    order, other = here.scores.argsort(descending=True), there.scores.argsort(descending=True)
    torch.testing.assert_close(here.scores[order], there.scores[other], rtol=1e-4, atol=1e-5)
    mirrored = View(PLAIN, flip=True).into(there.boxes[other], 80)
    torch.testing.assert_close(here.boxes[order], mirrored, rtol=1e-3, atol=1e-2)


def test_other_families_are_refused() -> None:
    backbone = resnet14_slim()
    with pytest.raises(ValueError, match="for the Faster R-CNN family, not for RetinaNet"):
        detect_augmented(retinanet(backbone, 2).eval(), picture(), PLAIN)


def test_accuracy_is_measured_with_the_rows_own_copies() -> None:
    """What bench.py run --tta does: the same images, each with its copies, in the dataset's order."""
    from detection_zoo.benchmarks.measure.detection import detect_all
    from detection_zoo.benchmarks.run.subject import Subject, open_data
    from detection_zoo.benchmarks.spec import BenchmarkSpec
    from detection_zoo.zoo.build import build_model
    from detection_zoo.zoo.manifest_files import load_manifests
    from detection_zoo.zoo.settings import with_value

    entry = with_value(
        load_manifests().entry("mask_rcnn_resnet14_slim_fpn.demo"), "detections.max_detections", 10
    )
    flipped = AugmentationConventions(boxes=Views(flip=True), masks=Views(flip=True))
    entry = entry.model_copy(
        update={"conventions": entry.conventions.model_copy(update={"augmentation": flipped})}
    )
    dataset, model = open_data(entry, "shapes", 2), build_model(entry, "random")
    preprocess = Preprocess.from_conventions(entry.conventions.image).with_short_side(64)
    subject = Subject(entry, model, preprocess, torch.device("cpu"), dataset)
    plain, augmented = (dict(detect_all(subject, BenchmarkSpec(tta=tta))) for tta in (False, True))
    for index in range(2):
        expected = detect_augmented(model, dataset.load_image(index), preprocess, flipped)
        torch.testing.assert_close(augmented[index].boxes, expected.boxes)
        assert not torch.equal(plain[index].scores, augmented[index].scores)
