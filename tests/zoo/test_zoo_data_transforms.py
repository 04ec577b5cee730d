"""Preprocessing equals what the four sources' own code computed, and follows their rules for sizes."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detection_zoo.zoo.conventions import ImageConventions
from detection_zoo.zoo.data.resizing import (
    FixedSize,
    NoResize,
    ResizeThenCentreCrop,
    ShorterSide,
    resize_pixels,
)
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.manifest_files import load_manifests

RECORDED = Path(__file__).resolve().parents[1] / "reference" / "evaluation" / "preprocessing.npz"
CAFFE_MEAN = (102.9801, 115.9465, 122.7717)
MASKRCNN = {"channel_order": "bgr", "value_range": "0..255", "mean": CAFFE_MEAN, "std": (1.0, 1.0, 1.0)}
IMAGENET = {
    "channel_order": "rgb",
    "value_range": "0..1",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
DETECTRON = {**MASKRCNN, "interpolation": "cv2_bilinear", "normalise_first": True}
SSD = {
    "channel_order": "bgr",
    "value_range": "0..255",
    "mean": (104, 117, 123),
    "std": (1, 1, 1),
    "interpolation": "cv2_bilinear",
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORDED) as arrays:
        return {name: arrays[name] for name in arrays.files}


def difference(value: np.ndarray, recorded: dict[str, np.ndarray], name: str) -> float:
    """Relative L2 difference from the recorded samples; infinite where shapes differ."""
    shape, samples, stride = (recorded[f"{name}|{field}"] for field in ("shape", "samples", "stride"))
    if name.endswith("@probe"):
        where = np.random.RandomState(zlib.crc32(name.split("|")[1].removesuffix("@probe").encode())).randint(
            0, value.size, 512
        )
        taken = value.reshape(-1)[where]
    elif value.shape != tuple(shape):
        return math.inf
    else:
        taken = value.reshape(-1)[:: int(stride)][: len(samples)]
    return float(
        np.linalg.norm(taken.astype(np.float64) - samples) / np.linalg.norm(samples.astype(np.float64))
    )


def ramp_image() -> np.ndarray:
    y, x, c = np.mgrid[:60, :80, :3]
    return ((3 * x + 5 * y + 80 * c + (x * y % 7)) % 256).astype(np.uint8)


@pytest.mark.parametrize(
    ("case", "size", "longest"), [("up", 96, 1333), ("down", 40, 1333), ("capped", 96, 100)]
)
def test_maskrcnn_benchmark_images(
    recorded: dict[str, np.ndarray], case: str, size: int, longest: int
) -> None:
    preprocess = Preprocess(**MASKRCNN, resize=ShorterSide(size, longest))
    image = preprocess(ramp_image())
    pixels = resize_pixels(ramp_image(), preprocess.resize.plan(60, 80), "pil_bilinear")
    tensor = image.tensor.numpy()
    assert difference(pixels, recorded, f"vovnet|image.{case}.resized") == 0
    assert difference(np.array(image.size[::-1]), recorded, f"vovnet|image.{case}.size") == 0
    assert difference(tensor, recorded, f"vovnet|image.{case}.normalised") < 1e-6
    assert difference(tensor.mean(axis=2), recorded, f"vovnet|image.{case}.row_means") < 1e-5
    assert difference(tensor.mean(axis=1), recorded, f"vovnet|image.{case}.column_means") < 1e-5


def test_maskrcnn_benchmark_sizes(recorded: dict[str, np.ndarray]) -> None:
    sizes = recorded["vovnet|in.image_sizes|samples"].reshape(-1, 2)
    plans = [ShorterSide(800, 1333).plan(int(height), int(width)) for width, height in sizes]
    resized = np.array([(plan.width, plan.height) for plan in plans])
    np.testing.assert_array_equal(resized, recorded["vovnet|image.test_sizes|samples"].reshape(-1, 2))
    np.testing.assert_array_equal(
        -(-resized // 32) * 32, recorded["vovnet|image.padded_sizes|samples"].reshape(-1, 2)
    )


@pytest.mark.parametrize(
    ("case", "size", "longest"), [("short", 10, 100), ("capped", 10, 11), ("down", 5, 100)]
)
def test_detectron_images(recorded: dict[str, np.ndarray], case: str, size: int, longest: int) -> None:
    bgr = recorded["detectron|image.in|samples"].reshape(7, 9, 3)
    image = Preprocess(**DETECTRON, resize=ShorterSide(size, longest, "round"))(bgr[:, :, ::-1])
    assert difference(image.tensor.numpy().transpose(1, 2, 0), recorded, f"detectron|image.{case}.out") < 1e-7
    scale = recorded[f"detectron|image.{case}.scale|samples"][0]
    assert image.scale == (scale, scale)


@pytest.mark.parametrize("suffix", ["", "@probe"])
@pytest.mark.parametrize(
    ("case", "keywords", "longest"),
    [
        ("prep_image_detnet", {**IMAGENET, "interpolation": "cv2_bilinear", "normalise_first": True}, None),
        ("prep_image_resnet", DETECTRON, None),
        ("prep_image_demo", {**IMAGENET, "interpolation": "cv2_bilinear", "normalise_first": True}, 80),
    ],
)
def test_detnet_images(
    recorded: dict[str, np.ndarray], case: str, keywords: dict, longest: int | None, suffix: str
) -> None:
    rgb = np.random.RandomState(70).randint(0, 256, (24, 37, 3)).astype(np.uint8)
    image = Preprocess(**keywords, resize=ShorterSide(60, longest, "round"))(rgb)
    assert difference(image.tensor.numpy().transpose(1, 2, 0), recorded, f"detnet|{case}{suffix}") < 1e-6


@pytest.mark.parametrize("size", [5, 16])
def test_ssd_images(recorded: dict[str, np.ndarray], size: int) -> None:
    bgr = np.random.RandomState(42).randint(0, 256, (9, 13, 3)).astype(np.uint8)
    image = Preprocess(**SSD, resize=FixedSize(size))(bgr[:, :, ::-1])
    np.testing.assert_array_equal(image.tensor.numpy(), recorded[f"hardnet|transform|{size}"])
    assert image.scale == (size / 13, size / 9)


@pytest.mark.parametrize("size", [300, 512])
def test_ssd_images_at_full_size(recorded: dict[str, np.ndarray], size: int) -> None:
    bgr = (
        np.random.RandomState(43)
        .randint(0, 256, (30, 40, 3))
        .astype(np.uint8)
        .repeat(8, axis=0)
        .repeat(8, axis=1)
    )
    image = Preprocess(**SSD, resize=FixedSize(size))(bgr[:, :, ::-1])
    np.testing.assert_array_equal(
        image.tensor.numpy()[:, :9, -11:], recorded[f"hardnet|transform|{size}_corner"]
    )


def test_tensorflow_1_resize_has_no_half_pixel_offset() -> None:
    """Worked by hand: twice as wide means input coordinates 0, 0.5, 1, 1.5 -> the last one repeats the
    edge."""
    row = np.array([[[0, 0, 0], [100, 50, 10]]], np.uint8)  # 1 high, 2 wide
    preprocess = Preprocess("rgb", "0..255", (0, 0, 0), (1, 1, 1), FixedSize(4), "tf1_bilinear")
    tensor = preprocess(np.repeat(row, 2, axis=0)).tensor.numpy()
    np.testing.assert_array_equal(tensor[0], np.tile([0, 50, 100, 100], (4, 1)))
    np.testing.assert_array_equal(tensor[2], np.tile([0, 5, 10, 10], (4, 1)))


def test_value_range_minus_one_to_one() -> None:
    image = np.array([[[0, 127, 255]]], np.uint8)
    tensor = Preprocess("rgb", "-1..1", (0, 0, 0), (1, 1, 1), NoResize())(image).tensor.numpy()
    np.testing.assert_allclose(tensor.reshape(-1), [-1, 127 / 127.5 - 1, 1], atol=1e-7)


@pytest.mark.parametrize("size", [(256, 341), (500, 333), (224, 300)])
def test_classifier_crop_equals_torchvision(size: tuple[int, int]) -> None:
    from PIL import Image
    from torchvision.transforms import v2

    pixels = np.random.RandomState(3).randint(0, 256, (*size, 3)).astype(np.uint8)
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])(Image.fromarray(pixels))
    ours = Preprocess("rgb", "0..255", (0, 0, 0), (1, 1, 1), ResizeThenCentreCrop(256, 224))(pixels).tensor
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_every_bundle_of_the_manifests_becomes_a_preprocess() -> None:
    image = np.random.RandomState(5).randint(0, 256, (90, 120, 3)).astype(np.uint8)
    bundles = load_manifests().conventions
    assert bundles
    for name, bundle in bundles.items():
        tensor = Preprocess.from_conventions(bundle.image)(image).tensor
        assert tensor.ndim == 3 and tensor.shape[0] == 3 and bool(tensor.isfinite().all()), name


def test_conventions_reach_the_rule() -> None:
    image = ImageConventions(
        channel_order="bgr",
        value_range="0..255",
        mean=list(CAFFE_MEAN),
        std=[1.0, 1.0, 1.0],
        resize="shorter_side",
        size=600,
        max_size=1000,
        interpolation="cv2_bilinear",
        rounding="round",
        normalise_first=True,
        size_divisor=32,
    )
    assert Preprocess.from_conventions(image) == Preprocess(
        **DETECTRON, resize=ShorterSide(600, 1000, "round"), size_divisor=32
    )


def test_pillow_cannot_resize_normalised_pixels() -> None:
    with pytest.raises(ValueError, match="uint8 pixels only"):
        Preprocess(**MASKRCNN, resize=ShorterSide(800), normalise_first=True)


def test_only_a_shorter_side_has_other_short_sides() -> None:
    assert Preprocess(**MASKRCNN, resize=ShorterSide(800, 1333)).with_short_side(640).resize == ShorterSide(
        640, 1333
    )
    with pytest.raises(TypeError, match="FixedSize"):
        Preprocess(**SSD, resize=FixedSize(300)).with_short_side(640)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("interpolation", "first"),
    [("pil_bilinear", False), ("cv2_bilinear", False), ("cv2_bilinear", True), ("tf1_bilinear", False)],
)
def test_every_bit_is_that_of_the_plain_arithmetic(order: str, interpolation: str, first: bool) -> None:
    """Written out with temporaries and in double precision, as the sources have it."""
    image = np.random.RandomState(3).randint(0, 256, (37, 53, 3)).astype(np.uint8)
    mean, std = np.array([10.5, 3.25, 7.1]), np.array([1.3, 2.0, 0.7])
    preprocess = Preprocess(
        order, "0..1", tuple(mean), tuple(std), FixedSize(30), interpolation, normalise_first=first
    )

    def normalised(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels[:, :, ::-1] if order == "bgr" else pixels
        return ((pixels.astype(np.float64) * (1 / 255.0) - mean) / std).astype(np.float32)

    if interpolation == "pil_bilinear":
        wanted = normalised(np.asarray(Image.fromarray(image).resize((30, 30), Image.Resampling.BILINEAR)))
    elif interpolation == "cv2_bilinear":
        resize = lambda pixels: cv2.resize(pixels, (30, 30), interpolation=cv2.INTER_LINEAR)  # noqa: E731
        wanted = resize(normalised(image)) if first else normalised(resize(image))
    else:
        y, x = (np.arange(30, dtype=np.float32) * np.float32(side / 30) for side in image.shape[:2])
        y0, x0, values = y.astype(int), x.astype(int), image.astype(np.float32)
        y1, x1 = np.minimum(y0 + 1, 36), np.minimum(x0 + 1, 52)
        rows = values[y0] + (values[y1] - values[y0]) * (y - y0).astype(np.float32)[:, None, None]
        across = (rows[:, x1] - rows[:, x0]) * (x - x0).astype(np.float32)[None, :, None]
        wanted = normalised(rows[:, x0] + across)
    np.testing.assert_array_equal(preprocess(image).tensor.numpy(), wanted.transpose(2, 0, 1))
