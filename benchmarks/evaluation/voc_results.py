"""PASCAL VOC results: one text file per class in the devkit's comp4 format; written, read and
checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from detection_zoo.benchmarks.evaluation.voc_evaluation import VocDetection
from detection_zoo.benchmarks.store import write_whole
from detection_zoo.zoo.data.voc import VocDataset
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.registry import did_you_mean

if TYPE_CHECKING:
    from detection_zoo.zoo.records import Detections


def voc_lines(
    detections: Detections, image: str, classes: tuple[str, ...], *, inclusive: bool
) -> list[tuple[str, str]]:
    """The detections of one image as (class, line): image, score with 3 decimals, 1-based inclusive box with
    1 decimal.

    Args:
        detections: boxes (R, 4) float32 in original pixels, counted from 0.
        image: the image's name.
        classes: names by label.
        inclusive: x2 and y2 are inclusive, so that each corner gets +1; otherwise they
            are edges, already 1-based.
    """
    far = 1.0 if inclusive else 0.0
    rows = zip(detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    return [
        (classes[label], f"{image} {score:.3f} {x1 + 1:.1f} {y1 + 1:.1f} {x2 + far:.1f} {y2 + far:.1f}")
        for label, score, (x1, y1, x2, y2) in rows
    ]


def write_voc_results(folder: Path, lines: list[tuple[str, str]], dataset: VocDataset) -> list[Path]:
    """Write comp4_det_SPLIT_CLASS.txt for every class, empty if there are no detections; each is written
    atomically."""
    paths = []
    for name in dataset.classes:
        text = "".join(f"{line}\n" for owner, line in lines if owner == name)
        path = folder / f"comp4_det_{dataset.split}_{name}.txt"
        write_whole(path, text.encode())
        paths.append(path)
    return paths


def read_voc_results(folder: Path, dataset: VocDataset) -> dict[str, list[VocDetection]]:
    """Read the comp4 files of a folder.

    Args:
        folder: holds comp4_det_SPLIT_CLASS.txt files; a class without a file has no detections.
        dataset: dataset with the valid images and classes; for a subset, detections of other
            images are dropped.

    Raises:
        DatasetError: names file and line: no such file at all, an unknown class or image, a line that is not
            image, score and box.
    """
    files = sorted(folder.glob(f"comp4_det_{dataset.split}_*.txt"))
    if not files:
        raise DatasetError(
            f"{folder}: holds no comp4_det_{dataset.split}_CLASS.txt file; give the folder that holds one for"
            " each class"
        )
    known, wanted = set(dataset.all_image_ids), set(dataset.image_ids)
    found: dict[str, list[VocDetection]] = {name: [] for name in dataset.classes}
    for path in files:
        name = path.stem.rsplit("_", 1)[1]
        if name not in found:
            raise DatasetError(
                f"{path}: {name!r} is not a class of {dataset.name}; {did_you_mean(name, dataset.classes)}"
            )
        found[name] += [
            d
            for d in parse_voc_lines(path.read_text(encoding="utf-8"), str(path), known)
            if d.image in wanted
        ]
    return found


def parse_voc_lines(text: str, where: str, known: set[str]) -> list[VocDetection]:
    """Detections from the text of one class's file; raises DatasetError with `where` and the line."""
    detections = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            image, (score, *box) = words[0], [float(word) for word in words[1:]]
        except ValueError:
            raise DatasetError(
                f"{where}: line {number}: {line!r:.60} is not image, score, xmin, ymin, xmax, ymax"
            ) from None
        if len(box) != 4 or not all(map(math.isfinite, (score, *box))):
            raise DatasetError(
                f"{where}: line {number}: {line!r:.60} is not image, score, xmin, ymin, xmax, ymax in finite"
                " numbers"
            )
        if image not in known:
            raise DatasetError(
                f"{where}: line {number}: image {image!r} is not in the split; are these detections"
                " from another split?"
            )
        detections.append(VocDetection(image, score, tuple(box)))
    return detections
