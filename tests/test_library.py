"""The library: `import detection_zoo as dz`."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from PIL import Image

import detection_zoo as dz
from detection_zoo.zoo.errors import DatasetError, ManifestError

ROW = "mask_rcnn_resnet14_slim_fpn.demo"
PUBLIC = ("detection_zoo", "detection_zoo.models", "detection_zoo.predictions", "detection_zoo.measuring")
pytestmark = pytest.mark.usefixtures("drawn_shapes")


@pytest.fixture(scope="module")
def model() -> dz.Model:
    return dz.load(ROW, weights="random", device="cpu")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", (*PUBLIC, "detection_zoo.ops"))
def test_docstring_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("name", dz.ops.__all__)
def test_examples_of_operators(name: str) -> None:
    operator = getattr(dz.ops, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(operator, globs=dict(operator.__globals__))
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0


def test_every_public_function_has_an_example() -> None:
    """Functions their own; methods one of the library's examples."""
    finder = doctest.DocTestFinder()
    tests = [test for name in PUBLIC for test in finder.find(importlib.import_module(name))]
    run = "\n".join(example.source for test in tests for example in test.examples)
    for name in set(dz.__all__) - {"ops"}:
        thing = getattr(dz, name)
        if not isinstance(thing, type):
            assert any(test.examples for test in finder.find(thing)), name
            continue
        methods = [key for key, value in vars(thing).items() if callable(value) and not key.startswith("_")]
        assert methods and [key for key in methods if f".{key}(" not in run] == [], name


def test_importing_it_needs_no_torch() -> None:
    code = "import sys, detection_zoo as dz; dz.__version__ if 0 else None; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


EXTRAS = "typer rich jinja2 matplotlib cupy timm ray tensorboard mkdocs skimage".split()
WITHOUT_EXTRAS = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_the_library_needs_no_extra() -> None:
    code = f"""{WITHOUT_EXTRAS}
assert not set(sys.modules) & set({EXTRAS})
import numpy as np, detection_zoo as dz
model = dz.load("{ROW}", weights="random", device="cpu")
model.detect(np.zeros((90, 130, 3), np.uint8)).to_pandas().to_markdown()
dz.evaluate(model, "shapes", images=2)
dz.benchmark("{ROW}", weights="random", metrics=["inference"], images=2, time_budget_s=0.2,
    warm_up_budget_s=0.1, device="cpu")
"""
    done = run_forked("-c", code, imports=("torch",))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["bench", "download_weights"])
def test_the_commands_name_the_extra_that_they_need(command: str) -> None:
    code = f"{WITHOUT_EXTRAS}\nimport detection_zoo.{command}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: the commands need typer: pip install 'detection-zoo[commands]'\n"


def test_unknown_names_are_told() -> None:
    with pytest.raises(AttributeError, match="it has list_models, load"):
        dz.lod  # noqa: B018
    assert {"load", "ops"} <= set(dir(dz))


def test_models_are_listed_by_field() -> None:
    rows = dz.list_models(source="demo", detector="faster_rcnn")
    assert "faster_rcnn_vovnet27_tiny_fpn.demo" in rows and len(rows) < len(dz.list_models(source="demo"))
    assert dz.list_models("no such row") == []


def test_every_kind_of_image_gives_the_same(model: dz.Model, pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)
    found = model.detect([str(path), path, Image.open(path), pixels, whole, whole / 255])
    assert len(found) == 6 and len(found[0]) > 0 and found[0].path == str(path)
    for prediction in found[1:]:
        assert torch.equal(prediction.boxes, found[0].boxes) and prediction.names == found[0].names
    alone = model.detect(pixels)
    assert torch.equal(alone.scores, found[0].scores) and (alone.scores.diff() <= 0).all()


def test_a_prediction_is_cut_drawn_and_written(model: dz.Model, pixels: np.ndarray) -> None:
    found = model.detect(pixels)
    middle = float(found.scores.median())
    kept = found.above(middle)
    assert 0 < len(kept) < len(found) and (kept.scores >= middle).all()
    assert len(found[:3]) == 3 and len(found[0]) == 1 and len(found[torch.tensor([2, 1])]) == 2
    assert found.masks.shape == (len(found), 90, 130) and found.masks.dtype == torch.bool
    table = kept.to_pandas()
    assert list(table.columns) == ["name", "label", "score", "x1", "y1", "x2", "y2"] and len(table) == len(
        kept
    )
    first = kept.to_coco(image_id=7)[0]
    x1, y1, x2, y2 = kept.boxes[0].tolist()
    assert first["image_id"] == 7 and first["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
    assert first["category_id"] == int(kept.labels[0]) + 1 and first["segmentation"]["size"] == [90, 130]
    assert np.any(np.array(kept.draw(0.0)) != pixels) and np.array_equal(np.array(found.draw(1.1)), pixels)
    assert repr(found).startswith(f"Prediction({len(found)} detections in 130x90: ")


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        ("no/such/file.jpg", DatasetError, "no such image file"),
        ("http://127.0.0.1:9/x.jpg", DatasetError, "cannot be fetched"),
        (np.zeros((4, 4), np.uint8), ValueError, r"expected an \(H, W, 3\) uint8 RGB array"),
        (np.zeros((4, 4, 3)), ValueError, "uint8"),
        (torch.zeros(4, 4, 3), ValueError, r"expected a tensor of shape \(3, H, W\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"not \(0, 4, 3\) uint8"),
        (torch.zeros(3, 0, 4), ValueError, r"not \(3, 0, 4\)"),
        (17, TypeError, "not int"),
    ],
)
def test_what_is_no_image_is_an_error(model: dz.Model, image: object, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        model.detect(image)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ManifestError, match="did you mean"):
        dz.load("mask_rcnn_resnet14_slim_fpm.demo", weights="random")
    with pytest.raises(ManifestError, match="did you mean"):
        dz.create("resnet5O", classes=2)


