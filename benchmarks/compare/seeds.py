"""AP of rows trained with several seeds: the spread over seeds, and differences over images and seeds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

import numpy as np

from detection_zoo.benchmarks.compare.judging import answers_of, judge_difference
from detection_zoo.benchmarks.compare.options import Entrant
from detection_zoo.benchmarks.compare.paired import Verdict
from detection_zoo.benchmarks.evaluation.ap_intervals import DRAWS, Answers, percent
from detection_zoo.benchmarks.spec import BenchmarkSpec, metric
from detection_zoo.benchmarks.statistics import t_quantile
from detection_zoo.benchmarks.tabular import Table
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.errors import CheckpointError


@dataclass(frozen=True)
class SeedsDifference:
    """How much higher the mean AP of the other row's training runs is, in percentage points.

    interval: over images and seeds. by_images, by_seeds: standard errors from each alone.
    """

    value: float
    interval: tuple[float, float] | None
    by_images: float
    by_seeds: float | None
    verdict: Verdict


@dataclass(frozen=True)
class RowSeeds:
    """One accuracy metric of a row's training runs, in percent, in the given order; the first row has no
    difference."""

    row: str
    metric: str
    values: list[float]
    difference: SeedsDifference | None = None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the training runs."""
        return variance(self.values) ** 0.5 if len(self.values) > 1 else None


def seeds_difference(
    reference: Sequence[Answers],
    other: Sequence[Answers],
    smallest: float,
    seed: int = 0,
    draws: int = DRAWS,
    confidence: float = 0.95,
) -> SeedsDifference:
    """The difference of two mean APs, with an interval over images and over seeds.

    The variance is the sum of the variance over images (paired bootstrap of the difference of
    the means, with the same images for every training run) and the variance over seeds. The latter
    has few degrees of freedom (Welch, Biometrika 34, 1947).

    Args:
        reference, other: outputs of each training run on the same images.
        smallest: smallest difference of interest, in points.
        seed: random seed.
        draws: bootstrap samples.
        confidence: confidence level.

    Returns:
        The difference; without an interval, and UNDECIDED, if a row has only one training run.
    """
    images = reference[0].images
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), draws)
    values = [[percent(one) for one in side] for side in (reference, other)]
    drawn = [np.mean([one.score(weights) for one in side], axis=0) for side in (reference, other)]
    value = fmean(values[1]) - fmean(values[0])
    by_images = float(np.var(100 * (drawn[1] - drawn[0]), ddof=1))
    if min(map(len, values)) < 2:
        return SeedsDifference(value, None, by_images**0.5, None, "UNDECIDED")
    parts = [(variance(side) / len(side), len(side) - 1) for side in values]
    by_seeds = sum(part for part, _ in parts)
    total = by_images + by_seeds
    few = sum(part**2 / freedom for part, freedom in parts)
    half = total**0.5 * t_quantile(confidence, total**2 / few if few else np.inf)
    low, high = value - half, value + half
    return SeedsDifference(
        value, (low, high), by_images**0.5, by_seeds**0.5, judge_difference(low, high, smallest)
    )


def distinct_weights(entrants: Sequence[Entrant]) -> list[str]:
    """Return the argument for `build_model` of each training run; raises CheckpointError if two training runs
    of a row are the same file."""
    from detection_zoo.benchmarks.run.subject import identify_weights

    chosen, seen = [], dict[tuple[str, str], str]()
    for entrant in entrants:
        identity, weights = identify_weights(row_named(entrant.row), entrant.weights)
        first = seen.setdefault((entrant.row, identity.digest), entrant.label)
        if first != entrant.label:
            raise CheckpointError(
                f"{entrant.label}: the same weights as {first}; give a different file for each training run"
            )
        chosen.append(weights)
    return chosen


def compare_seeds(
    trainings: Sequence[tuple[Entrant, str]],
    spec: BenchmarkSpec,
    data: str,
    smallest: float,
    say: Callable[[str], None],
) -> list[RowSeeds]:
    """Evaluate every training run and compare the rows with the first.

    Args:
        trainings: rows, each with the weights of one training run from `distinct_weights`.
        spec: device, precision, images, seed.
        data: as `open_data` takes it.
        smallest: smallest difference of interest, in points.
        say: called with a line for each training.
    """
    found: dict[str, dict[str, list[Answers]]] = {}
    for entrant, weights in trainings:
        own = found.setdefault(entrant.row, {})
        for name, answers in _answers(entrant.row, weights, spec, data).items():
            own.setdefault(name, []).append(answers)
            say(f"{entrant.label}: {metric(name).title} {percent(answers):.2f}")
    reference, *_ = found
    lines = []
    for row, by_metric in found.items():
        for name, trainings in by_metric.items():
            values = [percent(one) for one in trainings]
            base = found[reference].get(name) if row != reference else None
            difference = seeds_difference(base, trainings, smallest, spec.seed) if base else None
            lines.append(RowSeeds(row, name, values, difference))
    return lines


def _answers(row: str, weights: str, spec: BenchmarkSpec, data: str) -> dict[str, Answers]:
    """Return the outputs of one training run, by metric."""
    from detection_zoo.benchmarks.measure.detection import measure_accuracy
    from detection_zoo.benchmarks.run.subject import open_data, prepare

    entry = row_named(row)
    dataset = open_data(entry, data, spec.images)
    subject = prepare(entry, spec, dataset, weights)
    with tempfile.TemporaryDirectory() as folder:
        _, _, files = measure_accuracy(subject, spec, Path(folder))
        return answers_of(entry, files, Path(folder).parent, dataset)


def seeds_table(lines: Sequence[RowSeeds], smallest: float) -> Table:
    """The lines as a table."""
    rows = []
    for line in lines:
        found = line.difference
        rows.append(
            [
                line.row,
                metric(line.metric).title,
                " ".join(f"{value:.2f}" for value in line.values),
                f"{fmean(line.values):.2f}",
                "-" if line.spread is None else f"{line.spread:.2f}",
                "reference"
                if found is None
                else f"{found.verdict} {found.value:+.2f}"
                + (f" ({found.interval[0]:+.2f} to {found.interval[1]:+.2f})" if found.interval else ""),
                "" if found is None else f"{found.by_images:.2f}",
                "" if found is None else "-" if found.by_seeds is None else f"{found.by_seeds:.2f}",
            ]
        )
    headers = [
        "Row",
        "Metric",
        "Each training run (%)",
        "Mean",
        "SD",
        "Difference (95 %)",
        "SE images",
        "SE seeds",
    ]
    notes = [
        "SD: standard deviation over training runs.",
        "Difference of the means, in percentage points; its interval covers images and seeds.",
        "SE: standard error of the difference from the choice of images, and from the seeds.",
        f"Smallest difference of interest: {smallest:g} points.",
    ]
    return Table(headers, rows, notes)
