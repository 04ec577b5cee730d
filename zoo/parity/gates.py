"""ReLU units of SSD's extra layers that rounding alone opens or closes: gradients depend on them, values do
not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detection_zoo.zoo.parts.trace import trace

# of the largest input of a layer: what rounding moved these inputs by, beside double precision (of
# ssd300_hardnet68_voc: up to 9.8e-5 with AVX2, 5e-5 with AVX-512)
GATE_GAP = 1e-4
TRIED = 400  # units that are tried, those with the largest gradient
MOST = 40  # units that are open or closed as recorded

Units = dict[int, Tensor]  # by number of an extra layer: bool (N, C, H, W)


class _Fixed(nn.Module):
    """A backbone that always gives the same maps."""

    def __init__(self, maps: dict[str, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.maps


@dataclass(frozen=True)
class RecordedGradient:
    """What is known of the gradient of a parameter: `take` gives the numbers (S,) of a whole gradient that
    were recorded, `numbers` (S,) float64 are those."""

    parameter: str
    take: Callable[[Tensor], Tensor]
    numbers: Tensor


def gates_as_recorded(
    model: nn.Module,
    images: Tensor,
    losses: Callable[[nn.Module], Tensor],
    recorded: Sequence[RecordedGradient],
) -> Units:
    """Units whose input is within `GATE_GAP` of zero in double precision, and which were on the other side of
    it when the gradients were recorded.

    What each unit adds to the gradients is worked out by itself; then the units are taken whose sum is
    nearest to the difference, one after another. No other unit is touched, so that a real difference stays
    one.

    Args:
        model: an SSD before the update, in training mode. images: (N, 3, S, S) of the update.
        losses: the summed loss of a model. recorded: gradients of extra layers.
    """
    model = copy.deepcopy(model).train()
    candidates = _near_zero(copy.deepcopy(model).double(), images.double())
    with torch.no_grad():
        model.backbone = _Fixed({name: maps.detach() for name, maps in model.backbone(images).items()})
    weights = _gradients(model, losses)
    candidates.sort(key=lambda one: -float(weights[one[0]][one[1]].abs()))
    parameters = [model.get_parameter(one.parameter) for one in recorded]
    gradients = torch.autograd.grad(losses(model), parameters, allow_unused=True)
    residual = torch.cat([one.numbers for one in recorded]) - _taken(gradients, recorded)
    effects = _effects(model, images, candidates[:TRIED], weights, recorded)
    kept: Units = {}
    for _ in range(min(MOST, len(effects))):
        sizes = torch.linalg.vector_norm(residual - effects, dim=1)  # (candidates)
        best = int(sizes.argmin())
        if sizes[best] >= torch.linalg.vector_norm(residual):
            break
        residual, effects[best] = residual - effects[best], 0.0
        layer, place = candidates[best]
        kept[layer] = kept.get(layer, torch.zeros_like(place)) | place
    return kept


def _taken(gradients: Sequence[Tensor | None], recorded: Sequence[RecordedGradient]) -> Tensor:
    """The recorded numbers of all gradients, one after another, as float64; those of none are 0."""
    return torch.cat(
        [
            torch.zeros_like(one.numbers) if gradient is None else one.take(gradient).double()
            for gradient, one in zip(gradients, recorded, strict=True)
        ]
    )


def _effects(
    model: nn.Module,
    images: Tensor,
    candidates: Sequence[tuple[int, Tensor]],
    weights: Mapping[int, Tensor],
    recorded: Sequence[RecordedGradient],
) -> Tensor:
    """What the recorded numbers change by where one unit is turned: (candidates, all numbers) float64."""
    outputs: dict[int, Tensor] = {}
    handles = [
        extra.register_forward_hook(lambda _m, _a, out, layer=layer: outputs.__setitem__(layer, out.clone()))
        for layer, extra in enumerate(model.pyramid.extras)
    ]
    try:
        model.network(images)
    finally:
        for handle in handles:
            handle.remove()
    parameters = [model.get_parameter(one.parameter) for one in recorded]
    rows = []
    for layer, place in candidates:
        unit = outputs[layer][place].sum()  # the input of its ReLU
        gradients = torch.autograd.grad(unit, parameters, retain_graph=True, allow_unused=True)
        turned = -1.0 if bool(unit > 0) else 1.0
        rows.append(turned * float(weights[layer][place]) * _taken(gradients, recorded))
    return torch.stack(rows) if rows else torch.zeros(0, 1, dtype=torch.float64)


def _gradients(model: nn.Module, losses: Callable[[nn.Module], Tensor]) -> dict[int, Tensor]:
    """By number of an extra layer, the gradient (N, C, H, W) behind its ReLU, of closed units too."""
    found: dict[int, Tensor] = {}

    def watch(layer: int, out: Tensor) -> Tensor:
        above = out.detach() > 0
        # the ReLU lets it pass
        opened = torch.where(above, out, out - out.detach()) + torch.finfo(out.dtype).tiny

        def hook(gradient: Tensor) -> Tensor:
            found[layer] = gradient.clone()
            return gradient * above  # what the ReLU lets pass to earlier layers

        opened.register_hook(hook)
        return opened

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
    paths = [f"pyramid.extras.{layer}" for layer in range(len(model.pyramid.extras))]
    with torch.no_grad(), trace(model, *paths) as seen:
        model.network(images)
    found: list[tuple[float, int, Tensor]] = []
    for layer, path in enumerate(paths):
        size = seen[path].abs() / seen[path].abs().max()
        for index in torch.nonzero(size <= GATE_GAP).tolist():
            place = torch.zeros_like(size, dtype=torch.bool)
            place[tuple(index)] = True
            found.append((float(size[tuple(index)]), layer, place))
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
