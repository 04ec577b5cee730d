"""A training step by lists of fixed size, as on a GPU, equals one by lists of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from slim_families import ROWS, SIZES, pictures, targets
from torch import Tensor, nn

from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.parts.fixed_size import use_fixed_size
from detection_zoo.zoo.parts.multibox import MultiBoxLoss, PriorCoder
from detection_zoo.zoo.records import Target

FAMILIES = ("retinanet", "ssd")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def step(model: nn.Module, batch: list[Target]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of two images, and the gradients of their sum."""
    model.zero_grad()
    losses = model(pictures(2), SIZES, batch)
    sum(losses.values()).backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return {name: one.detach() for name, one in losses.items()}, gradients


def without_objects(row: str) -> list[Target]:
    """The second image has no object."""
    first, second = targets(row)
    keypoints = None if second.keypoints is None else second.keypoints[:0]
    polygons = None if second.polygons is None else []
    return [first, Target(second.boxes[:0], second.labels[:0], polygons, keypoints)]


@pytest.mark.parametrize("batch", [targets, without_objects])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_fixed_size(family: str, batch: Callable[[str], list[Target]]) -> None:
    """Losses and gradients, with and without objects in an image."""
    model = build_model(ROWS[family], "published").train()
    losses, gradients = step(model, batch(ROWS[family]))
    with use_fixed_size(True):
        fixed, own = step(model, batch(ROWS[family]))
    assert all(bool(torch.isfinite(one)) for one in losses.values())
    torch.testing.assert_close(fixed, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own, gradients, rtol=1e-4, atol=1e-6)


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
