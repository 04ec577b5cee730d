"""ReLU units that rounding opens or closes are found from recorded gradients, and no others; a gradient of
which only mean and deviation are known is judged in double precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from forked import ROOT, run_forked
from torch import Tensor, nn

from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity import gates
from detection_zoo.zoo.parity.base import Output, compare
from detection_zoo.zoo.parity.hardnet import moments_in_double
from detection_zoo.zoo.records import Target

PARAMETERS = ("pyramid.extras.0.weight", "pyramid.extras.1.weight")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return build_model(load_manifests().entry("ssd160_vgg11_slim.demo"), weights="random").train()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(5))


def _losses(model: nn.Module, images: Tensor) -> Tensor:
    box = torch.tensor([[20.0, 30.0, 90.0, 120.0], [60.0, 10.0, 150.0, 60.0]])
    targets = [Target(box, torch.tensor([1, 3])), Target(box + 5.0, torch.tensor([0, 2]))]
    return sum(model.losses(images, torch.tensor([[160, 160]] * 2), targets).values())


def _gradients(network: nn.Module, images: Tensor, units: gates.Units) -> list[Tensor]:
    parameters = [network.get_parameter(name) for name in PARAMETERS]
    with gates.flipped(network.pyramid.extras, units):
        return list(torch.autograd.grad(_losses(network, images), parameters))


def _found(network: nn.Module, images: Tensor, gradients: list[Tensor]) -> set[tuple[int, ...]]:
    recorded = [
        gates.RecordedGradient(name, lambda whole: whole.reshape(-1), gradient.reshape(-1).double())
        for name, gradient in zip(PARAMETERS, gradients, strict=True)
    ]
    units = gates.gates_as_recorded(network, images, lambda model: _losses(model, images), recorded)
    return {(layer, *place) for layer, mask in units.items() for place in torch.nonzero(mask).tolist()}


def test_units_of_an_early_and_a_late_layer_are_found(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient at a unit passes open units of later layers only; units that were not turned stay."""
    monkeypatch.setattr(gates, "GATE_GAP", 2e-3)  # a slim network has few units that are nearer
    near = gates._near_zero(copy.deepcopy(network).double(), images.double())
    plain = _gradients(network, images, {})
    planted: gates.Units = {}
    for layer in (0, 1):
        places = [place for own, place in near if own == layer][:8]
        moved = [_apart(plain, _gradients(network, images, {layer: place})) for place in places]
        planted[layer] = places[moved.index(max(moved))]
    assert len(near) > 20
    expected = {(layer, *place) for layer, mask in planted.items() for place in torch.nonzero(mask).tolist()}
    assert _found(network, images, _gradients(network, images, planted)) == expected


def _apart(gradients: list[Tensor], others: list[Tensor]) -> float:
    return sum(float((one - other).norm()) for one, other in zip(gradients, others, strict=True))


def test_equal_gradients_turn_nothing(network: nn.Module, images: Tensor) -> None:
    """Where nothing differs no unit is touched."""
    assert _found(network, images, _gradients(network, images, {})) == set()


@pytest.mark.parametrize(
    ("single", "double", "verdict"),
    [
        (2.3e-6, 1e-8, "ok"),  # rounding of one processor
        (1e-4, 1e-8, "differs"),  # more than rounding
        (5e-6, 5e-6, "differs"),  # a mistake, which double precision has too
    ],
)
def test_a_gradient_of_zeros_is_judged_in_double_precision(
    single: float, double: float, verdict: str
) -> None:
    truth = np.random.RandomState(1).standard_normal((40, 40))
    truth[::2] = 0
    kept = {
        "shape": np.array([40, 40]),
        "moments": np.array([truth.mean(), truth.std()]),
        "samples": truth.reshape(-1)[::80],
        "stride": np.array(80),
    }
    own = Output(torch.from_numpy(truth * (1 + single)), 1e-6)
    judged = moments_in_double(own, torch.from_numpy(truth * (1 + double)), kept)
    line = compare("f.grad.extras.1.weight", judged, kept, "float32")
    assert line.verdict == verdict
    assert ("compared in double precision" in (line.reason or "")) == (single < 1e-5)


def test_another_instruction_set_gives_the_same_verdict() -> None:
    """With AVX2 one unit opens whose input is 3e-5 of its layer's largest."""
    folder = ROOT / "tests" / "reference" / "hardnet" / "ssd300_hardnet68_voc"
    environment = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # it is read when the first convolution is computed
    ended = run_forked("bench.py", "parity", "--reference", folder, environment=environment)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
