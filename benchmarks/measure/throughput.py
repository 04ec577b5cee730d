"""Images per second at doubling batch sizes, until it no longer increases, or images or memory run out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial

import torch

from detection_zoo.benchmarks.measure.inference import Turns, batches_that_fit, collate, timed_batches
from detection_zoo.benchmarks.measure.timing import PhaseClock, time_passes, warm_up
from detection_zoo.benchmarks.run.isolation import out_of_memory
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.subject import Subject
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement
from detection_zoo.benchmarks.statistics import LEAST_PASSES, summarise_passes
from detection_zoo.zoo.data.transforms import PreprocessedImage

RISE = 0.03  # minimum relative gain per doubling of the batch size to continue
BUDGET_SHARE = 1 / 6  # fraction of the timing budget for each batch size
LARGEST = 1024  # largest batch size that has a metric in metrics.toml
UNIT = "images/s"


@dataclass
class Ladder:
    """Results per batch size, in increasing order, and why there is no larger one."""

    rungs: dict[int, Measurement] = field(default_factory=dict)
    end: str = ""

    @property
    def best(self) -> int:
        """Batch size with the most images per second."""
        return max(self.rungs, key=lambda size: self.rungs[size].value)

    def why_no_more(self, size: int, images: int, budget_s: float) -> str:
        """Return why a batch of this size is not tried with this number of images and seconds; empty if it is
        tried."""
        if not self.rungs:
            return ""
        *smaller, last = (one.value for one in self.rungs.values())
        if smaller and last < (1 + RISE) * max(smaller):
            return f"doubling the batch was not {RISE:.0%} faster"
        if size > images:
            return f"there are {images} images; use more for larger batches"
        if size > LARGEST:
            return f"{LARGEST} is the largest batch size tried"
        return (
            f"two batches of {size} would take longer than the time budget of {budget_s:g} s"
            if 2 * size / last > budget_s
            else ""
        )

    def measurements(self) -> dict[str, Measurement]:
        """Return throughput_images_per_s (of the best batch size) and
        throughput_batch_N_images_per_s of each batch size."""
        steps = ", ".join(f"{size}: {one.value:.4g}" for size, one in self.rungs.items())
        best = self.rungs[self.best]
        note = f"best of batches {steps}; stopped because {self.end}; {best.note}"
        return {
            "throughput_images_per_s": best.model_copy(update={"note": note}),
            **{f"throughput_batch_{size}_images_per_s": one for size, one in self.rungs.items()},
        }


def measure_throughput(subject: Subject, spec: BenchmarkSpec) -> dict[str, Measurement]:
    """Measure images per second (forward + post-processing of prepared batches) at batch sizes 1, 2, 4, 8 ...

    Args:
        subject: model in any mode; left in evaluation mode.
        spec: timed images (the largest power of two of them, the same for every batch size),
            budgets, precision; its batch size is not used.

    Returns:
        As `Ladder.measurements`.

    Raises:
        RuntimeError, MemoryError: not even one image fits in memory.
    """
    subject.model.eval()
    images = prepared_images(subject, spec)
    ladder = Ladder()
    for size in (1 << power for power in itertools.count()):
        ladder.end = ladder.why_no_more(size, len(images), spec.time_budget_s)
        if ladder.end:
            break
        try:
            ladder.rungs[size] = throughput_of(subject, images, size, spec)
        except (RuntimeError, MemoryError) as error:
            if not (out_of_memory(error) and ladder.rungs):
                raise
            ladder.end = f"a batch of {size} does not fit in memory"
            break
    if subject.device.type == "cuda":
        torch.cuda.empty_cache()  # release the memory of the largest batch for later measurements
    return ladder.measurements()


def prepared_images(subject: Subject, spec: BenchmarkSpec) -> list[PreprocessedImage]:
    """Return pre-processed images on the host, a number that gives full batches of every size."""
    count = min(len(subject.dataset), spec.timed_images)
    count = 1 << (count.bit_length() - 1)
    chosen = timed_batches(
        len(subject.dataset), spec.model_copy(update={"batch_size": 1, "timed_images": count})
    )
    return [subject.preprocess(subject.dataset.load_image(index)) for (index,) in chosen]


def throughput_of(
    subject: Subject, images: list[PreprocessedImage], size: int, spec: BenchmarkSpec
) -> Measurement:
    """Measure images per second at one batch size; one sample per batch."""
    batches = [images[start : start + size] for start in range(0, len(images), size)]

    def turn(timed: Turns, batch: list[PreprocessedImage]) -> float:
        pixels, *sizes = collate(batch, subject.preprocess)
        found_ms = timed.network(pixels.to(subject.device), *sizes, size)
        tick()
        return found_ms

    with progress(f"{subject.entry.name}: throughput, batch {size}", None) as tick:
        warming, timed = (Turns(subject, spec, PhaseClock(subject.device)) for _ in range(2))
        warmed = warm_up(
            [partial(turn, warming, batches[0])], BUDGET_SHARE * spec.warm_up_budget_s, least_s=0.0
        )
        budget_s = BUDGET_SHARE * spec.time_budget_s
        chosen = batches_that_fit(batches, warmed.seconds / warmed.passes, budget_s / LEAST_PASSES)
        passes, _ = time_passes(
            [partial(turn, timed, batch) for batch in chosen],
            least_passes=2,
            least_s=0.0,
            precision=spec.precision,
            budget_s=budget_s,
        )
    covers = (
        f"batch {size}: forward + post-processing of prepared batches on the device,"
        f" {len(chosen) * size} images per pass; {spec.dtype}"
    )
    rates = [[1e3 / ms for ms in made] for made in passes]
    found = summarise_passes([rates], UNIT, covers=covers, note=str(warmed))
    return found.model_copy(update={"times_s": timed.clock.starts_s})
