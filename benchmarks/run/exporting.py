"""Export a row's model to a temporary file, compare it with the model, then move it into place."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from detection_zoo.benchmarks.measure.inference import collate
from detection_zoo.benchmarks.run.subject import Subject
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.export.files import EQUAL, LEAST, QUANTISED, compare_file, write
from detection_zoo.zoo.fast import SCORE

Images = list[tuple[Tensor, Tensor]]


def export_subject(
    subject: Subject,
    kind: str,
    path: Path,
    size: tuple[int, int] | None = None,
    calibration: Dataset | None = None,
) -> list[str]:
    """Write a subject's model for batches of one image.

    Args:
        subject: the comparison uses the images of its dataset.
        kind: a key of kinds.SUFFIXES. path: output file. size: (height, width) of the input in pixels;
            default: large enough for all those images.
        calibration: quantise an OpenVINO file's network by all of these images.

    Returns:
        Lines that say what was written and compared.

    Raises:
        ManifestError: the model cannot be exported, an image is larger than `size`, or the file's detections
            differ.
    """
    name, images = subject.entry.name, _images(subject, subject.dataset)
    calibrating = _images(subject, calibration)
    height, width = size or tuple(
        max(each.shape[side] for each, _ in [*images, *calibrating]) for side in (2, 3)
    )
    ids = [calibration.image_id(index) for index in range(len(calibration or ()))]
    if getattr(subject.model, "reads_sizes", False):  # its file is for images of one height
        height = size[0] if size else images[0][0].shape[2]
        ids = [one for one, (pixels, _) in zip(ids, calibrating, strict=True) if pixels.shape[2] == height]
        images, calibrating = (
            [one for one in every if one[0].shape[2] == height] for every in (images, calibrating)
        )
        if not images or (calibration is not None and not calibrating):
            raise ManifestError(
                f"row {name}: the pooling scale of this detector is computed from the image's height, so a"
                f" file is for one height; no image of the data has {height} pixels after its pre-processing"
            )
    batches, calibrating = (_padded(name, every, height, width) for every in (images, calibrating))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        try:
            write(subject.model, subject.entry, kind, (1, 3, height, width), made)
            if calibration is None:
                report = compare_file(subject.model, kind, made, batches, EQUAL, LEAST)
            else:
                from detection_zoo.zoo.export.quantise import quantise

                quantise(made, calibrating, {"dataset": calibration.name, "images": ids})
                report = compare_file(subject.model, kind, made, batches, QUANTISED, SCORE)
        except ValueError as error:
            raise ManifestError(f"row {name}: {error}") from error
        if not report.good:
            raise ManifestError(
                f"row {name}: the file was not kept, for its detections differ from the model's: on"
                f" {len(batches)} images {report}; {report.bound.share:.0%} are asked for"
            )
        for file in sorted(Path(folder).iterdir()):
            os.replace(file, path.parent / file.name)
    lines = [f"{path}: input 1x3x{height}x{width}", f"{len(batches)} images compared: {report}"]
    if calibration is not None:
        lines.insert(1, f"network in 8 bits, calibrated on {len(ids)} images of {calibration.name}")
    return lines


def _images(subject: Subject, dataset: Dataset | None) -> Images:
    """Every image (1, 3, H, W) of a dataset, with its size (1, 2)."""
    items = (subject.preprocess(dataset.load_image(index)) for index in range(len(dataset or ())))
    return [collate([item], subject.preprocess)[:2] for item in items]


def _padded(name: str, images: Images, height: int, width: int) -> Images:
    for pixels, _ in images:
        if pixels.shape[2] > height or pixels.shape[3] > width:
            raise ManifestError(
                f"row {name}: an image of the data is {pixels.shape[2]}x{pixels.shape[3]} pixels after its"
                f" pre-processing, --size is {height}x{width}; give a larger one, or leave it out"
            )
    return [
        (torch.nn.functional.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2])), sizes)
        for pixels, sizes in images
    ]
