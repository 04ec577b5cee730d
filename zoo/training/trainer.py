"""One training from its first update, or from its last checkpoint, to its end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from detection_zoo.zoo.data.loading import STOP_SIGNALS
from detection_zoo.zoo.data.training_loader import TrainingLoader, is_lost_worker
from detection_zoo.zoo.errors import CheckpointError, DatasetError
from detection_zoo.zoo.training import checkpoints
from detection_zoo.zoo.training.distributed import Process, anywhere, distribute
from detection_zoo.zoo.training.loop import Stage, train_steps
from detection_zoo.zoo.training.metrics_log import MetricsFile, ProgressLine
from detection_zoo.zoo.training.plan import Plan
from detection_zoo.zoo.training.recipe import build_optimizer


@dataclass(frozen=True)
class Settings:
    """How a training runs, beside its plan.

    folder: checkpoints, metrics.csv and recipe.json; seed: of the stream of batches; save_every: updates
    between checkpoints, 0 saves none; keep: checkpoints that stay; log_every: updates a line; precision:
    float32 or autocast in another type; channels_last: layout of images and weights.
    """

    folder: Path
    seed: int = 0
    resume: bool = False
    save_every: int = 1000
    keep: int = 2
    log_every: int = 20
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    channels_last: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a training ended: updates made, the last total loss, the last checkpoint, the signal that stopped
    it."""

    iterations: int
    loss: float
    checkpoint: Path | None
    stopped_by: signal.Signals | None = None


def start_of(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; none for a training from its first update.

    Raises:
        CheckpointError: the folder holds a training and it is not to be resumed.
    """
    newest = checkpoints.latest(folder)
    if newest is not None and not resume:
        raise CheckpointError(
            f"{folder} holds a training already ({newest.name}); go on with it by --resume, or give another"
            " --out"
        )
    return newest


def train(
    model: nn.Module,
    loader: Callable[[int], TrainingLoader],
    plan: Plan,
    settings: Settings,
    *,
    entry: str,
    process: Process,
    say: Callable[[str], None],
) -> Outcome:
    """Train a model by a plan; it is saved every so many updates, at the end, and on a signal to stop.

    Args:
        model: on the CPU or on the process's device; it is changed.
        loader: batches from a place of the stream on.
        plan: schedule and length.
        settings: folder, saving, logging, precision.
        entry: name of the row, kept in the checkpoints.
        process: this process among all.
        say: gets the progress lines.

    Raises:
        FloatingPointError: the loss is not finite. CheckpointError: the folder's checkpoint does not fit.
    """
    model = model.to(process.device).train()
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, plan.schedule)
    amp = None if settings.precision == "float32" else getattr(torch, settings.precision)
    scaler = torch.amp.GradScaler(process.device.type) if amp is torch.float16 else None
    newest = start_of(settings.folder, settings.resume)
    start, stream = 0, {"seed": settings.seed, "world": process.world, "accumulate": plan.accumulate}
    stream["batch"] = plan.schedule.images_per_batch
    if newest is not None:
        value = checkpoints.read(newest)
        start = checkpoints.apply(
            value, newest, model, optimizer, scaler=scaler, entry=entry, rank=process.rank
        )
        for text in _other_stream(value.get("stream", {}), stream):
            say(f"warning: {text}; the order of images differs from the unbroken training's")
        say(f"resumed from {newest.name}: {start} of {plan.iterations} updates are made")
    log = MetricsFile(settings.folder / "metrics.csv", start) if process.main else None
    line = ProgressLine(plan.iterations, start, settings.log_every, process.device, say)

    def save(made: int) -> Path:
        return checkpoints.save(
            settings.folder,
            model,
            optimizer,
            made,
            scaler=scaler,
            entry=entry,
            keep=settings.keep,
            process=process,
            more={"stream": stream},
        )

    clock = _Clock()
    steps = train_steps(
        distribute(model, process),
        loader(start * plan.accumulate),
        optimizer,
        plan.schedule,
        iterations=plan.iterations,
        start=start,
        iterations_per_epoch=plan.updates_per_epoch,
        accumulate=plan.accumulate,
        amp_dtype=amp,
        scaler=scaler,
        mark=clock.mark,
        channels_last=settings.channels_last,
    )
    made, loss, saved, path = start, float("nan"), start, newest
    with _stopping() as stop, _lost_workers_said():
        for record in steps:
            made, loss = record.iteration + 1, record.total_loss
            seconds, data_seconds = clock.lap()
            epoch = plan.epoch(made)
            if log is not None:
                log.write(record, epoch, seconds, data_seconds)
            line.add(record, epoch, seconds, data_seconds)
            if settings.save_every and made % settings.save_every == 0:
                saved, path = made, save(made)
                clock.lap()
            if anywhere(bool(stop), process):
                break
    if log is not None:
        log.close()
    if settings.save_every and saved != made:
        path = save(made)
    return Outcome(made, loss, path, stop[0] if stop and made < plan.iterations else None)


def _other_stream(before: dict[str, int], now: dict[str, int]) -> list[str]:
    """What of the stream of batches differs from the checkpoint's, one text each."""
    return [
        f"the checkpoint was made with {name} {before[name]}, this training has {now[name]}"
        for name in now
        if before.get(name, now[name]) != now[name]
    ]


class _Clock:
    """Seconds of the update since the last lap, and of those the seconds until its data were there."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._data = 0.0

    def mark(self, stage: Stage) -> None:
        now = time.perf_counter()
        if stage == "data":
            self._data += now - self._last
        self._last = now

    def lap(self) -> tuple[float, float]:
        now = time.perf_counter()
        seconds, data = now - self._start, self._data
        self._start, self._last, self._data = now, now, 0.0
        return seconds, data


@contextmanager
def _lost_workers_said() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_lost_worker(error):
            raise
        raise DatasetError(
            f"a process that loads data ended ({str(error).splitlines()[0]}); memory may have run out: use"
            " fewer --workers, or 0 to see the error itself"
        ) from error


@contextmanager
def _stopping() -> Iterator[list[signal.Signals]]:
    """A list that gets the signal that asks to stop; a second one of the same kind ends the process at
    once."""
    received: list[signal.Signals] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
