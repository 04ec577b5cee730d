"""SSD's augmentation beyond the recorded draws: images without boxes, boxes that vanish, channel order,
repeatability, batches."""

from __future__ import annotations

from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
import torch

from detection_zoo.zoo.data.coco import CocoDataset
from detection_zoo.zoo.data.resizing import FixedSize, ShorterSide
from detection_zoo.zoo.data.shapes import make_shapes
from detection_zoo.zoo.data.ssd_augmentation import (
    FILL,
    SSDAugmentation,
    distort_colours,
    random_crop,
    random_expand,
    random_mirror,
    random_resize,
)
from detection_zoo.zoo.data.targets import TargetRules
from detection_zoo.zoo.data.training_images import TrainingBatches
from detection_zoo.zoo.data.training_loader import TrainingLoader
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.manifest_files import load_manifests

PREPROCESS = Preprocess(
    "bgr", "0..255", (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), FixedSize(64), "cv2_bilinear"
)
BOXES = np.array([[10.0, 20.0, 60.0, 90.0], [50.0, 10.0, 110.0, 70.0]])
LABELS = np.array([3, 7])


def picture(seed: int = 0, shape: tuple[int, int] = (100, 120)) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (*shape, 3)).astype(np.uint8)


class Scripted(Random):
    """Draws from a list, in order: what happens is then known."""

    def __init__(self, *values: float) -> None:
        super().__init__(0)
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)

    def uniform(self, a: float, b: float) -> float:
        value = self.values.pop(0)
        assert a <= value <= b
        return value

    def randrange(self, stop: int) -> int:
        value = self.values.pop(0)
        assert 0 <= value < stop
        return int(value)

    def randint(self, a: int, b: int) -> int:
        return a + self.randrange(b - a + 1)

    def choice(self, options: tuple) -> object:
        return options[self.randrange(len(options))]


def test_a_crop_clips_what_stays_and_drops_what_has_its_centre_outside() -> None:
    """Any crop will do (the last mode), half the sides of a 100 x 120 image from (0, 10): the second box has
    its centre at x = 80."""
    part, boxes, labels = random_crop(picture(), BOXES, LABELS, Scripted(6, 0.5, 1.0, 0, 10))
    assert (
        part.shape == (50, 60, 3) and boxes.tolist() == [[10.0, 10.0, 60.0, 50.0]] and labels.tolist() == [3]
    )


def test_a_crop_must_satisfy_every_box() -> None:
    """IoU of the whole-image-but-a-line crop with the first box is 3500 / 11900 = 0.29: above 0.1, below 0.3
    (then the mode is drawn anew: unchanged)."""
    whole = (0.995, 1.0, 0, 0)
    assert random_crop(picture(), BOXES, LABELS, Scripted(1, *whole))[0].shape == (99, 119, 3)
    tries = [value for _ in range(50) for value in whole]
    draw = Scripted(2, *tries, 0)
    assert random_crop(picture(), BOXES, LABELS, draw)[0].shape == (100, 120, 3) and not draw.values


def test_expanding_fills_with_the_mean_colour_and_moves_boxes() -> None:
    image = picture()
    canvas, boxes = random_expand(image, BOXES, Scripted(0.6, 2.0, 1.0, 30, 40))
    assert canvas.shape == (200, 240, 3) and tuple(canvas[0, 0]) == FILL == (104, 117, 123)
    np.testing.assert_array_equal(canvas[40:140, 30:150], image)
    np.testing.assert_array_equal(boxes, BOXES + [30, 40, 30, 40])
    assert random_expand(image, BOXES, Scripted(0.61))[0] is image


def test_mirroring_is_between_edges() -> None:
    image, boxes = random_mirror(picture(), BOXES, Scripted(1))
    np.testing.assert_array_equal(image, picture()[:, ::-1])
    np.testing.assert_array_equal(boxes[0], [60.0, 20.0, 110.0, 90.0])


def test_brightness_is_cut_not_rounded_and_clipped() -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    assert distort_colours(grey, Scripted(1, 20.9, 0, 0, 0)).max() == 120
    assert distort_colours(np.full((2, 2, 3), 250, np.uint8), Scripted(1, 30.0, 0, 0, 0)).min() == 255
    assert distort_colours(grey, Scripted(0, 1, 0.509, 0, 0)).max() == 50


@pytest.mark.parametrize(
    ("place", "method"),
    list(
        enumerate([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LANCZOS4])
    ),
)
def test_the_five_interpolations(place: int, method: int) -> None:
    np.testing.assert_array_equal(
        random_resize(picture(), 33, Scripted(place)), cv2.resize(picture(), (33, 33), interpolation=method)
    )


