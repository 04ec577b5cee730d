"""Conversion to safetensors: once, with an account of where it came from, and the zoo reads the converted
file from then on."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_manifests import demo_manifests
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from detection_zoo.zoo.build import build_model, weight_shapes
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest import ModelEntry, WeightSpec
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.weights.convert import convert, converted_path, read_arrays
from detection_zoo.zoo.weights.exchange import verify_others
from detection_zoo.zoo.weights.fetch.cache import WeightCache, sha256_of
from detection_zoo.zoo.weights.fetch.one import fetch_weights
from download_weights import app

SLIM = "mask_rcnn_vovnet27_tiny_fpn.demo"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightCache:
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(tmp_path / "home"))
    return WeightCache()


@pytest.fixture
def slim(tmp_path: Path) -> ModelEntry:
    """A row whose published file is a training checkpoint of random weights, as maskrcnn-benchmark writes
    one."""
    model = build_model(SLIM, "random")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(
        {"model": state, "iteration": 90000}, tmp_path / "model.pth", _use_new_zipfile_serialization=False
    )
    spec = WeightSpec(
        urls=[(tmp_path / "model.pth").as_uri()], format="maskrcnn_benchmark_pth", holds="detector"
    )
    return load_manifests().entry(SLIM).model_copy(update={"weights": [spec]})


def test_convert_and_load(cache: WeightCache, slim: ModelEntry) -> None:
    spec = slim.weights[0]
    fetched = fetch_weights(spec, slim.name, cache)
    record = convert(spec, cache, slim.name, weight_shapes(slim, spec))
    path = converted_path(cache, fetched.sha256, spec.format)
    assert record["source_sha256"] == sha256_of(fetched.path) == fetched.sha256 and record[
        "converted_sha256"
    ] == sha256_of(path)
    assert json.loads(path.with_suffix(".json").read_text()) == record
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    report = json.loads(notes["rename_report"])
    assert (notes["source_sha256"], notes["row"], notes["format"]) == (
        fetched.sha256,
        SLIM,
        "maskrcnn_benchmark_pth",
    )
    assert (
        report["matched"] == len(weight_shapes(slim, spec)) == len(report["names"])
        and "0 missing, 0 unexpected" in report["summary"]
    )
    loaded = build_model(slim, "published").state_dict()
    for name, tensor in build_model(SLIM, "random").state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    assert read_arrays(spec, cache, slim.name)[1] == path
    assert [(r["file"], r["status"]) for r in verify_others(cache, {fetched.sha256})] == [(path.name, "good")]


def test_the_converted_file_is_what_is_read(cache: WeightCache, slim: ModelEntry) -> None:
    spec = slim.weights[0]
    fetched = fetch_weights(spec, slim.name, cache)
    convert(spec, cache, slim.name, None)
    path = converted_path(cache, fetched.sha256, spec.format)
    arrays, where = read_arrays(spec, cache, slim.name)
    assert len(arrays) > 50 and where == path
    tensors, notes = load_file(path), {}
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, path, notes)
    with pytest.raises(CheckpointError, match="not the conversion of .*, or damaged"):
        read_arrays(spec, cache, slim.name)
    assert verify_others(cache, {fetched.sha256})[0]["status"] == "damaged" and not path.exists()
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match="not readable"):
        read_arrays(spec, cache, slim.name)
    path.unlink()
    assert read_arrays(spec, cache, slim.name)[1] == fetched.path
    fetched.path.chmod(0o644)
    fetched.path.write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(CheckpointError, match="damaged, its SHA-256 is"):
        read_arrays(spec, cache, slim.name)


def test_order_types_and_shared_tensors_survive(cache: WeightCache, tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {
        "z": base,
        "a": base[1:],
        "half": base.half(),
        "transposed": base.t(),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 2),
        "flag": torch.tensor([True]),
    }
    torch.save(state, tmp_path / "state.pth")
    spec = WeightSpec(
        urls=[(tmp_path / "state.pth").as_uri()], format="torchvision_resnet_pth", holds="imagenet"
    )
    fetch_weights(spec, "row", cache)
    before, _ = read_arrays(spec, cache, "row")
    convert(spec, cache, "row", None)
    after, path = read_arrays(spec, cache, "row")
    assert path.suffix == ".safetensors" and list(after) == list(before) == list(state)
    for name, tensor in state.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name


def test_numpy_stays_numpy(cache: WeightCache, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((8, 3, 7, 7)).astype(np.float32)
    blobs = {
        "conv1_w": kernel,
        "res_conv1_bn_s": np.ones(8, np.float32),
        "res_conv1_bn_b": np.zeros(8, np.float32),
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs, "cfg": "x"}, 2))
    spec = WeightSpec(
        urls=[(tmp_path / "R-50.pkl").as_uri()], format="detectron_imagenet_pkl", holds="imagenet"
    )
    fetch_weights(spec, "row", cache)
    record = convert(spec, cache, "row", None)
    assert record["rename_report"]["names"]["backbone.stem.conv.conv.weight"] == "conv1_w"
    arrays, _ = read_arrays(spec, cache, "row")
    for name, array in blobs.items():
        assert isinstance(arrays[name], np.ndarray)
        np.testing.assert_array_equal(arrays[name], array)


def test_what_does_not_fit_is_not_converted(cache: WeightCache, slim: ModelEntry, tmp_path: Path) -> None:
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    content["model"].pop(next(iter(content["model"])))
    torch.save(content, tmp_path / "model.pth")
    spec = slim.weights[0]
    fetch_weights(spec, slim.name, cache)
    with pytest.raises(CheckpointError, match="1 missing"):
        convert(spec, cache, slim.name, weight_shapes(slim, spec))
    assert not list(cache.converted.iterdir())
    with pytest.raises(CheckpointError, match="not on this machine; fetch them with"):
        read_arrays(
            WeightSpec(urls=["https://example.org/x.pth"], format="x", holds="detector"), cache, "row"
        )


def test_command(cache: WeightCache, slim: ModelEntry, tmp_path: Path) -> None:
    weights = (
        f'[[model.weights]]\nurls = ["{slim.weights[0].urls[0]}"]\nformat = "maskrcnn_benchmark_pth"\nholds'
        ' = "detector"\n'
    )
    folder = demo_manifests(tmp_path / "manifests", SLIM, {SLIM: weights})
    result = CliRunner().invoke(app, ["convert", SLIM, "--offline", "--json", "--manifests", str(folder)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["converted"].endswith(".maskrcnn_benchmark_pth.safetensors")
    assert "1 converted, 0 failed" in result.stderr


def test_weights_that_come_with_a_manifest_need_no_get(cache: WeightCache) -> None:
    entry = load_manifests().entry(SLIM)
    assert cache.find(entry.weights[0]) is None
    arrays, path = read_arrays(entry.weights[0], cache, SLIM)
    assert path == cache.find(entry.weights[0])
    assert set(arrays) == set(build_model(SLIM, "published").state_dict())
