"""Detections by lists of fixed size equal those by lists of any size, row for row."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from slim_families import FAMILIES, ROWS, family
from torch import Tensor, nn

from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.conventions import ProposalConventions
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.parts import fixed_size
from detection_zoo.zoo.parts.boxes import BoxCoder
from detection_zoo.zoo.parts.fixed_size import best_candidates, suppress_fixed, trim, use_fixed_size
from detection_zoo.zoo.parts.proposals import select_proposals
from detection_zoo.zoo.records import Detections

SIZES = torch.tensor([[160, 150], [140, 160]])
ORIGINAL = torch.tensor([[320, 300], [280, 320]])


pytestmark = pytest.mark.usefixtures("one_thread")


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 160, 160, generator=generator)


def eager_and_fixed(model: nn.Module, **given: Any) -> tuple[list[Detections], list[Detections]]:
    with torch.inference_mode():
        eager = model.predict(images(), SIZES, **given)
        with use_fixed_size(True):
            return eager, model.predict(images(), SIZES, **given)


def assert_same(eager: list[Detections], fixed: list[Detections]) -> None:
    for one, other in zip(eager, fixed, strict=True):
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(other.boxes, one.boxes, rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(other.scores, one.scores, rtol=1e-6, atol=1e-6)
        for name in ("masks", "keypoints"):
            if (value := getattr(one, name)) is not None:
                torch.testing.assert_close(getattr(other, name).float(), value.float(), rtol=1e-4, atol=1e-3)
        assert other.extra.keys() == one.extra.keys()


def test_every_trained_detector_works_on_lists_of_fixed_size() -> None:
    """The others say why they do not; the tests below take those that do."""
    assert {*ROWS} - {"detnet"} <= {*FAMILIES}


@pytest.mark.parametrize("original", [None, ORIGINAL], ids=["input", "original"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, original: Tensor | None) -> None:
    """Two images of different true sizes; trained weights, so that there is something to find."""
    model = family(name)
    eager, fixed = eager_and_fixed(model, original_sizes=original)
    assert sum(len(each) for each in eager), "nothing was found"
    assert_same(eager, fixed)


@pytest.mark.parametrize("name", FAMILIES)
def test_more_candidates_than_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of many candidates are not all that the rule asks for: noticed, and chosen again."""
    model = family(name)
    cut: Callable[..., Any] = fixed_size.best_candidates
    for module in [module for title, module in sys.modules.items() if title.startswith("detection_zoo.zoo.")]:
        if getattr(module, "best_candidates", None) is cut and module is not fixed_size:
            monkeypatch.setattr(module, "best_candidates", lambda scores: cut(scores, 2))
    eager, fixed = eager_and_fixed(model)
    assert max(len(each) for each in eager) > 2
    assert_same(eager, fixed)


def test_ssd_keeps_so_many_of_a_class() -> None:
    """The limits of a class and of an image, which cut here."""
    model = build_model(ROWS["ssd"], "published").eval()
    uncut, _ = eager_and_fixed(model)
    model.rule = model.rule.model_copy(update={"per_class_keep": 2, "per_image_keep": 3})
    eager, fixed = eager_and_fixed(model)
    assert sum(len(each) for each in eager) < sum(len(each) for each in uncut)
    assert_same(eager, fixed)


def test_rules_that_need_any_size_say_so() -> None:
    """Soft-NMS and the like run as before, also where lists of fixed size are asked for."""
    model = build_model(ROWS["faster_rcnn"], "published").eval()
    assert isinstance(model, FasterRcnn) and model.needs_any_size is None
    model.detection_rule = model.detection_rule.model_copy(update={"soft": "linear"})
    assert model.needs_any_size is not None and "soft-NMS" in model.needs_any_size
    eager, fixed = eager_and_fixed(model)
    assert_same(eager, fixed)


