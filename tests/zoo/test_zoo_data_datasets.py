"""Datasets: what a --data argument opens, how images are decoded, and one clear error for everything that can
be wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.coco_reader import read_coco
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.data.imagenet import ImageNetDataset
from detection_zoo.zoo.data.images import decode_image
from detection_zoo.zoo.data.voc import VocDataset, read_voc_xml, voc_classes
from detection_zoo.zoo.errors import DatasetError

PIXELS = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


JPEG = encode(Image.fromarray(PIXELS), quality=95)


def coco_document() -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (7, 3)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 9,
                "bbox": [1, 2, 10, 8],
                "area": 70.5,
                "iscrowd": 0,
                "segmentation": [[1, 2, 11, 2, 11, 10]],
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 2,
                "bbox": [0, 0, 5, 5],
                "area": 25,
                "iscrowd": 1,
                "segmentation": {"size": [20, 30], "counts": [0, 5, 595]},
            },
        ],
    }


def write_coco(
    folder: Path, document: dict | str | None = None, split: str = "val2017", prefix: str = "instances"
) -> Path:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir(exist_ok=True)
    for name in (7, 3):
        (folder / split / f"{name}.jpg").write_bytes(JPEG)
    text = document if isinstance(document, str) else json.dumps(document or coco_document())
    (folder / "annotations" / f"{prefix}_{split}.json").write_text(text)
    return folder


def test_coco_labels_follow_rising_category_id(tmp_path: Path) -> None:
    dataset = open_dataset(f"coco:{write_coco(tmp_path)}")
    assert isinstance(dataset, CocoDataset) and dataset.name == "coco:val2017"
    assert (
        dataset.classes == ("cat", "dog") and dataset.category_ids == (2, 9) and dataset.image_ids == [3, 7]
    )
    truth = dataset.target(1)
    assert (
        truth.labels.tolist() == [1, 0]
        and truth.crowd.tolist() == [False, True]
        and truth.area.tolist() == [70.5, 25]
    )
    assert truth.boxes.tolist() == [[1, 2, 11, 10], [0, 0, 5, 5]] and truth.boxes.dtype == np.float32
    assert len(dataset.target(0)) == 0 and dataset.target(0).boxes.shape == (0, 4)
    assert dataset.image_size(1) == (20, 30) and dataset.load_image(1).shape == (20, 30, 3)


def test_labels_follow_the_models_order_where_it_is_given(tmp_path: Path) -> None:
    dataset = open_dataset(f"coco:{write_coco(tmp_path)}", classes=["dog", "cat"])
    assert (
        dataset.classes == ("dog", "cat")
        and dataset.category_ids == (9, 2)
        and dataset.target(1).labels.tolist() == [0, 1]
    )


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["cat", "bird"], "class 'dog' is unknown to the model"),
        (["cat", "dog", "bird"], "predicts 'bird', which is not a class of this dataset"),
    ],
)
def test_classes_that_do_not_fit(tmp_path: Path, classes: list[str], said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        open_dataset(f"coco:{write_coco(tmp_path)}", classes=classes)
    assert "instances_val2017.json" in str(caught.value)


def test_subset_keeps_the_first_images_and_says_so(tmp_path: Path) -> None:
    dataset = open_dataset(f"coco:{write_coco(tmp_path)}", images=1)
    assert dataset.image_ids == [3] and dataset.all_image_ids == [3, 7] and dataset.is_subset
    assert dataset.describe() == {
        "dataset": "coco:val2017",
        "images": 1,
        "images_of_split": 2,
        "subset": True,
    }
    whole = open_dataset(f"coco:{tmp_path}")
    assert whole.subset([7]).image_ids == [7] and not whole.subset(99).is_subset and len(whole) == 2
    for wrong in (0, [8]):
        with pytest.raises(DatasetError, match="at least one image|no image has the id 8"):
            whole.subset(wrong)


def test_minival_is_val2017_or_the_2014_list(tmp_path: Path) -> None:
    write_coco(tmp_path)
    assert open_dataset(f"coco:{tmp_path}:minival").name == "coco:val2017"
    write_coco(tmp_path, split="val2014")
    (tmp_path / "annotations" / "instances_val2014.json").rename(
        tmp_path / "annotations" / "instances_minival2014.json"
    )
    dataset = open_dataset(f"coco:{tmp_path}:minival")
    assert dataset.name == "coco:minival2014" and dataset.image_path(0).parent.name == "val2014"


def test_test_dev_has_images_but_no_annotations(tmp_path: Path) -> None:
    document = {key: value for key, value in coco_document().items() if key != "annotations"}
    write_coco(tmp_path, document, split="test-dev2017", prefix="image_info")
    (tmp_path / "test-dev2017").rename(tmp_path / "test2017")
    dataset = open_dataset(f"coco:{tmp_path}:test-dev2017")
    assert not dataset.has_annotations and dataset.load_image(0).shape == (20, 30, 3)


def test_keypoint_annotations(tmp_path: Path) -> None:
    document = coco_document()
    document["categories"] = [{"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]}]
    document["annotations"] = [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 1,
            "bbox": [0, 0, 9, 9],
            "keypoints": [1, 2, 2, 3, 4, 1, 0, 0, 0],
            "num_keypoints": 2,
        }
    ]
    write_coco(tmp_path, document, prefix="person_keypoints")
    dataset = open_dataset(f"coco:{tmp_path}", keypoints=True)
    assert dataset.name == "coco:val2017:keypoints" and dataset.keypoint_names == (
        "nose",
        "left_eye",
        "right_eye",
    )
    assert dataset.target(1).keypoints.tolist() == [[[1, 2, 2], [3, 4, 1], [0, 0, 0]]] and dataset.target(
        0
    ).keypoints.shape == (0, 3, 3)


def edited(change: Callable[[dict], object]) -> dict:
    document = coco_document()
    change(document)
    return document


BROKEN_COCO = {
    "an empty file": ("", "not valid JSON"),
    "cut short": (json.dumps(coco_document())[:200], "not valid JSON"),
    "a results file": ("[]", "JSON object.*results file"),
    "no images": (edited(lambda d: d["images"].clear()), "'images' is missing or empty"),
    "no categories": (edited(lambda d: d.pop("categories")), "'categories' is missing or empty"),
    "no annotations": (edited(lambda d: d["annotations"].clear()), "no annotations"),
    "unknown category": (
        edited(lambda d: d["annotations"][1].update(category_id=5)),
        r"annotations\[1\] \(id 2\): category id 5",
    ),
    "unknown image": (
        edited(lambda d: d["annotations"][0].update(image_id=4)),
        r"annotations\[0\] \(id 1\): image id 4",
    ),
    "no box": (
        edited(lambda d: d["annotations"][0].pop("bbox")),
        r"annotations\[0\]: field 'bbox' is missing",
    ),
    "a box of three": (edited(lambda d: d["annotations"][0].update(bbox=[1, 2, 3])), "four finite numbers"),
    "a negative box": (
        edited(lambda d: d["annotations"][0].update(bbox=[1, 2, -3, 4])),
        "four finite numbers",
    ),
    "a box without numbers": (
        edited(lambda d: d["annotations"][0].update(bbox=[1, 2, float("nan"), 4])),
        "four finite numbers",
    ),
    "an image twice": (
        edited(lambda d: d["images"].append(d["images"][0])),
        r"images\[2\]: image id 7 occurs twice",
    ),
    "a category twice": (
        edited(lambda d: d["categories"].append(d["categories"][0])),
        r"categories\[2\]: category id 9 occurs twice",
    ),
    "an annotation twice": (
        edited(lambda d: d["annotations"][1].update(id=1)),
        r"annotations\[1\] \(id 1\): annotation id 1 occurs twice",
    ),
    "half a point": (
        edited(lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5]])),
        "'segmentation' is .*expected polygons",
    ),
    "a polygon that is no list": (
        edited(lambda d: d["annotations"][0].update(segmentation=[1, 2, 3, 4, 5, 6])),
        "expected polygons",
    ),
    "a mask of another size": (
        edited(lambda d: d["annotations"][0].update(segmentation={"size": [3, 4], "counts": [12]})),
        r"size \[3, 4\], .*image's size",
    ),
    "a mask without counts": (
        edited(lambda d: d["annotations"][0].update(segmentation={"size": [20, 30]})),
        "'counts' and",
    ),
    "points cut short": (
        edited(
            lambda d: (
                d["categories"][0].update(keypoints=["nose"]),
                d["annotations"][0].update(keypoints=[1, 2]),
                d["annotations"][0].update(category_id=d["categories"][0]["id"]),
            )
        ),
        "'keypoints' has 2 numbers, expected 3",
    ),
    "an image without size": (edited(lambda d: d["images"][1].pop("width")), r"images\[1\]: field 'width'"),
}


@pytest.mark.parametrize("case", BROKEN_COCO)
def test_broken_annotation_files(tmp_path: Path, case: str) -> None:
    document, said = BROKEN_COCO[case]
    write_coco(tmp_path, document if document != "" else " ")
    with pytest.raises(DatasetError, match=said) as caught:
        open_dataset(f"coco:{tmp_path}")
    assert "instances_val2017.json" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_image_and_wrong_size(tmp_path: Path) -> None:
    dataset = open_dataset(f"coco:{write_coco(tmp_path)}")
    (tmp_path / "val2017" / "3.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"3\.jpg: this image is listed but absent \(image 3 of .*instances_val2017.json"
    ):
        dataset.load_image(0)
    (tmp_path / "val2017" / "7.jpg").write_bytes(encode(Image.fromarray(PIXELS[:10])))
    with pytest.raises(DatasetError, match=r"7\.jpg: the image is 30x10 pixels .*30x20"):
        dataset.load_image(1)


@pytest.mark.parametrize("decoder", ["pil", "cv2"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"not an image at all", "cannot be decoded"),
        (JPEG[: len(JPEG) // 2], "cut short"),
        (JPEG[:-2], "cut short"),
        (JPEG[:2], "cut short|cannot be decoded"),
        (encode(Image.fromarray(PIXELS), "PNG")[:60], "cannot be decoded"),
    ],
)
def test_corrupt_images(decoder: str, data: bytes, said: str) -> None:
    with pytest.raises(DatasetError, match=rf"^x\.jpg: .*({said})"):
        decode_image(data, "x.jpg", decoder)


def test_what_is_no_image_is_told_without_python_objects() -> None:
    with pytest.raises(DatasetError, match=r"^README\.md: ") as caught:
        decode_image(b"# detection-zoo\n", "README.md")
    assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize("decoder", ["pil", "cv2"])
def test_grey_palette_alpha_and_cmyk_become_rgb(decoder: str) -> None:
    image = Image.fromarray(PIXELS)
    grey = np.asarray(image.convert("L"))
    found = decode_image(encode(image.convert("L"), "PNG"), "x", decoder)
    np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, axis=2))
    rgba = image.copy()
    rgba.putalpha(128)
    np.testing.assert_array_equal(decode_image(encode(rgba, "PNG"), "x", decoder), PIXELS)
    palette = image.quantize(8)
    np.testing.assert_array_equal(
        decode_image(encode(palette, "PNG"), "x", decoder), np.asarray(palette.convert("RGB"))
    )
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    red = decode_image(encode(flat, quality=100), "x", decoder)[4, 4]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


def test_only_opencv_follows_the_orientation_tag() -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by a quarter
    data = encode(image, quality=95, exif=exif)
    assert decode_image(data, "x", "pil").shape == (20, 30, 3) and decode_image(data, "x", "cv2").shape == (
        30,
        20,
        3,
    )


def test_both_decoders_agree_on_an_ordinary_jpeg() -> None:
    np.testing.assert_array_equal(decode_image(JPEG, "x", "pil"), decode_image(JPEG, "x", "cv2"))


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("cocoo:x", "unknown kind of dataset 'cocoo', did you mean 'coco'"),
        ("coco:", "the folder is missing; write coco:DIR"),
        ("voc:x", "year and split are missing; write voc:VOCDEVKIT:YEAR:SPLIT"),
        ("coco:/no/such/folder", "no such folder"),
        ("imagenet:/no/such/folder", "no such folder"),
        ("voc:/no/such/folder:2007:test", "VOC2007: no such folder"),
        ("shapes:tset", "contains instances_val.json, but nothing for split 'tset'"),
    ],
)
def test_arguments_that_name_nothing(
    argument: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(tmp_path))
    if argument.startswith("shapes"):
        from detection_zoo.zoo.data.shapes import VERSION, make_shapes

        make_shapes(tmp_path / "data" / f"shapes-{VERSION}-seed0", splits={"val": 2})
    with pytest.raises(DatasetError, match=said):
        open_dataset(argument)


def test_unknown_split_names_what_is_there(tmp_path: Path) -> None:
    write_coco(tmp_path)
    with pytest.raises(
        DatasetError,
        match="contains instances_val2017.json, but nothing for split 'val2071'; did you mean 'val2017'",
    ):
        open_dataset(f"coco:{tmp_path}:val2071")
    with pytest.raises(DatasetError, match="contains no person_keypoints_"):
        open_dataset(f"coco:{tmp_path}:val2017", keypoints=True)


def voc_xml(objects: str = "", size: str = "<size><width>30</width><height>20</height></size>") -> str:
    return f"<annotation>\n{size}\n{objects}</annotation>\n"


OBJECT = (
    "<object>\n<name>{name}</name>\n<difficult>{difficult}</difficult>\n"
    "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>12</xmax><ymax>9</ymax></bndbox>\n</object>\n"
)


def write_voc(
    folder: Path, xml: str | None = None, listed: str = "a\nb\n", year: str = "2007", prefix: str = ""
) -> Path:
    base = folder / f"VOC{year}"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / name).mkdir(parents=True)
    for name in (f"{prefix}a", f"{prefix}b"):
        (base / "JPEGImages" / f"{name}.jpg").write_bytes(JPEG)
        (base / "Annotations" / f"{name}.xml").write_text(
            voc_xml(OBJECT.format(name="Dog", difficult=0) + OBJECT.format(name="cat", difficult=1))
        )
    if xml is not None:
        (base / "Annotations" / f"{prefix}a.xml").write_text(xml)
    (base / "ImageSets" / "Main" / "test.txt").write_text(listed)
    return folder


def test_voc(tmp_path: Path) -> None:
    dataset = open_dataset(f"voc:{write_voc(tmp_path)}:2007:test")
    assert (
        isinstance(dataset, VocDataset)
        and dataset.image_ids == ["a", "b"]
        and dataset.classes == voc_classes()
    )
    truth = dataset.target(0)
    assert truth.labels.tolist() == [11, 7] and truth.difficult.tolist() == [False, True]
    assert truth.boxes.tolist() == [[0, 1, 12, 9]] * 2  # 1-based inclusive 1..12 are the pixels 0..11
    assert dataset.image_size(0) == (20, 30) and dataset.load_image(1).shape == (20, 30, 3)


def test_voc_years_join_and_class_lists_select(tmp_path: Path) -> None:
    write_voc(tmp_path)
    write_voc(tmp_path, listed="2012_a\n", year="2012", prefix="2012_")
    assert (
        open_dataset(f"voc:{tmp_path}:0712:test").image_ids
        == open_dataset(f"voc:{tmp_path}:2007+2012:test").image_ids
        == ["a", "b", "2012_a"]
    )
    (tmp_path / "VOC2007" / "ImageSets" / "Main" / "cat_test.txt").write_text("a  1\nb -1\n")
    assert open_dataset(f"voc:{tmp_path}:2007:cat_test").image_ids == ["a"]


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (voc_xml("<object>\n<name>dog</name>\n"), "line 5: malformed XML"),
        (voc_xml("<object>\n<name>dog</name>\n</object>\n"), "line 3: object 'dog' without a box"),
        (
            voc_xml(OBJECT.format(name="dogg", difficult=0)),
            "line 4: class 'dogg' is not in the list of classes; did you mean 'dog'",
        ),
        (voc_xml("<object>\n</object>\n"), "line 3: an object without <name>"),
        (
            voc_xml("<object>\n<name>dog</name>\n<bndbox>\n<xmin>1</xmin></bndbox></object>\n"),
            "line 5: <bndbox> has no <ymin>",
        ),
        (
            voc_xml(OBJECT.format(name="dog", difficult=0).replace(">12<", ">twelve<")),
            "line 6: <xmax> is 'twelve', expected a number",
        ),
        (
            voc_xml(OBJECT.format(name="dog", difficult=0).replace(">12<", ">0<")),
            "line 6: box .* far corner before its near one",
        ),
        (
            voc_xml(OBJECT.format(name="dog", difficult=0).replace(">12<", ">nan<")),
            "line 6: <xmax> is 'nan', expected a number",
        ),
        (
            voc_xml(size="<size><width>inf</width><height>20</height></size>"),
            "line 2: <width> is 'inf', expected a number",
        ),
        (voc_xml(size=""), "line 1: no <size>"),
        ("", "line 1: malformed XML"),
    ],
)
def test_broken_voc_annotations(tmp_path: Path, xml: str, said: str) -> None:
    dataset = open_dataset(f"voc:{write_voc(tmp_path, xml)}:2007:test")
    with pytest.raises(DatasetError, match=rf"a\.xml: {said}"):
        dataset.target(0)


def test_voc_annotation_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such annotation file"):
        read_voc_xml(tmp_path / "gone.xml", voc_classes())


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("", "test.txt: line 1: the image set is empty"),
        ("a\n\nc\n", "test.txt: line 3: image c is listed but absent"),
        ("a\nb\na\n", "test.txt: line 3: image a is listed twice, first on line 1"),
    ],
)
def test_broken_image_sets(tmp_path: Path, listed: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        open_dataset(f"voc:{write_voc(tmp_path, listed=listed)}:2007:test")


def test_voc_image_that_disappears_is_told_with_its_line(tmp_path: Path) -> None:
    dataset = open_dataset(f"voc:{write_voc(tmp_path)}:2007:test")
    (tmp_path / "VOC2007" / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"b\.jpg: this image is listed but absent \(.*test\.txt: line 2\)"
    ):
        dataset.load_image(1)


def test_imagenet_by_labels(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(JPEG)
    (tmp_path / "labels.csv").write_text("file,wnid,class_index,name\nx.jpg,n01514859,8,hen\n")
    dataset = open_dataset(f"imagenet:{tmp_path}", classes=1000)
    assert (
        dataset.label(0) == 8
        and dataset.classes[8] == "hen"
        and len(dataset.classes) == 1000
        and dataset.load_image(0).shape == (20, 30, 3)
    )
    assert dataset.target(0).labels.tolist() == [8]


def test_imagenet_by_folders(tmp_path: Path) -> None:
    for wnid in ("n02", "n01"):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        (tmp_path / "val" / wnid / "x.JPEG").write_bytes(JPEG)
    assert [open_dataset(f"imagenet:{tmp_path}", classes=2).label(i) for i in range(2)] == [0, 1]
    with pytest.raises(
        DatasetError,
        match="gives the order of 2 classes, the model has 1000; list all of them in .*wnids.txt",
    ):
        open_dataset(f"imagenet:{tmp_path}", classes=1000)
    (tmp_path / "wnids.txt").write_text("n00\nn01\nn02\n")
    assert [open_dataset(f"imagenet:{tmp_path}", classes=3).label(i) for i in range(2)] == [1, 2]
    (tmp_path / "wnids.txt").write_text("n00\nn01\n")
    with pytest.raises(DatasetError, match="'n02' is not among the 2 wnids"):
        open_dataset(f"imagenet:{tmp_path}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,wnid\nx,y\n", "line 1: no column 'class_index'"),
        ("file,class_index\nx.jpg,hen\n", "line 2: class_index is 'hen'"),
        ("file,class_index\n", "line 2: the list of images is empty"),
    ],
)
def test_broken_labels(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DatasetError, match=rf"labels\.csv: {said}"):
        open_dataset(f"imagenet:{tmp_path}")


def test_labels_beyond_the_models_classes(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,class_index\nx.jpg,9\ny.jpg,10\n")
    with pytest.raises(
        DatasetError, match=r"labels\.csv: line 3: class_index is 10, the model's 10 classes are 0 to 9"
    ):
        ImageNetDataset(tmp_path, classes=10)
    assert len(ImageNetDataset(tmp_path)) == 2


def test_empty_imagenet_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="neither labels.csv nor a folder"):
        open_dataset(f"imagenet:{tmp_path}")
    (tmp_path / "n01").mkdir()
    with pytest.raises(DatasetError, match="contain no image"):
        open_dataset(f"imagenet:{tmp_path}")


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError,
        match="is a classifier, which does not fit a dataset of kind coco; give --data imagenet:DIR",
    ):
        open_dataset(f"coco:{write_coco(tmp_path)}", classes=1000)
    with pytest.raises(DatasetError, match="no keypoint annotations"):
        open_dataset(f"voc:{tmp_path}:2007:test", keypoints=True)


def test_read_annotations_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="gone.json: no such COCO annotation file"):
        read_coco(tmp_path / "gone.json")


def test_real_images_decode_to_their_annotated_size(data_folder: Path) -> None:
    for argument in (
        f"coco:{data_folder / 'coco_mini'}:val2017",
        f"voc:{data_folder / 'voc_mini' / 'VOCdevkit'}:2007:test",
    ):
        dataset = open_dataset(argument, images=20)
        for index in range(len(dataset)):
            assert dataset.load_image(index).shape[:2] == dataset.image_size(index)
            height, width = dataset.image_size(index)
            boxes = dataset.target(index).boxes
            assert (
                (boxes[:, :2] >= 0).all()
                and (boxes[:, 2] <= width + 0.5).all()
                and (boxes[:, 3] <= height + 0.5).all()
            )
