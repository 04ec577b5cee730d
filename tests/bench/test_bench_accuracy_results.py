"""Detections as results files: written whole, read and checked, evaluated again to the same numbers; top-k;
submissions."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

from detection_zoo.benchmarks.evaluation.accuracy import (
    DetectionCollector,
    evaluate_results_file,
    top_k_accuracy,
)
from detection_zoo.benchmarks.evaluation.coco_columns import results_of
from detection_zoo.benchmarks.evaluation.coco_results import (
    detection_records,
    read_results,
    write_results,
    write_submission,
)
from detection_zoo.benchmarks.evaluation.voc_results import read_voc_results
from detection_zoo.benchmarks.run.options import SweepOptions
from detection_zoo.benchmarks.run.subject import Sources
from detection_zoo.benchmarks.run.sweep import run_sweep
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.benchmarks.store import write_whole
from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.data.shapes import make_shapes
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.records import Detections
from detection_zoo.zoo.settings import with_value

RECORDED = Path(__file__).resolve().parents[1] / "reference" / "evaluation"
EXPECTED = json.loads((RECORDED / "expected.json").read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", splits={"val2017": 8})


def coco(home: Path, **options: object) -> CocoDataset:
    return open_dataset(f"coco:{home}", **options)


def recorded_dataset(name: str = "instances_val2017.json") -> CocoDataset:
    return CocoDataset(RECORDED, RECORDED / name, name="coco:val2017")


def truth_as_detections(dataset: CocoDataset, index: int, *, inclusive: bool) -> Detections:
    """The ground truth itself with falling scores, as a perfect detector would give it; crowds left out."""
    from pycocotools import mask as coco_mask

    truth, (height, width) = dataset.target(index), dataset.image_size(index)
    rows = np.flatnonzero(~truth.crowd)
    boxes = truth.boxes[rows].copy()
    boxes[:, 2:] -= 1 if inclusive else 0
    masks = [
        coco_mask.decode([coco_mask.merge(coco_mask.frPyObjects(truth.masks[row], height, width))])[:, :, 0]
        for row in rows
    ]
    keypoints = None
    if (
        truth.keypoints is not None
    ):  # a person without labelled keypoints is found as well, with all of them inside its box
        centres = np.repeat((truth.boxes[rows, :2] + truth.boxes[rows, 2:])[:, None] / 2, 17, axis=1)
        labelled = truth.keypoints[rows][..., 2:].any(axis=1, keepdims=True)
        keypoints = torch.from_numpy(
            np.concatenate(
                [np.where(labelled, truth.keypoints[rows][..., :2], centres), truth.keypoints[rows][..., 2:]],
                axis=2,
            )
        )
    return Detections(
        torch.from_numpy(boxes),
        torch.linspace(0.99, 0.5, len(rows)),
        torch.from_numpy(truth.labels[rows]),
        masks=torch.from_numpy(np.array(masks, bool).reshape(len(rows), height, width)),
        keypoints=keypoints,
    )


def test_inclusive_boxes_get_their_pixel_back() -> None:
    case = json.loads((RECORDED / "hardnet_steps.json").read_text())["coco_result"]
    x1, y1, x2, y2, score = case["detection"]
    detections = Detections(torch.tensor([[x1, y1, x2, y2]]), torch.tensor([score]), torch.tensor([1]))
    category_ids = [1, case["row"]["category_id"]]
    assert detection_records(detections, 42, category_ids, inclusive=True) == {"bbox": [case["row"]]}
    assert detection_records(detections, 42, category_ids, inclusive=False)["bbox"][0]["bbox"] == [
        x1,
        y1,
        x2 - x1,
        y2 - y1,
    ]


def test_scaled_boxes_as_maskrcnn_benchmark_writes_them() -> None:
    with np.load(RECORDED / "preprocessing.npz") as arrays:
        boxes, wanted = (
            arrays["vovnet|in.boxes.a|samples"].reshape(-1, 4)[:8],
            arrays["vovnet|boxes.resized_xywh|samples"].reshape(8, 4),
        )
    scale = torch.tensor([333 / 160, 250 / 128, 333 / 160, 250 / 128])
    detections = Detections(torch.from_numpy(boxes) * scale, torch.ones(8), torch.zeros(8, dtype=torch.int64))
    records = detection_records(detections, 1, [1], inclusive=True)["bbox"]
    np.testing.assert_allclose([record["bbox"] for record in records], wanted, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("inclusive", [True, False])
def test_a_perfect_detector_has_ap_100(home: Path, tmp_path: Path, inclusive: bool) -> None:
    dataset = coco(home)
    collector = DetectionCollector(dataset, inclusive)
    for index in range(len(dataset)):
        collector.add(index, truth_as_detections(dataset, index, inclusive=inclusive))
    report = collector.evaluate()
    assert (
        report.metrics["box_ap"] == pytest.approx(100)
        and report.metrics["mask_ap"] == pytest.approx(100)
        and report.kinds == ("bbox", "segm")
    )
    assert set(report.metrics) <= set(load_manifests().metrics)
    assert set(report.per_class) <= set(dataset.classes) and all(
        ap["box_ap"] == pytest.approx(100) for ap in report.per_class.values()
    )
    paths = collector.write(tmp_path)
    assert [path.name for path in paths] == ["bbox.json", "segm.json"]
    again = [evaluate_results_file(path, dataset).metrics for path in paths]
    assert again[0] | again[1] == report.metrics
    assert json.loads(json.dumps(report.as_dict()))["data"] == {
        "dataset": "coco:val2017",
        "images": 8,
        "images_of_split": 8,
        "subset": False,
    }


def test_the_wrong_pixel_convention_shows(home: Path) -> None:
    """Far-edge boxes written with the inclusive +1 lose AP on small objects: the convention matters and is
    applied."""
    dataset = coco(home)
    collector = DetectionCollector(dataset, inclusive=True)
    for index in range(len(dataset)):
        collector.add(index, truth_as_detections(dataset, index, inclusive=False))
    assert collector.evaluate().metrics["box_ap_s"] < 95


def test_keypoints_of_a_perfect_detector(home: Path, tmp_path: Path) -> None:
    dataset = coco(home, keypoints=True)
    collector = DetectionCollector(dataset, inclusive=False)
    for index in range(len(dataset)):
        collector.add(index, truth_as_detections(dataset, index, inclusive=False))
    report = collector.evaluate()
    assert report.metrics["keypoint_ap"] == pytest.approx(100) and "keypoint_ap_m" in report.metrics
    collector.write(tmp_path)
    assert evaluate_results_file(tmp_path / "keypoints.json", dataset).metrics[
        "keypoint_ap"
    ] == pytest.approx(100)
    assert {
        point[2] for r in collector.records["keypoints"] for point in np.array(r["keypoints"]).reshape(-1, 3)
    } == {1}


def test_a_subset_restricts_ground_truth_to_the_same_images() -> None:
    """The recorded case on 27 of 79 images, from the file of all of them."""
    case = EXPECTED["bbox_subset_images"]
    dataset = recorded_dataset().subset(case["params"]["imgIds"])
    report = evaluate_results_file(RECORDED / case["detections"], dataset)
    assert report.data["subset"] and report.data["images"] == 27 and report.data["images_of_split"] == 79
    assert report.metrics["box_ap"] == pytest.approx(100 * case["stats"]["AP"], abs=1e-7)
    assert report.metrics["box_ar_s"] == pytest.approx(100 * case["stats"]["ARs"], abs=1e-7)


@pytest.mark.parametrize("name", ["bbox_small_jitter", "segm_perturbed", "keypoints_perturbed"])
def test_stored_results_are_evaluated_by_their_own_kind(name: str) -> None:
    case = EXPECTED[name]
    report = evaluate_results_file(RECORDED / case["detections"], recorded_dataset(case["ground_truth"]))
    assert report.kinds == (case["iou_type"],)
    prefix = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}[case["iou_type"]]
    assert report.metrics[f"{prefix}_ap"] == pytest.approx(100 * case["stats"]["AP"], abs=1e-7)
    assert report.metrics[f"{prefix}_ap_l"] == pytest.approx(100 * case["stats"]["APl"], abs=1e-7)


def test_keypoints_need_keypoint_annotations() -> None:
    with pytest.raises(
        DatasetError,
        match=(
            r"keypoints_perturbed.json: holds keypoints, but .*instances_val2017.json has no ground truth"
            r".*--kind keypoints"
        ),
    ):
        evaluate_results_file(RECORDED / "keypoints_perturbed.json", recorded_dataset())


def test_no_detection_at_all(home: Path, tmp_path: Path) -> None:
    dataset = coco(home)
    write_results(tmp_path / "none.json", [])
    assert evaluate_results_file(tmp_path / "none.json", dataset).metrics["box_ap"] == 0
    collector = DetectionCollector(dataset, inclusive=True)
    collector.add(
        0,
        Detections(
            torch.zeros(0, 4),
            torch.zeros(0),
            torch.zeros(0, dtype=torch.int64),
            masks=torch.zeros(0, 9, 9, dtype=torch.bool),
        ),
    )
    assert collector.records == {"bbox": [], "segm": []} and collector.evaluate().metrics["mask_ap"] == 0


GOOD = {"image_id": 3, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ({"images": []}, "a results file is a JSON list, this is a dict; is it an annotation file"),
        ([GOOD, 5], r"\[1\]: a detection must be a JSON object"),
        ([GOOD, {**GOOD, "image_id": 4}], r"\[1\]: image id 4 is not in coco:val2017"),
        (
            [{**GOOD, "category_id": 3}],
            r"\[0\]: category id 3 is not in coco:val2017; its ids run from 1 to 16, 8 of them",
        ),
        ([{k: v for k, v in GOOD.items() if k != "score"}], r"\[0\]: field 'score' is missing"),
        ([GOOD, {**GOOD, "score": math.nan}], r"\[1\]: field 'score' is nan, expected a finite number"),
        ([{**GOOD, "score": "0.5"}], r"\[0\]: field 'score' is '0.5'"),
        ([{**GOOD, "bbox": [1, 2, 3]}], r"\[0\]: field 'bbox' is \[1, 2, 3\], expected four finite numbers"),
        ([{**GOOD, "bbox": [1, 2, math.inf, 4]}], "four finite numbers"),
        ([{**GOOD, "keypoints": [1, 2]}], "17 times x, y, flag|x, y, flag for each"),
        (
            [{"image_id": 3, "category_id": 2, "score": 1, "segmentation": [[1, 2, 3, 4, 5, 6]]}],
            "expected a compressed RLE",
        ),
        (
            [{"image_id": 3, "category_id": 2, "score": 1, "segmentation": {"size": [5, 5], "counts": "0"}}],
            r"\[0\]: the mask is \[5, 5\] \(height, width\), image 3 is",
        ),
    ],
)
def test_results_that_do_not_fit(home: Path, tmp_path: Path, records: object, said: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(records))
    with pytest.raises(DatasetError, match=said) as caught:
        evaluate_results_file(path, coco(home))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no such results file"), ("", "not valid JSON"), ('[{"image_id": 3', "not valid JSON")],
)
def test_results_that_are_no_file(home: Path, tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DatasetError, match=said):
        read_results(path, coco(home))


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bbox.json"
    write_results(path, [GOOD])

    def fails(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fails)
    assert json.loads(path.read_text()) == [GOOD] and [p.name for p in path.parent.iterdir()] == ["bbox.json"]


def test_detections_that_are_not_numbers(home: Path) -> None:
    collector = DetectionCollector(coco(home), inclusive=True)
    with pytest.raises(FloatingPointError, match="image 3 of coco:val2017"):
        collector.add(
            0,
            Detections(torch.tensor([[0, 0, math.nan, 1]]), torch.ones(1), torch.zeros(1, dtype=torch.int64)),
        )
    with pytest.raises(ValueError, match="pasted"):
        collector.add(
            0,
            Detections(
                torch.ones(1, 4),
                torch.ones(1),
                torch.zeros(1, dtype=torch.int64),
                masks=torch.zeros(1, 28, 28),
            ),
        )


@pytest.fixture
def test_dev(home: Path, tmp_path: Path) -> CocoDataset:
    document = json.loads((home / "annotations" / "instances_val2017.json").read_text())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "test2017").mkdir()
    (tmp_path / "annotations" / "image_info_test-dev2017.json").write_text(
        json.dumps({k: document[k] for k in ("images", "categories")})
    )
    return open_dataset(f"coco:{tmp_path}:test-dev2017")


def test_submission_files(test_dev: CocoDataset, tmp_path: Path) -> None:
    path = write_submission(tmp_path / "out", [GOOD], test_dev, "bbox", "ssd512 hardnet/68")
    assert path.name == "detections_test-dev2017_ssd512-hardnet-68_results.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [
            "detections_test-dev2017_ssd512-hardnet-68_results.json"
        ] and json.loads(archive.read(archive.namelist()[0])) == [GOOD]
    with pytest.raises(DatasetError, match="covers the whole split of 8 images, this is a subset of 2"):
        write_submission(tmp_path / "out", [GOOD], test_dev.subset(2), "bbox", "x")
    with pytest.raises(DatasetError, match=r"submission: \[0\]: image id 4"):
        write_submission(tmp_path / "out", [{**GOOD, "image_id": 4}], test_dev, "bbox", "x")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [path.name]


def test_a_run_on_test_dev_writes_what_the_server_takes(
    test_dev: CocoDataset, home: Path, tmp_path: Path
) -> None:
    shutil.copytree(home / "val2017", tmp_path / "test2017", dirs_exist_ok=True)
    entry, said = load_manifests().entry("mask_rcnn_resnet14_slim_fpn.demo"), []
    for setting, few in (("proposals.post_nms", 50), ("detections.max_detections", 10)):
        entry = with_value(entry, setting, few)
    sources, options = (
        Sources(f"coco:{tmp_path}:test-dev2017"),
        SweepOptions(tmp_path / "runs", isolate=False),
    )
    (run,) = run_sweep([entry], BenchmarkSpec(groups=("ap",)), sources, options, said.append).runs
    assert (
        run.status == "finished"
        and "box_ap" not in run.measurements
        and "send the submission file" in run.absent["box_ap"]
    )
    for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
        path = options.files / run.files[f"{kind}_submission"].name
        assert any(str(path) in line for line in said)
        with zipfile.ZipFile(path) as archive:
            records = json.loads(archive.read(archive.namelist()[0]))
        assert records == json.loads((options.files / run.files[kind].name).read_text()) and all(
            key in record for record in records
        )
    (run,) = run_sweep([entry], BenchmarkSpec(groups=("ap",), images=2), sources, options, said.append).runs
    assert run.status == "failed" and "leave out --images" in run.reason


def test_test_dev_cannot_be_evaluated_here(test_dev: CocoDataset, tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [GOOD])
    with pytest.raises(DatasetError, match="annotations are not public; `bench.py run"):
        evaluate_results_file(tmp_path / "r.json", test_dev)


def voc(folder: Path) -> Path:
    base = folder / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / name).mkdir(parents=True)
    for name, box in (("a", (1, 1, 40, 30)), ("b", (11, 6, 60, 45))):
        (base / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
        corners = "".join(
            f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        (base / "Annotations" / f"{name}.xml").write_text(
            "<annotation><size><width>90</width><height>80</height></size><object><name>dog</name>"
            f"<difficult>0</difficult><bndbox>{corners}</bndbox></object></annotation>"
        )
    (base / "ImageSets" / "Main" / "test.txt").write_text("a\nb\n")
    return folder


@pytest.mark.parametrize(("inclusive", "far"), [(True, 39.0), (False, 40.0)])
def test_voc_files(tmp_path: Path, inclusive: bool, far: float) -> None:
    """A 1-based inclusive 1..40 is 0..39 counted from 0, or the edges 0..40; both are written as the devkit
    has it."""
    dataset = open_dataset(f"voc:{voc(tmp_path / 'kit')}:2007:test")
    collector = DetectionCollector(dataset, inclusive)
    dog = torch.tensor([dataset.classes.index("dog")])
    collector.add(0, Detections(torch.tensor([[0.0, 0.0, far, far - 10]]), torch.tensor([0.87654]), dog))
    report = collector.evaluate()
    assert report.per_class["dog"] == {
        "ap_11point": pytest.approx(100 * 6 / 11),
        "ap_area": pytest.approx(50),
    }
    assert (
        report.metrics["voc_map"] == pytest.approx(100 * 6 / 11 / 20) and "voc_map_area" not in report.metrics
    )  # 19 classes without objects
    paths = collector.write(tmp_path / "out")
    assert (
        len(paths) == 20
        and (tmp_path / "out" / "comp4_det_test_dog.txt").read_text() == "a 0.877 1.0 1.0 40.0 30.0\n"
    )
    assert (
        evaluate_results_file(tmp_path / "out", dataset)
        == report
        == evaluate_results_file(tmp_path / "out" / "comp4_det_test_dog.txt", dataset)
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a 0.5 1 2 3", "line 2: .* is not image, score, xmin"),
        ("a high 1 2 3 4", "line 2: .* is not image, score"),
        ("a nan 1 2 3 4", "in finite numbers"),
        ("z 0.5 1 2 3 4", "line 2: image 'z' is not in the split"),
        ("a", "line 2"),
    ],
)
def test_broken_voc_files(tmp_path: Path, line: str, said: str) -> None:
    dataset = open_dataset(f"voc:{voc(tmp_path / 'kit')}:2007:test")
    (tmp_path / "comp4_det_test_dog.txt").write_text(f"b 0.9 1 2 3 4\n{line}\n")
    with pytest.raises(DatasetError, match=rf"comp4_det_test_dog\.txt: .*{said}"):
        evaluate_results_file(tmp_path, dataset)


def test_voc_folders_without_results(tmp_path: Path) -> None:
    dataset = open_dataset(f"voc:{voc(tmp_path / 'kit')}:2007:test")
    with pytest.raises(DatasetError, match="holds no comp4_det_test_CLASS.txt"):
        read_voc_results(tmp_path, dataset)
    (tmp_path / "comp4_det_val_dog.txt").write_text("")  # another split's
    with pytest.raises(DatasetError, match="holds no comp4_det_test_CLASS.txt"):
        read_voc_results(tmp_path, dataset)
    (tmp_path / "comp4_det_test_doge.txt").write_text("")
    with pytest.raises(DatasetError, match="'doge' is not a class of voc:2007:test; did you mean 'dog'"):
        read_voc_results(tmp_path, dataset)


def test_top_k() -> None:
    scores = np.array([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2], [0.2, 0.2, 0.2], [0.1, 0.2, 0.7]])
    labels = np.array([1, 1, 1, 0])
    assert (
        top_k_accuracy(scores, labels) == 25.0
        and top_k_accuracy(scores, labels, 2) == 75.0
        and top_k_accuracy(scores, labels, 3) == 100.0
    )
    with pytest.raises(FloatingPointError, match="image 1"):
        top_k_accuracy(np.array([[0.0, 1.0], [np.nan, 0.0]]), np.array([0, 0]))


def test_imagenet_has_no_boxes_to_measure(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,class_index\nx.jpg,3\n")
    dataset = open_dataset(f"imagenet:{tmp_path}")
    with pytest.raises(DatasetError, match="no ground-truth boxes"):
        DetectionCollector(dataset, inclusive=True).evaluate()


def test_results_of_every_kind(home: Path) -> None:
    dataset = coco(home, keypoints=True)
    point = {"image_id": 3, "category_id": 1, "keypoints": [1.0, 2.0, 1] * 17, "score": 0.5}
    results_of([point], dataset.annotations, "keypoints", "x")
    with pytest.raises(DatasetError, match="17 times x, y, flag"):
        results_of([{**point, "keypoints": [1, 2, 1]}], dataset.annotations, "keypoints", "x")
