"""Accuracy of a subject: run every image, store the detections as results files, compute the metrics of
manifests/metrics.toml."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from detection_zoo.benchmarks.evaluation.accuracy import (
    ACCURACY_FILE,
    DETAILS,
    METRICS,
    AccuracyReport,
    DetectionCollector,
    annotations_hidden,
    top_k_accuracy,
)
from detection_zoo.benchmarks.evaluation.classification import class_scores
from detection_zoo.benchmarks.measure.finite import watched
from detection_zoo.benchmarks.measure.inference import to_host
from detection_zoo.benchmarks.run.progress import clock, progress
from detection_zoo.benchmarks.run.subject import Subject, autocast
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement, StoredFile
from detection_zoo.benchmarks.statistics import proportion_interval
from detection_zoo.benchmarks.store import write_whole
from detection_zoo.zoo.data.loading import DataWait, evaluation_loader
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.records import Detections

WILSON = "Wilson's interval of the accuracy, if these images are a random sample"


def detect_all(
    subject: Subject, spec: BenchmarkSpec, wait: DataWait | None = None
) -> Iterator[tuple[int, Detections]]:
    """Detect objects in every image of the subject's dataset, in order; detections are in original pixels, on
    the CPU.

    Args:
        subject: a detector; left in evaluation mode.
        spec: batch size, workers, precision.
        wait: records the time that the model waited for data.

    Raises:
        FloatingPointError: a part of the model outputs a number that is not finite.
    """
    subject.model.eval()
    with watched(subject.model):
        if spec.tta:
            yield from _detect_augmented(subject, spec)
        else:
            yield from _detect(subject, spec, wait or DataWait(spec.workers))


def _detect(subject: Subject, spec: BenchmarkSpec, wait: DataWait) -> Iterator[tuple[int, Detections]]:
    """Detect in every image, resized as the row specifies."""
    pinned = subject.device.type == "cuda"
    loader = evaluation_loader(
        subject.dataset,
        subject.preprocess,
        batch_size=spec.batch_size,
        workers=spec.workers,
        pin_memory=pinned,
    )
    with (
        progress(f"{subject.entry.name}: detect", len(loader)) as tick,
        torch.inference_mode(),
        autocast(spec),
    ):
        for batch in wait.watch(loader):
            batch = batch.to(subject.device)
            found = to_host(subject.model.predict(batch.images, batch.sizes, batch.original_sizes))
            yield from zip(batch.indices, found, strict=True)
            tick()


def _detect_augmented(subject: Subject, spec: BenchmarkSpec) -> Iterator[tuple[int, Detections]]:
    """Detect with test-time augmentation: the row's, if its conventions have one."""
    from detection_zoo.zoo.detectors.tta import DEFAULT, detect_augmented

    conventions = subject.entry.conventions
    wanted = (
        conventions.augmentation
        if conventions is not None and conventions.augmentation is not None
        else DEFAULT
    )
    with (
        progress(f"{subject.entry.name}: detect with augmentation", len(subject.dataset)) as tick,
        autocast(spec),
    ):
        for index in range(len(subject.dataset)):
            # copies of many sizes: without CUDA graphs
            model = getattr(subject.model, "plain", subject.model)
            found = detect_augmented(model, subject.dataset.load_image(index), subject.preprocess, wanted)
            yield index, to_host([found])[0]
            tick()


def measure_accuracy(
    subject: Subject, spec: BenchmarkSpec, folder: Path
) -> tuple[dict[str, Measurement], dict[str, str], dict[str, StoredFile]]:
    """Measure the AP of a detector.

    Args:
        subject: detector and dataset; for a subset, the ground truth is restricted to the same images.
        spec: batch size, workers, precision.
        folder: folder for the results files.

    Returns:
        Measurements in percent; metrics without a value, with the reason; results files,
        details (AP per class, curves, error types), and for a test split the zip files
        for COCO's server.

    Raises:
        DatasetError: the dataset has no ground-truth boxes.
        FloatingPointError: a box or score is not finite.
    """
    if subject.is_classifier:
        raise DatasetError(f"row {subject.entry.name} is a classifier; use --metrics top1")
    hidden = annotations_hidden(subject.dataset)
    if hidden and subject.dataset.is_subset:
        raise DatasetError(
            f"{subject.dataset.name}: its annotations are not public, and the evaluation server needs the"
            " full split; leave out --images"
        )
    collector = DetectionCollector(subject.dataset, inclusive=subject.inclusive)
    wait = DataWait(spec.workers)
    for index, found in detect_all(subject, spec, wait):
        collector.add(index, found)
    paths = {path.stem: path for path in collector.write(folder)} | collector.submissions(
        folder, subject.entry.name
    )
    files = {name: _stored(path, folder) for name, path in paths.items()}
    if hidden:
        reason = (
            f"{subject.dataset.name} has no public annotations; send the submission file to the evaluation"
            " server"
        )
        return {}, {name: reason for kind in collector.records for name in METRICS[kind].values()}, files
    with clock(f"{subject.entry.name}: evaluating"):
        report = collector.evaluate()
    write_whole(folder / ACCURACY_FILE, json.dumps(report.as_dict()).encode())
    files[DETAILS] = _stored(folder / ACCURACY_FILE, folder)
    used, every = len(subject.dataset), subject.dataset.full_size
    covers = f"{subject.dataset.name}, " + (
        f"{used} of {every} images, ground truth restricted to them"
        if used < every
        else f"all {every} images"
    )
    values = {
        name: Measurement(value=value, unit="%", n=used, covers=covers, note=report.note_of(name))
        for name, value in report.metrics.items()
    }
    if wait.whole_s and values:
        first = next(iter(values))
        note = "; ".join(filter(None, (values[first].note, str(wait))))
        values[first] = values[first].model_copy(update={"note": note})
    return values, _absent(report, collector, subject), files


def _stored(path: Path, folder: Path) -> StoredFile:
    content = path.read_bytes()
    return StoredFile(
        name=str(path.relative_to(folder.parent)),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )


def _absent(report: AccuracyReport, collector: DetectionCollector, subject: Subject) -> dict[str, str]:
    """Why metrics of what the model detects are not there."""
    if subject.dataset.layout != "coco":
        return {}
    reason = f"{subject.dataset.name} has no ground truth for it"
    names = [name for kind in collector.records for name in METRICS[kind].values()]
    return {name: reason for name in names if name not in report.metrics}


def measure_top_k(subject: Subject, spec: BenchmarkSpec) -> dict[str, Measurement]:
    """Measure top-1 and top-5 accuracy and error of a classifier on its dataset, in percent."""
    logits, labels = class_scores(subject, spec)
    found, every = {}, subject.dataset.full_size
    covers = f"{subject.dataset.name}, {len(labels)} " + (
        f"of {every} images" if subject.dataset.is_subset else "images"
    )
    for k in (1, 5):
        value = top_k_accuracy(logits, labels, k)
        share = proportion_interval(round(value * len(labels) / 100), len(labels))
        low, high = (100 * edge for edge in share)
        for name, one, edges in (
            (f"top{k}", value, (low, high)),
            (f"top{k}_error", 100 - value, (100 - high, 100 - low)),
        ):
            found[name] = Measurement(
                value=one, unit="%", n=len(labels), interval=edges, covers=covers, note=WILSON
            )
    return found