RULES = {
    "image": ProposalConventions(pre_nms=60, post_nms=30, collect=40),
    "batch": ProposalConventions(pre_nms=60, post_nms=30, collect=40, collect_over="batch"),
    "level order": ProposalConventions(pre_nms=60, post_nms=30, collect=40, collect_order="level"),
    "no cut": ProposalConventions(pre_nms=60, post_nms=30, collect=0),
    "filled": ProposalConventions(pre_nms=60, post_nms=50, collect=0, together=True, fill=True),
    "small ones left out": ProposalConventions(pre_nms=60, post_nms=30, collect=40, min_size=20.0),
}


@pytest.mark.parametrize("name", RULES)
def test_absent_proposals_stand_last(name: str) -> None:
    """The present rows of the list of fixed size are the proposals, in their order."""
    generator = torch.Generator().manual_seed(1)
    scores = [torch.rand(2, count, generator=generator) for count in (90, 40)]
    deltas = [torch.randn(2, count, 4, generator=generator) / 4 for count in (90, 40)]
    anchors = [torch.rand(count, 4, generator=generator) * 50 for count in (90, 40)]
    anchors = [torch.cat([each[:, :2], each[:, :2] + each[:, 2:] + 4], 1) for each in anchors]
    given: Any = (scores, deltas, anchors, [(100, 100), (90, 60)])
    rule = RULES[name]
    expected = select_proposals(*given, coder=BoxCoder(), rule=rule)
    found = select_proposals(*given, coder=BoxCoder(), rule=rule, fixed=True)
    assert len({len(each.boxes) for each in found}) == 1
    for own, other in zip(expected, found, strict=True):
        count = len(own.boxes)
        assert count and torch.equal(other.boxes[:count], own.boxes)
        assert torch.equal(other.scores[:count], own.scores)
        assert torch.isnan(other.boxes[count:]).all()


def chosen(
    scores: Tensor, boxes: Tensor, labels: Tensor, most: int, candidates: int = 10
) -> list[Detections] | None:
    found = best_candidates(scores[None], candidates)
    rows = found.rows[0]
    rule = {"iou": 0.5, "offset": 0.0, "inclusive": False, "most": most}
    return trim(suppress_fixed(found, boxes[rows][None], labels[rows][None], rows[None], **rule))


def test_ties_with_the_last_are_not_cut() -> None:
    """The rule keeps all that tie with the last of an image: no fixed length holds them, so it is said."""
    boxes = torch.arange(5.0)[:, None] * 100 + torch.tensor([0.0, 0, 10, 10])
    labels, scores = torch.zeros(5, dtype=torch.int64), torch.tensor([0.5, 0.9, 0.5, 0.5, 0.1])
    assert chosen(scores, boxes, labels, 2) is None
    kept = chosen(scores, boxes, labels, 4)
    assert kept is not None and kept[0].scores.tolist() == pytest.approx([0.5, 0.9, 0.5, 0.5])
    assert torch.equal(kept[0].boxes, boxes[:4])


def test_candidates_that_were_cut_may_not_matter() -> None:
    """All that are kept score more than the best that was cut: exact."""
    boxes = torch.arange(5.0)[:, None] * 100 + torch.tensor([0.0, 0, 10, 10])
    labels, scores = torch.zeros(5, dtype=torch.int64), torch.tensor([0.5, 0.9, 0.8, 0.4, 0.1])
    kept = chosen(scores, boxes, labels, 2, candidates=3)
    assert kept is not None and torch.equal(kept[0].boxes, boxes[1:3])
    assert chosen(scores, boxes, labels, 3, candidates=3) is None


def test_scores_that_are_nan_raise() -> None:
    """Weights that are not numbers: the same sentence as from lists of any size."""
    model = build_model(ROWS["faster_rcnn"], "random").eval()
    nn.init.constant_(model.rpn.head.objectness.bias, float("nan"))
    with torch.inference_mode(), use_fixed_size(True), pytest.raises(ValueError, match="objectness scores"):
        model.predict(images(), SIZES)
