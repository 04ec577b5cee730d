"""Parameters and multiply-accumulates: the numbers that HarDNet's README prints, and hand-counted layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detection_zoo.benchmarks.measure.cost import model_cost
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.manifest_files import load_manifests

# HarDNet's README, table of ImageNet models: parameters in millions, MACs in billions at 224 x 224, as
# printed
PUBLISHED = {
    "hardnet39ds_imagenet.hardnet": ("3.5", "0.44"),
    "hardnet68ds_imagenet.hardnet": ("4.2", "0.8"),
    "hardnet68_imagenet.hardnet": ("17.6", "4.3"),
    "hardnet85_imagenet.hardnet": ("36.7", "9.1"),
}


def printed(value: float, like: str) -> str:
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("row", PUBLISHED)
def test_hardnet_costs_what_its_readme_prints(row: str) -> None:
    cost = model_cost(build_model(row, device="meta"), (224, 224))
    parameters, gmacs = PUBLISHED[row]
    assert (printed(cost.parameters_m, parameters), printed(cost.gmacs, gmacs)) == (parameters, gmacs)
    values = [published.values for published in load_manifests().entry(row).published]
    assert {"parameters_m": float(parameters)} in values and {"gmacs": float(gmacs)} in values


DETECTORS = {  # counted from the authors' own networks, in millions
    "ssd512_hardnet68_coco.hardnet": 25.700,
    "ssd512_hardnet85_coco.hardnet": 38.782,
    "ssd300_hardnet68_voc.hardnet": 17.261,
    "rfb512_hardnet68_coco.hardnet": 33.112,
    "rfb512_hardnet85_coco.hardnet": 39.263,
    "ssd512_vgg16_coco.hardnet": 36.822,
    "ssd300_vgg16_voc.hardnet": 26.516,
}


@pytest.mark.parametrize("row", DETECTORS)
def test_detectors_have_the_authors_parameters(row: str) -> None:
    model = build_model(row, device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == DETECTORS[row]


def test_a_mac_is_two_flops_and_groups_share_no_channels() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Flatten(),
        nn.Linear(8 * 4 * 6, 5),
    )
    cost = model_cost(layers, (4, 6))
    cells = 4 * 6
    assert cost.macs == cells * 3 * 8 * 9 + cells * 8 * 9 + 8 * cells * 5
    assert cost.flops == 2 * cost.macs
    assert cost.elementwise == 2 * 8 * cells + 8 * cells
    assert cost.parameters == 3 * 8 * 9 + 16 + 8 * 9 + 8 * cells * 5 + 5
    assert layers.training


def test_a_detector_is_counted_up_to_selection() -> None:
    model = build_model("ssd300_hardnet68_voc.hardnet")
    model.postprocess = None  # would raise if it were called
    cost = model_cost(model, (300, 300))
    assert cost.macs > 300 * 300 / 4 * 27 * 32 and torch.is_grad_enabled()