TWO = [ROW, "retinanet_resnet14_slim_fpn.demo"]


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: dz.load(ROW, device="gpu"), ValueError, "device is 'gpu'; it may be auto, cpu, cuda"),
        (lambda: dz.create(classes=[]), ValueError, r"classes is \[\]; give different names"),
        (lambda: dz.create(classes=0), ValueError, "classes is 0"),
        (lambda: dz.create(classes="cat"), ValueError, "classes is 'cat'"),
        (lambda: dz.create(classes=["cat", "cat"]), ValueError, "give different names"),
        (lambda: dz.evaluate(ROW, "cocoo:x"), DatasetError, "unknown kind of dataset 'cocoo'"),
        (lambda: dz.benchmark(ROW, metrics=["app"]), ValueError, "'app': did you mean 'ap'"),
        (lambda: dz.benchmark(ROW, image=2), ValueError, "unknown option 'image': did you mean 'images'"),
        (lambda: dz.benchmark(ROW, images=0), ValueError, "images is 0: "),
        (lambda: dz.benchmark(ROW, "cocoo:x"), DatasetError, "unknown kind of dataset 'cocoo'"),
        (lambda: dz.compare(TWO, "cocoo:x"), DatasetError, "unknown kind of dataset 'cocoo'"),
        (lambda: dz.compare(TWO, blocks=1), ValueError, "blocks is 1; intervals need 2 or more"),
        (lambda: dz.compare(TWO, rounds=0), ValueError, "rounds is 0"),
        (lambda: dz.compare(TWO[:1]), ValueError, "name two rows or more"),
        (lambda: dz.compare(ROW), ValueError, "name two rows or more"),
        (lambda: dz.compare([ROW], exported=["no.xml"]), ManifestError, "no.xml: no such file"),
        (lambda: dz.compare([ROW], exported=["a.pt2"]), ManifestError, "a.pt2: onnxruntime runs .onnx"),
    ],
)
def test_wrong_arguments_are_one_sentence(call: Callable[[], object], error: type, said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_evaluate_and_benchmark_give_what_the_commands_give(model: dz.Model) -> None:
    found = dz.evaluate(model, "shapes", images=3)
    run = dz.benchmark(ROW, "shapes", weights="random", metrics=["ap"], images=3, device="cpu")
    assert run.measurements["box_ap"].value == found["box_ap"] and "mask_ap" in found


def test_a_created_model_has_its_own_classes() -> None:
    model = dz.create("resnet14_slim", "retinanet", ["cat", "dog", "cow"], device="cpu")
    assert model.class_names == ("cat", "dog", "cow") and model.module.num_classes == 3
    assert set(model.detect(np.zeros((64, 64, 3), np.uint8)).names) <= set(model.class_names)


def test_errors_are_one_class_under_the_name_of_their_folder_too() -> None:
    code = (
        "import zoo.errors, detection_zoo.zoo.errors as e; assert zoo.errors.DatasetError is e.DatasetError"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_model_on_another_path(model: dz.Model, pixels: np.ndarray) -> None:
    """It finds the same; the model itself stays as it is, and a path of a path is an error."""
    before = model.detect(pixels)
    fast = model.with_path("fast", [pixels, pixels, pixels])
    assert fast.notes[0].startswith("fast path: 2 images compared with eager: maps differ by ")
    found = fast.detect(pixels)
    assert len(found) == len(before) > 0 and found.names == before.names
    torch.testing.assert_close(found.boxes, before.boxes, atol=0.05, rtol=0)
    assert torch.equal(model.detect(pixels).boxes, before.boxes) and model.notes == []
    half = model.with_path("eager", pixels, dtype="bfloat16")
    assert not torch.equal(half.detect(pixels).scores, before.scores)
    for call, said in (
        (lambda: fast.with_path("fast", pixels), "this model is on the fast path; use the one that `load`"),
        (lambda: model.with_path("fats", pixels), "path is 'fats': Input should be 'eager', 'fast'"),
        (lambda: model.with_path("onnxruntime", pixels, dtype="bfloat16"), "computes in float32 here"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
