"""Classifier outputs: scores of every image, a file of the best classes, and correctness per
image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detection_zoo.benchmarks.spec import BenchmarkSpec, StoredFile
from detection_zoo.benchmarks.store import store_file
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.errors import DatasetError

if TYPE_CHECKING:
    from detection_zoo.benchmarks.run.subject import Subject

CLASSES_FILE = "classes"
BEST = 5  # classes stored per image


@dataclass(frozen=True)
class ImageHits:
    """Whether the correct class is among the top k of each image; right: (N,) bool."""

    right: np.ndarray

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.right)

    def score(self, weights: np.ndarray) -> np.ndarray:
        """Return accuracy, (B,) fractions, with each image counted as often as weights (B, N) say."""
        return weights @ self.right / weights.sum(axis=1)


def class_scores(subject: Subject, spec: BenchmarkSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (N, K) of a classifier on every image of its dataset, in order, and the correct
    classes (N,) int64.

    Raises:
        DatasetError: the row is not a classifier, or the data has no image labels.
    """
    import torch

    from detection_zoo.benchmarks.run.progress import progress
    from detection_zoo.benchmarks.run.subject import autocast
    from detection_zoo.zoo.data.loading import evaluation_loader

    if not subject.is_classifier or subject.dataset.layout != "imagenet":
        raise DatasetError(
            f"top-1 needs a classifier and --data imagenet:DIR; {subject.entry.name} is for"
            f" {subject.entry.task}, {subject.dataset.name} is of kind {subject.dataset.layout}"
        )
    subject.model.eval()
    loader = evaluation_loader(
        subject.dataset, subject.preprocess, batch_size=spec.batch_size, workers=spec.workers
    )
    scores = []
    with (
        progress(f"{subject.entry.name}: classifying", len(loader)) as tick,
        torch.inference_mode(),
        autocast(spec),
    ):
        for batch in loader:
            scores.append(subject.model(batch.images.to(subject.device)).float().cpu())  # (N, K)
            tick()
    return torch.cat(scores).numpy(), right_classes(subject.dataset)


def right_classes(dataset: Dataset) -> np.ndarray:
    """The class of each image, (N,) int64."""
    return np.array([int(dataset.target(index).labels[0]) for index in range(len(dataset))], np.int64)


def write_classes(scores: np.ndarray, dataset: Dataset, folder: Path) -> dict[str, StoredFile]:
    """Write the top classes of each image from scores (N, K), sorted by descending score; for equal scores
    the lower class index comes first."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :BEST].tolist()
    content = json.dumps(
        [{"image_id": str(dataset.image_id(index)), "classes": classes} for index, classes in enumerate(best)]
    ).encode()
    kept = store_file(folder, f"{CLASSES_FILE}.json", content)
    return {CLASSES_FILE: kept.model_copy(update={"name": f"{folder.name}/{kept.name}"})}


def read_hits(path: Path, dataset: Dataset, k: int) -> ImageHits:
    """Read top-k correctness (k <= 5) from a file of `write_classes`; raises DatasetError if
    the file is of other images."""
    kept = json.loads(path.read_bytes())
    if [one["image_id"] for one in kept] != [str(dataset.image_id(index)) for index in range(len(dataset))]:
        raise DatasetError(f"{path}: its images are not those of {dataset.name}; run the classifier again")
    return ImageHits(
        np.array(
            [
                right in one["classes"][:k]
                for one, right in zip(kept, right_classes(dataset).tolist(), strict=True)
            ],
            bool,
        )
    )
