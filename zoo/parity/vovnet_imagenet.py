"""Parity with the VoVNet classifier of VoVNet.pytorch, and the detector's backbone after loading its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.build import WithoutRandomFills, shapes_only
from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.parity.base import Output, ParityError, Reference, Skip
from detection_zoo.zoo.parity.benchmark_batches import batches
from detection_zoo.zoo.parts.trace import trace
from detection_zoo.zoo.registry import BACKBONES
from detection_zoo.zoo.weights.load import checkpoint_format as format_of
from detection_zoo.zoo.weights.load import copy_into, load_arrays
from detection_zoo.zoo.weights.rename import Translation

CLASSIFIER_FORMAT = "vovnet_imagenet_pth"


def imagenet_outputs(
    reference: Reference, entry: ModelEntry | None, kind: torch.dtype, checkpoint: str
) -> dict[str, Output | Skip]:
    """The VoVNet classifier, and the detector's backbone after loading the same file."""
    arrays = reference.checkpoint()
    if entry is not None:
        name, classes = entry.backbone.name, entry.classes
    else:
        name, classes = _vovnet_of(arrays), len(arrays["classifier.bias"])
    with WithoutRandomFills():
        model = Classifier(BACKBONES[name](norm="batch", freeze_at=0), classes)
        body = BACKBONES[name](norm="frozen", freeze_at=0)
    where = f"stand-in checkpoint of {reference.folder} ({checkpoint})"
    load_arrays(model, arrays, checkpoint, where=where)
    loading = format_of(checkpoint).translate(arrays)
    taken = {target: array for target, array in loading.state.items() if target.startswith("backbone.")}
    report = copy_into(
        body,
        Translation({t.removeprefix("backbone."): a for t, a in taken.items()}, optional=loading.optional),
        where,
    )
    model, body = model.to(kind).eval(), body.to(kind).eval()
    advice = reference.settings.notes.get("tolerance.advice")
    tolerance = advice.need("tolerance") if advice else None
    computed: dict[str, Output | Skip] = {}
    for name, batch in batches(reference, 1).items():
        with torch.no_grad():
            values = _values(model, body, batch.images.to(kind))
        for part, value in values.items():
            computed[f"{name}.{part}"] = Output(value, tolerance)
            if value.ndim == 4:
                computed[f"{name}.{part}.channel_mean"] = Output(value.mean(dim=1), tolerance)
    if described := reference.meta.get("detector_loading"):
        numbers = {
            "tensors_taken": len(report.matched),
            "of_detector_body": len(body.state_dict()),
            "count_not_taken": len(arrays) - len(report.matched),
        }
        computed |= {
            f"detector_loading.{key}": Output(value, 0.0, described[key])
            for key, value in numbers.items()
            if key in described
        }
    return computed


def _values(model: Classifier, body: Backbone, images: Tensor) -> dict[str, Tensor]:
    with trace(model, "backbone.stem", "backbone", "norm") as seen:  # a VoVNet has no norm before the classes
        logits = model(images)
    values = {"stem": seen["backbone.stem"]}
    values |= {f"stage{name.removeprefix('c')}": value for name, value in seen["backbone"].items()}
    values |= {f"detector_body.{i}": value for i, value in enumerate(body(images).values())}
    return values | {"pooled": seen["norm"], "logits": logits}


def _vovnet_of(arrays: Mapping[str, Any]) -> str:
    """The registered VoVNet whose tensors have the names and shapes of a classifier's file."""
    wanted = {name: array.shape for name, array in arrays.items() if name.endswith("conv.weight")}
    for name in BACKBONES:
        if name.startswith("vovnet"):
            with shapes_only():
                model = Classifier(BACKBONES[name](norm="batch"), len(arrays["classifier.bias"]))
            state = format_of(CLASSIFIER_FORMAT).translate({file: arrays[file] for file in wanted}).state
            shapes = {
                key: tuple(value.shape)
                for key, value in model.state_dict().items()
                if key.endswith("conv.weight")
            }
            if shapes == {key: tuple(value.shape) for key, value in state.items()}:
                return name
    raise ParityError("no registered VoVNet has the names and shapes of this classifier's tensors")
