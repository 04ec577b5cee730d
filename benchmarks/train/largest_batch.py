"""Find the largest training batch that fits in a memory limit, with `fit`."""

from __future__ import annotations

from collections.abc import Callable

from detection_zoo.benchmarks.ask.fit_find import MIB_PER_GB, fit
from detection_zoo.benchmarks.ask.fit_trial import Case

USUAL = (640, 480)  # pixels of a photograph in COCO


def largest_batch(
    row: str, gb: float, device: str, precision: str, say: Callable[[str], None], most: int = 256
) -> int:
    """Return the images per batch of one process; every trial runs in its own process.

    Args:
        row: its name. gb: memory limit of a process, GiB. device, precision: of the training run. say: called
        with a line per trial. most: largest batch to try.

    Raises:
        ValueError: even one image does not fit.
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
        why = next((answer.bound for answer in found.answers if answer.bound), "even one image does not fit")
        raise ValueError(f"--fit-gb {gb:g}: no batch of {row} fits: {why}")
    return best.batch
