"""`shapes`: what the made dataset must hold, that it is the same everywhere, and that processes share it
safely."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from detection_zoo.zoo.data.coco import CocoDataset, find_split
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.data.shapes import VERSION, make_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", splits={"train": 60, "val": 12})


def opened(folder: Path, split: str = "train", keypoints: bool = False) -> CocoDataset:
    images, annotations, _ = find_split(folder, split, keypoints)
    return CocoDataset(images, annotations)


def test_objects_of_every_kind(folder: Path) -> None:
    dataset = opened(folder)
    truths = [dataset.target(index) for index in range(len(dataset))]
    labels, areas, crowds = (
        np.concatenate([getattr(t, name) for t in truths]) for name in ("labels", "area", "crowd")
    )
    assert set(labels) == set(range(8)) and crowds.sum() >= 5
    single = areas[~crowds]
    shares = [
        (single < 32**2).mean(),
        ((single >= 32**2) & (single <= 96**2)).mean(),
        (single > 96**2).mean(),
    ]
    assert min(shares[:2]) > 0.3 and shares[2] > 0.02, f"small, medium and large objects: {shares}"
    assert any(len(t) == 0 for t in truths), "some images are empty"
    assert {dataset.image_size(i)[0] > dataset.image_size(i)[1] for i in range(len(dataset))} == {
        True,
        False,
    }, "upright and wide images"
    assert list(dataset.category_ids) != list(range(1, 9)), (
        "ids have gaps, so that they cannot pass for labels"
    )


def test_objects_overlap_but_none_hides_another(folder: Path) -> None:
    dataset = opened(folder)
    overlaps = [iou for index in range(len(dataset)) for iou in _overlaps(dataset.target(index).boxes)]
    assert max(overlaps) <= 0.301 and sum(iou > 0.1 for iou in overlaps) > 20


def _overlaps(boxes: np.ndarray) -> list[float]:
    low, high = (
        np.maximum(boxes[:, None, :2], boxes[None, :, :2]),
        np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
    )
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    iou = shared / (areas[:, None] + areas[None] - shared)
    return iou[np.triu_indices(len(boxes), 1)].tolist()


def test_masks_have_the_annotated_area_and_fit_their_box(folder: Path) -> None:
    from pycocotools import mask as coco_mask

    dataset = opened(folder)
    for index in range(12):
        truth, size = dataset.target(index), dataset.image_size(index)
        for mask, area, (x, y, w, h) in zip(truth.masks, truth.area, truth.boxes_xywh, strict=True):
            rle = (
                coco_mask.merge(coco_mask.frPyObjects(mask, *size))
                if isinstance(mask, list)
                else coco_mask.frPyObjects(mask, *size)
            )
            assert coco_mask.area(rle) == area
            found = coco_mask.toBbox(rle)
            assert (
                found[0] >= x - 1
                and found[1] >= y - 1
                and found[0] + found[2] <= x + w + 1
                and found[1] + found[3] <= y + h + 1
            )


def test_pixels_show_the_objects(folder: Path) -> None:
    """Inside a mask the colours differ from those of the pixels just outside it."""
    import cv2
    from pycocotools import mask as coco_mask

    dataset = opened(folder)
    contrasts = []
    for index in range(20):
        image, truth = dataset.load_image(index).astype(float), dataset.target(index)
        size = dataset.image_size(index)
        for mask in (mask for mask in truth.masks if isinstance(mask, list)):
            inside = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(mask, *size)))
            ring = cv2.dilate(inside, np.ones((5, 5), np.uint8)).astype(bool) & ~inside.astype(bool)
            inner = cv2.erode(inside, np.ones((3, 3), np.uint8)).astype(bool)
            if inner.any() and ring.any():
                contrasts.append(np.abs(image[inner].mean(axis=0) - image[ring].mean(axis=0)).max())
    assert len(contrasts) > 60 and np.median(contrasts) > 50
    assert np.mean(np.array(contrasts) > 15) > 0.9


def test_some_objects_are_truncated_and_stay_inside(folder: Path) -> None:
    dataset, truncated = opened(folder), 0
    for index in range(len(dataset)):
        height, width = dataset.image_size(index)
        boxes = dataset.target(index).boxes
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        truncated += int(((boxes == 0) | (boxes == [width, height, width, height])).any(axis=1).sum())
    assert truncated > 10


def test_keypoints_lie_on_their_person(folder: Path) -> None:
    dataset = opened(folder, keypoints=True)
    assert dataset.classes == ("person",) and len(dataset.keypoint_names) == 17
    flags: set[int] = set()
    for index in range(len(dataset)):
        truth = dataset.target(index)
        for points, box in zip(truth.keypoints, truth.boxes, strict=True):
            flags |= set(points[:, 2].astype(int).tolist())
            shown = points[points[:, 2] > 0]
            assert (shown[:, :2] >= box[:2] - 1).all() and (shown[:, :2] <= box[2:] + 1).all()
            for left, right in ((5, 6), (11, 12)):  # facing the viewer: the left is on the image's right
                if points[left, 2] and points[right, 2]:
                    assert points[left, 0] > points[right, 0]
    assert flags == {0, 1, 2}


def test_the_same_seed_gives_the_same_annotations(folder: Path, tmp_path: Path) -> None:
    again = make_shapes(tmp_path / "again", splits={"train": 60, "val": 12})
    other = make_shapes(tmp_path / "other", splits={"train": 60, "val": 12}, seed=1)
    name = "annotations/instances_train.json"
    first, second, third = (json.loads((home / name).read_bytes()) for home in (folder, again, other))
    assert second == first != third
    val = json.loads((folder / "annotations/instances_val.json").read_bytes())
    assert first["annotations"] != val["annotations"]


def _make(folder: str) -> str:
    return str(make_shapes(Path(folder), splits={"val": 6}))


def test_processes_may_ask_at_once(tmp_path: Path) -> None:
    target = tmp_path / "shared" / "shapes"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert set(pool.map(_make, [str(target)] * 3)) == {str(target)}
    assert sorted(p.name for p in target.parent.iterdir()) == ["shapes", "shapes.lock"]
    assert len(opened(target, "val")) == 6


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "shapes.part-dead"
    left.mkdir()
    (left / "half").write_text("x")
    make_shapes(tmp_path / "shapes", splits={"val": 2})
    assert not left.exists() and len(opened(tmp_path / "shapes", "val")) == 2


def test_opened_by_name_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(tmp_path))
    make_shapes(tmp_path / "data" / f"shapes-{VERSION}-seed0", splits={"train": 3, "val": 2})
    assert open_dataset("shapes").name == "shapes:val" and len(open_dataset("shapes:train")) == 3
    assert open_dataset("shapes", keypoints=True).name == "shapes:val:keypoints"