def test_an_image_without_boxes_is_only_resized() -> None:
    draw = Scripted(3)
    image, boxes, labels = SSDAugmentation(PREPROCESS)(
        picture(), np.zeros((0, 4)), np.zeros(0, np.int64), draw
    )
    assert (
        image.tensor.shape == (3, 64, 64)
        and boxes.shape == (0, 4)
        and labels.shape == (0,)
        and not draw.values
    )
    expected = cv2.resize(
        np.ascontiguousarray(picture()[:, :, ::-1]), (64, 64), interpolation=cv2.INTER_NEAREST
    ).astype(np.float32) - np.array(FILL)
    np.testing.assert_array_equal(image.tensor.numpy(), expected.transpose(2, 0, 1))


def test_where_every_box_becomes_too_small_the_image_is_used_as_it_was() -> None:
    """Expanded four times, a box of 4 pixels is 4 / 480 of the side, below 0.01: the resize is drawn once
    more, for the original."""
    small = np.array([[10.0, 20.0, 14.0, 60.0]])
    draw = Scripted(0, 0, 0, 0, 0, 0.1, 4.0, 1.0, 0, 0, 0, 2, 3)
    image, boxes, _ = SSDAugmentation(PREPROCESS)(picture(), small, np.array([1]), draw)
    np.testing.assert_allclose(boxes, [[10 / 120, 0.2, 14 / 120, 0.6]])
    expected = cv2.resize(
        np.ascontiguousarray(picture()[:, :, ::-1]), (64, 64), interpolation=cv2.INTER_NEAREST
    )
    np.testing.assert_array_equal(image.tensor.numpy()[0] + 104, expected[:, :, 0])
    assert not draw.values and image.original_size == (100, 120)


def test_channel_order_changes_nothing_else() -> None:
    rgb = Preprocess("rgb", "0..255", (123.0, 117.0, 104.0), (1.0, 1.0, 1.0), FixedSize(64), "cv2_bilinear")
    first, boxes, _ = SSDAugmentation(PREPROCESS)(picture(), BOXES, LABELS, Random(5))
    second, same, _ = SSDAugmentation(rgb)(picture(), BOXES, LABELS, Random(5))
    torch.testing.assert_close(first.tensor.flip(0), second.tensor, rtol=0, atol=0)
    np.testing.assert_array_equal(boxes, same)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_stay_inside_and_large_enough(seed: int) -> None:
    _, boxes, labels = SSDAugmentation(PREPROCESS)(picture(seed), BOXES, LABELS, Random(seed))
    assert len(boxes) == len(labels) >= 1 and boxes.min() >= 0 and boxes.max() <= 1
    assert (boxes[:, 2:] - boxes[:, :2]).min() > 0.01 and set(labels) <= {3, 7}


def test_only_inputs_of_a_fixed_size() -> None:
    with pytest.raises(ValueError, match="fixed size"):
        SSDAugmentation(Preprocess("bgr", "0..255", (0.0,) * 3, (1.0,) * 3, ShorterSide(600), "cv2_bilinear"))


def test_batches_depend_on_seed_epoch_and_image_alone(tmp_path: Path) -> None:
    conventions = load_manifests().conventions["hardnet_ssd300"]
    preprocess = Preprocess.from_conventions(conventions.image)
    folder = make_shapes(tmp_path / "shapes", splits={"train": 4})
    dataset = CocoDataset(folder / "train", folder / "annotations" / "instances_train.json")

    def batch(seed: int, epoch: int, workers: int = 0) -> tuple[torch.Tensor, list[list[float]]]:
        batches = TrainingBatches(
            dataset,
            preprocess,
            TargetRules.from_conventions(conventions.targets),
            images_per_batch=4,
            seed=seed,
            augmentation=SSDAugmentation(preprocess),
        )
        start = epoch * len(batches.order(0))
        loader = TrainingLoader(batches, workers=workers, start=start, pin_memory=False)
        images, sizes, targets = next(iter(loader))
        assert images.shape == (4, 3, 300, 300) and sizes.tolist() == [[300, 300]] * 4
        assert all(
            t.boxes.min() >= 0 and t.boxes.max() <= 300 and len(t.boxes) == len(t.labels)
            for t in targets
            if len(t.boxes)
        )
        return images, [t.boxes.tolist() for t in targets]

    first, again, other = batch(1, 0), batch(1, 0, workers=2), batch(1, 1)
    torch.testing.assert_close(first[0], again[0], rtol=0, atol=0)
    assert first[1] == again[1] and not torch.equal(first[0], other[0])
