"""A training step by lists of fixed size, as on a GPU, equals one by lists of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from slim_families import ROWS, SIZES, draw_first, family, pictures, targets
from torch import Tensor, nn

from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.parts.fixed_size import use_fixed_size
from detection_zoo.zoo.parts.mask_head import rasterise
from detection_zoo.zoo.parts.matching import BalancedSampler
from detection_zoo.zoo.parts.multibox import MultiBoxLoss, PriorCoder
from detection_zoo.zoo.parts.polygons import draw_polygons
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.registry import DETECTORS

pytestmark = pytest.mark.usefixtures("one_thread")


def step(model: nn.Module, batch: list[Target]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of two images, and the gradients of their sum, in double precision: sums in another order then
    differ by 1e-14 and no more, whatever the processor."""
    model.double().zero_grad()
    batch = [replace(one, boxes=one.boxes.double(), keypoints=doubled(one.keypoints)) for one in batch]
    losses = model(pictures(2).double(), SIZES, batch)
    sum(losses.values()).backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return {name: one.detach() for name, one in losses.items()}, gradients


def doubled(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.double()


def without_objects(row: str) -> list[Target]:
    """The second image has no object."""
    first, second = targets(row)
    keypoints = None if second.keypoints is None else second.keypoints[:0]
    polygons = None if second.polygons is None else []
    return [first, Target(second.boxes[:0], second.labels[:0], polygons, keypoints)]


@pytest.mark.parametrize("batch", [targets, without_objects])
@pytest.mark.parametrize("name", [*DETECTORS, "detnet"])
def test_a_step_of_fixed_size(name: str, batch: Callable[[str], list[Target]]) -> None:
    """Losses and gradients, with and without objects in an image."""
    model = draw_first(family(name).train())
    losses, gradients = step(model, batch(name))
    with use_fixed_size(True):
        fixed, own = step(model, batch(name))
    assert all(bool(torch.isfinite(one)) for one in losses.values())
    torch.testing.assert_close(fixed, losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(own, gradients, rtol=1e-10, atol=1e-12)


def test_a_sigmoid_loss_of_fixed_size() -> None:
    """SSD with one sigmoid a class."""
    generator = torch.Generator().manual_seed(0)
    loss = MultiBoxLoss(PriorCoder(), scores="sigmoid")
    priors = torch.rand(40, 4, generator=generator) / 4 + 0.3
    logits = torch.randn(1, 40, 5, generator=generator, requires_grad=True)
    given = torch.randn(1, 40, 4, generator=generator), logits, priors
    truth = [torch.tensor([[0.2, 0.2, 0.6, 0.6]])], [torch.tensor([3])]
    found = []
    for wanted in (False, True):
        with use_fixed_size(wanted):
            terms = loss(*given, *truth)
            found.append((terms, torch.autograd.grad(sum(terms.values()), logits)[0]))
    torch.testing.assert_close(*found)


def changed(model: nn.Module, part: str, **values: Any) -> None:
    """Change the rule of a model's sampler ("rpn" or "roi") of one image's samples."""
    sampler = model.rpn.sampler if part == "rpn" else model.sampler
    sampler.rule = sampler.rule.model_copy(update=values)


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ("rpn", {"inside_only": True, "straddle": 0}),
        ("roi", {"order": "position"}),
        ("roi", {"background_low": 0.1}),
        ("roi", {"ground_truth": "first"}),
    ],
    ids=["inside only", "position", "low background", "truth first"],
)
def test_other_rules_of_fixed_size(part: str, rule: dict[str, Any]) -> None:
    """The same samples, absent ones last and counted in no loss."""
    model = draw_first(build_model(ROWS["faster_rcnn"], "published").train())
    changed(model, part, **rule)
    batch = targets(ROWS["faster_rcnn"])
    plain = model.training_step(pictures(2), SIZES, batch)
    with use_fixed_size(True):
        fixed = model.training_step(pictures(2), SIZES, batch)
    for one, other in zip(plain.sampled, fixed.sampled, strict=True):
        assert len(other.labels) == model.sampler.rule.samples
        assert torch.equal(other.labels[: len(one.labels)], one.labels)
        assert bool((other.labels[len(one.labels) :] == -1).all())
        torch.testing.assert_close(other.boxes[: len(one.labels)], one.boxes)
        torch.testing.assert_close(other.targets[: len(one.labels)], one.targets)
    for one, other in zip(plain.labels, fixed.labels, strict=True):
        assert torch.equal(other.positive[other.positive >= 0], one.positive)
        assert torch.equal(other.negative[other.negative >= 0], one.negative)
    torch.testing.assert_close(fixed.losses, plain.losses)


