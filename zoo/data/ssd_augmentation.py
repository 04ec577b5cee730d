"""SSD's training augmentation (Liu et al., ECCV 2016, section 2.2 and 3.6) as PytorchSSD-HarDNet draws it:
crop, colours, expand, mirror, resize.

Images are (H, W, 3) uint8 BGR, boxes (R, 4) float64 corners in pixels, labels (R,). Every draw comes from a
`random.Random`, in a fixed order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from detection_zoo.zoo.data.resizing import FixedSize, NoResize
from detection_zoo.zoo.data.transforms import Preprocess, PreprocessedImage

MINIMUM_IOUS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, -math.inf)  # None: no crop; -inf: any crop is accepted
CROP_TRIES = 50
SMALLEST_SIDE = 0.01  # fraction of the image; smaller boxes are dropped
EXPAND_PROBABILITY = 0.6
FILL = (104, 117, 123)

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, boxes, labels


def box_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (R, S) of boxes (R, 4) and (S, 4), without an offset."""
    near = np.maximum(first[:, None, :2], second[None, :, :2])
    far = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.prod(far - near, axis=2) * (near < far).all(axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    return overlap / (areas[0][:, None] + areas[1] - overlap)


def random_crop(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, draw: Random) -> Sample:
    """Crop to a part with at least a drawn IoU with every box; boxes with their centre inside are kept,
    clipped.

    Args:
        image: (H, W, 3) uint8.
        boxes: (R, 4) float64, R at least 1; labels: (R,).
        draw: source of randomness. A new IoU is drawn after 50 rejected parts.
    """
    while True:
        minimum = draw.choice(MINIMUM_IOUS)
        if minimum is None:
            return image, boxes, labels
        for _ in range(CROP_TRIES):
            part = _draw_part(image.shape[0], image.shape[1], draw)
            if box_ious(boxes, part[None]).min() < minimum:
                continue
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((part[:2] < centres) & (centres < part[2:])).all(axis=1)
            if inside.any():
                cut = np.concatenate(
                    [np.maximum(boxes[inside, :2], part[:2]), np.minimum(boxes[inside, 2:], part[2:])], axis=1
                )
                return image[part[1] : part[3], part[0] : part[2]], cut - np.tile(part[:2], 2), labels[inside]


def _draw_part(height: int, width: int, draw: Random) -> np.ndarray:
    """(4,) int64 corners of a part of 0.3 to 1 of the image's side, its shape within 1/2 to 2 of the
    image's."""
    scale = draw.uniform(0.3, 1.0)
    ratio = math.sqrt(draw.uniform(max(0.5, scale * scale), min(2, 1.0 / scale / scale)))
    w, h = int(scale * ratio * width), int(scale / ratio * height)
    left = draw.randrange(width - w)
    top = draw.randrange(height - h)
    return np.array([left, top, left + w, top + h])


def distort_colours(image: np.ndarray, draw: Random) -> np.ndarray:
    """Brightness, contrast, hue and saturation of an image (H, W, 3) uint8 BGR, each with probability a half;
    contrast before hue."""
    import cv2

    if draw.randrange(2):
        image = _linear(image, offset=draw.uniform(-32, 32))
    if draw.randrange(2):
        image = _linear(image, factor=draw.uniform(0.5, 1.5))
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    if draw.randrange(2):
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + draw.randint(-18, 18)) % 180
    if draw.randrange(2):
        hsv[:, :, 1] = _linear(hsv[:, :, 1], factor=draw.uniform(0.5, 1.5))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def _linear(values: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """Clipped to 0..255 and cut, not rounded, to whole numbers."""
    return np.clip(values.astype(np.float64) * factor + offset, 0, 255).astype(np.uint8)


def random_expand(
    image: np.ndarray, boxes: np.ndarray, draw: Random, *, probability: float = EXPAND_PROBABILITY
) -> tuple[np.ndarray, np.ndarray]:
    """Place the image at a random position on a canvas up to 4 times as large, filled with the mean colour.

    Args:
        image: (H, W, 3) uint8 BGR.
        boxes: (R, 4) float64.
        draw: source of randomness.
        probability: of doing so.
    """
    if draw.random() > probability:
        return image, boxes
    height, width = image.shape[:2]
    while True:
        scale = draw.uniform(1, 4)
        ratio = math.sqrt(draw.uniform(max(0.5, 1.0 / scale / scale), min(2, scale * scale)))
        if scale * ratio >= 1 and scale / ratio >= 1:
            break
    new_width, new_height = int(scale * ratio * width), int(scale / ratio * height)
    left = draw.randint(0, new_width - width)
    top = draw.randint(0, new_height - height)
    canvas = np.empty((new_height, new_width, 3), np.uint8)
    canvas[:] = FILL
    canvas[top : top + height, left : left + width] = image
    return canvas, boxes + np.array([left, top, left, top])


def random_mirror(image: np.ndarray, boxes: np.ndarray, draw: Random) -> tuple[np.ndarray, np.ndarray]:
    """Mirror image (H, W, 3) and boxes (R, 4) left to right with probability a half: x1' = W - x2."""
    if not draw.randrange(2):
        return image, boxes
    width = image.shape[1]
    return image[:, ::-1], np.stack(
        [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1
    )


def random_resize(image: np.ndarray, size: int, draw: Random) -> np.ndarray:
    """Resize an image (H, W, 3) to size x size pixels by one of five interpolations."""
    import cv2

    methods = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LANCZOS4)
    method = methods[draw.randrange(len(methods))]
    return cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=method)


