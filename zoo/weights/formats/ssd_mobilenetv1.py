"""SSD on MobileNetV1: TensorFlow weights of face-api's face detector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.formats.detectron import NORM_EPS
from detection_zoo.zoo.weights.formats.ssdlite import boxes_x_first, put_shift
from detection_zoo.zoo.weights.rename import CheckpointFormat, Translation, need, rename
from detection_zoo.zoo.weights.tfjs import read_tfjs, torch_layout

DESCRIPTION = "ssd_mobilenetv1_model-weights_manifest.json"
EPSILON = 0.001  # of the norms in the graph
CLASSES = 2  # background and face: the third channel of the file is not a class of the model
# a convolution of the graph -> its place in the model
_LAYERS = (
    (r"^MobilenetV1/Conv2d_0_pointwise$", "backbone.features.0"),
    (r"^MobilenetV1/Conv2d_(\d+)_depthwise$", r"backbone.features.\1.0"),
    (r"^MobilenetV1/Conv2d_(\d+)_pointwise$", r"backbone.features.\1.1"),
    (r"^Prediction/Conv2d_(\d)_pointwise$", lambda m: f"pyramid.extras.{int(m[1]) // 2}.{int(m[1]) % 2}"),
    (r"^Prediction/BoxPredictor_(\d)/BoxEncodingPredictor$", r"box_head.\1"),
    (r"^Prediction/BoxPredictor_(\d)/ClassPredictor$", r"class_head.\1"),
)
_KERNEL = re.compile(r"(.*)/(depthwise_weights|weights)")
_PLUMBING = re.compile(
    r"(Pre|Post)processor/.*|Output/extra_dim|concat.*|Prediction/BoxPredictor_\d/(stack|strided_slice).*"
)


def _read(path: Path) -> dict[str, Any]:
    return read_tfjs(path, DESCRIPTION)[0]


def _translate(arrays: dict[str, Any]) -> Translation:
    result = Translation(defaults=r".*\.num_batches_tracked")
    used: set[str] = set()
    for name in arrays:
        if _PLUMBING.fullmatch(name):
            result.dropped[name] = "prior boxes, or a constant of the graph's own pre- or post-processing"
        elif found := _KERNEL.fullmatch(name):
            used |= _put_layer(result, arrays, found[1], name)
    if unknown := sorted(set(arrays) - used - set(result.dropped)):
        raise CheckpointError(
            f"the file has {unknown[0]}, and the model has no such layer; is it face-api's detector?"
        )
    return result


def _put_layer(result: Translation, arrays: dict[str, Any], layer: str, kernel: str) -> set[str]:
    """Add one convolution with its bias or norm; returns the names of the arrays used."""
    import numpy as np

    place = rename(layer, _LAYERS)
    if place == layer:
        raise CheckpointError(f"the file has {kernel}, which is not a layer of SSD on MobileNetV1")
    depthwise = kernel.endswith("depthwise_weights")
    weight = torch_layout(arrays[kernel], depthwise=depthwise)
    if "_head." in place:
        bias = f"{layer}/biases"
        kept = boxes_x_first if place.startswith("box_head.") else _known_classes
        result.put(f"{place}.weight", kept(weight), kernel)
        result.put(f"{place}.bias", kept(need(arrays, bias)), bias)
        return {kernel, bias}
    result.put(f"{place}.0.weight", weight, kernel)
    if not depthwise:  # the norm's scale is already in the kernel, its shift is separate
        origin = f"{layer}/convolution_bn_offset"
        put_shift(result, f"{place}.1", need(arrays, origin), origin)
        return {kernel, origin}
    parts = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    names = {ours: f"{layer}/BatchNorm/{theirs}" for ours, theirs in parts.items()}
    for part, origin in names.items():
        more = np.float32(EPSILON - NORM_EPS) if part == "running_var" else 0  # the model adds NORM_EPS
        result.put(f"{place}.1.{part}", need(arrays, origin) + more, origin)
    return {kernel, *names.values()}


def _known_classes(values: Any) -> Any:
    """Class channels of each prior without the unused third one."""
    channels = values.reshape(-1, CLASSES + 1, *values.shape[1:])[:, :CLASSES]
    return channels.reshape(-1, *values.shape[1:])


CHECKPOINT_FORMATS.register("face_api_ssd")(CheckpointFormat(_read, _translate))
