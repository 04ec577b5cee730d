"""Verdicts of a comparison from its raw samples: ratios of times and memory, differences of AP and top-1."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from detection_zoo.benchmarks.compare.options import CompareOptions
from detection_zoo.benchmarks.compare.paired import (
    Verdict,
    block_shift,
    blocks_needed,
    confidence_of_each,
    judge_ratio,
    proportions_interval,
    ratio_of_blocks,
)
from detection_zoo.benchmarks.compare.record import Pair
from detection_zoo.benchmarks.evaluation.classification import ImageHits
from detection_zoo.benchmarks.report.lines import own_metric
from detection_zoo.benchmarks.spec import BenchmarkSpec, StoredFile, metric
from detection_zoo.zoo.created_row import row_named

if TYPE_CHECKING:
    from detection_zoo.benchmarks.evaluation.ap_intervals import Answers
    from detection_zoo.zoo.data.base import Dataset
    from detection_zoo.zoo.manifest import ModelEntry

FEWEST_IMAGES = 50  # minimum for a verdict on AP: a bootstrap interval over fewer images is too narrow
Samples = dict[str, list[list[float]]]
AP_OF = {"bbox": "box_ap", "segm": "mask_ap", "keypoints": "keypoint_ap"}
COVERS = {
    "model_ms": "forward + post-processing, wall time",
    "model_cpu_ms": "forward + post-processing, CPU time",
    "forward_ms": "network up to the raw outputs, wall time",
    "forward_cpu_ms": "network up to the raw outputs, CPU time",
    "postprocess_ms": "post-processing, wall time",
    "postprocess_cpu_ms": "post-processing, CPU time",
    "end_to_end_ms": "from the image file to results on the host, wall time",
    "end_to_end_cpu_ms": "from the image file to results on the host, CPU time",
}


def judge_pairs(
    samples: dict[str, Samples],
    reference: str,
    others: list[str],
    smallest: float,
    confidence: float,
    decides: str,
) -> list[Pair]:
    """Compare every metric that both have, of every other model with the reference.

    Args:
        samples: label -> metric -> block -> values of its rounds.
        reference, others: labels.
        smallest: smallest difference of interest, a fraction.
        confidence: of each interval.
        decides: the metric that ends the comparison; it comes first.
    """
    names = sorted(samples[reference], key=lambda name: name != decides)
    return [
        _ratio_pair(name, samples, reference, other, smallest, confidence, decides)
        for other in others
        for name in names
        if name in samples[other]
    ]


def _ratio_pair(
    name: str,
    samples: dict[str, Samples],
    reference: str,
    other: str,
    smallest: float,
    confidence: float,
    decides: str,
) -> Pair:
    base, own = samples[reference][name], samples[other][name]
    memory = name.endswith("_mib")
    words: tuple[Verdict, Verdict] = ("LOWER", "HIGHER") if memory else ("FASTER", "SLOWER")
    values = (median(v for block in base for v in block), median(v for block in own for v in block))
    countable = min(min(map(min, base)), min(map(min, own))) > 0
    shifts = [block_shift(a, b) for a, b in zip(base, own, strict=True)] if countable else []
    ratio = ratio_of_blocks(shifts, confidence)
    verdict = judge_ratio(ratio, smallest, words)
    note = "" if countable else "too short for the clock resolution: some samples are zero"
    if ratio is not None and verdict == "UNDECIDED":
        needed = blocks_needed(shifts, smallest, confidence)
        inside = abs(math.log(ratio.value)) <= math.log1p(smallest)
        word = "SAME" if inside else words[1] if ratio.value > 1 else words[0]
        note = f"{word} within {smallest:.1%} needs" if inside else f"{word} by {smallest:.1%} needs"
        note += f" about {needed} blocks" if needed else " more than 10,000 blocks"
    return Pair(
        metric=name,
        other=other,
        reference=reference,
        values=values,
        unit=metric(name).unit,
        kind="ratio",
        confidence=confidence,
        value=None if ratio is None else ratio.value,
        interval=None if ratio is None else (ratio.low, ratio.high),
        blocks=len(base),
        smallest=smallest,
        verdict=verdict,
        decides=name == decides,
        note=note,
        covers=COVERS.get(name, "peak of one iteration" if memory else ""),
    )


def accuracy_pairs(
    files: dict[str, dict[str, StoredFile]],
    folder: Path,
    row_of: Callable[[str], str],
    reference: str,
    data: str,
    spec: BenchmarkSpec,
    options: CompareOptions,
) -> list[Pair]:
    """Compare every AP, or top-1 and top-5, that both have, with a paired bootstrap over images.

    Args:
        files: label -> kind of answers -> file; folder: what their names are relative to.
        row_of: gives the row of a label.
        reference, data, spec, options: as in `compare`.
    """
    from detection_zoo.benchmarks.run.subject import open_data

    answers: dict[str, dict[str, Answers]] = {}
    for label, kinds in files.items():
        entry = row_named(row_of(label))
        dataset = open_data(entry, data, spec.images)
        answers[label] = answers_of(entry, kinds, folder, dataset)
    others = [label for label in files if label != reference]
    confidence = confidence_of_each(1, len(others))
    return [
        accuracy_pair(
            name,
            answers[reference][name],
            answers[other][name],
            reference,
            other,
            options.smallest_ap,
            confidence,
            spec.seed,
        )
        for other in others
        for name in answers[reference]
        if name in answers[other]
    ]


def answers_of(
    entry: ModelEntry, files: dict[str, StoredFile], folder: Path, dataset: Dataset
) -> dict[str, Answers]:
    """Return the outputs of a model by metric, from its results files (by kind, relative to folder)."""
    return {
        own_metric(entry, name): found
        for kind, file in files.items()
        for name, found in _answers(folder / file.name, kind, dataset).items()
    }


def _answers(path: Path, kind: str, dataset: Dataset) -> dict[str, Answers]:
    """Return the outputs in a file by the metric computed from them."""
    from detection_zoo.benchmarks.evaluation.accuracy import DETAILS
    from detection_zoo.benchmarks.evaluation.ap_intervals import match_images
    from detection_zoo.benchmarks.evaluation.classification import CLASSES_FILE, read_hits
    from detection_zoo.benchmarks.evaluation.coco_results import read_results

    if kind == DETAILS:
        return {}
    if kind == CLASSES_FILE:
        return {f"top{k}": read_hits(path, dataset, k) for k in (1, 5)}
    results = read_results(path, dataset, kind)
    return {AP_OF[kind]: match_images(dataset.annotations, results, kind, dataset.image_ids)}


def judge_difference(low: float, high: float, smallest: float) -> Verdict:
    """Return the verdict on an interval of a difference, in percentage points, given the smallest difference
    of interest."""
    if low > smallest:
        return "HIGHER"
    if high < -smallest:
        return "LOWER"
    return "SAME" if -smallest <= low and high <= smallest else "UNDECIDED"


def accuracy_pair(
    name: str,
    base: Answers,
    own: Answers,
    reference: str,
    other: str,
    smallest: float,
    confidence: float,
    seed: int = 0,
) -> Pair:
    """Compare one AP or accuracy of two models on the same images; smallest: in percentage points."""
    from detection_zoo.benchmarks.evaluation.ap_intervals import paired_difference, percent

    found = paired_difference(base, own, seed=seed, confidence=confidence)
    how, low, high = f"paired bootstrap over {own.images} images, {found.draws} draws", found.low, found.high
    if isinstance(base, ImageHits) and isinstance(own, ImageHits):
        gained, lost = (int((a & ~b).sum()) for a, b in ((own.right, base.right), (base.right, own.right)))
        low, high = proportions_interval(gained, lost, own.images, confidence)
        how = f"paired score interval (Tango) over {own.images} images, {gained} gained and {lost} lost"
    few = own.images < FEWEST_IMAGES and not isinstance(own, ImageHits)
    low, high = 100 * low, 100 * high
    verdict: Verdict = "UNDECIDED" if few else judge_difference(low, high, smallest)
    noise = (
        "the difference may be due to the choice of images"
        if found.may_be_noise
        else "the difference is not due to the choice of images"
    )
    if few:
        noise = f"no verdict from fewer than {FEWEST_IMAGES} images; {noise}"
    values = (percent(base), percent(own))
    return Pair(
        metric=name,
        other=other,
        reference=reference,
        values=values,
        unit="%",
        kind="difference",
        value=100 * found.value,
        interval=(low, high),
        confidence=confidence,
        blocks=own.images,
        smallest=smallest,
        verdict=verdict,
        covers=how,
        note=(
            f"{noise}: {found.below} draws below zero, {found.above} above"
            if found.value or not found.may_be_noise
            else noise
        ),
    )
