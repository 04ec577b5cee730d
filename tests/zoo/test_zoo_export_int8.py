"""OpenVINO files in 8 bits: what is quantised, the file's metadata, the comparison, `run --exported`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from exported_files import exported_once
from slim_families import pictures
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.benchmarks.commands import export as command
from detection_zoo.benchmarks.commands import options
from detection_zoo.benchmarks.compare.record import stored_comparisons
from detection_zoo.benchmarks.folders import COMPARISONS
from detection_zoo.benchmarks.store import read_runs
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.export.engines import FileDetector
from detection_zoo.zoo.export.files import QUANTISED, compare_file, digest_of_file, notes_of, write
from detection_zoo.zoo.export.kinds import PACKAGES
from detection_zoo.zoo.export.quantise import LAYERS, quantise, selection
from detection_zoo.zoo.fast import SCORE
from detection_zoo.zoo.manifest_files import load_manifests

SSD, POINTS = "ssd160_hardnet_slim.demo", "keypoint_rcnn_resnet14_slim_fpn.demo"
INT8 = (
    "export",
    SSD,
    "--to",
    "openvino",
    "--int8",
    "--calibrate",
    "shapes:train",
    "--calibration-images",
    "8",
)
RUN = ("--data", "shapes", "--images", "4", "--metrics", "ap", "--device", "cpu", "--in-process")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def said(result: Result) -> str:
    text = result.output + str(result.exception or "")
    return " ".join(text.replace("│", " ").split())


@pytest.fixture(scope="module", autouse=True)
def shared_exports() -> Iterator[None]:
    """Each network is exported once, whatever file is then made of it."""
    with exported_once():
        yield


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SSD in OpenVINO's own precision."""
    for package in PACKAGES["openvino"]:
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("float") / "ssd.xml"
    write(
        build_model(SSD, "published").eval(), load_manifests().entry(SSD), "openvino", (1, 3, 160, 160), path
    )
    return path


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SSD in 8 bits, by the command."""
    for package in (*PACKAGES["openvino"], "nncf"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'detection-zoo[export]'")
    path = tmp_path_factory.mktemp("int8") / "ssd.xml"
    done = run(*INT8, "--out", str(path))
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "network in 8 bits, calibrated on 8 images of shapes:train" in said(done)
    assert "20 images compared" in said(done) and "(IoU at least 0.75, score within 0.15)" in said(done)
    return path


def operators(path: Path) -> list[Any]:
    import openvino as ov

    return ov.Core().read_model(path).get_ops()


def source(given: Any) -> Any:
    return given.get_source_output().get_node()


def unquantised(layer: Any) -> list[Any]:
    """What the maps of a layer come from, back to where they were quantised."""
    found, open_ends = [], [source(layer.input(0))]
    while open_ends:
        one = open_ends.pop()
        if one.get_type_name() != "FakeQuantize":
            found.append(one)
            open_ends += [source(each) for each in one.inputs()]
    return found


def types(found: Sequence[Any]) -> set[str]:
    return {one.get_type_name() for one in found}


def test_what_is_left_in_float(tmp_path: Path) -> None:
    """Of an R-CNN the choice of proposals and detections, and what is pooled from one level, which may be
    of no RoI; no layer with weights nor what leads to one."""
    for package in PACKAGES["openvino"]:
        pytest.importorskip(package)
    path, model = tmp_path / "rcnn.xml", build_model(POINTS, "published").eval()
    write(model, load_manifests().entry(POINTS), "openvino", (1, 3, 160, 160), path)
    import openvino as ov

    model = ov.Core().read_model(path)
    names = set(selection(model))
    left = types([one for one in model.get_ops() if one.get_friendly_name() in names])
    assert {"NonMaxSuppression", "Exp", "Sigmoid", "Softmax", "TopK", "ROIAlign"} <= left
    assert not {"Convolution", "MatMul", "MaxPool", "Relu"} & left


def test_the_network_is_quantised_and_its_outputs_are_not(floats: Path, quantised: Path) -> None:
    """Every convolution reads quantised maps; decoding and NMS stay in float. The file names the images."""
    for one in operators(quantised):
        if one.get_type_name() in LAYERS:
            assert not types(unquantised(one)) & {*LAYERS, "Parameter"}
        if one.get_type_name() in ("NonMaxSuppression", "Exp", "Sigmoid", "Softmax", "Result"):
            assert "FakeQuantize" not in types([source(each) for each in one.inputs()])
    notes = notes_of(quantised)
    own = notes.pop("quantisation")
    assert notes == notes_of(floats)
    assert own["dataset"] == "shapes:train" and len(own["images"]) == 8 and own["how"].startswith("NNCF ")
    assert quantised.with_suffix(".bin").stat().st_size < 0.5 * floats.with_suffix(".bin").stat().st_size
    assert sorted(one.name for one in quantised.parent.iterdir()) == ["ssd.bin", "ssd.xml"]


def test_every_range_holds_something(tmp_path: Path) -> None:
    """Key points of small objects: no RoI is pooled from the coarse levels, and maps of absent detections are
    zeros; no range is empty for it."""
    for package in (*PACKAGES["openvino"], "nncf"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'detection-zoo[export]'")
    path, model = tmp_path / "points.xml", build_model(POINTS, "published").eval()
    write(model, load_manifests().entry(POINTS), "openvino", (1, 3, 160, 160), path)
    images = [(one[None], torch.tensor([[160, 160]])) for one in pictures(8)]
    quantise(path, images, {})
    report = compare_file(model, "openvino", path, images[:4], QUANTISED, SCORE)
    assert report.detections and report.good and "of key points within 2 pixels" in str(report), report
    ranges = [one for one in operators(path) if one.get_type_name() == "FakeQuantize"]
    assert len(ranges) > 40
    for one in ranges:
        assert "ROIAlign" not in types([source(one.input(0))])
        low, high = (source(one.input(number)) for number in (1, 2))
        if {low.get_type_name(), high.get_type_name()} == {"Constant"}:
            assert (high.data > low.data).all()


def test_the_comparison_notices_another_model(quantised: Path) -> None:
    """What 8 bits may change is stated, and is not anything."""
    model = build_model(SSD, "published").eval()
    with torch.no_grad():
        next(model.class_head.parameters()).mul_(-1)
    images = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    report = compare_file(
        model, "openvino", quantised, [(images, torch.tensor([[160, 160]]))], QUANTISED, 0.05
    )
    assert report.detections and not report.good


def test_records_of_files_do_not_mix(floats: Path, quantised: Path, tmp_path: Path) -> None:
    """AP of both, each in its own record, which says what was run and compared."""
    for path in (floats, quantised, quantised):
        done = run("run", SSD, *RUN, "--path", "openvino", "--exported", str(path), "--store", str(tmp_path))
        assert done.exit_code == 0, said(done)
    runs = read_runs(tmp_path).runs
    assert len(runs) == 2  # the third is the second's
    eight, whole = sorted(runs, key=lambda one: one.spec.exported.bits)
    assert whole.spec.path_note == f", openvino, file {digest_of_file(floats)[:8]}"
    assert eight.spec.path_note == f", openvino int8, file {digest_of_file(quantised)[:8]}"
    assert eight.spec.exported.quantised.endswith("calibrated on the first 8 images of shapes:train")
    assert eight.notes[0].startswith("openvino path: 4 images compared with eager")
    ap = [one.measurements["box_ap"].value for one in (eight, whole)]
    assert abs(ap[0] - ap[1]) < 15 and min(ap) > 10


def test_a_row_beside_its_files(floats: Path, quantised: Path, tmp_path: Path) -> None:
    """Times and AP on the same images; the record says what each model ran."""
    words = ("--data", "shapes", "--images", "4", "--device", "cpu", "--blocks", "2", "--rounds", "2", "--ap")
    given = ("--exported", str(floats), "--exported", str(quantised), "--store", str(tmp_path / COMPARISONS))
    done = run("compare", SSD, *given, *words)
    assert done.exit_code == 0, said(done)
    ([found], problems) = stored_comparisons(tmp_path / "runs")
    torch_side, *file_sides = found.sides
    assert torch_side.label == SSD and not problems and len(file_sides) == 2
    assert torch_side.exported is None and found.spec.path == "eager"
    notes = " ".join(found.footnotes)
    for side, path, bits, compared in zip(file_sides, (floats, quantised), (32, 8), (2, 4), strict=True):
        name = "openvino int8" if bits == 8 else "openvino"
        label = f"{SSD} ({name}, file {digest_of_file(path)[:8]})"
        assert (side.label, side.row, side.exported.bits) == (label, SSD, bits)
        pairs = {pair.metric: pair for pair in found.pairs if pair.other == label}
        assert {"model_cpu_ms", "box_ap"} <= pairs.keys()
        assert abs(pairs["box_ap"].value) < (0.1 if bits == 32 else 15) and min(pairs["box_ap"].values) > 10
        assert f"{label}: openvino path: {compared} images compared with eager" in notes
        assert any(
            one.startswith(label) and "calibrated on the first 8 images of shapes:train" in one
            for one in found.footnotes
        ) == (bits == 8)


def test_images_that_do_not_fit_a_file(floats: Path) -> None:
    """Said with what to do."""
    detector = FileDetector(build_model(SSD, "published").eval(), "openvino", floats)
    for shape in ((1, 3, 160, 192), (2, 3, 160, 160)):
        with pytest.raises(ValueError, match=r"do not fit the exported file's \(1, 3, 160, 160\)"):
            detector.predict(torch.zeros(shape), torch.tensor([[160, 160]] * shape[0]))


WRONG = {
    "not OpenVINO": (("export", SSD, "--to", "onnx", "--int8", "--calibrate", "shapes"), "--to openvino"),
    "no images": (("export", SSD, "--to", "openvino", "--int8"), "give --int8 and --calibrate DATA together"),
    "images alone": (
        ("export", SSD, "--to", "openvino", "--calibrate", "shapes"),
        "give --int8 and --calibrate DATA together",
    ),
    "no engine": (("run", SSD, *RUN, "--exported", "FILE"), "--path openvino runs .xml, --path is eager"),
    "another row": (("run", POINTS, *RUN, "--path", "openvino", "--exported", "FILE"), f"of row {SSD}"),
    "a batch of a comparison": (
        ("compare", SSD, "--exported", "FILE", "--data", "shapes", "--device", "cpu", "--batch", "2"),
        "leave --batch out",
    ),
    "a file alone": (("compare", "--exported", "FILE", "--data", "shapes"), "Missing argument"),
    "a row alone": (("compare", SSD, "--data", "shapes"), "or a row and --exported"),
    "two rows": (
        ("run", SSD, POINTS, *RUN, "--path", "openvino", "--exported", "FILE"),
        "give that row alone",
    ),
    "a batch": (
        ("run", SSD, *RUN, "--path", "openvino", "--exported", "FILE", "--batch", "2"),
        "leave --batch out",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage(name: str, floats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, exit code 2."""
    monkeypatch.setattr(command, "find_spec", lambda package: object())  # as where nncf is installed
    words, message = WRONG[name]
    done = run(*[str(floats) if word == "FILE" else word for word in words])
    assert done.exit_code == 2 and message in said(done)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda package: None if package == "nncf" else object())
    done = run(*INT8)
    assert done.exit_code == 2 and "needs nncf: pip install 'detection-zoo[export]'" in said(done)


def test_a_file_that_nobody_exported(tmp_path: Path) -> None:
    """A model of OpenVINO without a description."""
    ov = pytest.importorskip("openvino")
    from openvino import opset13

    given = opset13.parameter([1, 3, 8, 8])
    path = tmp_path / "other.xml"
    ov.save_model(ov.Model([opset13.relu(given)], [given]), path)
    assert json.dumps(notes_of(path)) == "{}"
    with pytest.raises(options.typer.BadParameter, match="not written by bench.py export"):
        options.checked_file(path, "openvino", [SSD], 1)
    done = run("compare", SSD, "--exported", str(path), "--data", "shapes", "--device", "cpu")
    assert done.exit_code == 2 and "not written by bench.py export" in said(done)
