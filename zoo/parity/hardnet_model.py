"""The networks that HarDNet's folders describe, and which of their layers a training draws again."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import nn

from detection_zoo.zoo.backbones import hardnet, vgg  # noqa: F401 - register their builders
from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.detectors.ssd import SSD
from detection_zoo.zoo.parity.base import Output, ParityError, Reference, Skip
from detection_zoo.zoo.registry import BACKBONES, DETECTORS
from detection_zoo.zoo.weights.rename import rename

EXACT = 1e-12  # room for the mean of equal numbers summed in another order
Outputs = dict[str, Output | Skip]


def number(value: Any, expected: Any, tolerance: float = EXACT) -> Output:
    """A number or array beside the one that the folder's text states."""
    return Output(np.asarray(value, dtype=np.float64), tolerance, np.asarray(expected, dtype=np.float64))


def same(value: Any, expected: Any) -> Output:
    """1 where two plain values (draws, names) are equal."""
    return number(value == expected, True)


def build_detector(meta: dict[str, Any]) -> SSD:
    """The network that a detector folder's outputs.json describes by model, size, priors and classes."""
    found = re.fullmatch(r"(SSD|RFB)_(HarDNet\d+|vgg)", meta["model"], flags=re.IGNORECASE)
    if not found:
        raise ParityError(
            f"{meta['config']}: unknown model {meta['model']!r}; known: SSD_HarDNet68, SSD_HarDNet85,"
            " SSD_vgg, RFB_HarDNet68, RFB_HarDNet85"
        )
    heads, name = found[1].lower(), {"vgg": "vgg16_reduced"}.get(found[2].lower(), found[2].lower())
    backbone = BACKBONES[name](**({"bridge": heads == "ssd"} if name == "hardnet85" else {}))
    return DETECTORS["ssd"](
        backbone,
        num_classes=meta["classes"] - 1,
        size=meta["image_size"],
        heads=heads,
        priors=meta["priors"].lower(),
    )


def build_classifier(meta: dict[str, Any]) -> nn.Module:
    """The classifier that a folder's outputs.json describes by model and classes."""
    name = meta["model"].removeprefix("imagenet_").lower()
    return Classifier(
        BACKBONES[name](**({} if name.endswith("ds") else {"form": "classifier"})),
        num_classes=meta["classes"],
    )


def initialisation(reference: Reference) -> Outputs:
    """Which new layers a training run draws again, and how many biases it sets to zero."""
    found: Outputs = {}
    for name, said in reference.meta["initialisation"].items():
        with torch.random.fork_rng(devices=[]):
            model = build_detector(
                {
                    "config": "initialisation",
                    "model": name,
                    "classes": 81,
                    "image_size": 512,
                    "priors": "COCO_512",
                }
            )
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(7.0)
            model.initialise()
        changed = {key for key, value in model.named_parameters() if bool((value != 7.0).any())}
        weights = sorted(_original_name(key) for key in changed if key.endswith(".weight"))
        found[f"initialisation.{name}.weights_drawn_again"] = same(
            weights, sorted(said["weights_drawn_again"])
        )
        biases = [
            key for key in changed if key.endswith(".bias") and bool((model.get_parameter(key) == 0).all())
        ]
        found[f"initialisation.{name}.biases_zeroed"] = number(len(biases), said["biases_zeroed"])
        found[f"initialisation.{name}.standard_deviation"] = number(
            _deviation_ratio(model, changed), 1.0, 0.05
        )
    return found


def _deviation_ratio(model: nn.Module, changed: set[str]) -> float:
    """Measured deviation of the drawn weights over sqrt(2 / (out_channels * kernel_area)), pooled over all of
    them; 1 without any."""
    drawn = [model.get_parameter(key).detach() for key in changed if key.endswith(".weight")]
    scaled = [(w / (2 / (w.shape[0] * w.shape[2:].numel())) ** 0.5).flatten() for w in drawn]
    return float(torch.cat(scaled).std()) if scaled else 1.0


def _original_name(name: str) -> str:
    """The name that the source gives a new layer."""
    back = (
        (r"^backbone\.bridge\.", "bridge."),
        (r"^pyramid\.norm\.", "Norm."),
        (r"^pyramid\.", ""),
        (r"\.branches\.(\d)\.", r".branch\1."),
        (r"\.linear\.", ".ConvLinear."),
        (r"^box_head\.", "loc."),
        (r"^class_head\.", "conf."),
    )
    return rename(name, back)
