"""VOC accuracy: recorded cases of the devkit's metric to 1e-9, and its corners worked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from detection_zoo.benchmarks.evaluation.voc_evaluation import (
    VocDetection,
    VocTruth,
    average_precision,
    dataset_truth,
    evaluate_voc,
    evaluate_voc_class,
    mean_ap,
)
from detection_zoo.benchmarks.evaluation.voc_results import read_voc_results
from detection_zoo.zoo.data.datasets import open_dataset

RECORDED = Path(__file__).resolve().parents[1] / "reference" / "evaluation"


def truth_of(
    objects: list[tuple[str, str, list[float], bool]], classes: list[str]
) -> dict[str, dict[str, VocTruth]]:
    """Class -> image -> objects, from rows of image, class, box, difficult."""
    found: dict[str, dict[str, VocTruth]] = {}
    for name in classes:
        images = sorted({image for image, owner, _, _ in objects if owner == name})
        rows = {
            image: [(box, hard) for where, owner, box, hard in objects if owner == name and where == image]
            for image in images
        }
        found[name] = {
            image: VocTruth(np.array([b for b, _ in r], np.float64), np.array([h for _, h in r], bool))
            for image, r in rows.items()
        }
    return found


@pytest.mark.parametrize(("method", "key"), [("11point", "ap_07"), ("area", "ap_area")])
def test_detnet_case(method: str, key: str) -> None:
    case = json.loads((RECORDED / "voc_detnet.json").read_text())
    truth = truth_of(
        [(o["image"], o["class"], o["bbox"], bool(o["difficult"])) for o in case["ground_truth"]["objects"]],
        case["ground_truth"]["classes"],
    )
    detections: dict[str, list[VocDetection]] = {}
    for row in case["detections"]["detections"]:
        detections.setdefault(row["class"], []).append(
            VocDetection(row["image"], row["score"], tuple(row["bbox"]))
        )
    scores = evaluate_voc(truth, detections, method=method)
    for name, wanted in case["expected"]["per_class"].items():
        score = scores[name]
        assert math.isnan(score.ap) if wanted[key] is None else abs(score.ap - wanted[key]) <= 1e-9, name
        assert score.positives == wanted["positives"]
        if wanted["recall"] is None:
            assert np.isnan(score.recall).all()
        else:
            np.testing.assert_allclose(
                score.recall, wanted["recall"], atol=5.1e-7
            )  # recorded with six decimals
        np.testing.assert_allclose(score.precision, wanted["precision"], atol=5.1e-7)
    mean = case["expected"]["mean"][key]
    assert math.isnan(mean_ap(scores)) if mean is None else abs(mean_ap(scores) - mean) <= 1e-9


@pytest.mark.parametrize("method", ["11point", "area"])
@pytest.mark.parametrize("name", ["cat", "dog"])
def test_hardnet_case(name: str, method: str) -> None:
    case = json.loads((RECORDED / "hardnet_steps.json").read_text())["voc_eval"]
    truth = truth_of(
        [
            (image, owner, box, bool(hard))
            for image, rows in case["ground_truth"].items()
            for owner, box, hard in rows
        ],
        [name],
    )
    score = evaluate_voc_class(
        truth[name],
        [VocDetection(image, s, tuple(box)) for image, s, box in case["detections"][name]],
        method=method,
    )
    wanted = case["result"][f"{name}_{method}"]
    np.testing.assert_allclose(score.recall, wanted["recall"], atol=1e-9)
    np.testing.assert_allclose(score.precision, wanted["precision"], atol=1e-9)
    assert abs(score.ap - wanted["ap"]) <= 1e-9


def test_review_metrics_case() -> None:
    """The published test's numbers are cut to ten decimals; the recomputed ones are in full precision."""
    case = json.loads((RECORDED / "review_metrics.json").read_text())
    rows = {
        kind: [
            (image, [float(v) for v in line.split()[1:]])
            for image, lines in case[kind].items()
            for line in lines
            if line.strip()
        ]
        for kind in ("gts", "dets")
    }
    corners = {
        kind: [(image, v[:-4], [v[-4], v[-3], v[-4] + v[-2], v[-3] + v[-1]]) for image, v in values]
        for kind, values in rows.items()
    }
    truth = truth_of([(image, "object", box, False) for image, _, box in corners["gts"]], ["object"])[
        "object"
    ]
    detections = [VocDetection(image, score, tuple(box)) for image, [score], box in corners["dets"]]
    assert (
        len(detections) == case["source"]["n_detections"]
        and sum(len(t.boxes) for t in truth.values()) == case["source"]["n_ground_truth"]
    )
    for plus_one, key in ((True, "iou_with_plus_one"), (False, "iou_without_plus_one")):
        for method, values in case["source"]["recomputed"][key].items():
            for threshold, wanted in values.items():
                ap = evaluate_voc_class(
                    truth, detections, iou_threshold=float(threshold), method=method, plus_one=plus_one
                ).ap
                assert abs(ap - wanted) <= 1e-9
                if plus_one:
                    assert abs(ap - case["source"]["official"][method][threshold]) < 1e-10


