"""SSDLite on MobileNetV2: TensorFlow's graph in TensorFlow.js files, or a state dict converted from it."""

from __future__ import annotations

import re
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.formats.detectron import NORM_EPS
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import (
    COUNTERS,
    CheckpointFormat,
    Translation,
    need,
    rename,
    translate_names,
)
from detection_zoo.zoo.weights.tfjs import read_tfjs_graph, torch_layout

_ANCHORS = "prior boxes, which the detector's own table gives"
_RULES = (
    (r"^features\.", "backbone.features."),
    (r"^extra\.", "pyramid.extras."),
    (r"^regression_head\.module_list\.", "box_head."),
    (r"^classification_head\.module_list\.", "class_head."),
)
# a layer of the graph -> its name in the model; %s: index 0 for the convolution and 1 for its norm; %s+N:
# indices N and N + 1
_LAYERS = (
    (r"^FeatureExtractor/MobilenetV2/Conv$", "backbone.features.0.%s"),
    (r"^FeatureExtractor/MobilenetV2/Conv_1$", "backbone.features.18.%s"),
    (r"^FeatureExtractor/MobilenetV2/expanded_conv/depthwise$", "backbone.features.1.conv.0.%s"),
    (r"^FeatureExtractor/MobilenetV2/expanded_conv/project$", "backbone.features.1.conv.%s+1"),
    (
        r"^FeatureExtractor/MobilenetV2/expanded_conv_(\d+)/expand$",
        lambda m: f"backbone.features.{int(m[1]) + 1}.conv.0.%s",
    ),
    (
        r"^FeatureExtractor/MobilenetV2/expanded_conv_(\d+)/depthwise$",
        lambda m: f"backbone.features.{int(m[1]) + 1}.conv.1.%s",
    ),
    (
        r"^FeatureExtractor/MobilenetV2/expanded_conv_(\d+)/project$",
        lambda m: f"backbone.features.{int(m[1]) + 1}.conv.%s+2",
    ),
    (
        r"^FeatureExtractor/MobilenetV2/layer_19_1_Conv2d_(\d)_1x1_\d+$",
        lambda m: f"pyramid.extras.{int(m[1]) - 2}.0.%s",
    ),
    (
        r"^FeatureExtractor/MobilenetV2/layer_19_2_Conv2d_(\d)_3x3_s2_\d+_depthwise$",
        lambda m: f"pyramid.extras.{int(m[1]) - 2}.1.%s",
    ),
    (
        r"^FeatureExtractor/MobilenetV2/layer_19_2_Conv2d_(\d)_3x3_s2_\d+$",
        lambda m: f"pyramid.extras.{int(m[1]) - 2}.2.%s",
    ),
    (r"^BoxPredictor_(\d)/BoxEncodingPredictor_depthwise$", r"box_head.\1.0.%s"),
    (r"^BoxPredictor_(\d)/ClassPredictor_depthwise$", r"class_head.\1.0.%s"),
    (r"^BoxPredictor_(\d)/BoxEncodingPredictor$", r"box_head.\1.1"),
    (r"^BoxPredictor_(\d)/ClassPredictor$", r"class_head.\1.1"),
)
_KERNEL = re.compile(r"(.*)/(Conv2D/merged_input|depthwise_weights|weights)")
_PLUMBING = re.compile(
    r"(Pre|Post)processor/.*|MultipleGridAnchorGenerator/.*|ConstantFolding/.*|BoxPredictor_\d/stack.*"
)


def _state_dict(arrays: dict[str, Any]) -> Translation:
    return translate_names(arrays, _RULES, [("anchors_cxcywh", _ANCHORS)])


def _graph(arrays: dict[str, Any]) -> Translation:
    """TensorFlow's graph: scales of norms are folded into the kernels before them, shifts become the biases
    of otherwise neutral norms."""
    result = Translation(defaults=COUNTERS)
    for name in arrays:
        if _PLUMBING.fullmatch(name):
            result.dropped[name] = (
                _ANCHORS
                if name == "Postprocessor/ExpandDims"
                else "a constant of the graph's own pre- or post-processing"
            )
        elif found := _KERNEL.fullmatch(name):
            _put_layer(result, arrays, found[1], name)
    used = {*result.origin.values(), *result.dropped}
    for name in (name for name in arrays if name not in used):
        if not re.fullmatch(
            r".*/BatchNorm/(batchnorm/mul|gamma|moving_mean|moving_variance|FusedBatchNorm/epsilon)", name
        ):
            raise CheckpointError(
                f"the file has {name}, unknown to the model; is it TensorFlow's SSDLite on MobileNetV2?"
            )
        result.dropped[name] = "folded into the kernel and bias of the same layer"
    return result


def _put_layer(result: Translation, arrays: dict[str, Any], layer: str, kernel: str) -> None:
    """One convolution of the graph, with its norm or its bias."""
    place = rename(layer, _LAYERS)
    if place == layer:
        raise CheckpointError(
            f"the file has {kernel}, which is not a layer of SSDLite on MobileNetV2; is it the right file?"
        )
    weight = torch_layout(arrays[kernel], depthwise="depthwise" in kernel)
    if "%s" not in place:  # a prediction: no norm
        bias = f"{layer}/biases"
        result.put(f"{place}.weight", _x_first(weight, place), kernel)
        result.put(f"{place}.bias", _x_first(need(arrays, bias), place), bias)
        return
    scale, shift, origin = _norm(arrays, layer)
    weight = weight if scale is None else weight * scale.reshape(-1, 1, 1, 1)
    result.put(f"{_child(place, 0)}.weight", weight, kernel)
    put_shift(result, _child(place, 1), shift, origin)


def put_shift(result: Translation, norm: str, shift: Any, origin: str) -> None:
    """Add a norm that only adds a shift (C,)."""
    import numpy as np

    result.put(f"{norm}.bias", shift, origin)
    for part, value in (("weight", 1), ("running_mean", 0), ("running_var", 1 - NORM_EPS)):
        result.put(f"{norm}.{part}", np.full_like(shift, value), origin)


def _norm(arrays: dict[str, Any], layer: str) -> tuple[Any, Any, str]:
    """Scale (None: it is already in the kernel) and shift of a layer's norm, and the tensor of the shift."""
    import numpy as np

    norm = f"{layer}/BatchNorm"
    if f"{norm}/gamma" not in arrays:
        shift = f"{norm}/batchnorm/sub"
        return arrays.get(f"{norm}/batchnorm/mul"), need(arrays, shift), shift
    parts = ("gamma", "moving_variance", "FusedBatchNorm/epsilon", "moving_mean", "beta")
    gamma, variance, epsilon, mean, shift = (need(arrays, f"{norm}/{part}") for part in parts)
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, shift - mean * scale, f"{norm}/beta"


def _child(place: str, offset: int) -> str:
    """The place with the number of a child in it."""
    return re.sub(r"%s(?:\+(\d))?", lambda m: str(int(m[1] or 0) + offset), place)


def _x_first(values: Any, place: str) -> Any:
    return boxes_x_first(values) if place.startswith("box_head.") else values


def boxes_x_first(values: Any) -> Any:
    """TensorFlow's box channels (y, x, height, width) of each prior as (x, y, width, height)."""
    return values.reshape(-1, 4, *values.shape[1:])[:, [1, 0, 3, 2]].reshape(values.shape)


CHECKPOINT_FORMATS.register("ssdlite_pth")(CheckpointFormat(read_arrays, _state_dict))
CHECKPOINT_FORMATS.register("tfjs_graph")(CheckpointFormat(read_tfjs_graph, _graph))
