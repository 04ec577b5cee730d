"""Small random datasets in the shapes that exporters write: both engines agree, or the file is refused by
name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detection_zoo.benchmarks.evaluation.accuracy import evaluate_results_file
from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.errors import DatasetError

FIELD = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def rle(random: np.random.Generator, size: list[int]) -> dict[str, Any]:
    pixels = np.zeros(size, np.uint8)
    y, x = random.integers(0, size[0]), random.integers(0, size[1])
    pixels[y : y + random.integers(1, 30), x : x + random.integers(1, 30)] = 1
    code = coco_mask.encode(np.asfortranarray(pixels))
    return {"size": size, "counts": code["counts"].decode()}


def polygon(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w + 1, y, x + w + 1, y + h + 1, x, y + h + 1]


def keypoints(random: np.random.Generator, box: list[float], count: int) -> list[float]:
    places = np.array(box[:2]) + random.random((count, 2)) * np.array(box[2:])
    return np.column_stack([places, random.integers(0, 3, count)]).round(1).reshape(-1).tolist()


def made_up(random: np.random.Generator, kind: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A dataset of a few images with gaps in ids, crowds, empty images and absent fields, and results on it
    with ties; in one of three, one field is damaged or unusual."""
    first = int(random.choice([-3, 0, 1, 1000, 2**40]))
    ids = [first + int(step) for step in random.permutation(12)[: random.integers(1, 6)]]
    size = random.integers(20, 90, 2).tolist()
    images = [{"id": i, "file_name": f"{i}.jpg", "height": size[0], "width": size[1]} for i in ids]
    points = int(random.choice([1, 4, 17]))
    categories = [{"id": int(i), "name": f"c{i}"} for i in random.permutation(5)[: random.integers(1, 4)]]
    if kind == "keypoints":
        for category in categories:
            category["keypoints"] = [f"p{place}" for place in range(points)]
    annotations, results = [], []
    used = random.permutation(40)
    for number in range(random.integers(1, 15)):
        box = random.integers(0, 40, 4).astype(float).tolist()
        item = {
            "id": int(used[number]),
            "image_id": int(random.choice(ids)),
            "category_id": int(random.choice([c["id"] for c in categories])),
            "bbox": box,
            "area": float(random.choice([box[2] * box[3], 0, 1500, 20000])),
            "iscrowd": int(random.random() < 0.15),
            "segmentation": rle(random, size) if random.random() < 0.5 else [polygon(box)],
        }
        if kind == "keypoints":
            item["keypoints"] = keypoints(random, box, points)
        for absent in ("id", "area", "iscrowd"):
            if random.random() < 0.1:
                del item[absent]
        annotations.append(item)
        for _ in range(random.integers(0, 4)):
            moved = (np.array(box) + random.choice([0, 0, 1, -1, 0.5], 4)).tolist()
            found = {"image_id": item["image_id"], "category_id": item["category_id"]}
            found["score"] = float(random.choice([0.1, 0.5, 0.5, 0.9, 1]))
            if kind == "bbox":
                found["bbox"] = moved
            elif kind == "segm":
                found["segmentation"] = rle(random, size)
            else:
                found["keypoints"] = keypoints(random, moved, points)
            results.append(found)
    if random.random() < 0.33:
        damage(random, {"images": images, "categories": categories, "annotations": annotations}, results)
    random.shuffle(results)
    return {"images": images, "categories": categories, "annotations": annotations}, results


STRANGE = [
    None,
    "",
    "0",
    "1",
    "text",
    True,
    False,
    -1,
    0,
    2.0,
    2.5,
    1e308,
    10**30,
    [],
    {},
    [[]],
    [1, 2, 3, 4],
    "2",
]


