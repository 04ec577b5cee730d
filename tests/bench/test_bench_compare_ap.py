"""Intervals of AP: re-weighted images against pycocotools, coverage on generated sets, paired differences."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from generated_matches import made_up_set
from records import PHOTOS, run_of

from detection_zoo.benchmarks.evaluation.ap_intervals import (
    ImageMatches,
    class_matches,
    match_images,
    paired_difference,
    subset_interval,
    subset_intervals,
)
from detection_zoo.benchmarks.evaluation.coco_evaluation import EvaluationPlan, columns_of, truth_of
from detection_zoo.benchmarks.evaluation.coco_results import read_results
from detection_zoo.benchmarks.evaluation.subset_guard import images_of_results, refuse_naive_subset
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement, StoredFile
from detection_zoo.benchmarks.store import write_record
from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.errors import DatasetError


def by_pycocotools(document, results, images: list[int]) -> float:
    truth = truth_of(document, "bbox")
    plan = EvaluationPlan("bbox", [truth.image_place[image] for image in images], None, False)
    return plan.run("pycocotools", truth, columns_of(results, truth, "bbox")).statistics["AP"]


@cache
def small():
    document, (results,) = made_up_set(60, 6, seed=3)
    return (
        document,
        results,
        match_images(document, results, "bbox", [image["id"] for image in document["images"]]),
    )


def test_whole_and_subset_are_those_of_pycocotools() -> None:
    document, results, matches = small()
    every = [image["id"] for image in document["images"]]
    some = every[5:60:3]
    weights = np.array([[1] * 60, [int(image in some) for image in every]])
    wanted = [
        by_pycocotools(document, results, every),
        by_pycocotools(document, results, some),
    ]  # the second restricts ground truth to its images
    assert matches.score(weights) == pytest.approx(wanted, abs=1e-12)
    unrestricted = by_pycocotools(document, [r for r in results if r["image_id"] in some], every)
    assert unrestricted < 0.6 * wanted[1], "what a naive subset would give is another number altogether"


def test_a_weight_of_two_is_an_image_that_stands_there_twice() -> None:
    document, results, matches = small()
    twice, found = copy.deepcopy(document), list(results)
    for image in (1, 2, 7):
        twice["images"].append({**document["images"][image - 1], "id": 1000 + image})
        for annotation in [a for a in document["annotations"] if a["image_id"] == image]:
            twice["annotations"].append(
                {**annotation, "id": len(twice["annotations"]) + 1, "image_id": 1000 + image}
            )
        found += [{**r, "image_id": 1000 + image} for r in results if r["image_id"] == image]
    weights = np.ones((1, 60))
    weights[0, [0, 1, 6]] = 2
    assert matches.score(weights)[0] == pytest.approx(
        by_pycocotools(twice, found, [image["id"] for image in twice["images"]]), abs=1e-12
    )


@pytest.mark.parametrize(
    "case",
    [
        "bbox_tied_scores",
        "bbox_over_100_per_image",
        "bbox_images_without_detections",
        "segm_perturbed",
        "keypoints_perturbed",
    ],
)
def test_recorded_cases(data_folder: Path, case: str) -> None:
    folder = data_folder / "coco_eval_cases" / "generated"
    recorded = json.loads((folder / "expected.json").read_text())["cases"][case]
    truth = json.loads((folder / recorded["ground_truth"]).read_text())
    matches = match_images(
        truth,
        json.loads((folder / recorded["detections"]).read_text()),
        recorded["iou_type"],
        [i["id"] for i in truth["images"]],
    )
    assert matches.score(np.ones((1, matches.images)))[0] == pytest.approx(recorded["stats"]["AP"], abs=1e-12)


def restricted(matches: ImageMatches, chosen: np.ndarray) -> ImageMatches:
    """The matches of some images alone; matching looks at one image at a time, so nothing has to be matched
    again."""
    place = np.full(matches.images, -1)
    place[chosen] = np.arange(len(chosen))
    classes = []
    for one in matches.classes:
        kept = place[one.image] >= 0
        order = np.arange(kept.sum(), 0, -1, dtype=float)  # they are in order of score already
        classes.append(
            class_matches(
                place[one.image[kept]], order, one.matched[:, kept], one.ignored[:, kept], one.truths[chosen]
            )
        )
    return ImageMatches(classes, len(chosen))


def test_the_interval_of_a_subset_covers_the_ap_of_all_images_in_90_of_100_draws() -> None:
    document, (results,) = made_up_set(800, 10, seed=0)
    matches = match_images(document, results, "bbox", [image["id"] for image in document["images"]])
    full, draw, hits, plain = matches.score(np.ones((1, 800)))[0], np.random.default_rng(5), 0, 0
    for _ in range(100):
        subset = restricted(matches, np.sort(draw.choice(800, 100, replace=False)))
        found = subset_interval(subset, 800)
        hits += found.low <= full <= found.high
        spread = subset.score(
            draw.multinomial(100, [0.01] * 100, 60)
        )  # an ordinary bootstrap of the subset knows nothing of its bias
        plain += np.quantile(spread, 0.025) <= full <= np.quantile(spread, 0.975)
    print(f"the interval covered {hits} of 100, the ordinary bootstrap {plain} of 100")
    assert hits >= 90 > plain


def test_no_interval_where_categories_are_too_rare() -> None:
    document, (results,) = made_up_set(40, 60, seed=1)
    found = subset_interval(match_images(document, results, "bbox", range(1, 41)), 5000)
    assert found.low is None and "fewer than 5 images (of 40 here)" in found.reason and 0 < found.value < 1


def test_a_subset_that_is_nearly_everything_is_nearly_sure() -> None:
    _, _, matches = small()
    near, far = subset_interval(matches, 61), subset_interval(matches, 6000)
    assert near.high - near.low < 0.2 * (far.high - far.low)
    assert subset_interval(matches, 60).low == pytest.approx(subset_interval(matches, 60).value)


def test_models_of_equal_skill_differ_by_noise_and_a_model_differs_from_itself_by_nothing() -> None:
    document, models = made_up_set(250, 8, seed=2, models=8)
    found = [match_images(document, results, "bbox", range(1, 251)) for results in models]
    pairs = [paired_difference(a, b, draws=300) for a, b in zip(found[::2], found[1::2], strict=True)]
    assert sum(pair.may_be_noise for pair in pairs) >= 3 and all(
        pair.low < pair.value < pair.high for pair in pairs
    )
    same = paired_difference(found[0], found[0], draws=50)
    assert (same.value, same.low, same.high, same.below, same.above) == (0, 0, 0, 0, 0)


def test_a_worse_model_is_told_from_noise() -> None:
    document, (results,) = made_up_set(250, 8, seed=2)
    good = match_images(document, results, "bbox", range(1, 251))
    missing = match_images(
        document, [r for number, r in enumerate(results) if number % 6], "bbox", range(1, 251)
    )
    found = paired_difference(good, missing, draws=300)
    assert not found.may_be_noise and found.high < 0 and found.below == 300
    with pytest.raises(ValueError, match="same images"):
        paired_difference(good, small()[2])


def test_measurements_of_a_subset_get_the_interval_and_those_of_a_split_do_not(tmp_path: Path) -> None:
    document, results, _ = small()
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "bbox.json").write_text(json.dumps(results))
    whole = CocoDataset(tmp_path, tmp_path / "truth.json")
    measured = {"box_ap": Measurement(value=30.0, unit="%"), "box_ap50": Measurement(value=50.0, unit="%")}
    found = subset_intervals(measured, whole.subset(50), {"bbox": tmp_path / "bbox.json"})
    assert (
        set(found) == {"box_ap"}
        and "all 60 images" in found["box_ap"].note
        and found["box_ap"].interval[0] < found["box_ap"].interval[1]
    )
    assert subset_intervals(measured, whole, {"bbox": tmp_path / "bbox.json"}) == {}


def test_detections_of_a_subset_are_never_measured_against_all_ground_truth(tmp_path: Path) -> None:
    document, results, _ = small()
    (tmp_path / "truth.json").write_text(json.dumps(document))
    whole = CocoDataset(tmp_path, tmp_path / "truth.json")
    file = tmp_path / "detections" / "some-run" / "bbox.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([r for r in results if r["image_id"] <= 20]))

    def guard(dataset: CocoDataset, every_image: bool = False) -> None:
        found = images_of_results(read_results(file, dataset), dataset)
        refuse_naive_subset(file, dataset, found, every_image)

    guard(whole.subset(20))
    with pytest.raises(DatasetError, match="--images N.*--every-image"):
        guard(whole)
    guard(whole, every_image=True)  # nobody but the asker can know
    some = PHOTOS.model_copy(update={"images": 20, "images_of_split": 60})
    write_record(tmp_path / "runs", run_of("a.demo", {}, id="some-run", data=some))
    with pytest.raises(DatasetError, match="20 of 60 images.*give --images 20"):
        guard(whole, every_image=True)  # the record says that every image was processed
    file.write_text("[]")
    guard(whole.subset(20))


@pytest.mark.usefixtures("drawn_shapes")
def test_box_ap_of_keypoint_rows_is_over_persons_and_called_so(tmp_path: Path) -> None:
    """And is not compared with a box AP over all classes."""
    from detection_zoo.benchmarks.compare.judging import accuracy_pairs
    from detection_zoo.benchmarks.compare.options import CompareOptions

    (tmp_path / "bbox.json").write_text("[]")
    file = {"bbox": StoredFile(name="bbox.json", sha256="0" * 64, bytes=2)}
    rows = {
        "a": "keypoint_rcnn_resnet14_slim_fpn.demo",
        "b": "keypoint_rcnn_resnet14_slim_fpn.demo",
        "c": "faster_rcnn_resnet14_slim_fpn.demo",
    }
    pairs = accuracy_pairs(
        dict.fromkeys(rows, file), tmp_path, rows.get, "a", "shapes", BenchmarkSpec(device="cpu"),
        CompareOptions(),
    )  # fmt: skip
    assert [(pair.metric, pair.other) for pair in pairs] == [("person_ap", "b")]
