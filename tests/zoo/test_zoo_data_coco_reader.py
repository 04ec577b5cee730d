"""The reader of COCO annotations: what exporters write in fields that count is converted or refused by name; fields
that do not count are passed over."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.coco_reader import CocoAnnotations, annotations_of, read_coco
from detection_zoo.zoo.data.fields import plain_numbers
from detection_zoo.zoo.data.rle import code_sums
from detection_zoo.zoo.errors import DatasetError

DOCUMENT = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (7, 3)],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 8], "area": 70.5, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 1},
    ],
}


def read(change: Callable[[dict, dict, dict, dict], Any] = lambda *_: None) -> CocoAnnotations:
    """The document with a change to it, its first image, first category and first annotation."""
    document = copy.deepcopy(DOCUMENT)
    change(document, document["images"][0], document["categories"][0], document["annotations"][0])
    return annotations_of(json.loads(json.dumps(document)), "truth.json")


PASSED_OVER = {
    "CVAT's capture date": lambda d, image, c, a: image.update(date_captured=0, license=0, flickr_url=0),
    "a licence as text": lambda d, image, c, a: (
        image.update(license="CC"),
        d.update(licenses="CC", info=[]),
    ),
    "a numeric supercategory": lambda d, i, category, a: category.update(supercategory=3),
    "a named skeleton": lambda d, i, category, a: category.update(skeleton={"leg": ["a", "b"]}),
    "attributes and counts": lambda d, i, c, item: item.update(attributes={"x": 1}, num_keypoints="no"),
    "an id that is no id": lambda d, i, c, item: item.update(id=[]),
    "no id": lambda d, i, c, item: item.pop("id"),
    "an id of 0 and one below": lambda d, i, c, item: (item.update(id=0), d["annotations"][1].update(id=-4)),
    "ids as text": lambda d, i, c, item: (item.update(id="a"), d["annotations"][1].update(id="b")),
    "ids as numbers in text": lambda d, image, c, item: (image.update(id="7"), item.update(category_id="9")),
    "ids with a point": lambda d, image, c, item: (image.update(id=7.0), item.update(category_id=9.0)),
    "sides as text": lambda d, image, c, a: image.update(height="20", width=30.0),
    "a crowd flag as text": lambda d, i, c, item: item.update(iscrowd="0"),
    "no crowd flag": lambda d, i, c, item: item.update(iscrowd=None),
    "an area as text": lambda d, i, c, item: item.update(area="70.5"),
    "an empty segmentation": lambda d, i, c, item: item.update(segmentation=[[]] and []),
}


@pytest.mark.parametrize("case", PASSED_OVER)
def test_fields_that_do_not_count_are_passed_over(case: str) -> None:
    plain, found = read(), read(PASSED_OVER[case])
    for name in ("image_ids", "file_names", "category_ids", "category_names", "outlines", "keypoints"):
        assert getattr(found, name) == getattr(plain, name)
    for name in ("sizes", "image", "category", "boxes", "areas", "crowd"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    assert (
        plain.image_ids == [3, 7] and plain.category_names == ["cat", "dog"] and plain.sizes.shape == (2, 2)
    )
    assert plain.areas.tolist() == [70.5, 25] and plain.crowd.tolist() == [False, True]


def test_an_area_that_is_missing_is_that_of_the_box() -> None:
    for change in (lambda *r: r[3].update(area=None), lambda *r: r[3].pop("area")):
        assert read(change).areas.tolist() == [80, 25]


def test_ids_may_be_texts_and_numbers_below_zero() -> None:
    found = read(lambda d, image, c, item: (image.update(id="street"), item.update(image_id="street")))
    assert found.image_ids == [3, "street"] and found.image.tolist() == [1, 0]
    found = read(lambda d, image, c, item: (image.update(id=-7), item.update(image_id=-7)))
    assert found.image_ids == [-7, 3] and found.image.tolist() == [0, 1]
    assert read(lambda d, i, category, a: category.update(name=5)).category_names == ["cat", "5"]


def test_polygons_without_three_points_are_dropped() -> None:
    long, short = [1, 2, 11, 2, 11, 10], [1, 2, 3, 4]
    assert read(lambda *r: r[3].update(segmentation=[short, long])).outlines == [[long], None]
    assert read(lambda *r: r[3].update(segmentation=[short])).outlines == [None, None]


def test_run_lengths_may_be_a_list_or_a_code() -> None:
    pixels = np.zeros((20, 30), np.uint8)
    pixels[2:9, 4:20] = 1
    code = coco_mask.encode(np.asfortranarray(pixels))["counts"].decode()
    for counts in (code, [0, 5, 595]):
        outline = {"size": [20, 30], "counts": counts}
        assert read(lambda *r, o=outline: r[3].update(segmentation=o)).outlines[0] == outline


def test_sums_of_codes_are_those_of_the_images() -> None:
    random = np.random.default_rng(0)
    codes, wanted = [], []
    for _ in range(300):
        size = random.integers(1, 70, 2)
        pixels = (random.random(size) < random.random()).astype(np.uint8)
        codes.append(coco_mask.encode(np.asfortranarray(pixels))["counts"].decode())
        wanted.append(pixels.size)
    assert code_sums(codes).tolist() == wanted
    assert code_sums(["", "~", "P", "é", "nm3`2h3", "5oo", "oooooooooooo0"]).tolist() == [
        -1,
        -1,
        -1,
        -1,
        4230,
        -1,
        -1,
    ]


def test_any_number_of_keypoints() -> None:
    found = read(lambda *r: r[3].update(keypoints=[1, 2, 2, 3, 4, 1, 0, 0, 0, 5, 5, 2]))
    assert found.keypoint_names == ("point 1", "point 2", "point 3", "point 4") and found.sigmas == ()
    named = read(
        lambda d, i, category, item: (
            category.update(keypoints=["a", "b"], sigmas=[0.1, 0.2]),
            item.update(keypoints=[1, 2, 2, 3, 4, 1]),
        )
    )
    assert named.keypoint_names == ("a", "b") and named.sigmas == (0.1, 0.2)


REFUSED = {
    "an image id that is a list": (
        lambda *r: r[3].update(image_id=[]),
        r"annotations\[0\] .*'image_id' is \[\]",
    ),
    "an image id that is a flag": (lambda *r: r[3].update(image_id=True), "'image_id' is True"),
    "a category id that is an object": (lambda *r: r[3].update(category_id={}), "'category_id' is {}"),
    "an id of an image that is a list": (lambda *r: r[1].update(id=[]), r"images\[0\]: field 'id' is \[\]"),
    "an image that is a number": (
        lambda *r: r[0]["images"].append(5),
        r"images\[2\] is 5, expected a JSON object",
    ),
    "an annotation that is null": (lambda *r: r[0]["annotations"].append(None), r"annotations\[2\] is None"),
    "a list that is an object": (
        lambda *r: r[0].update(annotations={"a": 1}),
        "annotations is .*, expected a list",
    ),
    "a crowd flag in words": (lambda *r: r[3].update(iscrowd="many"), "'iscrowd' is 'many', expected 0 or 1"),
    "an area in words": (lambda *r: r[3].update(area="big"), "'area' is 'big', expected a finite number"),
    "an area below zero": (
        lambda *r: r[3].update(area=-5),
        "'area' is -5, expected a finite number of at least 0",
    ),
    "a box in words": (lambda *r: r[3].update(bbox=["a"] * 4), "'bbox' is .*, expected four finite numbers"),
    "a box of flags": (lambda *r: r[3].update(bbox=[True] * 4), "'bbox' is .*, expected four finite numbers"),
    "a box without bounds": (lambda *r: r[3].update(bbox=[0, 0, 1e308, 1e308]), "four finite numbers"),
    "a box of 400 digits": (lambda *r: r[3].update(bbox=[0, 0, 1, 10**400]), "four finite numbers"),
    "an image without height": (
        lambda *r: r[1].update(height=0),
        "'height' is 0, expected a number of pixels",
    ),
    "an image too large": (lambda *r: r[1].update(width=2**60), "'width' is .*, expected a number of pixels"),
    "a file name with a zero byte": (
        lambda *r: r[1].update(file_name="a\0b"),
        "'file_name' is .*, expected a string",
    ),
    "a class without a name": (lambda *r: r[2].update(name=None), r"categories\[0\]: field 'name' is None"),
    "polygons of words": (
        lambda *r: r[3].update(segmentation=[["a"] * 6]),
        "'segmentation' is .*, expected polygons",
    ),
    "polygons without bounds": (lambda *r: r[3].update(segmentation=[[1e308] * 6]), "expected polygons"),
    "a segmentation in words": (lambda *r: r[3].update(segmentation="x"), "expected polygons or an RLE"),
    "run lengths too short": (
        lambda *r: r[3].update(segmentation={"size": [20, 30], "counts": [5, 5]}),
        r"code of 10 pixels, height x width are 20 x 30 = 600",
    ),
    "run lengths below zero": (
        lambda *r: r[3].update(segmentation={"size": [20, 30], "counts": [-5, 605]}),
        "not integers of at least 0",
    ),
    "run lengths beyond bounds": (
        lambda *r: r[3].update(segmentation={"size": [20, 30], "counts": [2**40, 2**40]}),
        "code of 2199023255552 pixels",
    ),
    "a code too long": (
        lambda *r: r[3].update(segmentation={"size": [20, 30], "counts": "nm3`2h3"}),
        "code of 4230 pixels",
    ),
    "a damaged code": (
        lambda *r: r[3].update(segmentation={"size": [20, 30], "counts": "zzzz"}),
        "cannot be decoded: its counts are damaged",
    ),
    "keypoints in words": (lambda *r: r[3].update(keypoints="x"), "'keypoints' is 'x', expected a list"),
    "half a keypoint": (lambda *r: r[3].update(keypoints=[1, 2, 2, 3]), "has 4 numbers, expected 3"),
    "keypoints without numbers": (lambda *r: r[3].update(keypoints=["a", 2, 2]), "expected finite numbers"),
    "sigmas of another number": (
        lambda d, i, category, item: (category.update(keypoints=["a"], sigmas=[1, 2]), item),
        r"categories\[0\]: field 'sigmas' is \[1, 2\], expected 1 numbers above 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_fields_that_count_are_refused_by_name(case: str) -> None:
    change, said = REFUSED[case]
    with pytest.raises(DatasetError, match=said) as caught:
        read(change)
    assert str(caught.value).startswith("truth.json: ") and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        '{"images":' + "[" * 200_000 + "]" * 200_000 + "}",
        '{"images":[{"id":' + "9" * 5000 + "}]}",
        "\0",
        '"\\ud800"',
    ],
    ids=["deep", "5,000 digits", "a zero byte", "half a character"],
)
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(DatasetError, match="truth.json: not valid JSON"):
        read_coco(tmp_path / "truth.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(DOCUMENT), encoding=encoding)
    assert read_coco(tmp_path / "truth.json").image_ids == [3, 7]


def test_numbers_are_read_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((500, 4)) * 1000
    document = {
        **DOCUMENT,
        "annotations": [{"image_id": 7, "category_id": 9, "bbox": b} for b in values.tolist()],
    }
    (tmp_path / "truth.json").write_text(json.dumps(document))
    np.testing.assert_array_equal(read_coco(tmp_path / "truth.json").boxes, values)


def test_crowds_given_as_text_are_no_crowds_in_training(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["annotations"][0]["iscrowd"] = "0"
    (tmp_path / "truth.json").write_text(json.dumps(document))
    dataset = CocoDataset(tmp_path, tmp_path / "truth.json")
    assert dataset.target(1).crowd.tolist() == [False] and dataset.images_with_objects() == {3, 7}


def test_a_code_that_is_too_long_is_refused_at_once() -> None:
    """pycocotools walks over such a code for many minutes and takes no signal."""
    begun = time.process_time()
    with pytest.raises(DatasetError, match="run-length code"):
        read(lambda *r: r[3].update(segmentation={"size": [20, 30], "counts": "nm3`2h3" + "o" * 40}))
    assert time.process_time() - begun < 1


def test_plain_numbers_are_those_of_every_list_in_order() -> None:
    random = np.random.default_rng(0)
    lists = [random.choice([0, 1, -7, 0.0, 1.0, 2.5, 1e9, 1e-300], n).tolist() for n in [0, 4, 9] * 1000]
    lists[5][2] = 1  # a whole number
    assert plain_numbers(lists).tolist() == [number for each in lists for number in each]
    assert plain_numbers([]).tolist() == plain_numbers([[]]).tolist() == []


@pytest.mark.parametrize(
    "wrong",
    [True, False, np.bool_(True), "1.5", b"1", None, [1.0], {}, float("nan"), float("inf"), 1.1e9, -(10**10)]
    + [10**400],
)
@pytest.mark.parametrize("row", [0, 1023, 1024, 2999])
def test_plain_numbers_refuse_what_is_none(wrong: object, row: int) -> None:
    lists = [[1.0, 2.0, 0] for _ in range(3000)]
    lists[row][1] = wrong
    assert plain_numbers(lists) is None
