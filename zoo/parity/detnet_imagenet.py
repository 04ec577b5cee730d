"""Parity with DetNet_pytorch's ImageNet classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.manifest import Component, ModelEntry
from detection_zoo.zoo.parity.base import Output, Reference, Skip
from detection_zoo.zoo.parity.detnet_settings import row_for
from detection_zoo.zoo.parity.standin import standin_model
from detection_zoo.zoo.parts.trace import trace


def imagenet_outputs(
    reference: Reference, entry: ModelEntry | None, kind: torch.dtype, checkpoint_format: str
) -> dict[str, Output | Skip]:
    """Stages, pooled features and logits of DetNet-59 as a classifier."""
    classes = next(
        tensor["shape"][0] for tensor in reference.description["tensors"] if tensor["name"] == "fc.weight"
    )
    own = {
        "backbone": Component(name="detnet59", norm="batch", freeze_at=0),
        "classes": classes,
        "task": "classification",
    }
    row = row_for(reference, entry, own)
    model = standin_model(reference.folder, row, Classifier, checkpoint_format)[0].to(kind).eval()
    computed: dict[str, Output | Skip] = {}
    for name, note in reference.settings.under("inputs").items():
        kept = _watch(model, note.tensor(kind))
        computed |= {f"{name.removesuffix('.input')}/{stage}": Output(value) for stage, value in kept.items()}
    return computed


def _watch(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Outputs of the stages and blocks in one forward pass, by the original's names."""
    paths = {"maxpool": "backbone.stem"} | {f"layer{i}": f"backbone.c{i + 1}" for i in range(1, 6)}
    for layer in ("layer4", "layer5"):
        blocks = range(len(model.get_submodule(paths[layer])))
        paths |= {f"{layer}.{i}": f"{paths[layer]}.{i}" for i in blocks}
        paths[f"{layer}.0.extra_conv"] = f"{paths[layer]}.0.shortcut"
    with torch.no_grad(), trace(model, *paths.values()) as seen:
        logits = model(images)
    kept = {name: seen[path] for name, path in paths.items()}
    return kept | {"logits": logits, "avgpool": kept["layer5"].mean(dim=(2, 3), keepdim=True)}
