"""Exported detectors: every kind of file gives the model's detections, and says what it is."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_files import exported_once
from slim_families import FAMILIES, ROWS, family, pictures
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.kernels.roi_align import multilevel_roi_align_averaged
from detection_zoo.kernels.roi_levels import LevelRule
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.export import files
from detection_zoo.zoo.export.engines import EngineDetector, FileDetector
from detection_zoo.zoo.export.files import NOTES, compare_file, write
from detection_zoo.zoo.export.kinds import PACKAGES, SUFFIXES
from detection_zoo.zoo.export.onnx_ops import in_onnx, translations
from detection_zoo.zoo.export.whole import WholeDetector
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.settings import with_value

SSD, RCNN = "ssd160_hardnet_slim.demo", "mask_rcnn_resnet14_slim_fpn.demo"
POINTS = "keypoint_rcnn_resnet14_slim_fpn.demo"
SHAPE = (1, 3, 160, 160)


@pytest.fixture(scope="module", autouse=True)
def shared_exports() -> Iterator[None]:
    """Each network is exported once, whatever file is then made of it."""
    with exported_once():
        yield


def batch(row: str = SSD) -> tuple[torch.Tensor, torch.Tensor]:
    """An image of any size, for SSD of its own; R-CNNs run in engines on multiples of 64 pixels."""
    images = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.pad(images, (0, 32) * 2 if row == RCNN else (0, 0)), torch.tensor([[160, 150]])


@pytest.mark.parametrize(
    ("row", "kind"),
    [*((row, kind) for row in (SSD, POINTS) for kind in SUFFIXES), (RCNN, "onnx"), (RCNN, "tensorrt-onnx")],
)
def test_a_file_gives_the_same_detections(row: str, kind: str, tmp_path: Path) -> None:
    """Boxes, scores and labels, by the engine that the file is for (TensorRT's by ONNX Runtime)."""
    for package in PACKAGES[kind]:
        pytest.importorskip(package)
    model, path = build_model(row, "published").eval(), tmp_path / f"model{SUFFIXES[kind]}"
    images = (
        [(one[None], torch.tensor([[160, 150]])) for one in pictures(3)] if row == POINTS else [batch(row)]
    )
    shape = images[0][0].shape
    write(model, load_manifests().entry(row), kind, shape, path)
    report = compare_file(model, kind, path, images)
    assert report.detections > 10 and report.share == 1.0 and report.good
    assert report.iou > 0.999 and report.score < 1e-3
    assert report.points == (1.0 if row == POINTS else None)
    if kind.endswith("onnx"):
        import onnx

        notes = {each.key: each.value for each in onnx.load(path).metadata_props}
        found = json.loads(notes[NOTES])
        assert found["row"] == row and found["inputs"]["images"] == list(shape)
        assert found["classes"] == list(model.class_names) and found["preprocessing"]["mean"]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_graph_from_image_to_detections(name: str) -> None:
    """They stand before the absent rows, as exact as those of the network that is exported."""
    whole, given = WholeDetector(family(name).eval(), True), batch(ROWS[name])
    with torch.no_grad():
        found = files.exported(whole, given[0].shape).module()(*given)
        [expected] = whole.model.predict(*given)
    boxes, scores, labels, *masks = (one[0] for one in found)
    count = int((labels >= 0).sum())
    assert count == len(expected) > 0 and (labels[count:] == -1).all()
    assert torch.equal(labels[:count], expected.labels)
    torch.testing.assert_close(boxes[:count], expected.boxes, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores[:count], expected.scores, rtol=1e-5, atol=1e-4)
    if expected.masks is not None:
        torch.testing.assert_close(masks[0][:count], expected.masks, rtol=1e-5, atol=1e-4)


def test_openvino_sends_no_usage_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would store an identifier of the user in the home folder, and send it from a process of its own."""
    for package in PACKAGES["openvino"]:
        pytest.importorskip(package)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("CI", raising=False)
    started: list[multiprocessing.Process] = []
    monkeypatch.setattr(multiprocessing.Process, "start", started.append)
    model = build_model(SSD, "published").eval()
    write(model, load_manifests().entry(SSD), "openvino", SHAPE, tmp_path / "model.xml")
    assert not (home / "intel").exists() and not started and "CI" not in os.environ


def test_another_model_s_file_is_not_called_good(tmp_path: Path) -> None:
    """The comparison notices one changed tensor."""
    model, path = build_model(SSD, "published").eval(), tmp_path / "model.pt2"
    write(model, load_manifests().entry(SSD), "torch-export", SHAPE, path)
    with torch.no_grad():
        next(model.class_head.parameters()).mul_(-1)
    assert not compare_file(model, "torch-export", path, [batch()]).good


def test_an_engine_takes_the_detector_s_place() -> None:
    """Masks are pasted into the original image as by the detector itself."""
    for package in PACKAGES["onnx"]:
        pytest.importorskip(package)
    model, (images, sizes) = build_model(RCNN, "published").eval(), batch(RCNN)
    engine, original = EngineDetector(model, "onnxruntime"), torch.tensor([[320, 300]])
    with torch.inference_mode():
        expected = model.predict(images, sizes, original)[0]
        found = engine.predict(batch()[0], sizes, original)[0]
    assert torch.equal(found.labels, expected.labels) and len(expected)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=0.01)
    assert found.masks is not None and found.masks.shape == expected.masks.shape
    assert (found.masks != expected.masks).float().mean() < 1e-3


def test_key_points_of_a_file_lie_in_the_original(tmp_path: Path) -> None:
    """Decoded by the graph, in pixels of the input, and scaled: as by the detector itself."""
    for package in PACKAGES["onnx"]:
        pytest.importorskip(package)
    model, path = build_model(POINTS, "published").eval(), tmp_path / "points.onnx"
    write(model, load_manifests().entry(POINTS), "onnx", SHAPE, path)
    images, sizes, original = pictures(1), torch.tensor([[160, 160]]), torch.tensor([[320, 300]])
    with torch.inference_mode():
        expected = model.predict(images, sizes, original)[0]
        found = FileDetector(model, "onnxruntime", path).predict(images, sizes, original)[0]
    assert len(expected) and found.extra.keys() == expected.extra.keys()
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=0.01)
    torch.testing.assert_close(found.keypoints, expected.keypoints, rtol=1e-4, atol=0.01)
    for name, value in expected.extra.items():
        torch.testing.assert_close(found.extra[name], value, rtol=1e-3, atol=1e-3)


def test_a_detector_that_needs_any_size_says_why() -> None:
    model: Any = build_model(RCNN, "published").eval()
    model.detection_rule = model.detection_rule.model_copy(update={"soft": "linear"})
    with pytest.raises(ValueError, match="cannot be exported: soft-NMS"):
        WholeDetector(model)


WRONG = {
    "a suffix of another kind": (["--out", "x.onnx"], "ends in .pt2"),
    "a size that is none": (["--size", "800"], "not HxW"),
    "a size below an image's": (["--size", "64x64"], "give a larger one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, and no file."""
    monkeypatch.chdir(tmp_path)
    given, message = WRONG[name]
    found = CliRunner().invoke(app, ["export", SSD, "--to", "torch-export", *given])
    text = " ".join((found.output + str(found.exception)).replace("│", " ").split())
    assert found.exit_code != 0 and message in text and not list(tmp_path.iterdir())


def test_export_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file lies where it was asked for, alone, after the comparison that is printed."""
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["export", SSD, "--to", "torch-export"])
    assert found.exit_code == 0, found.output
    assert [path.name for path in tmp_path.iterdir()] == [f"{SSD}.pt2"]
    assert "100.0% of" in found.output + found.stderr


def detnet() -> tuple[Any, Any]:
    """A slim detector that pools as DetNet_pytorch does, and its row."""
    entry = load_manifests().entry("faster_rcnn_detnet17_slim_fpn.demo")
    for name, value in (("method", "roi_align_averaged"), ("scale", "height")):
        entry = with_value(entry, f"pooling.{name}", value)
    return build_model(entry, "published").eval(), entry


@pytest.mark.parametrize("kind", ["torch-export", "onnx"])
def test_detnet_is_exported_for_one_height(kind: str, tmp_path: Path) -> None:
    """Its points are no ONNX operator's; images of another height are refused, narrower ones are not."""
    for package in PACKAGES[kind]:
        pytest.importorskip(package)
    (model, entry), path = detnet(), tmp_path / f"model{SUFFIXES[kind]}"
    write(model, entry, kind, SHAPE, path)
    report = compare_file(model, kind, path, [(one[None], torch.tensor([[160, 160]])) for one in pictures(2)])
    assert report.detections > 10 and report.share == 1.0 and report.iou > 0.999
    if kind == "onnx":
        file = FileDetector(model, "onnxruntime", path)
        assert file.fitted(torch.zeros(1, 3, 160, 130)).shape == SHAPE
        with pytest.raises(ValueError, match="an image has a height of 150 pixels, the file is for 160"):
            file.fitted(torch.zeros(1, 3, 150, 160))


class Averaged(torch.nn.Module):
    """The operator alone, from two levels."""

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        rule = LevelRule(canonical_scale=16.0, eps=0.0)
        return multilevel_roi_align_averaged([fine, coarse], rois, 3, [0.5, 0.25], rule)


@pytest.mark.parametrize("static", [False, True])
def test_averaged_roi_align_in_onnx(static: bool, tmp_path: Path) -> None:
    """Boxes inside, over each edge of the map, of no area, reversed, and absent ones."""
    for package in PACKAGES["onnx"]:
        pytest.importorskip(package)
    torch.manual_seed(0)
    corners = [
        [1, 1, 9, 7],
        [20, 10, 40, 31.5],
        [-6, -3, 12, 9],
        [30, 5, 31.9, 30],
        [8, 8, 8, 8],
        [9, 9, 2, 2],
    ]
    rois = torch.tensor([[i % 2, *each] for i, each in enumerate(corners)] + [[-1, 0, 0, 4, 4]])
    given = (torch.randn(2, 5, 16, 20), torch.randn(2, 5, 8, 10), rois)
    found = by_onnxruntime(Averaged(), given, tmp_path / "op.onnx", translations(1, static))
    torch.testing.assert_close(found, Averaged()(*given), rtol=1e-5, atol=1e-5)


def by_onnxruntime(module: torch.nn.Module, given: tuple[Any, ...], path: Path, table: Any) -> torch.Tensor:
    """The output of a module that is translated by a table."""
    import onnxruntime

    names = [f"input{number}" for number, _ in enumerate(given)]
    program = torch.export.export(module, given)
    in_onnx(program, custom_translation_table=table, input_names=names).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: one.numpy() for name, one in zip(names, given, strict=True)})
    return torch.from_numpy(found)


class Overwriting(torch.nn.Module):
    """What it returns is a part of what it changes in place."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        doubled = values * 2
        part = doubled[:2]
        doubled.relu_()
        return part + 1


class Ranking(torch.nn.Module):
    """Its operator has no translation."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.argsort()


class Bits(torch.nn.Module):
    """The same operators on truth values and on bits."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        both = (values > -2) & (values < 3) | (values == 3)
        return values.to(torch.int64) & 5 | both.to(torch.int64)


@pytest.mark.parametrize("module", [Overwriting(), Ranking(), Bits()])
def test_operators_that_torch_takes_apart(module: torch.nn.Module, tmp_path: Path) -> None:
    for package in PACKAGES["onnx"]:
        pytest.importorskip(package)
    given = torch.tensor([-1.0, 3.0, -2.0])
    found = by_onnxruntime(module, (given,), tmp_path / "op.onnx", translations(1))
    assert torch.equal(found, module(given))
