"""The weights that come with the project: whole, small, what their manifest says, and as good as it says."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest
import torch
from in_process import call
from records import PHOTOS, measured, run_of

from detection_zoo.benchmarks.run.expected import check_runs
from detection_zoo.zoo.build import WithoutRandomFills, assemble
from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, load_manifests
from detection_zoo.zoo.training.ship import LOG_FOLDER, halved, write_log
from detection_zoo.zoo.weights.fetch.cache import WeightCache
from detection_zoo.zoo.weights.fetch.one import fetch_weights
from detection_zoo.zoo.weights.load import load_weights
from detection_zoo.zoo.weights.read import read_safetensors

SHIPPED = [entry for entry in load_manifests().entries.values() if entry.training is not None]
ROW = "faster_rcnn_resnet14_slim_fpn.demo"
QUICK = "ssd160_hardnet_slim.demo"


def path_of(spec: WeightSpec) -> Path:
    return MANIFEST_FOLDER / spec.urls[0].removeprefix("file:")


def test_weights_that_are_shipped_are_small_and_all_named() -> None:
    files = {path_of(entry.trained_weights[0]) for entry in SHIPPED}
    assert files == set((MANIFEST_FOLDER / "weights").iterdir()) and len(files) == len(SHIPPED) >= 8
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) < 6e6 and sum(sizes) < 30e6


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_a_shipped_row_has_its_file_its_log_and_an_expected_accuracy(entry) -> None:
    spec = entry.trained_weights[0]
    assert hashlib.sha256(path_of(spec).read_bytes()).hexdigest() == spec.sha256
    assert path_of(spec).stat().st_size == spec.bytes
    with WithoutRandomFills():
        model = assemble(entry)
    report = load_weights(model, path_of(spec), spec.format)
    assert len(report.matched) > 40
    with (LOG_FOLDER / entry.training.log).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["iteration"]) == entry.training.updates
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    assert all(set(values) == {"100", "500"} for values in entry.training.expected.values())


def test_a_relative_file_address_begins_in_the_folder_of_the_manifests(tmp_path: Path) -> None:
    spec = load_manifests().entry(ROW).trained_weights[0]
    found = fetch_weights(spec, ROW, WeightCache(tmp_path))
    assert found.path.read_bytes() == path_of(spec).read_bytes() and found.hash_from == "manifest"
    outside = spec.model_copy(update={"urls": ["file:../pyproject.toml"], "sha256": None})
    with pytest.raises(DownloadError, match="below"):
        fetch_weights(outside, ROW, WeightCache(tmp_path))


def test_matrices_are_halved_and_vectors_are_not() -> None:
    found = halved({"a": torch.ones(2, 3), "b": torch.ones(3), "n": torch.tensor(4)})
    assert {name: value.dtype for name, value in found.items()} == {
        "a": torch.float16,
        "b": torch.float32,
        "n": torch.int64,
    }


def test_the_log_is_short_and_a_resumed_update_counts_once(tmp_path: Path) -> None:
    lines = ["iteration,seconds,lr,loss", *(f"{i},3.6,0.1,{i}" for i in (1, 2, 3, 2, 3, 4))]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    updates, hours = write_log(tmp_path / "metrics.csv", tmp_path / "log.csv")
    assert updates == 4 and hours == pytest.approx(0.004)
    assert (tmp_path / "log.csv").read_text().splitlines() == [
        "iteration,lr,loss",
        *(f"{i},0.1,{i}" for i in (1, 2, 3, 4)),
    ]


def found(entry, value: float, images: int):
    data = PHOTOS.model_copy(update={"images": images})
    return run_of(entry.name, {"box_ap": measured(value, "%")}, data=data)


def test_expected_accuracy_is_compared_row_by_row() -> None:
    entry = load_manifests().entry(ROW)
    expected, tolerance = entry.training.expected["box_ap"]["500"], entry.training.tolerance
    good, lines = check_runs([entry], [found(entry, expected + 0.9 * tolerance, 500)])
    assert good and "as expected" in lines[0]
    good, lines = check_runs([entry], [found(entry, expected - 1.1 * tolerance, 500)])
    assert not good and entry.name in lines[0] and f"{expected:.2f}" in lines[0] and "DIFFERS" in lines[0]
    good, lines = check_runs([entry], [found(entry, expected, 7)])
    assert not good and "7 images" in lines[0]
    assert not check_runs([entry], [])[0]


@pytest.mark.slow
def test_check_passes_and_one_altered_tensor_is_noticed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    check = ("run", QUICK, "--check", "--images", "100", "--in-process")
    code, _, said = call(*check, "--store", str(tmp_path / "good"))
    assert code == 0 and f"{QUICK}: box_ap: expected" in said, said
    assert "as expected" in said
    state = read_safetensors(path_of(load_manifests().entry(QUICK).trained_weights[0]))
    name = next(name for name in state if name.startswith("class_head") and name.endswith("weight"))
    state[name] = state[name] * -1
    save_file(state, tmp_path / "altered.safetensors")
    altered = ("--weights", str(tmp_path / "altered.safetensors"))
    code, _, said = call(*check, *altered, "--store", str(tmp_path / "bad"))
    assert code == 1 and "DIFFERS" in said and QUICK in said, said
