"""Own data: five layouts of one dataset are recognised and measure the same; classes are chosen and renamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detection_zoo.benchmarks.evaluation.accuracy import DetectionCollector
from detection_zoo.zoo.data.class_choice import ClassChoice
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.records import Detections

WIDTH, HEIGHT = 640, 427
CLASSES = ["cat", "dog", "lorry"]
RANDOM = np.random.default_rng(4)
# name -> objects: class, x, y, width, height in whole pixels
OBJECTS = {
    f"street_{number}": [
        (int(RANDOM.integers(3)), *RANDOM.integers(1, 200, 2).tolist(), *RANDOM.integers(9, 220, 2).tolist())
        for _ in range(RANDOM.integers(1, 6))
    ]
    for number in range(8)
}


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in OBJECTS:
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(folder / f"{name}.jpg")
    return folder


def coco(first: int = 1, prefix: str = "", **more: Any) -> str:
    images, annotations = [], []
    for number, (name, objects) in enumerate(OBJECTS.items()):
        images.append(
            {"id": number, "file_name": f"{prefix}{name}.jpg", "height": HEIGHT, "width": WIDTH, **more}
        )
        annotations += [
            {"id": len(annotations) + place, "image_id": number, "category_id": kind + first, "bbox": box}
            for place, (kind, *box) in enumerate(objects)
        ]
    categories = [
        {"id": kind + first, "name": name, "supercategory": more and 0} for kind, name in enumerate(CLASSES)
    ]
    return json.dumps(
        {"images": images, "categories": categories, "annotations": annotations, "licenses": "x"}
    )


def official(root: Path) -> Path:
    pictures(root / "val2017")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(coco())
    return root


def roboflow(root: Path) -> Path:
    for split in ("train", "valid"):
        (pictures(root / split) / "_annotations.coco.json").write_text(coco(0, license=1, date_captured="x"))
    (root / "README.dataset.txt").write_text("x")
    return root


def cvat(root: Path) -> Path:
    pictures(root / "images" / "default")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_default.json").write_text(
        coco(date_captured=0, license=0, flickr_url="")
    )
    return root


def label_studio(root: Path) -> Path:
    pictures(root / "images")
    (root / "result.json").write_text(coco(0, "images/"))
    return root


def yolo(root: Path) -> Path:
    pictures(root / "valid" / "images")
    (root / "valid" / "labels").mkdir()
    for name, objects in OBJECTS.items():
        lines = [
            f"{kind} {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}"
            for kind, x, y, w, h in objects
        ]
        (root / "valid" / "labels" / f"{name}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(
        f"train: ../train/images\nval: ../valid/images\nnc: 3\nnames: {CLASSES}\n"
    )
    return root


def yolo_polygons(root: Path) -> Path:
    pictures(root / "images")
    (root / "labels").mkdir()
    for name, objects in OBJECTS.items():
        lines = []
        for kind, x, y, w, h in objects:
            points = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
            lines.append(f"{kind} " + " ".join(f"{a / WIDTH:.6f} {b / HEIGHT:.6f}" for a, b in points))
        (root / "labels" / f"{name}.txt").write_text("\n".join(lines))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def xml(objects: list[tuple[int, ...]], less: int) -> str:
    found = "".join(
        f"<object><name>{CLASSES[kind]}</name><bndbox><xmin>{x + less}</xmin><ymin>{y + less}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for kind, x, y, w, h in objects
    )
    return f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{found}</annotation>"


def voc(root: Path) -> Path:
    pictures(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for name, objects in OBJECTS.items():
        (root / "Annotations" / f"{name}.xml").write_text(xml(objects, 1))
    return root


def devkit(root: Path) -> Path:
    voc(root / "VOC2012")
    (root / "VOC2012" / "ImageSets" / "Main").mkdir(parents=True)
    (root / "VOC2012" / "ImageSets" / "Main" / "val.txt").write_text("\n".join(OBJECTS) + "\n")
    return root


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "official": (official, "COCO in its official layout", "coco:val2017"),
    "roboflow": (roboflow, "COCO as Roboflow exports it", "coco:data:valid"),
    "cvat": (cvat, "COCO in its official layout", "coco:default"),
    "label studio": (label_studio, "COCO annotations", "coco:result"),
    "yolo": (yolo, "YOLO", "yolo:data:val"),
    "yolo polygons": (yolo_polygons, "YOLO", "yolo:data:data"),
    "voc": (voc, "PASCAL VOC's XML files (corners are 1-based", "voc:data"),
    "devkit": (devkit, "a PASCAL VOC devkit, measured by COCO's AP", "voc:VOC2012:val"),
}


def measured(argument: str, classes: list[str] | None = CLASSES) -> dict[str, float]:
    """Metrics of made-up detections, the same in every layout: found by file and class name."""
    dataset = open_dataset(argument, classes=classes)
    collector = DetectionCollector(dataset, inclusive=False)
    for index in range(len(dataset)):
        assert dataset.load_image(index).shape == (HEIGHT, WIDTH, 3)
        name = dataset.image_path(index).stem
        draw = np.random.default_rng([int(name.removeprefix("street_")), 1])
        boxes, labels, scores = [], [], []
        for kind, x, y, w, h in OBJECTS[name]:
            dx, dy, more = draw.normal(0, 6, 3)
            boxes.append([x + dx, y + dy, x + w + more, y + h])
            labels.append(dataset.classes.index(CLASSES[kind]) if CLASSES[kind] in dataset.classes else 0)
            scores.append(draw.random())
        collector.add(
            index,
            Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)),
        )
    return collector.evaluate().metrics


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return measured(f"coco:{official(tmp_path_factory.mktemp('wanted') / 'data')}")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_measures_the_same_to_the_last_digit(
    tmp_path: Path, name: str, wanted: dict[str, float]
) -> None:
    make, layout, title = LAYOUTS[name]
    (tmp_path / "data").mkdir()
    root = make(tmp_path / "data")
    dataset = open_dataset(str(root))
    assert dataset.name == title and dataset.notes[0].startswith(f"recognised as {layout}")
    assert sorted(dataset.classes) == CLASSES and len(dataset) == len(OBJECTS)
    assert measured(str(root)) == wanted and 10 < wanted["box_ap"] < 90


def test_parts_may_be_named(tmp_path: Path, wanted: dict[str, float]) -> None:
    (tmp_path / "truth.json").write_text(coco())
    images = pictures(tmp_path / "elsewhere" / "pictures")
    assert measured(f"coco:annotations={tmp_path / 'truth.json'},images={images}") == wanted
    root = roboflow(tmp_path / "data")
    assert (
        measured(f"{root}:train")
        == measured(f"{root}/train")
        == measured(f"{root}/valid/_annotations.coco.json")
    )
    with pytest.raises(DatasetError, match="has no split 'tain'; did you mean 'train'"):
        open_dataset(f"{root}:tain")


def test_corners_with_a_zero_are_edges(tmp_path: Path) -> None:
    root = voc(tmp_path / "data")
    boxes = [(0, 0, 10, 20, 30), (1, 40, 50, 60, 70)]
    (root / "Annotations" / "street_0.xml").write_text(xml(boxes, 0))
    dataset = open_dataset(str(root))
    assert "edges counted from 0" in dataset.notes[0]
    assert dataset.target(0).boxes_xywh.tolist() == [[0, 10, 20, 30], [40, 50, 60, 70]]


def test_imagenet_folders_are_recognised(tmp_path: Path) -> None:
    for name in ("n1", "n2"):
        pictures(tmp_path / "data" / name)
    dataset = open_dataset(str(tmp_path / "data"), classes=2)
    assert dataset.layout == "imagenet" and len(dataset) == 2 * len(OBJECTS)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "contains nothing, none of these layouts: COCO .*YOLO .*PASCAL VOC .*ImageNet"),
        ({"notes.txt": "x"}, "contains notes.txt, none of these layouts"),
        ({"data.yaml": "a: ["}, "data.yaml: no valid YAML"),
        ({"data.yaml": "val: images\n"}, "data.yaml: field 'names' is missing"),
        ({"data.yaml": "names: [a]\nval: nowhere\n"}, "names 'nowhere', which is not there"),
        ({"data.yaml": "names: [a]\ntrain:\n"}, "names no images for the split"),
    ],
)
def test_folders_that_are_nothing(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=said):
        open_dataset(str(tmp_path))


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone: no such file or folder"):
        open_dataset(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 100 200 30 40", "expected fractions of the image from 0 to 1, not pixels"),
        ("7 0.5 0.5 0.1 0.1", "class 7 is not among the 3 classes"),
        ("0 0.5 0.5 0.1", "has 3 numbers after the class; 4 are a box"),
        ("0 a b c d", "is not a class and numbers"),
        ("0 nan 0.5 0.1 0.1", "fractions of the image"),
        (f"{'9' * 400} 0.5 0.5 0.1 0.1", "is not a class and numbers|is not among"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, line: str, said: str) -> None:
    root = yolo(tmp_path / "data")
    (root / "valid" / "labels" / "street_3.txt").write_text(f"\n{line}\n")
    with pytest.raises(DatasetError, match=rf"street_3\.txt: line 2: .*({said})"):
        open_dataset(str(root))


def test_pictures_that_are_turned_have_no_certain_labels(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data")
    image = Image.new("RGB", (WIDTH, HEIGHT))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(root / "valid" / "images" / "street_1.jpg", exif=exif)
    with pytest.raises(DatasetError, match=r"street_1\.jpg: its EXIF tag rotates it"):
        open_dataset(str(root))


def test_classes_that_differ_are_an_error_that_names_the_options(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data")
    with pytest.raises(DatasetError) as caught:
        open_dataset(str(root), classes=["cat", "dog", "truck", "bird"])
    for said in (
        "'lorry' is unknown to the model",
        "predicts 'truck'",
        "truck, bird",
        "--classes common",
        "--map",
    ):
        assert said in str(caught.value)


def test_common_classes_are_measured_alone(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data")
    dataset = open_dataset(
        ClassChoice(common=True).attach(str(root)), classes=["bird", "dog", "cat", "truck"]
    )
    assert dataset.classes == ("bird", "dog", "cat", "truck") and dataset.category_ids == (None, 1, 0, None)
    assert dataset.name == "yolo:data:val (2 of 4 classes)"
    assert (
        "classes in common: cat, dog; left out of the data: lorry; of the model: bird, truck"
        in dataset.notes[1]
    )
    labels = {label for index in range(len(dataset)) for label in dataset.target(index).labels.tolist()}
    assert labels == {1, 2}
    collector = DetectionCollector(dataset, inclusive=False)
    box = torch.tensor([[1.0, 1, 9, 9]]).repeat(4, 1)
    collector.add(0, Detections(box, torch.ones(4), torch.arange(4)))
    assert [record["category_id"] for record in collector.records["bbox"]] == [1, 0]
    assert "dog" in collector.evaluate().per_class
    with pytest.raises(DatasetError, match=r"missing: bird\)\. --map"):  # nothing is in common
        open_dataset(str(root), classes=["bird"])
    with pytest.raises(DatasetError, match="--classes common measures the 1 classes in common, --map"):
        open_dataset(str(root), classes=["bird", "dog"])
    with pytest.raises(DatasetError, match="no class in common with the model; its own are cat, dog, lorry"):
        open_dataset(ClassChoice(common=True).attach(str(root)), classes=["bird"])


def test_classes_are_renamed_and_joined(tmp_path: Path, wanted: dict[str, float]) -> None:
    root = official(tmp_path / "data")
    choice = ClassChoice.parse(False, "cat=animal, dog=animal")
    dataset = open_dataset(choice.attach(f"coco:{root}"), classes=["lorry", "animal"])
    assert dataset.classes == ("lorry", "animal") and dataset.category_ids == (3, 1)
    counts = [kind != 2 for kind, *_ in OBJECTS["street_0"]]
    assert dataset.target(0).labels.tolist() == [int(animal) for animal in counts]
    with pytest.raises(
        DatasetError, match="--map names the class 'cta', which is not there; did you mean 'cat'"
    ):
        open_dataset(ClassChoice.parse(False, "cta=animal").attach(f"coco:{root}"))
    with pytest.raises(DatasetError, match="each part is DATA_CLASS=MODEL_CLASS"):
        ClassChoice.parse(False, "cat")