def test_draws_of_fixed_size_are_even() -> None:
    """Each candidate is drawn as often as another: 5 of 20 positives and 15 of 60 negatives, 400 times; the
    bounds are five standard deviations. Never the 20 that are not to be drawn."""
    torch.manual_seed(0)
    labels = torch.tensor([1] * 20 + [0] * 60 + [-1] * 20)
    counts, pick = torch.zeros(100), BalancedSampler(20, 0.25)
    with use_fixed_size(True):
        for _ in range(400):
            positive, negative = pick(labels)
            assert len(positive) == 5 and len(negative) == 20
            assert positive.tolist() == sorted(positive.tolist()) and positive.min() >= 0
            assert negative[15:].tolist() == [-1] * 5 and negative[:15].min() >= 0
            counts[positive] += 1
            counts[negative[:15]] += 1
    assert not counts[80:].any()
    assert bool(((counts[:80] - 100).abs() < 5 * (400 * 0.25 * 0.75) ** 0.5).all())


def test_draws_of_fixed_size_fill_up() -> None:
    """Few positives: background in their place; few of both: the last rows are absent."""
    with use_fixed_size(True):
        positive, negative = BalancedSampler(8, 0.5)(torch.tensor([0, 1, 0, -1, 0, 0, 0, 0, 0, 0]))
        assert positive.tolist() == [1, -1, -1, -1] and (negative >= 0).sum() == 7
        positive, negative = BalancedSampler(8, 0.5)(torch.tensor([0, -1, 0]))
        assert positive.tolist() == [-1, -1, -1] and negative.tolist() == [0, 2, -1]


@pytest.mark.parametrize("size", [None, (200, 250)], ids=["as they are", "held to the image"])
@pytest.mark.parametrize("side", [5, 28])
def test_polygons_are_drawn_as_by_pycocotools(side: int, size: tuple[int, int] | None) -> None:
    """Random outlines of several parts, some with whole numbers and repeated points, in boxes of all sizes,
    also beyond the image; pixel for pixel."""
    random = np.random.default_rng(side)
    polygons = []
    for index in range(12):
        parts = [random.uniform(-10, 300, (random.integers(3, 12), 2)) for _ in range(1 + index % 3)]
        if index % 4 == 1:
            parts = [np.repeat(np.round(points), 2, axis=0) for points in parts]
        polygons.append([points.reshape(-1).tolist() for points in parts])
    polygons.append([])
    near = random.uniform(-20, 280, (200, 2))
    boxes = np.concatenate([near, near + random.uniform(0.1, 15, (200, 2)) ** 2], axis=1)
    boxes[::5] = np.round(boxes[::5])
    boxes, matches = torch.from_numpy(boxes).float(), torch.from_numpy(random.integers(0, 13, 200))
    drawn = draw_polygons(polygons, boxes, matches, side, size, 0.4)
    wanted = [
        rasterise(polygons[match], box, side, size, 0.4)
        for match, box in zip(matches.tolist(), boxes.tolist(), strict=True)
    ]
    assert np.array_equal(drawn.numpy(), np.stack(wanted)) and drawn.any()


def test_polygons_of_nothing() -> None:
    """No object, no outline, no box."""
    boxes, matches = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0])
    for polygons in ([], [[]]):
        assert draw_polygons(polygons, boxes, matches, 4, None).tolist() == [[[0.0] * 4] * 4]
    square = [[[0.0, 0, 4, 0, 4, 4, 0, 4]]]
    assert draw_polygons(square, boxes[:0], matches[:0], 4, None).shape == (0, 4, 4)
    assert bool((draw_polygons(square, boxes, matches, 4, None) == 1).all())
