"""The order of training images, flipped copies, cropping and padding, each by its source's rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detection_zoo.zoo.data.base import GroundTruth
from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.cropping import crop, crop_start, crop_to_ratio, fit_to_ratio
from detection_zoo.zoo.data.resizing import FixedSize, ShorterSide
from detection_zoo.zoo.data.samplers import AspectPairs, Entry, PaddedRatioGroups, RatioGroups, Shuffled
from detection_zoo.zoo.data.targets import TargetRules
from detection_zoo.zoo.data.training_images import TrainingBatches, training_item, upside_down
from detection_zoo.zoo.data.training_loader import TrainingLoader, training_batches
from detection_zoo.zoo.data.transforms import Preprocess, PreprocessedImage
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.records import Target

SIZES = [(10, 20), (30, 10), (10, 10), (10, 14), (10, 11), (20, 15), (10, 17)]  # (height, width)
PLAIN = {"channel_order": "rgb", "value_range": "0..1", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
TRAIN_DATA = Path(__file__).resolve().parents[1] / "reference" / "training" / "train_data"


def indices(batches: list[list[Entry]]) -> list[list[int]]:
    return [[entry.index for entry in batch] for batch in batches]


def test_pairs_hold_upright_or_wide_images_and_every_image_once() -> None:
    order = AspectPairs(range(7), SIZES, 2)
    batches = order.batches(3)
    assert sorted(index for batch in indices(batches) for index in batch) == list(range(7))
    for batch in indices(batches):
        assert len({SIZES[index][0] >= SIZES[index][1] for index in batch}) == 1
    assert batches == AspectPairs(range(7), SIZES, 2).batches(3) != order.batches(4)
    # by hand: upright are 1, 2, 5; a batch stands where its first image came
    assert indices(order.arranged([0, 1, 3, 2, 4, 5, 6])) == [[0, 3], [1, 2], [4, 6], [5]]


def test_processes_take_contiguous_shares_that_wrap_around() -> None:
    parts = [
        AspectPairs(range(7), [(1, 1)] * 7, 2, rank=rank, world_size=2).arranged([6, 5, 4, 3, 2, 1, 0])
        for rank in range(2)
    ]
    assert [indices(part) for part in parts] == [[[6, 5], [4, 3]], [[2, 1], [0, 6]]]
    with pytest.raises(ValueError, match="world_size"):
        AspectPairs([0], [(1, 1)], 1, rank=2, world_size=2)


def test_a_plain_shuffle_drops_the_incomplete_batch() -> None:
    order = Shuffled([10, 11, 12, 13, 14], [(1, 1)] * 5, 2)
    assert indices(order.arranged([4, 0, 3, 1, 2])) == [[14, 10], [13, 11]]
    parts = [Shuffled(range(9), [(1, 1)] * 9, 2, rank=rank, world_size=2) for rank in range(2)]
    assert [indices(part.arranged(range(9))) for part in parts] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_ratio_groups_bring_flipped_copies_and_drop_leftovers() -> None:
    order = RatioGroups(range(7), SIZES, 4)
    assert order.entries == 14
    ratios = [SIZES[entry.index][1] / SIZES[entry.index][0] for entry in order.sorted]
    assert ratios == sorted(ratios)
    assert sorted((entry.index, entry.flip) for entry in order.sorted) == [
        (index, flip) for index in range(7) for flip in (False, True)
    ]
    batches = order.batches(0)
    assert len(batches) == 3 and all(len(batch) == 4 for batch in batches)
    whole = [order.sorted[start : start + 4] for start in (0, 4, 8)]
    assert sorted(batches, key=str) == sorted(whole, key=str)  # groups stay whole, the last two are dropped
    assert all(entry.ratio is None for entry in order.sorted)


def test_processes_share_ratio_groups_of_one_batch() -> None:
    parts = [RatioGroups(range(7), SIZES, 2, rank=rank, world_size=3).batches(5) for rank in range(3)]
    one = RatioGroups(range(7), SIZES, 2).batches(5)
    assert [batch for group in zip(*parts, strict=True) for batch in group] == one[:6]


def test_padded_groups_are_those_of_the_whole_batch_and_aim_at_one_ratio() -> None:
    parts = [
        PaddedRatioGroups(range(7), SIZES, 2, rank=rank, world_size=2).arranged([1, 0]) for rank in (0, 1)
    ]
    whole = PaddedRatioGroups(range(7), SIZES, 4, aspect_cropping=True)
    assert [a + b for a, b in zip(*parts, strict=True)] == [
        [Entry(e.index, e.flip, e.ratio if e.ratio != 0.5 else 1 / 3) for e in group]
        for group in PaddedRatioGroups(range(7), SIZES, 4).arranged([1, 0])
    ]
    assert all(len({entry.ratio for entry in batch}) == 1 for batch in whole.batches(1))
    assert min(entry.ratio for entry in whole.sorted) >= 0.5  # 1/3 is held to 1/2


def test_a_window_starts_so_that_it_holds_the_objects() -> None:
    draws = np.random.RandomState(0)
    starts = {crop_start(10, 29, 40, 100, draws, last=True) for _ in range(200)}
    assert starts == set(range(11))  # from max(29 - 40, 0) to min(10, 60)
    starts = {crop_start(10, 29, 40, 100, draws, last=False) for _ in range(200)}
    assert starts == set(range(10))  # DetNet_pytorch never draws the last
    assert crop_start(0, 99, 40, 100, draws, last=True) == 0
    starts = {crop_start(10, 69, 40, 100, draws, last=True) for _ in range(200)}
    assert starts == set(range(10, 21))  # objects span 60 pixels: half of the 20 that do not fit


def item(width: int, height: int) -> tuple[PreprocessedImage, Target]:
    tensor = torch.arange(width, dtype=torch.float32).repeat(3, height, 1)
    target = Target(
        torch.tensor([[20.0, 1.0, 29.0, 8.0], [22.0, 2.0, 24.0, 5.0]]),
        torch.tensor([3, 4]),
        [[[20.0, 1.0, 29.0, 1.0, 29.0, 8.0]], [[22.0, 2.0, 24.0, 2.0, 24.0, 5.0]]],
        torch.tensor([[[21.0, 2.0, 2.0]], [[90.0, 2.0, 2.0]]]),
        torch.zeros(2, dtype=torch.bool),
    )
    return PreprocessedImage(tensor, (height, width), (height, width), (1.0, 1.0)), target


def test_cropping_moves_boxes_polygons_and_keypoints() -> None:
    (image, target), draws = item(100, 10), np.random.RandomState(1)
    cut, moved = crop((image, target), 0, 20, draws, last=True)
    start = int(cut.tensor[0, 0, 0])
    assert cut.size == (10, 20) and 0 < start <= 20
    assert torch.equal(moved.boxes[0], torch.tensor([20.0 - start, 1.0, min(29.0 - start, 19.0), 8.0]))
    assert moved.polygons[0] == [[20.0 - start, 1.0, 29.0 - start, 1.0, 29.0 - start, 8.0]]
    assert moved.keypoints[0].tolist() == [[21.0 - start, 2.0, 2.0]]
    assert moved.keypoints[1].tolist() == [[0.0, 0.0, 0.0]]  # outside: no longer labelled
    cut, moved = crop_to_ratio(item(100, 10), 2.0, draws)
    assert cut.size == (10, 20) and len(moved.boxes) == 2


def test_padding_to_a_ratio_and_cutting_to_a_square() -> None:
    draws = np.random.RandomState(0)
    wide, target = fit_to_ratio(item(40, 32), 1.5, 1.25, draws, None)
    assert wide.size == (32, 48) and not wide.tensor[:, :, 40:].any() and len(target.boxes) == 2
    square, target = fit_to_ratio(item(40, 25), 1.0, 1.6, draws, None)
    assert square.size == (25, 25) and target.boxes.max() == 25.0
    assert len(fit_to_ratio(item(40, 32), 1.5, 1.25, draws, 1)[1].boxes) == 1
    order = {fit_to_ratio(item(40, 32), 1.5, 1.25, draws, 1)[1].labels.item() for _ in range(30)}
    assert order == {3, 4}  # objects are shuffled before the first of them are taken


class OneImage(CocoDataset):
    """Made of numbers alone."""

    keypoint_names = ()

    def __init__(self, crowds: list[bool]) -> None:
        self.crowds, self.name = crowds, "one"
        self._rows = range(len(crowds))
        self.full_size = len(crowds)

    def image_size(self, index: int) -> tuple[int, int]:
        return 8, 8

    def load_image(self, index: int) -> np.ndarray:
        return np.full((8, 8, 3), index, np.uint8)

    def target(self, index: int) -> GroundTruth:
        return GroundTruth(
            np.array([[1.0, 1.0, 4.0, 3.0]]),
            np.array([0]),
            np.array([self.crowds[index]]),
            np.array([False]),
            np.array([12.0]),
        )


def test_batches_with_an_image_without_objects_are_skipped() -> None:
    dataset = OneImage([False, True, False, False])
    batches = TrainingBatches(
        dataset, Preprocess(**PLAIN, resize=ShorterSide(8)), TargetRules(), images_per_batch=1
    )
    assert sorted(index for batch in indices(batches.order(0)) for index in batch) == [0, 2, 3]
    shuffled = TrainingBatches(
        dataset,
        Preprocess(**PLAIN, resize=FixedSize(8)),
        TargetRules(images="all"),
        images_per_batch=1,
        batching="shuffled",
    )
    assert len(shuffled.order(0)) == 4


def test_a_vertical_flip_and_jitter_change_pixels_and_boxes() -> None:
    dataset, rules = OneImage([False]), TargetRules(inclusive=False)
    preprocess = Preprocess(**PLAIN, resize=ShorterSide(16))
    image, target = training_item(dataset, 0, preprocess, rules)
    _, flipped = training_item(dataset, 0, preprocess, rules, vertical_flip=True)
    assert flipped.boxes.tolist() == [[2.0, 16 - 8.0, 10.0, 16 - 2.0]]
    assert torch.equal(upside_down(flipped, 16, rules).boxes, target.boxes)
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    dataset.load_image = lambda index: np.full((8, 8, 3), (200, 100, 50), np.uint8)
    jittered = [
        training_item(dataset, 0, preprocess, rules, jitter=(0.5, 0.5, 0.5, 0.1), jitter_seed=seed)[0].tensor
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.rand(1), first)  # the generator of the training is left alone
    assert torch.equal(jittered[0], jittered[1]) and not torch.equal(jittered[0], jittered[2])
    assert not torch.equal(jittered[0], image.tensor)


@pytest.mark.parametrize(
    ("row", "images", "batch", "per_epoch"),
    [
        ("faster_rcnn_resnet50_fpn_2x.detectron_pytorch", 20, 3, 6),
        ("faster_rcnn_vovnet39_fpn_2x.vovnet", 10, 3, 4),  # incomplete batches stay
    ],
)
def test_the_stream_of_a_row_follows_its_source(row: str, images: int, batch: int, per_epoch: int) -> None:
    coco = TRAIN_DATA / "coco"
    dataset = CocoDataset(coco / "images", coco / "annotations" / "instances_train.json")
    loader = TrainingLoader(training_batches(load_manifests().entry(row), dataset, batch=batch))
    assert (loader.images, len(loader.batches.order(0))) == (images, per_epoch)