@dataclass(frozen=True)
class SSDAugmentation:
    """The whole training transform of the SSD family.

    Args:
        preprocess: the row's own; its fixed size, channel order, mean and std are kept, its interpolation is
            drawn instead.
        expand_probability: of `random_expand`.
    """

    preprocess: Preprocess
    expand_probability: float = EXPAND_PROBABILITY

    def __post_init__(self) -> None:
        if not isinstance(self.preprocess.resize, FixedSize):
            raise ValueError(
                f"SSD's augmentation needs inputs of a fixed size, this row has {self.preprocess.resize}"
            )

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, draw: Random
    ) -> tuple[PreprocessedImage, np.ndarray, np.ndarray]:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: (R, 4) float64, original pixels; labels: (R,) int64.
            draw: source of randomness.

        Returns:
            the network's input; boxes (R', 4) float64 as fractions of it; their labels. If no box
            is left, the uncropped image with all its boxes.
        """
        image = np.ascontiguousarray(image[:, :, ::-1])
        if len(boxes):
            changed, changed_boxes, changed_labels = random_crop(image, boxes, labels, draw)
            changed, changed_boxes = random_expand(
                distort_colours(changed, draw), changed_boxes, draw, probability=self.expand_probability
            )
            changed, changed_boxes = random_mirror(changed, changed_boxes, draw)
            fractions = _fractions(changed, changed_boxes)
            network_input = self._finish(changed, image.shape[:2], draw)
            large = np.minimum(*(fractions[:, 2:] - fractions[:, :2]).T) > SMALLEST_SIDE
            if large.any():
                return network_input, fractions[large], changed_labels[large]
        return self._finish(image, image.shape[:2], draw), _fractions(image, boxes), labels

    def _finish(self, image: np.ndarray, original_size: tuple[int, int], draw: Random) -> PreprocessedImage:
        size = self.preprocess.resize.size
        pixels = random_resize(image, size, draw)
        normalised = replace(self.preprocess, resize=NoResize())(pixels[:, :, ::-1])
        return replace(
            normalised, original_size=original_size, scale=(size / image.shape[1], size / image.shape[0])
        )


def _fractions(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return boxes / np.array([width, height, width, height])
