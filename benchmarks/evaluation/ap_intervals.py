"""Uncertainty of an AP: detections are matched once, then AP is recomputed for other image weights. Does not
import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np

from detection_zoo.benchmarks.evaluation.coco_columns import CocoResults, Kind
from detection_zoo.benchmarks.evaluation.coco_evaluation import EvaluationPlan, Truth, columns_of, truth_of
from detection_zoo.benchmarks.evaluation.coco_results import read_results
from detection_zoo.benchmarks.spec import Measurement
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.coco import CocoDataset

RECALLS = np.linspace(0.0, 1.0, 101)  # bitwise equal to pycocotools'
EVERY_AREA = [0.0, 1e10]
# bootstrap samples computed together: so many, and more as long as that makes so few numbers of a category
AT_ONCE, NUMBERS_AT_ONCE = 64, 1 << 17
DRAWS, HALVES = 2000, 200
FEW_IMAGES = 5
# for the noise of the estimated bias: coverage on simulated detectors was .80 to .95 without it, .95 to .98
# with it
WIDER = 1.4
RATES = (0.5, 1.0)  # the bias of AP on m images decreases between m ** -0.5 and m ** -1


@dataclass
class ClassMatches:
    """The detections of one category, sorted by descending score, up to the last one that matches an object.

    image (D,) int: index of its image; matched, ignored (T, D) bool for T IoU thresholds; truths (N,):
    ground-truth objects in each image.
    """

    image: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray


class Answers(Protocol):
    """The output of a model on some images: matched detections, or classes."""

    @property
    def images(self) -> int:
        """Number of images."""
        ...

    def score(self, weights: np.ndarray) -> np.ndarray:
        """Return (B,) fractions: AP or accuracy, with each image counted as often as weights
        (B, N) say."""
        ...


def percent(answers: Answers) -> float:
    """Return the AP or accuracy, every image counted once, in percent."""
    return 100 * float(answers.score(np.ones((1, answers.images)))[0])


@dataclass
class ImageMatches:
    """Matched detections of N images, by category."""

    classes: list[ClassMatches]
    images: int

    def score(self, weights: np.ndarray) -> np.ndarray:
        """Return the AP with each image counted `weights` times.

        Args:
            weights: (B, N), integers; all ones give the AP of the dataset, zeros and ones the AP of a
                subset with restricted ground truth.

        Returns:
            (B,) fractions: COCO's AP, the mean over categories that have ground truth under those weights.
        """
        longest = max((len(one.image) for one in self.classes), default=0)
        step = max(AT_ONCE, NUMBERS_AT_ONCE // max(longest, 1))
        starts = range(0, len(weights), step)
        return np.concatenate([_mean_over_classes(self, weights[at : at + step]) for at in starts])


def match_images(
    ground_truth: Truth,
    results: list[dict[str, Any]] | CocoResults,
    kind: Kind,
    image_ids: Sequence[int | str],
) -> ImageMatches:
    """Match results to ground truth on some images, both restricted to them; arguments as `score_coco` takes
    them."""
    truth = truth_of(ground_truth, kind)
    images = sorted({truth.image_place[identity] for identity in image_ids})
    plan = EvaluationPlan(kind, images, None, False)
    evaluation = plan.prepare("hotcoco", truth, columns_of(results, truth, kind))
    evaluation.params.area_rng, evaluation.params.area_rng_lbl = [EVERY_AREA], ["all"]
    evaluation.evaluate()
    place = {image + 1: number for number, image in enumerate(images)}
    found: dict[int, list[dict[str, Any]]] = {}
    for one in evaluation.eval_imgs:
        if one is not None and list(one["aRng"]) == EVERY_AREA:
            found.setdefault(one["category_id"], []).append(one)
    return ImageMatches([_class_matches(ones, place) for _, ones in sorted(found.items())], len(images))


def _class_matches(ones: list[dict[str, Any]], place: dict[int, int]) -> ClassMatches:
    ones = sorted(ones, key=lambda one: place[one["image_id"]])
    truths = np.zeros(len(place))
    for one in ones:
        truths[place[one["image_id"]]] = sum(not ignored for ignored in one["gtIgnore"])
    image = np.concatenate([np.full(len(one["dtScores"]), place[one["image_id"]], np.int64) for one in ones])
    ignored, matched = (
        np.concatenate(
            [
                (
                    np.array(one[name], bool).reshape(-1, len(one["dtScores"]))
                    if one["dtScores"]
                    else np.zeros((10, 0), bool)
                )
                for one in ones
            ],
            axis=1,
        )
        for name in ("dtIgnore", "dtMatched")
    )  # (T, D)
    return class_matches(image, np.concatenate([one["dtScores"] for one in ones]), matched, ignored, truths)


def class_matches(
    image: np.ndarray, scores: np.ndarray, matched: np.ndarray, ignored: np.ndarray, truths: np.ndarray
) -> ClassMatches:
    """Sort detections as pycocotools does (stable, descending score) and drop the unmatched tail; image,
    scores (D,), the others as `ClassMatches`."""
    order = np.argsort(-scores, kind="mergesort")
    matched, ignored = matched[:, order] & ~ignored[:, order], ignored[:, order]
    hits = np.flatnonzero(matched.any(axis=0))
    used = hits[-1] + 1 if len(hits) else 0
    return ClassMatches(image[order][:used], matched[:, :used], ignored[:, :used], truths)


def _mean_over_classes(matches: ImageMatches, weights: np.ndarray) -> np.ndarray:
    values = np.full((len(weights), len(matches.classes)), np.nan)
    for column, one in enumerate(matches.classes):
        truths = weights @ one.truths  # (B,)
        values[:, column] = np.where(truths > 0, _class_ap(one, weights, np.maximum(truths, 1)), np.nan)
    with np.errstate(invalid="ignore"):
        known = ~np.isnan(values)
        return np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def _class_ap(one: ClassMatches, weights: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """(B,) AP of a category. Precision is needed only at matched detections: between two of them it only
    decreases."""
    drawn = weights[:, one.image].astype(np.float64)  # (B, D)
    every, total = np.cumsum(drawn, axis=1), np.zeros(len(weights))
    for matched, ignored in zip(one.matched, one.ignored, strict=True):
        places = np.flatnonzero(matched)
        if not len(places):
            continue
        counted = np.cumsum(drawn * ~ignored, axis=1) if ignored.any() else every
        hits = np.cumsum(drawn[:, places], axis=1)  # (B, P)
        precision = hits / np.maximum(counted[:, places], 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # thresholds reached so far: those below the nearest, and that if recall is not less; C: order of sums
        recall = np.divide(hits, truths[:, None], out=hits)
        nearest = (recall * 100 + 0.5).astype(np.intp)
        reached = np.add(nearest, RECALLS[nearest] <= recall, order="C")
        reached[recall == 0] = 0
        reached[:, 1:] -= reached[:, :-1]  # numpy copies what overlaps
        total += (reached * envelope).sum(axis=1) / len(RECALLS)
    return total / len(one.matched)


@dataclass(frozen=True)
class Difference:
    """A difference of two APs (or top-1 accuracies) on the same images, as fractions, with its interval and
    the number of bootstrap samples below and above zero."""

    value: float
    low: float
    high: float
    draws: int
    below: int
    above: int

    @property
    def may_be_noise(self) -> bool:
        """Whether the interval contains zero."""
        return self.low <= 0 <= self.high


def paired_difference(
    reference: Answers, other: Answers, draws: int = DRAWS, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """Return how much higher the other's AP or accuracy is, with a confidence interval over images.

    Paired percentile bootstrap: images are sampled with replacement, the same for both
        models (Efron and Tibshirani,
    An Introduction to the Bootstrap, 13.3). Both must be of the same images.
    """
    if reference.images != other.images:
        raise ValueError(
            f"a paired bootstrap needs the same images for both models, these have {reference.images} and"
            f" {other.images}"
        )
    ones = np.ones((1, other.images))
    weights = np.random.default_rng(seed).multinomial(
        other.images, np.full(other.images, 1 / other.images), draws
    )
    differences = other.score(weights) - reference.score(weights)
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = float((other.score(ones) - reference.score(ones))[0])
    return Difference(
        value, float(low), float(high), draws, int((differences < 0).sum()), int((differences > 0).sum())
    )


@dataclass(frozen=True)
class SubsetInterval:
    """AP on a subset, and an interval of the AP on the whole split, as fractions; without an interval,
    `reason` says why."""

    value: float
    low: float | None
    high: float | None
    reason: str = ""


def subset_interval(
    matches: ImageMatches, all_images: int, seed: int = 0, confidence: float = 0.95
) -> SubsetInterval:
    """Estimate an interval of the AP on all images of a split from a subset.

    AP on few images is biased upwards, because the precision envelope picks up noise, more so for
        categories with few objects. The bias is estimated on
    random halves of the subset: the change from n to n/2 images is extrapolated from n to all, for a bias
    that
        decreases as m^-1/2 and as m^-1; the interval covers both.
    The spread of the halves estimates that of the subset (delete-half jackknife; Shao and Wu, Annals of
    Statistics 17, 1989), multiplied by the fraction of the split that is not in the subset, and widened by
    WIDER.

    Args:
        matches: matches on the n images of the subset, which must be a random sample.
        all_images: number of images of the split.

    Returns:
        The subset's AP and the interval; no interval if most categories occur in too
        few images.
    """
    share = matches.images / all_images
    value = float(matches.score(np.ones((1, matches.images)))[0])
    seen = sorted(int((one.truths > 0).sum()) for one in matches.classes if (one.truths > 0).any())
    if not seen or seen[len(seen) // 2] < FEW_IMAGES:
        return SubsetInterval(
            value,
            None,
            None,
            f"half of the categories occur in fewer than {FEW_IMAGES} images (of {matches.images} here),"
            " too few to estimate the AP on all images; use more images",
        )
    halves = matches.score(_halves(matches.images, np.random.default_rng(seed)))
    gained, spread = float(halves.mean()) - value, float(halves.std(ddof=1)) * (1 - share) ** 0.5
    biases = [gained * (1 - share**rate) / (2**rate - 1) for rate in RATES]
    reach = WIDER * NormalDist().inv_cdf((1 + confidence) / 2) * spread
    return SubsetInterval(value, value - max(biases) - reach, value - min(biases) + reach)


def _halves(images: int, draw: np.random.Generator) -> np.ndarray:
    """Return (HALVES, N) random halves, each followed by its complement."""
    weights = np.zeros((HALVES, images))
    for row in range(0, HALVES, 2):
        order = draw.permutation(images)
        weights[row, order[: images // 2]] = 1
        weights[row + 1, order[images - images // 2 :]] = 1
    return weights


def subset_intervals(
    measurements: dict[str, Measurement], dataset: Dataset, files: dict[str, Path]
) -> dict[str, Measurement]:
    """Return the AP measurements of a subset with the interval of the AP on all images of the split;
    nothing if the whole split was measured.

    Args:
        measurements: box_ap, mask_ap and keypoint_ap in percent, if measured.
        dataset: dataset of the measurements.
        files: "bbox", "segm", "keypoints" -> result file.
    """
    found: dict[str, Measurement] = {}
    if not isinstance(dataset, CocoDataset) or not dataset.is_subset:
        return found
    for kind, name in (("bbox", "box_ap"), ("segm", "mask_ap"), ("keypoints", "keypoint_ap")):
        if name not in measurements or kind not in files:
            continue
        results = read_results(files[kind], dataset, kind)
        interval = subset_interval(
            match_images(dataset.annotations, results, kind, dataset.image_ids), dataset.full_size
        )
        text = interval.reason or (
            f"the interval is for the AP on all {dataset.full_size} images, estimated from"
            " random halves of the subset, which must be a random sample; AP on a subset is"
            " biased upwards and may be outside"
        )
        edges = (
            None if interval.low is None else (100 * max(interval.low, 0.0), 100 * min(interval.high, 1.0))
        )
        found[name] = measurements[name].model_copy(
            update={"interval": edges, "note": "; ".join(filter(None, (measurements[name].note, text)))}
        )
    return found
