"""The largest batch of a training that fits in so much memory, found by `fit`."""

from __future__ import annotations

from collections.abc import Callable

from detection_zoo.benchmarks.ask.fit_find import MIB_PER_GB, fit
from detection_zoo.benchmarks.ask.fit_trial import Case

USUAL = (640, 480)  # pixels of a photograph in COCO


def largest_batch(
    row: str, gb: float, device: str, precision: str, say: Callable[[str], None], most: int = 256
) -> int:
    """The images of a batch of one process; every trial is a process of its own.

    Args:
        row: its name. gb: memory of a process. device, precision: of the training. say: gets a line a trial.
        most: no larger batch is tried.

    Raises:
        ValueError: one image is too much.
        ManifestError: the row cannot be trained.
    """
    found = fit(
        Case(row, "random", device, precision, True, 1, USUAL),
        gb * MIB_PER_GB,
        ("batch",),
        most_batch=most,
        say=say,
    )
    if found.interrupted:
        raise KeyboardInterrupt
    best = next((answer.fits for answer in found.answers if answer.fits), None)
    if best is None:
        why = next((answer.bound for answer in found.answers if answer.bound), "one image is too much")
        raise ValueError(f"--fit-gb {gb:g}: no batch of {row} fits: {why}")
    return best.batch
