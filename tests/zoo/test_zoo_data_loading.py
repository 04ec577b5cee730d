"""Targets by each source's rules, the order of batches, padding, and what workers must not change."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from detection_zoo.zoo.data.base import GroundTruth
from detection_zoo.zoo.data.coco import CocoDataset, find_split
from detection_zoo.zoo.data.figures import KEYPOINT_NAMES
from detection_zoo.zoo.data.loading import DataWait, evaluation_loader, pad_batch
from detection_zoo.zoo.data.resizing import FixedSize, ShorterSide
from detection_zoo.zoo.data.samplers import grouped_order, target_ratios
from detection_zoo.zoo.data.shapes import make_shapes
from detection_zoo.zoo.data.targets import (
    TargetRules,
    make_target,
    mirrored_keypoints,
    trained_images,
    training_boxes,
)
from detection_zoo.zoo.data.training_images import TrainingBatches
from detection_zoo.zoo.data.training_loader import TrainingLoader
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.data.voc import VocAnnotation

RECORDED = Path(__file__).resolve().parents[1] / "reference" / "evaluation"
PLAIN = {"channel_order": "rgb", "value_range": "0..255", "mean": (0, 0, 0), "std": (1, 1, 1)}
PREPROCESS = Preprocess(**PLAIN, resize=ShorterSide(96, 160), size_divisor=32)


@pytest.fixture(scope="module")
def steps() -> dict:
    return json.loads((RECORDED / "hardnet_steps.json").read_text())


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORDED / "preprocessing.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", splits={"train": 24})


def shapes(folder: Path, keypoints: bool = False) -> CocoDataset:
    images, annotations, _ = find_split(folder, "train", keypoints)
    return CocoDataset(images, annotations)


def truth(
    boxes_xywh: list, areas: list | None = None, crowd: list | None = None, **fields: object
) -> GroundTruth:
    boxes = np.array(boxes_xywh, np.float64).reshape(-1, 4)
    return GroundTruth(
        boxes,
        np.arange(len(boxes)),
        np.array(crowd or [False] * len(boxes), bool),
        np.zeros(len(boxes), bool),
        np.array(areas if areas is not None else boxes[:, 2] * boxes[:, 3], np.float64),
        **fields,
    )


def test_coco_boxes_of_the_ssd_source(steps: dict) -> None:
    case = steps["coco_annotation"]
    boxes, areas, categories = zip(*case["bbox_area_cat"], strict=True)
    rules = TargetRules(extent_from_clipped=True, crowd=True, keep_thin=True, need_area=True, images="all")
    width, height = case["image_wh"]
    found, rows = training_boxes(truth(list(boxes), list(areas)), (height, width), rules)
    number = {category: place for place, category in enumerate(sorted(set(categories)), start=1)}
    np.testing.assert_array_equal(
        np.column_stack([found, [number[categories[row]] for row in rows]]), case["rows"]
    )


def test_voc_boxes_of_the_ssd_source(steps: dict, tmp_path: Path) -> None:
    from detection_zoo.zoo.data.voc import VocDataset, read_voc_xml, voc_classes

    case = steps["voc_annotation"]
    corners = "".join(
        f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), case["xml_box"], strict=True)
    )
    (tmp_path / "a.xml").write_text(
        f"<annotation><size><width>90</width><height>80</height></size><object><name>{case['name']}</name>"
        f"<difficult>{case['difficult']}</difficult><bndbox>{corners}</bndbox></object></annotation>"
    )
    annotation: VocAnnotation = read_voc_xml(tmp_path / "a.xml", voc_classes())
    dataset = object.__new__(VocDataset)
    dataset._label = {name: label for label, name in enumerate(voc_classes())}
    dataset.annotation = lambda index: annotation
    found, rows = training_boxes(dataset.target(0), (80, 90), TargetRules(images="all", keep_thin=True))
    np.testing.assert_array_equal(
        np.column_stack([found, dataset.target(0).labels[rows] + 1]), case["row"]
    )  # background is 0 there


def test_clipping_crowds_and_thin_boxes() -> None:
    boxes = [[-5, 2, 20, 10], [90, 40, 30, 30], [10, 10, 1, 8], [0, 0, 50, 50]]
    found, rows = training_boxes(truth(boxes, crowd=[False, False, False, True]), (60, 100), TargetRules())
    np.testing.assert_array_equal(
        found, [[0, 2, 14, 11], [90, 40, 99, 59]]
    )  # width 1 has x2 == x1 and goes, the crowd too
    found, rows = training_boxes(
        truth(boxes, crowd=[False, False, False, True]), (60, 100), TargetRules(inclusive=False, crowd=True)
    )
    np.testing.assert_array_equal(
        found, [[0, 2, 15, 12], [90, 40, 100, 60], [10, 10, 11, 18], [0, 0, 50, 50]]
    )
    assert rows.tolist() == [0, 1, 2, 3]


def test_whole_pixels_are_cut_not_rounded() -> None:
    found, _ = training_boxes(truth([[10.9, 20.9, 30.3, 40.3]]), (100, 100), TargetRules(whole_pixels=True))
    np.testing.assert_array_equal(found, [[10, 20, 40, 60]])  # 10.9 + 29.3 = 40.2, 20.9 + 39.3 = 60.2


def test_box_flip_equals_the_recorded_one(recorded: dict[str, np.ndarray]) -> None:
    corners = (
        recorded["vovnet|in.boxes.a|samples"][:32].reshape(8, 4).astype(np.float64)
    )  # complete: 64 x 4 fits the 512 samples
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2] + 1], axis=1)
    inside = [
        row
        for row in range(8)
        if corners[row].min() >= 0 and corners[row, 2] <= 159 and corners[row, 3] <= 127
    ]
    assert len(inside) >= 4
    target = make_target(
        truth(boxes[inside]), (128, 160), (1.0, 1.0), TargetRules(), resized_width=160, flip=True
    )
    np.testing.assert_allclose(
        target.boxes.numpy(), recorded["vovnet|boxes.flip|samples"].reshape(8, 4)[inside], atol=1e-4
    )


def test_keypoint_flip_equals_the_recorded_one(recorded: dict[str, np.ndarray]) -> None:
    points = recorded["vovnet|in.keypoints|samples"].reshape(2, 17, 3)
    both = truth([[1, 1, 90, 90], [2, 2, 90, 90]], keypoints=points)
    target = make_target(
        both, (96, 96), (1.0, 1.0), TargetRules(), resized_width=96, flip=True, keypoint_names=KEYPOINT_NAMES
    )
    np.testing.assert_array_equal(
        target.keypoints.numpy(), recorded["vovnet|keypoint_flip|samples"].reshape(2, 17, 3)
    )


def test_mirrored_keypoints_change_sides() -> None:
    order = mirrored_keypoints(KEYPOINT_NAMES)
    left_right = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
    assert order[0] == 0 and all(order[left] == right and order[right] == left for left, right in left_right)
    assert mirrored_keypoints(["nose", "tail"]) == [0, 1]


@pytest.mark.parametrize("flip_first", [False, True])
def test_polygons_move_with_their_boxes(flip_first: bool) -> None:
    """A box drawn as a polygon stays on its box; inclusive mirrors are one pixel off the far edge."""
    one = truth(
        [[10, 20, 30, 40]], masks=[[[10.0, 20.0, 40.0, 20.0, 40.0, 60.0, 10.0, 60.0], [1.0, 1.0, 2.0, 2.0]]]
    )
    rules = TargetRules(inclusive=False, flip_first=flip_first)
    target = make_target(one, (100, 80), (2.0, 3.0), rules, resized_width=160, flip=True)
    assert target.boxes.tolist() == [
        [80.0, 60.0, 140.0, 180.0]
    ]  # (80 - 40) * 2, 20 * 3, (80 - 10) * 2, 60 * 3
    assert target.scale == (2.0, 3.0)
    assert target.polygons == [
        [[140.0, 60.0, 80.0, 60.0, 80.0, 180.0, 140.0, 180.0]]
    ]  # two corners are no polygon


def test_flip_before_and_after_resizing_differ_by_the_inclusive_pixel() -> None:
    one = truth([[10, 20, 30, 40]])
    after = make_target(one, (100, 80), (2.0, 2.0), TargetRules(), resized_width=160, flip=True).boxes
    before = make_target(
        one, (100, 80), (2.0, 2.0), TargetRules(flip_first=True), resized_width=160, flip=True
    ).boxes
    assert after[0, 0] == 160 - 1 - 39 * 2 and before[0, 0] == (80 - 1 - 39) * 2


def test_images_without_objects_are_left_out(shapes_folder: Path) -> None:
    dataset = shapes(shapes_folder)
    kept = trained_images(dataset, TargetRules())
    empty = [index for index in range(len(dataset)) if not len(dataset.target(index))]
    assert empty and not set(empty) & set(kept)
    assert len(trained_images(dataset, TargetRules(images="all"))) == len(dataset)
    persons = trained_images(shapes(shapes_folder, keypoints=True), TargetRules(min_visible_keypoints=10))
    assert 0 < len(persons) < len(kept)


def test_an_image_with_a_crowd_alone() -> None:
    class Crowd:
        def __len__(self) -> int:
            return 1

        def target(self, index: int) -> GroundTruth:
            return truth([[10, 10, 50, 50]], crowd=[True])

        def image_size(self, index: int) -> tuple[int, int]:
            return 100, 100

    used = {
        images: len(trained_images(Crowd(), TargetRules(crowd=True, images=images)))
        for images in ("all", "annotated", "usable")
    }
    assert used == {"all": 1, "annotated": 1, "usable": 0}


def test_every_bundle_gives_rules() -> None:
    from detection_zoo.zoo.manifest_files import load_manifests

    rules = {
        name: TargetRules.from_conventions(b.targets)
        for name, b in load_manifests().conventions.items()
        if b.targets is not None
    }
    assert rules["detectron"] == TargetRules(crowd=True, need_area=True, images="usable", flip_first=True)
    assert (
        rules["detnet_large_scale"].max_objects == 50
        and rules["detnet_resnet"].max_objects == 20
        and rules["detnet"].whole_pixels
    )


def test_detectron_batches(recorded: dict[str, np.ndarray]) -> None:
    ratios = recorded["detectron|batch.ratios|samples"]
    np.testing.assert_array_equal(target_ratios(ratios, 2), recorded["detectron|batch.target_ratio2|samples"])
    np.testing.assert_array_equal(target_ratios(ratios, 4), recorded["detectron|batch.target_ratio4|samples"])
    np.testing.assert_array_equal(
        grouped_order(11, 2, np.random.RandomState(0)), recorded["detectron|batch.order_seed0|samples"]
    )


def test_detectron_pads_to_32(recorded: dict[str, np.ndarray]) -> None:
    bgr = recorded["detectron|image.in|samples"].reshape(7, 9, 3)
    preprocess = Preprocess(
        **PLAIN,
        resize=ShorterSide(10, 100, "round"),
        interpolation="cv2_bilinear",
        normalise_first=True,
        size_divisor=32,
    )
    batch = pad_batch([preprocess(bgr[:, :, ::-1]).tensor], 32)
    assert list(batch.shape) == recorded["detectron|image.blob_shape|samples"].tolist()


def test_padding_is_zero_right_and_below() -> None:
    batch = pad_batch([torch.ones(3, 5, 40), torch.full((3, 33, 7), 2.0)], 32)
    assert batch.shape == (2, 3, 64, 64)
    assert (
        batch[0, :, :5, :40].eq(1).all() and batch[0, :, 5:].eq(0).all() and batch[0, :, :, 40:].eq(0).all()
    )
    assert float(batch[1].sum()) == 2.0 * 3 * 33 * 7


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order(shapes_folder: Path, workers: int) -> None:
    dataset = shapes(shapes_folder).subset(7)
    batches = list(evaluation_loader(dataset, PREPROCESS, batch_size=3, workers=workers))
    assert [index for batch in batches for index in batch.indices] == list(range(7)) and [
        len(batch) for batch in batches
    ] == [3, 3, 1]
    for batch in batches:
        assert batch.images.shape[2] % 32 == 0 and batch.images.shape[3] % 32 == 0
        for place, index in enumerate(batch.indices):
            alone = PREPROCESS(dataset.load_image(index))
            assert tuple(batch.sizes[place].tolist()) == alone.size and tuple(
                batch.original_sizes[place].tolist()
            ) == dataset.image_size(index)
            assert torch.equal(batch.images[place, :, : alone.size[0], : alone.size[1]], alone.tensor)
            assert batch.decode_ms[place] > 0 and batch.resize_ms[place] > 0


@pytest.mark.parametrize(("order", "value_range"), [("bgr", "0..255"), ("rgb", "0..1")])
def test_normalising_on_the_device_changes_no_bit(shapes_folder: Path, order: str, value_range: str) -> None:
    preprocess = Preprocess(
        order, value_range, (0.3, 0.2, 0.1), (0.9, 0.7, 0.3), ShorterSide(96, 160), size_divisor=32
    )
    dataset = shapes(shapes_folder).subset(5)
    here = list(evaluation_loader(dataset, preprocess, batch_size=3))
    there = list(evaluation_loader(dataset, preprocess, batch_size=3, normalise_on_device=True))
    assert all(batch.images.dtype == torch.uint8 for batch in there)
    for one, other in zip(here, there, strict=True):
        moved = other.to("cpu")
        assert (
            moved.images.dtype == torch.float32
            and torch.equal(moved.images, one.images)
            and torch.equal(moved.to("cpu").images, one.images)
        )


def test_only_whole_bytes_are_normalised_on_the_device(shapes_folder: Path) -> None:
    preprocess = Preprocess(**PLAIN, resize=ShorterSide(96), interpolation="tf1_bilinear")
    batch = next(iter(evaluation_loader(shapes(shapes_folder), preprocess, normalise_on_device=True)))
    assert batch.images.dtype == torch.float32
    with pytest.raises(TypeError, match="tf1_bilinear"):
        preprocess.resize_only(np.zeros((9, 9, 3), np.uint8))


def epoch_of(batches: TrainingBatches, epoch: int = 0, workers: int = 0) -> Iterator[tuple]:
    """The batches of one epoch, from the stream that training reads."""
    start, count = sum(len(batches.order(e)) for e in range(epoch)), len(batches.order(epoch))
    return islice(TrainingLoader(batches, workers=workers, start=start, pin_memory=False), count)


def test_training_batches_depend_on_the_seed_alone(shapes_folder: Path) -> None:
    def first_epoch(seed: int, workers: int, epoch: int = 0) -> list[tuple]:
        batches = TrainingBatches(
            shapes(shapes_folder),
            PREPROCESS,
            TargetRules(),
            images_per_batch=2,
            seed=seed,
            short_sides=[64, 96],
        )
        return [
            (images.sum().item(), sizes.tolist(), [t.boxes.tolist() for t in targets])
            for images, sizes, targets in epoch_of(batches, epoch, workers)
        ]

    assert first_epoch(0, 0) == first_epoch(0, 2) != first_epoch(1, 0)
    assert first_epoch(0, 0) != first_epoch(0, 0, epoch=1)


def test_flipped_pixels_carry_flipped_boxes(shapes_folder: Path) -> None:
    dataset = shapes(shapes_folder).subset(3)
    rules = TargetRules(inclusive=False)
    plain, flipped = (
        {index: item for index, item in enumerate(_items(dataset, rules, chance))} for chance in (0.0, 1.0)
    )
    for index in plain:
        (image, size, target), (mirror, _, mirrored) = plain[index], flipped[index]
        width = int(size[1])
        assert torch.equal(image[:, :, :width].flip(-1), mirror[:, :, :width])
        torch.testing.assert_close(mirrored.boxes[:, 0], width - target.boxes[:, 2])


def _items(dataset: CocoDataset, rules: TargetRules, chance: float) -> list[tuple]:
    batches = TrainingBatches(dataset, PREPROCESS, rules, images_per_batch=1, flip_probability=chance)
    return [(images[0], sizes[0], targets[0]) for images, sizes, targets in epoch_of(batches)]


def test_short_sides_need_a_shorter_side(shapes_folder: Path) -> None:
    with pytest.raises(ValueError, match="shorter-side"):
        TrainingBatches(
            shapes(shapes_folder),
            Preprocess(**PLAIN, resize=FixedSize(64)),
            TargetRules(),
            images_per_batch=1,
            short_sides=[64],
        )


def test_waiting_for_data_is_counted_apart_from_work() -> None:
    def slow() -> Iterator[int]:
        for number in range(4):
            time.sleep(0.05)
            yield number

    wait = DataWait(2)
    for _ in wait.watch(slow()):
        time.sleep(0.1)
    assert wait.waited_s >= 0.2 and wait.whole_s - wait.waited_s >= 0.4
    assert str(wait).startswith("the model waited for data ") and str(wait).endswith("s, 2 workers)")
    quick = DataWait(0)
    assert list(quick.watch([1, 2])) == [1, 2] and "no workers" in str(quick)


@pytest.mark.parametrize(
    ("text", "device", "count"),
    [("auto", "cpu", 0), ("0", "cuda", 0), ("3", "cpu", 3), ("auto", "cuda", None)],
)
def test_workers_are_chosen_by_the_device(
    text: str, device: str, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detection_zoo.benchmarks.commands.options import MOST_WORKERS, workers_of

    found = workers_of(text, device)
    assert found == count if count is not None else 1 <= found <= MOST_WORKERS
    monkeypatch.setenv("WORLD_SIZE", "4096")  # processes on this machine: each has one
    assert workers_of("auto", "cuda") == 1 and workers_of("auto", "cpu") == 0
    for wrong in ("many", "-1", "1000", "2.5"):
        with pytest.raises(typer.BadParameter, match="neither auto nor a number"):
            workers_of(wrong, device)
