"""Accuracy on a validation split during training, distributed over the processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from detection_zoo.benchmarks.evaluation.accuracy import DetectionCollector
from detection_zoo.benchmarks.evaluation.classification import class_scores
from detection_zoo.benchmarks.measure.detection import detect_all
from detection_zoo.benchmarks.run.subject import Subject
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.training.distributed import Process, anywhere, gather, share

# the first available metric decides which checkpoint is best
FIRST = ("mask_ap", "keypoint_ap", "voc_map", "box_ap")
CLASSIFIER_BATCH = 32  # images per forward pass


def evaluator(
    entry: ModelEntry, dataset: Dataset, process: Process, workers: int, say: Callable[[str], None]
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that computes a model's accuracy in percent, deciding metric first (top-1 of a
    classifier); every process calls it and gets the same result. The result is empty if a detector's outputs
    are not finite.

    Args:
        entry: the row being trained.
        dataset: the validation images.
        process: each evaluates its share of the images.
        workers: data loading processes.
        say: called with the reason if there is no result.
    """
    indices = list(share(len(dataset), process))
    part = dataset if process.world == 1 else dataset.subset([dataset.image_id(i) for i in indices])
    preprocess = Preprocess.from_conventions(entry.conventions.image)
    batch = CLASSIFIER_BATCH if entry.task == "classification" else 1
    spec = BenchmarkSpec(device=process.device.type, workers=workers, batch_size=batch)

    def top1(subject: Subject) -> dict[str, float]:
        scores, labels = class_scores(subject, spec) if indices else (np.empty((0, 1)), [])
        right = int((scores.argmax(axis=1) == labels).sum())
        return {"top1": 100 * sum(gather([right], process)) / len(dataset)}

    def ap(subject: Subject) -> dict[str, float]:
        found, problem = [], ""
        try:
            found = [(indices[place], detections) for place, detections in detect_all(subject, spec)]
        except FloatingPointError as error:
            problem = str(error)
        if anywhere(bool(problem), process):
            say(f"warning: not evaluated: {problem or 'outputs of another process are not finite'}")
            return {}
        collector = DetectionCollector(dataset, inclusive=subject.inclusive)
        for index, detections in sorted(gather(found, process), key=lambda item: item[0]):
            collector.add(index, detections)
        metrics = collector.evaluate().metrics
        first = next((name for name in FIRST if name in metrics), None)
        return ({first: metrics[first]} if first else {}) | metrics

    measure = top1 if entry.task == "classification" else ap
    return lambda model: measure(Subject(entry, model, preprocess, torch.device(process.device), part))
