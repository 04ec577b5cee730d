"""Soft-NMS on every backend: cases by hand, the recorded originals, and inputs that must not break it."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_backends import Backend, clustered_boxes, every_backend, matches, recorded  # noqa: F401 - a fixture

from detection_zoo.kernels.soft_nms import METHODS, soft_nms

PAIR = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [10, 10, 12, 12]])  # IoU of the first two: 0.5 exactly
SCORES = torch.tensor([0.8, 0.6, 0.5])


def picked(
    backend: Backend, boxes: torch.Tensor, scores: torch.Tensor, **rule
) -> tuple[list[int], torch.Tensor]:
    rows, new_scores = soft_nms(
        boxes.to(backend.device), scores.to(backend.device), backend=backend.name, **rule
    )
    return rows.tolist(), new_scores.cpu()


def test_weights_by_hand(backend: Backend) -> None:
    rows, scores = picked(backend, PAIR, SCORES, method="linear", iou_threshold=0.3)
    assert rows == [0, 2, 1] and scores.tolist() == pytest.approx([0.8, 0.5, 0.6 * (1 - 0.5)])
    rows, scores = picked(backend, PAIR, SCORES, method="linear", iou_threshold=0.5)  # 0.5 is not above 0.5
    assert rows == [0, 1, 2] and scores.tolist() == pytest.approx([0.8, 0.6, 0.5])
    rows, scores = picked(backend, PAIR, SCORES, method="gaussian", sigma=0.5)
    assert rows == [0, 2, 1] and scores.tolist() == pytest.approx([0.8, 0.5, 0.6 * math.exp(-0.25 / 0.5)])
    assert picked(backend, PAIR, SCORES, method="hard", iou_threshold=0.3)[0] == [0, 2]


def test_only_boxes_that_are_touched_leave(backend: Backend) -> None:
    scores = torch.tensor([0.8, 0.0019, 0.0001])
    rows, new_scores = picked(
        backend, PAIR, scores, method="linear", iou_threshold=0.3, score_threshold=0.001
    )
    assert rows == [0, 2] and new_scores.tolist() == pytest.approx([0.8, 0.0001])


def test_equal_scores_go_by_index(backend: Backend) -> None:
    assert picked(backend, PAIR, torch.tensor([0.5, 0.5, 0.5]), method="hard", iou_threshold=0.6)[0] == [
        0,
        1,
        2,
    ]
    assert picked(backend, PAIR, torch.tensor([0.25, 0.5, 0.5]), method="linear", iou_threshold=0.3)[0] == [
        1,
        2,
        0,
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1, 33, 1100])
def test_sizes_agree_with_the_reference(backend: Backend, method: str, count: int) -> None:
    """The reference itself is held to the recorded originals below."""
    boxes, scores = clustered_boxes(count, seed=count)
    rows, new_scores = picked(backend, boxes, scores, method=method, offset=1.0)
    expected, expected_scores = soft_nms(boxes, scores, method=method, offset=1.0, backend="reference")
    assert rows == expected.tolist()
    torch.testing.assert_close(
        new_scores,
        expected_scores,
        rtol=0 if method != "gaussian" else 1e-5,
        atol=0 if method != "gaussian" else 1e-7,
    )


@pytest.mark.parametrize(("number", "method"), [(0, "hard"), (1, "linear"), (2, "gaussian")])
def test_recorded_detnet(backend: Backend, number: int, method: str) -> None:
    dets = recorded("detnet/in.nms_dets")
    rows, scores = picked(
        backend,
        dets[:, :4],
        dets[:, 4],
        method=method,
        sigma=0.5,
        iou_threshold=0.3,
        score_threshold=0.001,
        offset=1.0,
    )
    matches(torch.cat([dets[rows, :4], scores[:, None]], 1), f"detnet/soft_nms_method{number}", 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_recorded_detectron(backend: Backend, method: str) -> None:
    dets = recorded("detectron/nms.dets")
    rows, scores = picked(
        backend,
        dets[:, :4],
        dets[:, 4],
        method=method,
        sigma=0.5,
        iou_threshold=0.5,
        score_threshold=0.0001,
        offset=1.0,
    )
    assert rows == recorded(f"detectron/softnms.{method}.keep").tolist()
    matches(torch.cat([dets[rows, :4], scores[:, None]], 1), f"detectron/softnms.{method}.dets", 1e-6)


def test_what_raises(backend: Backend) -> None:
    for boxes, scores in (
        (PAIR, torch.tensor([1.0, torch.nan, 1])),
        (PAIR[:, [2, 1, 0, 3]], SCORES),
        (PAIR / 0, SCORES),
    ):
        with pytest.raises(ValueError, match="NaN|inverted"):
            picked(backend, boxes, scores)
    for rule in ({"method": "cubic"}, {"sigma": 0.0}):
        with pytest.raises(ValueError, match="cubic|sigma"):
            picked(backend, PAIR, SCORES, **rule)
    with pytest.raises(ValueError, match="must be"):
        picked(backend, PAIR[:, :2], SCORES)
