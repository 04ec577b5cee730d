"""ReLU units of SSD's extra layers that rounding alone opens or closes: gradients depend on them, values do
not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# of the largest input of a layer: twice what the order of summation moved these inputs by, between one thread
# and two
GATE_GAP = 2e-5
MOST = 24  # units of a round that are tried, those with the largest gradient
ROUNDS = 4

Units = dict[int, Tensor]  # by number of an extra layer: bool (N, C, H, W)


class _Fixed(nn.Module):
    """A backbone that always gives the same maps."""

    def __init__(self, maps: dict[str, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.maps


def gates_as_recorded(
    model: nn.Module,
    images: Tensor,
    losses: Callable[[nn.Module], Tensor],
    excess: Callable[[nn.Module], float],
) -> Units:
    """Units whose input is within `GATE_GAP` of zero in double precision, and which were on the other side of
    it when the gradients were recorded.

    In each round the unit is kept that brings the gradients of the extra layers nearest to what is recorded.
    No other unit is touched, so that a real difference stays one.

    Args:
        model: an SSD before the update, in training mode. images: (N, 3, S, S) of the update.
        losses: the summed loss of a model. excess: of a model with gradients, the worst ratio of a difference
            to its tolerance.
    """
    model = copy.deepcopy(model).train()
    candidates = _near_zero(copy.deepcopy(model).double(), images.double())
    with torch.no_grad():
        model.backbone = _Fixed({name: maps.detach() for name, maps in model.backbone(images).items()})

    def ratio(units: Units) -> float:
        model.zero_grad()
        with flipped(model.pyramid.extras, units):
            losses(model).backward()
        return excess(model)

    kept: Units = {}
    best, weights = ratio(kept), _gradients(model, losses)
    candidates.sort(key=lambda one: -float(weights[one[0]][one[1]].abs()))
    for _ in range(ROUNDS):
        tried = [_with(kept, layer, place) for layer, place in candidates[:MOST]]
        ratios = [ratio(units) for units in tried]
        if best <= 1 or not ratios or min(ratios) >= best:
            break
        best = min(ratios)
        kept = tried[ratios.index(best)]
    return kept


def _with(kept: Units, layer: int, place: Tensor) -> Units:
    """The units with one more, or without it where it is there already."""
    units = {number: mask.clone() for number, mask in kept.items()}
    units[layer] = units.get(layer, torch.zeros_like(place)) ^ place
    return units


def _gradients(model: nn.Module, losses: Callable[[nn.Module], Tensor]) -> dict[int, Tensor]:
    """By number of an extra layer, the gradient (N, C, H, W) behind its ReLU, of closed units too."""
    found: dict[int, Tensor] = {}

    def watch(layer: int, out: Tensor) -> Tensor:
        opened = torch.where(out > 0, out, out - out.detach())  # the value of a ReLU, the gradient of a sum
        opened.register_hook(lambda grad: found.__setitem__(layer, grad.clone()))
        return opened + torch.finfo(out.dtype).tiny  # above zero, so that the ReLU behind it is open

    handles = [
        extra.register_forward_hook(lambda _m, _a, out, layer=layer: watch(layer, out))
        for layer, extra in enumerate(model.pyramid.extras)
    ]
    try:
        model.zero_grad()
        losses(model).backward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _near_zero(model: nn.Module, images: Tensor) -> list[tuple[int, Tensor]]:
    """Layer and place of each unit within the gap, nearest to zero first."""
    found: list[tuple[float, int, Tensor]] = []

    def look(layer: int, out: Tensor) -> None:
        size = out.detach().abs() / out.detach().abs().max()
        for index in torch.nonzero(size <= GATE_GAP).tolist():
            place = torch.zeros_like(size, dtype=torch.bool)
            place[tuple(index)] = True
            found.append((float(size[tuple(index)]), layer, place))

    handles = [
        extra.register_forward_hook(lambda _m, _a, out, layer=layer: look(layer, out))
        for layer, extra in enumerate(model.pyramid.extras)
    ]
    try:
        with torch.no_grad():
            model.network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [(layer, place) for _, layer, place in sorted(found, key=lambda one: one[0])]


@contextmanager
def flipped(extras: nn.ModuleList, units: Units) -> Iterator[None]:
    """Within the block the outputs of extra layers have the other sign at these units; gradients pass as they
    would there."""

    def flip(out: Tensor, mask: Tensor) -> Tensor:
        tiny = torch.finfo(out.dtype).tiny
        other = torch.where(out.detach() > 0, -out.detach(), (-out.detach()).clamp(min=tiny))
        return torch.where(mask, out + (other - out.detach()), out)

    handles = [
        extras[layer].register_forward_hook(lambda _m, _a, out, mask=mask: flip(out, mask))
        for layer, mask in units.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
