"""Detections drawn on pictures: masks with edges, boxes, and skeletons of those keypoints that are certain
enough."""

from __future__ import annotations

import numpy as np
import torch

from detection_zoo.benchmarks.run.drawing import LEAST_LOGIT, draw, limbs, mask_edge
from detection_zoo.zoo.data.figures import KEYPOINT_NAMES
from detection_zoo.zoo.records import Detections


def test_an_edge_is_the_outermost_pixels() -> None:
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:4, 1:6] = True  # touches the picture's border, which is an edge too
    assert mask_edge(mask).astype(int).tolist() == [
        [0] * 6,
        [0, 1, 1, 1, 1, 1],
        [0, 1, 0, 0, 0, 1],
        [0, 1, 1, 1, 1, 1],
        [0] * 6,
    ]


def person(**moved: tuple[float, float]) -> list[list[float]]:
    return [[*moved.get(name, (10.0 + number, 20.0)), 1.0] for number, name in enumerate(KEYPOINT_NAMES)]


def test_limbs_leave_out_what_is_not_certain() -> None:
    whole = limbs(person(), None)
    assert (
        len(whole) == 21
    )  # COCO's nineteen, from the nose to between the shoulders, and down to between the hips
    heat = [LEAST_LOGIT] * 17
    heat[KEYPOINT_NAMES.index("left_wrist")] = LEAST_LOGIT - 0.1
    assert len(limbs(person(), heat)) == 20  # the wrist ends one limb
    heat[KEYPOINT_NAMES.index("left_hip")] = LEAST_LOGIT - 0.1
    assert len(limbs(person(), heat)) == 16  # three limbs meet at a hip, and the middle of the hips is lost
    points = person(
        left_shoulder=(0.0, 4.0), right_shoulder=(8.0, 6.0), left_hip=(2.0, 30.0), right_hip=(6.0, 30.0)
    )
    assert ((4.0, 5.0), (4.0, 30.0)) in limbs(points, None)
    assert limbs([[1.0, 2.0, 1.0]] * 5, None) == []  # five keypoints are no person


def test_a_picture_shows_mask_box_and_skeleton_of_the_certain_detections_only() -> None:
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    masks = torch.zeros(2, 60, 80, dtype=torch.bool)
    masks[0, 30:50, 10:30] = True
    masks[1, 5:15, 60:75] = True
    points = torch.tensor([person(nose=(20.0, 45.0)), person()])
    found = Detections(
        torch.tensor([[10.0, 30, 29, 49], [60, 5, 74, 14]]),
        torch.tensor([0.9, 0.3]),
        torch.tensor([0, 0]),
        masks,
        points,
        {"keypoint_logits": torch.full((2, 17), -1.0).index_fill(1, torch.tensor([0]), 5.0)},
    )
    drawn = draw(pixels, found, ("person",), 0.5)
    assert drawn.shape == pixels.shape and not pixels.any()
    assert drawn[10, 67].max() == 0  # the second is below the threshold
    assert (
        drawn[40, 20].max() > 0 and drawn[40, 10].max() > drawn[40, 20].max()
    )  # inside, and the box around it
    plain = draw(pixels, Detections(found.boxes, found.scores, found.labels, masks), ("person",), 0.5)
    changed = np.argwhere((drawn != plain).any(axis=2))
    assert len(changed) and np.abs(changed - [45, 20]).max() <= 3  # one certain keypoint: a dot, no line
