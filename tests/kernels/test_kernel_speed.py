"""The kernels' benchmark: what a row holds, and that a wrong answer fails it. Its times are not tested."""

from __future__ import annotations

import pytest
import torch

from detection_zoo.benchmarks.measure import kernel_speed
from detection_zoo.benchmarks.measure.kernel_cases import Case, clustered_proposals
from detection_zoo.benchmarks.measure.kernel_speed import _measure, _spread, report


def test_a_wrong_answer_fails_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Case("right", lambda: torch.tensor([1, 2]), lambda: torch.tensor([1, 2]), lambda: None, 0.0)
    wrong = Case("wrong", lambda: torch.tensor([1, 2]), lambda: torch.tensor([2, 1]), lambda: None, 0.0)
    monkeypatch.setattr(kernel_speed, "pooling_cases", lambda device, on_gpu: [])
    monkeypatch.setattr(kernel_speed, "soft_nms_cases", lambda device: [])
    for cases, status, word in (([right], 0, "  yes  "), ([right, wrong], 1, "  NO  ")):
        monkeypatch.setattr(kernel_speed, "nms_cases", lambda device, on_gpu, cases=cases: cases)
        assert report("cpu") == status and word in capsys.readouterr().out


def test_close_answers_agree_within_the_tolerance() -> None:
    for offset, agrees in ((1e-6, True), (1e-2, False)):
        case = Case(
            "near", lambda: torch.ones(4), lambda offset=offset: torch.ones(4) + offset, lambda: None, 1e-4
        )
        assert _measure(case, "cpu", 5).agrees is agrees


def test_the_table_names_what_ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for cases in ("nms_cases", "soft_nms_cases", "pooling_cases"):
        monkeypatch.setattr(kernel_speed, cases, lambda *given: [])
    assert report("cpu", width=100) == 0
    text = capsys.readouterr().out
    assert text.startswith("Operators beside torchvision ") and torch.__version__.partition("+")[0] in text
    assert max(map(len, text.splitlines())) <= 100


def test_spread_is_median_and_fifths() -> None:
    assert _spread([6.0, 1.0, 2.0, 3.0, 4.0, 5.0]) == (3.5, 2.0, 5.0)


def test_proposals_lie_in_the_image_with_different_scores() -> None:
    boxes, scores = clustered_proposals(500)
    assert (
        (boxes[:, :2] <= boxes[:, 2:]).all()
        and boxes.min() >= 0
        and boxes[:, 2].max() <= 1216
        and boxes[:, 3].max() <= 800
    )
    assert len(scores.unique()) == 500
