"""Draw detections on images: boxes with class and score, masks, keypoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from detection_zoo.zoo.data.figures import KEYPOINT_NAMES, SKELETON

if TYPE_CHECKING:
    from detection_zoo.benchmarks.run.subject import Subject
    from detection_zoo.benchmarks.spec import BenchmarkSpec
    from detection_zoo.zoo.records import Detections

MASK_WEIGHT = 0.45
TEXT_SHARE, LEAST_TEXT = 40, 11  # label height: shorter image side / TEXT_SHARE, at least LEAST_TEXT pixels
LEAST_LOGIT = 2.0  # keypoints with a lower heatmap value are not drawn (Detectron's threshold)


def detect_pixels(subject: Subject, spec: BenchmarkSpec, pixels: np.ndarray, min_score: float) -> Detections:
    """Return the detections with a score of at least `min_score` (0..1), best first and on the CPU, in an
    image (H, W, 3) uint8 RGB; `spec` sets path and dtype."""
    import torch

    from detection_zoo.benchmarks.measure.inference import collate, to_host
    from detection_zoo.benchmarks.run.subject import autocast

    images, *sizes = collate([subject.preprocess(pixels)], subject.preprocess)
    with torch.inference_mode(), autocast(spec):
        found = to_host(subject.model.predict(images.to(subject.device), *sizes))[0]
    order = found.scores.argsort(descending=True, stable=True)
    return found.select(order[found.scores[order] >= min_score])


def draw(pixels: np.ndarray, found: Detections, class_names: tuple[str, ...], min_score: float) -> np.ndarray:
    """Draw every detection with a score of at least `min_score`, the best on top: mask, box, class and
    score, skeleton.

    Args:
        pixels: (H, W, 3) uint8 RGB; not changed.
        found: detections in pixels of this image; masks (R, H, W) bool.
        class_names: class names by label; if empty, the label's number is drawn.
        min_score: 0..1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

    kept = found.select((found.scores >= min_score).nonzero().squeeze(1))
    order = kept.scores.argsort().tolist()
    canvas = pixels.astype(np.float32)
    if kept.masks is not None:
        for place, row in enumerate(order):
            inside = kept.masks[row].numpy().astype(bool)
            paint = np.array(colour(place))  # one colour per object, to distinguish objects of the same class
            canvas[inside] = (1 - MASK_WEIGHT) * canvas[inside] + MASK_WEIGHT * paint
            canvas[mask_edge(inside)] = paint
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    width = max(1, round(min(picture.size) / 250))
    font = ImageFont.load_default(max(LEAST_TEXT, round(min(picture.size) / TEXT_SHARE)))
    for row in order:
        label, paint = int(kept.labels[row]), colour(int(kept.labels[row]))
        box = [float(v) for v in kept.boxes[row]]
        pen.rectangle(
            [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])],
            outline=paint,
            width=width,
        )
        _write(
            pen,
            box,
            f"{class_names[label] if label < len(class_names) else label} {float(kept.scores[row]):.2f}",
            paint,
            font,
            picture.size,
        )
        if kept.keypoints is not None:
            heat = kept.extra["keypoint_logits"][row].tolist() if "keypoint_logits" in kept.extra else None
            _draw_skeleton(pen, kept.keypoints[row].tolist(), heat, width)
    return np.array(picture)


def mask_edge(inside: np.ndarray) -> np.ndarray:
    """The outermost pixels (H, W) bool of a mask (H, W) bool: those with a 4-neighbour outside
    the mask."""
    around = np.pad(inside, 1)
    return inside & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def limbs(
    points: list[list[float]], heat: list[float] | None
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return the lines of a person's skeleton between confident keypoints, and along the middle of
    the body.

    Args:
        points: COCO's 17 keypoints, x and y first; for any other number no skeleton is drawn.
        heat: the heatmap value of each keypoint; None: all keypoints are used.
    """
    if len(points) != len(KEYPOINT_NAMES):
        return []
    place = {
        name: (point[0], point[1])
        for name, point, value in zip(
            KEYPOINT_NAMES, points, heat or [LEAST_LOGIT] * len(points), strict=True
        )
        if value >= LEAST_LOGIT
    }
    for middle, sides in (
        ("shoulders", ("left_shoulder", "right_shoulder")),
        ("hips", ("left_hip", "right_hip")),
    ):
        if all(side in place for side in sides):
            (x1, y1), (x2, y2) = (place[side] for side in sides)
            place[middle] = ((x1 + x2) / 2, (y1 + y2) / 2)
    pairs = [(KEYPOINT_NAMES[a - 1], KEYPOINT_NAMES[b - 1]) for a, b in SKELETON] + [
        ("nose", "shoulders"),
        ("shoulders", "hips"),
    ]
    return [(place[a], place[b]) for a, b in pairs if a in place and b in place]


def _draw_skeleton(pen: Any, points: list[list[float]], heat: list[float] | None, width: int) -> None:
    lines = limbs(points, heat)
    for number, (start, end) in enumerate(lines):
        pen.line([start, end], fill=colour(number), width=2 * width)
    for number, (x, y, *_) in enumerate(points):
        if heat is None or heat[number] >= LEAST_LOGIT:
            pen.ellipse(
                [x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width],
                fill=colour(number),
                outline=(0, 0, 0),
            )


def _write(
    pen: Any, box: list[float], text: str, paint: tuple[int, int, int], font: Any, size: tuple[int, int]
) -> None:
    """Draw the label above the box, or inside it at the upper image border; shift it left at the right
    border."""
    margin = max(2, round(font.size / 6))
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0.0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else max(0.0, box[1])
    pen.rectangle([x, y, x + width, y + height], fill=paint)
    pen.text((x + margin - left, y + margin - top), text, fill=(0, 0, 0), font=font)


def colour(label: int) -> tuple[int, int, int]:
    """Return a bright colour for a label; successive labels differ strongly (golden-angle hues)."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb((label * 0.618033988749895) % 1.0, 0.65, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def as_records(found: Detections, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return detections as plain values, in their order; boxes x1, y1, x2, y2 in pixels."""
    records = []
    for row, label in enumerate(found.labels.tolist()):
        record = {
            "class": class_names[label] if label < len(class_names) else str(label),
            "label": label,
            "score": float(found.scores[row]),
            "box": found.boxes[row].tolist(),
        }
        if found.masks is not None:
            record["mask_pixels"] = int(found.masks[row].sum())
        if found.keypoints is not None:
            record["keypoints"] = found.keypoints[row].tolist()
        records.append(record)
    return records