def test_generated_case(data_folder: Path) -> None:
    dataset = open_dataset(f"voc:{data_folder / 'voc_mini' / 'VOCdevkit'}:2007:test")
    base = data_folder / "coco_eval_cases" / "voc_generated"
    case = json.loads((base / "expected.json").read_text())
    truth, detections = dataset_truth(dataset), read_voc_results(base, dataset)
    for key, wanted in case["results"].items():
        method, threshold = key.split("@")
        scores = evaluate_voc(truth, detections, method=method, iou_threshold=float(threshold))
        assert {name: s.positives for name, s in scores.items() if s.positives} == case["npos_not_difficult"]
        for name, ap in wanted["per_class"].items():
            assert abs(scores[name].ap - ap) <= 1e-9, f"{key} {name}"
        assert abs(np.mean([scores[name].ap for name in wanted["per_class"]]) - wanted["mAP"]) <= 1e-9


def test_cartucho_case(data_folder: Path) -> None:
    base = data_folder / "coco_eval_cases" / "cartucho_map"
    case = json.loads((base / "expected.json").read_text())
    objects, detections = [], {}
    for path in sorted((base / "ground-truth").glob("*.txt")):
        for line in filter(str.strip, path.read_text().splitlines()):
            name, *rest = line.split()
            objects.append((path.stem, name, [float(v) for v in rest[:4]], "difficult" in rest))
    for path in sorted((base / "detection-results").glob("*.txt")):
        for line in filter(str.strip, path.read_text().splitlines()):
            name, score, *box = line.split()
            detections.setdefault(name, []).append(
                VocDetection(path.stem, float(score), tuple(map(float, box)))
            )
    scores = evaluate_voc(
        truth_of(objects, sorted({name for _, name, _, _ in objects})), detections, method="area"
    )
    assert set(scores) == set(case["recomputed_AP"])
    for name, score in scores.items():
        assert abs(score.ap - case["recomputed_AP"][name]) <= 1e-9
        assert f"{100 * score.ap:.2f}" == f"{case['tool_percent'][name]:.2f}"
    assert abs(mean_ap(scores) - case["recomputed_mAP"]) <= 1e-9


def one(*boxes: list[float], difficult: bool = False) -> dict[str, VocTruth]:
    return {"i": VocTruth(np.array(boxes, np.float64), np.full(len(boxes), difficult))}


def hit(score: float, *box: float) -> VocDetection:
    return VocDetection("i", score, box)


def test_an_overlap_of_exactly_the_threshold_is_no_match() -> None:
    """With +1, boxes 1..10 and 1..5 are 10 and 5 pixels wide: IoU 0.5 exactly."""
    assert evaluate_voc_class(one([1, 1, 10, 10]), [hit(0.9, 1, 1, 5, 10)]).ap == 0
    assert evaluate_voc_class(one([1, 1, 10, 10]), [hit(0.9, 1, 1, 6, 10)]).ap == pytest.approx(1.0)


def test_a_taken_object_gives_no_second_choice() -> None:
    """The second detection's best object is taken; though it overlaps another one above the threshold, it is
    wrong."""
    truth = one([1, 1, 100, 100], [1, 1, 100, 140])
    score = evaluate_voc_class(truth, [hit(0.9, 1, 1, 100, 100), hit(0.8, 1, 1, 100, 110)], method="area")
    assert score.precision.tolist() == [1.0, 0.5] and score.recall.tolist() == [0.5, 0.5]


def test_difficult_objects_count_neither_way_however_often() -> None:
    score = evaluate_voc_class(
        {**one([1, 1, 50, 50], difficult=True), "j": VocTruth(np.array([[1.0, 1, 9, 9]]), np.array([False]))},
        [hit(0.9, 1, 1, 50, 50), hit(0.8, 1, 1, 50, 50), VocDetection("j", 0.7, (1, 1, 9, 9))],
    )
    assert score.positives == 1 and score.ap == pytest.approx(1.0)


def test_equal_scores_keep_their_order() -> None:
    right, wrong = hit(0.5, 1, 1, 50, 50), hit(0.5, 100, 100, 150, 150)
    assert evaluate_voc_class(one([1, 1, 50, 50]), [right, wrong], method="area").ap == 1.0
    assert evaluate_voc_class(one([1, 1, 50, 50]), [wrong, right], method="area").ap == 0.5


def test_recall_of_exactly_three_tenths_misses_its_point() -> None:
    """The devkit's fourth threshold is 0.30000000000000004: three of ten objects at precision 1 reach only 0,
    0.1 and 0.2."""
    recall, precision = np.array([0.1, 0.2, 0.3]), np.ones(3)
    assert average_precision(recall, precision, "11point", 10) == pytest.approx(3 / 11, abs=1e-12)
    assert average_precision(recall, precision, "area", 10) == pytest.approx(0.3)


def test_classes_without_objects_or_detections() -> None:
    assert evaluate_voc_class({}, [hit(0.9, 1, 1, 5, 5)]).ap == 0 and math.isnan(
        evaluate_voc_class({}, [], method="area").ap
    )
    assert (
        evaluate_voc_class(one([1, 1, 5, 5]), []).ap == 0
        and evaluate_voc_class(one([1, 1, 5, 5]), [], method="area").ap == 0
    )
