"""COCO accuracy: recorded cases to 1e-9, hand-worked cases, both engines held together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_speed import evaluation_speed, render_evaluation_speed

from detection_zoo.benchmarks.evaluation.coco_columns import CocoResults
from detection_zoo.benchmarks.evaluation.coco_engines import evaluate_with
from detection_zoo.benchmarks.evaluation.coco_evaluation import (
    BOX_STATISTICS,
    KEYPOINT_STATISTICS,
    CocoScores,
    EvaluationPlan,
    columns_of,
    compare_engines,
    score_coco,
    truth_of,
)
from detection_zoo.zoo.data.coco_reader import CocoAnnotations
from detection_zoo.zoo.errors import DatasetError

RECORDED = Path(__file__).resolve().parents[1] / "reference" / "evaluation"
CASES = json.loads((RECORDED / "expected.json").read_text())


def check(case: dict, folder: Path) -> None:
    """The twelve (ten) numbers, and AP and AP50 of every category, to 1e-9."""
    params = case["params"]
    results = json.loads((folder / case["detections"]).read_text())
    scores = score_coco(
        (folder / case["ground_truth"]).resolve(),
        results,
        case["iou_type"],
        image_ids=params.get("imgIds"),
        category_ids=params.get("catIds"),
        class_agnostic=params.get("useCats", 1) == 0,
    )
    assert list(scores.statistics) == list(case["stats"])
    for name, wanted in case["stats"].items():
        assert abs(scores.statistics[name] - wanted) <= 1e-9, name
    recorded = case.get("per_category", {})
    assert {int(category) for category in recorded} <= set(scores.per_category)
    for category, values in recorded.items():
        for name, wanted in values.items():
            assert abs(scores.per_category[int(category)][name] - wanted) <= 1e-9, (
                f"{name} of category {category}"
            )


@pytest.mark.parametrize("name", CASES)
def test_recorded_cases(name: str) -> None:
    check(CASES[name], RECORDED)


@pytest.mark.parametrize("folder", ["generated", "cocoapi_val2014_first100", "real_model"])
def test_every_case_of_the_data_folder(data_folder: Path, folder: str) -> None:
    base = data_folder / "coco_eval_cases" / folder
    cases = json.loads((base / "expected.json").read_text())["cases"]
    assert cases
    for case in cases.values():
        check(case, base)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_accumulates_what_is_compared_and_no_more(name: str) -> None:
    """pycocotools's own `accumulate` and ours, which leaves out what no number reads: equal to the last
    bit."""
    case = CASES[name]
    truth = truth_of(RECORDED / case["ground_truth"], case["iou_type"])
    records = json.loads((RECORDED / case["detections"]).read_text())
    results = columns_of(records, truth, case["iou_type"])
    agnostic = case["params"].get("useCats", 1) == 0
    plan = EvaluationPlan(case["iou_type"], list(range(20)), None, agnostic)
    ours, whole = (plan.prepare("pycocotools", truth, results) for _ in range(2))
    statistics = evaluate_with("pycocotools", ours)
    whole.evaluate()
    whole.accumulate()
    whole.summarize()
    assert statistics == whole.stats.tolist() and max(statistics) > 0
    assert (ours.eval["precision"][..., -1] == whole.eval["precision"][..., -1]).all()
    assert (ours.eval["recall"][..., -1] == whole.eval["recall"][..., -1]).all()


def one_image(
    boxes: list[list[float]], categories: list[int] | None = None, crowd: list[int] | None = None
) -> dict:
    categories, crowd = categories or [1] * len(boxes), crowd or [0] * len(boxes)
    return {
        "images": [{"id": 5, "file_name": "5.jpg", "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "a"}, {"id": 4, "name": "b"}],
        "annotations": [
            {"id": i + 1, "image_id": 5, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": k}
            for i, (b, c, k) in enumerate(zip(boxes, categories, crowd, strict=True))
        ],
    }


def found(box: list[float], score: float, category: int = 1) -> dict:
    return {"image_id": 5, "category_id": category, "bbox": box, "score": score}


def test_nothing_found_is_zero_not_an_error() -> None:
    scores = score_coco(one_image([[0, 0, 50, 50]]), [], "bbox").statistics
    assert scores["AP"] == 0 and scores["APm"] == 0 and scores["APs"] == -1 and scores["AR100"] == 0


def test_a_duplicate_is_a_false_positive() -> None:
    """Two objects; the right box twice, then the other object: precision 1, 1/2, 2/3, so AP = (51 * 1 + 50 *
    2/3) / 101 at every threshold."""
    truth = one_image([[0, 0, 50, 50], [100, 100, 50, 50]])
    results = [found([0, 0, 50, 50], 0.9), found([0, 0, 50, 50], 0.8), found([100, 100, 50, 50], 0.7)]
    assert score_coco(truth, results, "bbox").statistics["AP"] == pytest.approx(
        (51 + 50 * 2 / 3) / 101, abs=1e-12
    )


def test_an_overlap_of_three_quarters_counts_at_six_of_ten_thresholds() -> None:
    """IoU 0.75 exactly reaches 0.50 ... 0.75: six thresholds of ten."""
    scores = score_coco(one_image([[0, 0, 100, 100]]), [found([0, 0, 75, 100], 0.9)], "bbox").statistics
    assert (
        scores["AP"] == pytest.approx(0.6, abs=1e-12)
        and scores["AP75"] == pytest.approx(1.0)
        and scores["AR1"] == pytest.approx(0.6)
    )


def test_detections_on_a_crowd_count_neither_way() -> None:
    truth = one_image([[0, 0, 50, 50], [100, 100, 90, 90]], crowd=[0, 1])
    results = [found([110, 110, 20, 20], 0.95), found([150, 150, 20, 20], 0.94), found([0, 0, 50, 50], 0.9)]
    assert score_coco(truth, results, "bbox").statistics["AP"] == pytest.approx(1.0)


def test_images_and_categories_restrict_the_ground_truth() -> None:
    truth = one_image([[0, 0, 50, 50], [100, 100, 50, 50]], categories=[1, 4])
    truth["images"].append({"id": 6, "file_name": "6.jpg", "height": 200, "width": 200})
    truth["annotations"].append(
        {"id": 3, "image_id": 6, "category_id": 1, "bbox": [0, 0, 40, 40]}
    )  # no area, no crowd flag
    results = [found([0, 0, 50, 50], 0.9)]
    assert score_coco(truth, results, "bbox").statistics["AP"] == pytest.approx((51 / 101 + 0) / 2)
    assert score_coco(truth, results, "bbox", image_ids=[5]).statistics["AP"] == pytest.approx(0.5)
    assert score_coco(truth, results, "bbox", image_ids=[5], category_ids=[1]).statistics[
        "AP"
    ] == pytest.approx(1.0)
    assert score_coco(truth, results, "bbox", image_ids=[5], class_agnostic=True).statistics[
        "AP"
    ] == pytest.approx(51 / 101)


def encoded(polygon: list[float]) -> dict:
    from pycocotools import mask as coco_mask

    rle = coco_mask.frPyObjects([polygon], 200, 200)[0]
    return {"size": [200, 200], "counts": rle["counts"].decode()}


def test_mask_results_take_the_area_of_the_mask() -> None:
    """A false positive whose mask is large but whose box is said to be tiny is ignored among medium objects,
    not among all."""
    polygon = [0, 0, 10, 0, 150, 150, 140, 150]  # 1500 square pixels: medium
    truth = one_image([[0, 0, 150, 150]])
    truth["annotations"][0] |= {"segmentation": [polygon], "area": 1500.0}
    right = {
        "image_id": 5,
        "category_id": 1,
        "bbox": [0, 0, 150, 150],
        "segmentation": encoded(polygon),
        "score": 0.9,
    }
    large = {
        "image_id": 5,
        "category_id": 1,
        "bbox": [0, 0, 40, 40],
        "segmentation": encoded([0, 160, 199, 160, 199, 199, 0, 199]),
        "score": 0.95,
    }
    scores = score_coco(
        truth, [large, right], "segm"
    ).statistics  # 7800 square pixels of mask, not below 96 * 96: still medium
    assert scores["APm"] == pytest.approx(0.5)
    larger = {
        **large,
        "segmentation": encoded([0, 100, 199, 100, 199, 199, 0, 199]),
    }  # 19,700: large, whatever its box
    scores = score_coco(truth, [larger, right], "segm").statistics
    assert scores["AP"] == pytest.approx(0.5) and scores["APm"] == pytest.approx(1.0) and scores["APl"] == -1


def test_curves_and_mistakes() -> None:
    """Two objects: one is found, beside a duplicate of it, the other is boxed badly (IoU 1/3)."""
    truth = one_image([[0, 0, 50, 50], [100, 100, 50, 50]])
    results = [found([0, 0, 50, 50], 0.9), found([0, 0, 50, 50], 0.8), found([125, 100, 50, 50], 0.7)]
    scores = score_coco(truth, results, "bbox", details=True)
    assert scores.curves["0.50"] == pytest.approx([1.0] * 51 + [0.0] * 50)
    assert np.mean(scores.curves["0.50:0.95"]) == pytest.approx(scores.statistics["AP"])
    assert scores.errors["localisation"] == pytest.approx(50 / 101 * 2 / 3)  # right, it comes third of three
    assert scores.errors["missed"] == scores.errors["class"] == 0
    assert not score_coco(truth, results, "bbox").errors


def test_names_of_the_statistics() -> None:
    assert len(BOX_STATISTICS) == 12 and len(KEYPOINT_STATISTICS) == 10
    assert (
        tuple(CASES["bbox_small_jitter"]["stats"]) == BOX_STATISTICS
        and tuple(CASES["keypoints_perturbed"]["stats"]) == KEYPOINT_STATISTICS
    )


def test_engines_that_disagree_raise() -> None:
    same = CocoScores({"AP": 0.5, "AP50": -1.0}, {1: {"AP": 0.25}})
    compare_engines(same, same)
    with pytest.raises(RuntimeError, match="hotcoco gives AP50 = 0.0, pycocotools -1.0"):
        compare_engines(CocoScores({"AP": 0.5, "AP50": 0.0}, {}), same)
    with pytest.raises(RuntimeError, match="AP of category 1 = 0.26"):
        compare_engines(CocoScores(same.statistics, {1: {"AP": 0.26}}), same)
    with pytest.raises(RuntimeError, match="AP = nan"):
        compare_engines(CocoScores({"AP": float("nan")}, {}), same)


def test_a_sample_is_compared_on_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference runs on as many images as were asked for, and a fast engine gone wrong is caught by
    them."""
    ran: list[tuple[str, int]] = []
    run = EvaluationPlan.run

    def watched(
        self: EvaluationPlan, engine: str, truth: CocoAnnotations, results: CocoResults
    ) -> CocoScores:
        ran.append((engine, len(self.images)))
        scores = run(self, engine, truth, results)
        return CocoScores({**scores.statistics, "AP": 0.123}, {}) if wrong and engine == "hotcoco" else scores

    monkeypatch.setattr(EvaluationPlan, "run", watched)
    case, wrong = CASES["bbox_small_jitter"], False
    arguments = (
        RECORDED / case["ground_truth"],
        json.loads((RECORDED / case["detections"]).read_text()),
        "bbox",
    )
    assert score_coco(*arguments, checked_images=10).statistics["AP"] == pytest.approx(
        case["stats"]["AP"], abs=1e-9
    )
    assert ran == [("hotcoco", 79), ("hotcoco", 10), ("pycocotools", 10)]
    wrong = True
    with pytest.raises(RuntimeError, match="hotcoco gives AP = 0.123"):
        score_coco(*arguments, checked_images=10)