def damage(random: np.random.Generator, document: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """One field of one record becomes something else."""
    records = (
        document[str(random.choice(list(document)))] if random.random() < 0.6 or not results else results
    )
    record = records[random.integers(len(records))]
    name = str(random.choice([*record, "date_captured", "supercategory", "license", "num_keypoints"]))
    record[name] = STRANGE[random.integers(len(STRANGE))]


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_both_engines_agree_or_the_file_is_refused(tmp_path: Path, kind: str) -> None:
    """The evaluation itself holds pycocotools against hotcoco on up to fifty images, here on all, and raises
    where any number differs by more than 1e-9."""
    refused = measured = 0
    for seed in range(100):
        document, results = made_up(np.random.default_rng([seed, len(kind)]), kind)
        truth, found = tmp_path / "truth.json", tmp_path / "results.json"
        truth.write_text(json.dumps(document))
        found.write_text(json.dumps(results))
        try:
            report = evaluate_results_file(found, CocoDataset(tmp_path, truth), kind)
        except DatasetError as error:
            refused += 1
            assert "truth.json" in str(error) or "results.json" in str(error), error
            assert "\n" not in str(error) and len(str(error)) < 500
        else:
            measured += 1
            assert all(0 <= value <= 100 for value in report.metrics.values())
    assert measured > 60 and refused > 5, (measured, refused)


def perfect(ids: list[Any], first: Any = 1, points: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One object an image, of the given annotation ids (None: no id), and detections equal to them."""
    images = [{"id": i, "file_name": "x", "height": 90, "width": 90} for i in range(len(ids))]
    category = {"id": first, "name": "a"}
    truth = [
        {"image_id": i, "category_id": first, "bbox": [5, 5, 40, 40]} | ({} if own is None else {"id": own})
        for i, own in enumerate(ids)
    ]
    if points:
        category["keypoints"] = [f"p{place}" for place in range(points)]
        truth = [{**item, "keypoints": [9, 9, 2] * points, "area": 1600} for item in truth]
    name = "keypoints" if points else "bbox"
    results = [
        {"image_id": i, "category_id": first, "score": 0.5, name: item[name]} for i, item in enumerate(truth)
    ]
    return {"images": images, "categories": [category], "annotations": truth}, results


def evaluated(folder: Path, document: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "results.json").write_text(json.dumps(results))
    return evaluate_results_file(folder / "results.json", CocoDataset(folder, folder / "truth.json"))


@pytest.mark.parametrize("ids", [[0, 1, 2], [3, None, 2, None, 1], [-5, "b", [], 2**70], [None] * 4], ids=str)
def test_annotation_ids_make_no_difference(tmp_path: Path, ids: list[Any]) -> None:
    """pycocotools takes an annotation of id 0 for "no match", and ids made up beside given ones collide."""
    assert evaluated(tmp_path, *perfect(ids)).metrics["box_ap"] == 100


@pytest.mark.parametrize("category", [0, -3, "cat", 2**40])
def test_category_ids_of_any_kind(tmp_path: Path, category: Any) -> None:
    document, results = perfect([1, 2], category)
    assert evaluated(tmp_path, document, results).metrics["box_ap"] == 100
    results[0]["image_id"] = "0"  # the number 0, as some tools write it
    assert evaluated(tmp_path, document, results).metrics["box_ap"] == 100


@pytest.mark.parametrize(
    ("points", "said"),
    [(17, "COCO's sigmas of 17 keypoints"), (4, "no sigmas given for these 4 keypoints: 1/4")],
)
def test_sigmas_are_stated(tmp_path: Path, points: int, said: str) -> None:
    document, results = perfect([1, 2], points=points)
    report = evaluated(tmp_path, document, results)
    assert report.metrics["keypoint_ap"] == 100 and said in report.note_of("keypoint_ap_m")
    results[0]["keypoints"] = [29, 9, 2] * points  # 20 pixels off
    off = evaluated(tmp_path, document, results).metrics["keypoint_ap"]
    document["categories"][0]["sigmas"] = [5.0] * points
    report = evaluated(tmp_path, document, results)
    assert off < report.metrics["keypoint_ap"] == 100 and "sigmas of the annotation file" in report.note_of(
        "keypoint_ap"
    )


def test_a_score_that_is_true_is_refused(tmp_path: Path) -> None:
    document, results = perfect([1])
    with pytest.raises(
        DatasetError, match=r"results.json: \[0\]: field 'score' is True, expected a finite number"
    ):
        evaluated(tmp_path, document, [{**results[0], "score": True}])
