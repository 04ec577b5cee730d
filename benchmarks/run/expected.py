"""Compare measured accuracy with the accuracy expected in a row's manifest (`run --check`)."""

from __future__ import annotations

from collections.abc import Sequence

from detection_zoo.benchmarks.spec import Run
from detection_zoo.zoo.manifest import ModelEntry


def check_expected(entry: ModelEntry, run: Run | None) -> tuple[bool, list[str]]:
    """Compare a run with the accuracy that its row expects.

    Args:
        entry: a row with `training`.
        run: of that row, on images of its test split; None: it failed.

    Returns:
        Whether every expected metric is within the tolerance, and a line for each metric.
    """
    training = entry.training
    if run is None:
        return False, [f"{entry.name}: not measured"]
    if training is None:
        return True, [f"{entry.name}: no expected accuracy in its manifest; not checked"]
    if run.status != "finished" or run.data is None:
        return False, [f"{entry.name}: {run.status}" + (f": {run.reason}" if run.reason else "")]
    good, lines = True, []
    for metric, by_images in training.expected.items():
        expected = by_images.get(str(run.data.images))
        if expected is None:
            known = ", ".join(by_images)
            lines.append(
                f"{entry.name}: {metric}: no expected value for {run.data.images} images, only for {known}"
            )
            good = False
            continue
        if (measured := run.measurements.get(metric)) is None:
            lines.append(f"{entry.name}: {metric}: expected {expected:.2f}, not measured")
            good = False
            continue
        fits = abs(measured.value - expected) <= training.tolerance
        good &= fits
        lines.append(
            f"{entry.name}: {metric}: expected {expected:.2f} +- {training.tolerance:g},"
            f" measured {measured.value:.2f}: {'as expected' if fits else 'DIFFERS'}"
        )
    return good, lines


def check_runs(entries: Sequence[ModelEntry], runs: Sequence[Run]) -> tuple[bool, list[str]]:
    """Check many rows; a row without a run counts as failed."""
    by_row = {run.row: run for run in runs}
    found = [check_expected(entry, by_row.get(entry.name)) for entry in entries]
    return all(good for good, _ in found), [line for _, lines in found for line in lines]