@pytest.mark.parametrize("seed", range(3))
def test_engines_agree_on_random_detections(seed: int) -> None:
    """score_coco itself compares them on all images; ties, empty images, boxes without extent and crowds
    included."""
    random = np.random.RandomState(seed)
    boxes = random.uniform(0, 120, (40, 4)).round(1).tolist()
    truth = one_image(
        boxes, random.choice([1, 4], 40).tolist(), (random.random_sample(40) < 0.1).astype(int).tolist()
    )
    truth["images"].append({"id": 6, "file_name": "6.jpg", "height": 200, "width": 200})
    moved = np.array(boxes * 4) + random.uniform(-9, 9, (160, 4))
    moved[:, 2:] = np.clip(moved[:, 2:], 0, None)
    results = [
        {
            **found(box.tolist(), float(random.choice([0.1, 0.5, 0.9])), int(random.choice([1, 4]))),
            "image_id": int(random.choice([5, 6])),
        }
        for box in moved
    ]
    assert -1 <= score_coco(truth, results, "bbox").statistics["AP"] <= 1


def test_annotations_without_what_is_compared() -> None:
    with pytest.raises(
        DatasetError,
        match=r"annotations\[0\]: field 'segmentation' is missing or empty; results of kind segm",
    ):
        score_coco(one_image([[0, 0, 5, 5]]), [], "segm")
    bare = one_image([[0, 0, 4, 5]])
    bare["annotations"] = [{"bbox": [0, 0, 4, 5], "image_id": 5, "category_id": 1}]
    filled = truth_of(bare, "bbox")
    assert filled.crowd.tolist() == [False] and filled.areas.tolist() == [20]
    assert filled.boxes.tolist() == [[0, 0, 4, 5]]


def test_evaluation_speed_prints_a_ratio() -> None:
    case = CASES["bbox_small_jitter"]
    result = evaluation_speed(
        RECORDED / case["ground_truth"],
        json.loads((RECORDED / case["detections"]).read_text()),
        copies=2,
        repeats=1,
    )
    assert result["images"] == 158 and result["detections"] == 2 * case["n_detections"]
    assert (
        result["ratio"] == pytest.approx(result["pycocotools_time_ms"] / result["hotcoco_time_ms"])
        and result["ratio"] > 1
    )
    assert "158 images" in render_evaluation_speed(result)
