"""Training memory and time: real training steps (data, forward, backward, update) with the row's schedule,
scaled to an epoch."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch

from detection_zoo.benchmarks.measure.memory import peak_memory
from detection_zoo.benchmarks.measure.timing import synchronise
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.subject import Subject, images_in_epoch
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement
from detection_zoo.benchmarks.statistics import LEAST_STEPS, block_means, drift, steps_interval, summarise
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.training_loader import QUEUED_BATCHES, TrainingLoader, training_batches
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.training.loop import train_steps
from detection_zoo.zoo.training.plan import Wishes, plan_training
from detection_zoo.zoo.training.recipe import build_optimizer, training_mode


def why_no_training(subject: Subject) -> str:
    """Return why a row's training cannot be measured; empty if it can."""
    if subject.is_classifier:
        return "training of classifiers is not measured"
    return "" if subject.entry.schedule else "the row has no training schedule"


def schedule_of(subject: Subject) -> Schedule:
    """Return the row's training schedule; raises ManifestError if it has none."""
    if why := why_no_training(subject):
        raise ManifestError(f"{subject.entry.where}: {why}")
    return load_manifests().schedules[subject.entry.schedule]


def batches_of(subject: Subject, dataset: Dataset, spec: BenchmarkSpec, schedule: Schedule) -> Iterator[Any]:
    """Endless training batches, loaded as `train` loads them."""
    batches = training_batches(
        subject.entry, dataset, batch=spec.train_images_per_step, seed=spec.seed, schedule=schedule
    )
    return iter(TrainingLoader(batches, workers=spec.workers, pin_memory=subject.device.type == "cuda"))


def measure_training(
    subject: Subject, dataset: Dataset, note: str, spec: BenchmarkSpec
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Measure peak memory, step time and epoch time of training steps like those of `train`, with the
    recipe's learning rate; the model's weights change.

    Args:
        subject: model on its device.
        dataset: training images; note: their description for the record.
        spec: images per step, steps, budget, workers, precision.

    Returns:
        train_memory_*_mib, train_step_ms, epoch_time_s; metrics without a value, with the reason.

    Raises:
        FloatingPointError: no step had a finite loss.
    """
    plan = plan_training(schedule_of(subject), Wishes(batch=spec.train_images_per_step), len(dataset))
    schedule, model = plan.schedule, training_mode(subject.model, plan.schedule)
    optimizer = build_optimizer(model, schedule)
    amp = None if spec.dtype == "float32" else getattr(torch, spec.dtype)
    steps = train_steps(
        model,
        batches_of(subject, dataset, spec, schedule),
        optimizer,
        schedule,
        iterations=warm_up_steps(spec) + spec.train_steps,
        iterations_per_epoch=plan.updates_per_epoch,
        amp_dtype=amp,
        scaler=torch.amp.GradScaler(subject.device.type) if amp is torch.float16 else None,
        on_nonfinite="skip",
    )
    with peak_memory(subject.device, polled=False) as peak:
        seconds, skipped = _timed(steps, subject, spec)
    if skipped == warm_up_steps(spec) + len(seconds):
        raise FloatingPointError(
            f"no training step of {subject.entry.name} had a finite loss; with random weights, use"
            " another row or give --weights"
        )
    what = f"training step of {spec.train_images_per_step} images, {spec.dtype}, {note}"
    what += f"; {skipped} steps skipped because the loss was not finite" if skipped else ""
    found = peak.measurements("train", what)
    found["train_step_ms"] = summarise(
        [s * 1e3 for s in seconds], "ms", covers=f"data loading, forward, backward, update; {what}"
    )
    found["epoch_time_s"] = epoch_time(seconds, subject, dataset, spec, what)
    return found, peak.reasons("train")


def warm_up_steps(spec: BenchmarkSpec) -> int:
    """Return the number of warm-up steps: the specification's, plus one per batch prefetched by the
    data loader before the first step, so that timed steps wait for data as in an epoch; at most as
    many of these as timed steps."""
    return max(spec.train_warm_up_steps, min(QUEUED_BATCHES * spec.workers + 1, spec.train_steps))


def _timed(steps: Iterator[Any], subject: Subject, spec: BenchmarkSpec) -> tuple[list[float], int]:
    """Return the seconds of each step after the warm-up, and how many steps were skipped."""
    skipped, seconds = 0, []
    untimed = warm_up_steps(spec)
    with progress(f"{subject.entry.name}: training, warm-up", untimed) as tick:
        for record in itertools.islice(steps, untimed):
            skipped += record.skipped
            tick()
    synchronise(subject.device)
    with progress(f"{subject.entry.name}: training", spec.train_steps) as tick:
        end = time.perf_counter() + spec.time_budget_s
        start = time.perf_counter()
        for record in steps:
            synchronise(subject.device)
            now = time.perf_counter()
            seconds.append(now - start)
            skipped += record.skipped
            tick()
            if now >= end and len(seconds) >= 2:
                break
            start = time.perf_counter()
    return seconds, skipped


def epoch_time(
    seconds: list[float], subject: Subject, dataset: Dataset, spec: BenchmarkSpec, what: str
) -> Measurement:
    """Return mean step time multiplied by the steps per epoch, with its interval over blocks of
    steps, and the drift from the first to the last step."""
    images, whose = images_in_epoch(subject.entry, dataset)
    steps = math.ceil(images / spec.train_images_per_step)
    interval = steps_interval(seconds)
    change, steady = drift([block_means(seconds)])
    return Measurement(
        value=fmean(seconds) * steps,
        unit="s",
        statistic="mean",
        n=len(seconds),
        samples=seconds,
        extrapolated=steps != len(seconds),
        interval=None if interval is None else (max(0.0, interval[0] * steps), interval[1] * steps),
        drift=change,
        steady=steady,
        covers=f"one device, data loading included; {what}",
        note=f"{len(seconds)} steps measured, scaled to the {steps} steps of {images} images ({whose})"
        + (f"; no interval from fewer than {LEAST_STEPS} steps" if interval is None else ""),
    )
