"""Choices that rounding may make either way: made as recorded where they are near, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parity import steps_detnet
from torch import Tensor

from detection_zoo.zoo.conventions import DetectionConventions, ProposalConventions
from detection_zoo.zoo.parity import detnet_model
from detection_zoo.zoo.parity.base import Output, Reference
from detection_zoo.zoo.parity.maskrcnn_benchmark import _Folder, score_gap
from detection_zoo.zoo.parity.near_ties import (
    DetectionChoices,
    Outputs,
    ProposalChoices,
    settle,
    settle_areas,
)
from detection_zoo.zoo.parts.boxes import BoxCoder
from detection_zoo.zoo.parts.detections import choose_detections
from detection_zoo.zoo.parts.proposals import select_proposals
from detection_zoo.zoo.records import Detections

CODER = BoxCoder(offset=0.0, far_offset=0.0)
RULE = ProposalConventions(pre_nms=200, post_nms=100, nms_iou=0.7, collect=60, collect_over="batch")
SIZES = [(100, 120), (100, 120)]
DETECTIONS = DetectionConventions(score_threshold=0.05, nms_iou=0.5, max_detections=20)

Inputs = tuple[list[Tensor], list[Tensor], list[Tensor]]


def inputs(seed: int = 0) -> Inputs:
    """Scores, deltas and anchors of two levels and two images."""
    random = torch.Generator().manual_seed(seed)
    scores = [torch.rand(2, count, generator=random) for count in (150, 60)]
    deltas = [0.05 * torch.randn(2, count, 4, generator=random) for count in (150, 60)]
    corners = [torch.rand(count, 2, generator=random) * 60 for count in (150, 60)]
    return scores, deltas, [torch.cat([near, near + 40], dim=1) for near in corners]


def recorded(arrays: dict[str, Tensor], stride: int = 1) -> Reference:
    """A folder whose outputs are these arrays, of which every `stride`-th number is kept."""
    reference = Reference(Path("made_up"))
    reference.__dict__["recorded"] = {
        name: {
            "shape": np.array(value.shape),
            "moments": np.array([value.double().mean(), value.double().std(correction=0)]),
            "samples": value.numpy().reshape(-1)[::stride],
            "stride": np.array(stride),
        }
        for name, value in arrays.items()
    }
    return reference


def proposals(choose: ProposalChoices | None, given: Inputs, rule: ProposalConventions = RULE) -> Tensor:
    found = (choose or select_proposals)(*given, SIZES, coder=CODER, rule=rule)
    return torch.cat([each.boxes for each in found])


def settled(given: Inputs, reference: Reference, rule: ProposalConventions = RULE) -> Output:
    choices = ProposalChoices()

    def compute() -> Outputs:
        return {"rois": Output(proposals(choices, given, rule), 1e-5)}

    return settle(compute, choices, reference, "float32")["rois"]


def equal(output: Output, reference: Reference) -> bool:
    kept = reference.recorded["rois"]
    value = output.value.numpy()
    own = value.reshape(-1)[:: int(kept["stride"])]
    return value.shape == tuple(kept["shape"]) and np.allclose(own, kept["samples"], atol=1e-3)


def near_iou(given: Inputs, by: float) -> Inputs:
    """The same, but that the best box of the first level overlaps another with IoU = 0.7 + by."""
    scores, deltas, anchors = given
    anchors = [anchor.clone() for anchor in anchors]
    deltas = [delta.clone() for delta in deltas]
    deltas[0][:, :2] = 0
    scores[0][:, 0], scores[0][:, 1] = 0.9999, 0.9998
    anchors[0][0] = torch.tensor([10.0, 10.0, 60.0, 60.0])
    anchors[0][1] = torch.tensor([10.0, 10.0, 60.0, 10 + 50 * (0.7 + by)])
    return scores, deltas, anchors


@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize("by", [2e-6, -2e-6])
def test_an_overlap_near_the_threshold_is_decided_as_recorded(by: float, stride: int) -> None:
    reference = recorded({"rois": proposals(None, near_iou(inputs(), -by))}, stride)
    first = Output(proposals(None, near_iou(inputs(), by)))
    assert not equal(first, reference)
    output = settled(near_iou(inputs(), by), reference)
    assert equal(output, reference) and "choices made as recorded" in output.note


def test_an_overlap_further_from_the_threshold_is_not() -> None:
    reference = recorded({"rois": proposals(None, near_iou(inputs(), 1e-4))})
    output = settled(near_iou(inputs(), -1e-4), reference)
    assert not equal(output, reference) and output.note is None


def test_nearly_equal_scores_may_change_places_of_both_images() -> None:
    given = inputs()
    other = [level.clone() for level in given[0]]
    given[0][0][0, 5], given[0][1][1, 7] = 0.99991, 0.999910 + 3e-7
    other[0][0, 5], other[1][1, 7] = 0.99991 + 3e-7, 0.99991
    other[0][1, 9] = given[0][0][1, 9] = other[0][1, 8] = given[0][0][1, 8]  # and exactly equal ones
    rule = RULE.model_copy(update={"collect": 2})  # only the best two of the batch: one of them differs
    reference = recorded({"rois": proposals(None, (other, *given[1:]), rule)})
    assert equal(settled(given, reference, rule), reference)


def test_scores_further_apart_may_not() -> None:
    given = inputs()
    other = [level.clone() for level in given[0]]
    other[0][0, 5], other[0][0, 6] = 0.9990, 0.9991
    given[0][0][0, 5], given[0][0][0, 6] = 0.9991, 0.9990
    reference = recorded({"rois": proposals(None, (other, *given[1:]))})
    assert not equal(settled(given, reference), reference)


MISTAKES = {
    "another threshold": lambda scores, deltas, anchors: ((scores, deltas, anchors), {"nms_iou": 0.707}),
    "one more proposal": lambda scores, deltas, anchors: ((scores, deltas, anchors), {"collect": 61}),
    "deltas in another order": lambda scores, deltas, anchors: (
        (scores, [level[..., [1, 0, 2, 3]] for level in deltas], anchors),
        {},
    ),
    "anchors one pixel off": lambda scores, deltas, anchors: (
        (scores, deltas, [level + 1 for level in anchors]),
        {},
    ),
    "ranked by other scores": lambda scores, deltas, anchors: (
        ([1 - level for level in scores], deltas, anchors),
        {},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_still_differs(mistake: str) -> None:
    reference = recorded({"rois": proposals(None, near_iou(inputs(), 0))})
    assert equal(settled(near_iou(inputs(), 0), reference), reference)
    given, changed = MISTAKES[mistake](*near_iou(inputs(), 0))
    output = settled(given, reference, RULE.model_copy(update=changed))
    assert not equal(output, reference) and output.note is None


def detected(probabilities: Tensor, boxes: Tensor) -> Detections:
    return choose_detections(probabilities, boxes, 0.0, DETECTIONS)


def scored(near: float = 0.0, score: float = 0.3) -> tuple[Tensor, Tensor]:
    """Probabilities (40, 4) and boxes (40, 4, 4); the first row has a score near the threshold."""
    random = torch.Generator().manual_seed(3)
    probabilities = (torch.rand(40, 4, generator=random) * 4).softmax(dim=1)
    corners = torch.rand(40, 4, 2, generator=random) * 60
    boxes = torch.cat([corners, corners + 30], dim=2)
    boxes[0, 1] = torch.tensor([500.0, 500.0, 560.0, 560.0])
    boxes[1, 1] = torch.tensor([500.0, 500.0, 560.0, 500 + 60 * (0.5 + near)])
    boxes[0, 2] = torch.tensor([700.0, 500.0, 760.0, 560.0])
    probabilities[0, 1], probabilities[1, 1], probabilities[0, 2] = 0.98, 0.97, score
    return probabilities, boxes


@pytest.mark.parametrize(
    ("own", "theirs", "same"),
    [
        ({"near": 2e-6}, {"near": -2e-6}, True),
        ({"near": 5e-4}, {"near": -5e-4}, False),
        ({"score": 0.05 + 3e-7}, {"score": 0.05 - 3e-7}, True),
        ({"score": 0.05 - 3e-7}, {"score": 0.05 + 3e-7}, True),
        ({"score": 0.0495}, {"score": 0.0505}, False),
    ],
)
def test_detections_are_chosen_as_recorded_where_rounding_decides(
    own: dict[str, float], theirs: dict[str, float], same: bool
) -> None:
    rule = DETECTIONS.model_copy(update={"max_detections": 0})
    choices = DetectionChoices(lambda *given: choose_detections(*given, 0.0, rule), 0.0, rule)
    reference = recorded({"rois": choose_detections(*scored(**theirs), 0.0, rule).boxes})

    def compute() -> Outputs:
        choices.start()
        return {"rois": Output(choices(*scored(**own)).boxes, 1e-5)}

    assert not equal(compute()["rois"], reference)
    assert equal(settle(compute, choices, reference, "float32")["rois"], reference) == same


@pytest.mark.parametrize(("off", "same"), [(2e-6, True), (1e-3, False)])
def test_pixels_near_the_threshold_are_on_the_recorded_side(off: float, same: bool) -> None:
    random = torch.Generator().manual_seed(0)
    chances = torch.rand(5, 8, 8, generator=random).double()
    chances[2, 3, 3], chances[4, 1, 1], chances[4, 1, 2] = 0.5 + off, 0.5 - off, 0.5 - off / 2
    theirs = (chances > 0.5).sum(dim=(1, 2))
    theirs[2], theirs[4] = theirs[2] - 1, theirs[4] + 2
    reference = recorded({"areas": theirs})
    own = (chances > 0.5).sum(dim=(1, 2))
    areas, note = settle_areas(lambda by: chances > 0.5 + by, reference, "areas", own, (1, 2))
    assert torch.equal(areas, theirs if same else own)
    assert note == (
        "3 pixels within 1e-05 of the threshold are counted on the recorded side" if same else None
    )


@pytest.mark.parametrize(("shift", "same"), [(5e-4, True), (5e-3, False)])
def test_soft_nms_counts_the_rows_that_were_recorded(shift: float, same: bool) -> None:
    """A box whose IoU is nearly the threshold decays, and leaves, as recorded; one further off stays."""
    left = 101 * 0.7 / 1.3 + shift  # IoU of the two, decoded 101 wide: 0.3 - 0.0084 * shift
    rois = torch.tensor([[0.0, 0.0, 99.0, 99.0], [left, 0.0, left + 99.0, 99.0]])
    model = steps_detnet.head_model(1, detections={"score_threshold": 0.0, "max_detections": 0})
    probabilities = torch.tensor([[0.1, 0.9], [0.9988, 0.0012]])  # 0.0012 * 0.7 is below soft-NMS's 0.001
    choices = detnet_model.detection_choices(model, "linear")

    def compute() -> Outputs:
        _, before = detnet_model.detection_rows(
            model, rois, probabilities, torch.zeros(2, 8), (400.0, 400.0, 1.0), choices
        )
        return {"counts": Output(np.array([float(before)]), 0.0, expected=np.array([1.0]))}

    assert float(compute()["counts"].value[0]) == 2
    found = settle(compute, choices, recorded({}), "float32")["counts"]
    assert float(found.value[0]) == (1 if same else 2)


@pytest.mark.parametrize(
    ("own", "apart", "moved"), [(3e-6, 6e-6, 2), (1e-7, 6e-6, 0), (3e-6, 4e-5, 0), (1e-3, 4e-5, 0)]
)
def test_detections_change_places_as_far_as_the_original_rounds_their_scores(
    own: float, apart: float, moved: int
) -> None:
    """The original's float32 and float64 scores are `own` apart, relative to scores of about 0.3."""
    scores = torch.linspace(0.5, 0.1, 20, dtype=torch.float64)
    boxes = torch.arange(80.0).reshape(20, 4)
    reference = recorded({"A.boxes": boxes, "A.scores": scores})
    reference.__dict__["meta"] = {"outputs": {"A.scores": {"float64_difference": own}}}
    scores = scores.clone()
    scores[6] = scores[7] - apart  # row 6 stands behind row 7 here
    order, count = _Folder._order(SimpleNamespace(reference=reference), "A.boxes", scores, boxes)
    assert count == moved
    assert (order.tolist() == list(range(20))) == (moved > 0)
    assert 2e-6 <= score_gap(reference, "A.boxes") <= 2e-5
