"""Accuracy on a validation split during training, distributed over the processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from detection_zoo.benchmarks.evaluation.accuracy import DetectionCollector
from detection_zoo.benchmarks.measure.detection import detect_all
from detection_zoo.benchmarks.run.subject import Subject
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.training.distributed import Process, anywhere, gather, share

FIRST = (
    "mask_ap",
    "keypoint_ap",
    "voc_map",
    "box_ap",
)  # the first available metric decides which checkpoint is best


def evaluator(
    entry: ModelEntry, dataset: Dataset, process: Process, workers: int, say: Callable[[str], None]
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that computes a model's accuracy in percent, deciding metric first; every process
    calls it and gets the same result. The result is empty if the model's outputs are not finite.

    Args:
        entry: the row being trained.
        dataset: the validation images.
        process: each evaluates its share of the images.
        workers: data loading processes.
        say: called with the reason if there is no result.
    """
    indices = list(share(len(dataset), process))
    part = dataset if process.world == 1 else dataset.subset([dataset.image_id(i) for i in indices])
    spec = BenchmarkSpec(groups=("ap",), device=process.device.type, workers=workers)
    preprocess = Preprocess.from_conventions(entry.conventions.image)

    def measure(model: nn.Module) -> dict[str, float]:
        subject = Subject(entry, model, preprocess, torch.device(process.device), part)
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

    return measure


def top1_evaluator(
    entry: ModelEntry, dataset: Dataset, process: Process, batch: int = 32
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that computes a classifier's top-1 accuracy in percent; every process calls it and
    gets the same result.

    Args:
        entry, dataset, process: as in `evaluator`. batch: images per forward pass.
    """
    indices = list(share(len(dataset), process))
    preprocess = Preprocess.from_conventions(entry.conventions.image)

    def measure(model: nn.Module) -> dict[str, float]:
        model.eval()
        right = 0
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            images = torch.stack([preprocess(dataset.load_image(index)).tensor for index in part])
            with torch.inference_mode():
                answers = model(images.to(process.device)).argmax(dim=1).tolist()
            right += sum(answer == dataset.label(index) for answer, index in zip(answers, part, strict=True))
        return {"top1": 100 * sum(gather([right], process)) / len(dataset)}

    return measure
