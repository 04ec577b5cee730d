"""A training run from its first update, or from its last checkpoint, to its end."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detection_zoo.zoo.data.loading import STOP_SIGNALS
from detection_zoo.zoo.data.training_loader import TrainingLoader, is_lost_worker
from detection_zoo.zoo.errors import CheckpointError, DatasetError
from detection_zoo.zoo.training import checkpoints
from detection_zoo.zoo.training.distributed import Process, anywhere, distribute, share_buffers
from detection_zoo.zoo.training.loop import Stage, StepRecord, train_steps
from detection_zoo.zoo.training.metrics_log import MetricsFile, ProgressLine, update_line
from detection_zoo.zoo.training.plan import Plan, changed_fields
from detection_zoo.zoo.training.recipe import build_optimizer, training_mode

Say = Callable[[str], None]
MOST_BACKS = 3  # returns to a checkpoint before a non-finite loss ends training
LOSSES = 20  # updates in the final median, as in Detectron2's smoothed log
METRICS, EVALUATIONS = "metrics.csv", "evaluations.csv"


@dataclass(frozen=True)
class Settings:
    """Settings of a training run apart from its plan.

    folder: checkpoints, metrics.csv and recipe.json; seed: of the stream of batches; save_every: updates
        between checkpoints, 0 saves none; keep: number of checkpoints kept; log_every: updates per line;
        eval_every: updates between evaluations, None evaluates at the end only, 0 never; precision: float32
        or autocast in another type; channels_last: layout of images and weights on a GPU (always used on a
        CPU); sync_bn: statistics of batch norms over all processes; ema: decay of a moving average of the
        weights, which is evaluated instead of them; on_nonfinite: reaction to a non-finite loss; patience:
        evaluations without improvement after which training ends; time_limit_s: seconds after which it is
        saved and ends.
    """

    folder: Path
    seed: int = 0
    resume: bool = False
    save_every: int = 1000
    keep: int = 2
    log_every: int = 20
    eval_every: int | None = None
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    channels_last: bool = False
    sync_bn: bool = False
    ema: float | None = None
    on_nonfinite: Literal["stop", "skip", "back"] = "stop"
    patience: int | None = None
    time_limit_s: float | None = None


@dataclass
class Outcome:
    """Result of a training run: updates made, median total loss of the last 20, last checkpoint, reason for
    stopping early, mean seconds per update, last and best evaluation."""

    iterations: int
    loss: float = float("nan")
    checkpoint: Path | None = None
    stopped_by: str | None = None
    seconds: float = float("nan")
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None


def start_of(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to resume from; None for a new run.

    Raises:
        CheckpointError: the folder contains a run that is not to be resumed.
    """
    newest = checkpoints.latest(folder)
    if newest is not None and not resume:
        raise CheckpointError(
            f"{folder} holds a training already ({newest.name}); go on with it by --resume, or give another"
            " --out"
        )
    return newest


class Trainer:
    """State of a training run: model, optimiser, averages, position in the stream, and the files of its
    folder.

    Args:
        model: on the CPU or on the process's device; modified in place.
        loader: batches from a given position of the stream.
        plan: schedule and length.
        settings: folder, saving, logging, precision.
        entry: name of the row; row: further information about it in checkpoints.
        process: this process; say: called with the progress lines of the first one.
        evaluate: metrics of a model; all processes call it.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Callable[[int], TrainingLoader],
        plan: Plan,
        settings: Settings,
        *,
        entry: str,
        row: Mapping[str, Any],
        process: Process,
        say: Say,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        observe: Callable[[Mapping[str, Any]], None] = lambda values: None,
    ) -> None:
        self.loader, self.plan, self.settings, self.entry = loader, plan, settings, entry
        self.process, self.say, self.evaluate, self.observe = process, say, evaluate, observe
        if settings.sync_bn and process.world > 1:
            if process.device.type != "cuda":
                raise ValueError("--sync-bn needs GPUs: torch has no such norm for a CPU")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = training_mode(model.to(process.device), plan.schedule)
        if settings.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, plan.schedule)
        self.amp = None if settings.precision == "float32" else getattr(torch, settings.precision)
        half = self.amp is torch.float16
        self.scaler = torch.amp.GradScaler(process.device.type) if half else None
        self.ema = None
        if settings.ema is not None:
            average = get_ema_multi_avg_fn(settings.ema)
            self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.stream = {
            "seed": settings.seed,
            "world": process.world,
            "accumulate": plan.accumulate,
            "batch": plan.schedule.images_per_batch,
        }
        self.row = dict(row)
        self.done = Outcome(0)
        self._unimproved, self._seconds, self._updates, self._backs = 0, 0.0, 0, 0
        self.offset = 0  # skipped batches of the stream
        newest = start_of(settings.folder, settings.resume)
        if newest is not None:
            self._restore(newest)
        self.saved = self.done.iterations

    def _restore(self, path: Path) -> None:
        value = checkpoints.read(path)
        made = checkpoints.apply(
            value,
            path,
            self.model,
            self.optimizer,
            scaler=self.scaler,
            entry=self.entry,
            rank=self.process.rank,
        )
        if self.ema is not None and value.get("averaged"):
            self.ema.module.load_state_dict(value["averaged"])
            self.ema.n_averaged.fill_(value["averaged_updates"])
        before = value.get("stream", {})
        for name in self.stream:
            if before.get(name, self.stream[name]) != self.stream[name]:
                self.say(
                    f"warning: the checkpoint was made with {name} {before[name]}, this training has"
                    f" {self.stream[name]}; the order of images differs from the unbroken training's"
                )
        own = self.plan.schedule.model_dump()
        if changed := changed_fields(value.get("schedule") or own, own):
            self.say(f"warning: the schedule is not the checkpoint's: {'; '.join(changed)}")
        self.done = Outcome(made, checkpoint=path, best=value.get("best"))
        self._unimproved, self.offset = value.get("unimproved", 0), value.get("offset", 0)
        self.say(f"resumed from {path.name}: {made} of {self.plan.iterations} updates are made")

    def run(self) -> Outcome:
        """Train to the end or until stopped; the state is then saved.

        Raises:
            FloatingPointError: the loss is not finite. CheckpointError: a checkpoint cannot be written.
            DatasetError: an image cannot be read, or a process that loads data ended.
        """
        while True:
            try:
                return self._run()
            except FloatingPointError as error:
                saved = self.done.checkpoint
                if self.settings.on_nonfinite != "back" or saved is None or self._backs == MOST_BACKS:
                    kept = "" if saved is None else f"; {saved.name} is from before"
                    raise FloatingPointError(f"{error}{kept}") from None
                bad = self.done.iterations
                self.say(f"{error}; back to {saved.name}, and on behind the batch that did it")
                self._backs += 1
                self._restore(saved)
                self.offset += (bad + 1 - self.done.iterations) * self.plan.accumulate
            except RuntimeError as error:
                if is_lost_worker(error):
                    raise DatasetError(
                        f"a process that loads data ended ({str(error).splitlines()[0]}); memory may have run"
                        " out: use fewer --workers, or 0 to see the error itself"
                    ) from error
                if self.process.world == 1:
                    raise
                saved = self.done.checkpoint
                kept = "there is no checkpoint" if saved is None else f"go on from {saved.name} by --resume"
                raise RuntimeError(
                    f"process {self.process.rank} of {self.process.world} ended after update"
                    f" {self.done.iterations}: {str(error).splitlines()[0]} (where another process ended, its"
                    f" own message says why); {kept}"
                ) from error

    def _run(self) -> Outcome:
        start, settings, main = self.done.iterations, self.settings, self.process.main
        log = MetricsFile(settings.folder / METRICS, start) if main else None
        self.evaluations = MetricsFile(settings.folder / EVALUATIONS, start) if main else None
        line = ProgressLine(self.plan.iterations, start, settings.log_every, self.process.device, self.say)
        clock, begun, losses = _Clock(), time.monotonic(), deque[float](maxlen=LOSSES)
        with _stopping() as stop:
            for record in self._steps(clock):
                made = self.done.iterations = record.iteration + 1
                if not record.skipped:
                    losses.append(record.total_loss)
                    self.done.loss = median(losses)
                if self.ema is not None and not record.skipped:
                    self.ema.update_parameters(self.model)
                seconds, data_seconds = clock.lap()
                self._seconds, self._updates = self._seconds + seconds, self._updates + 1
                if log is not None:
                    values = update_line(record, self.plan.epoch(made), seconds, data_seconds)
                    log.write(values)
                    self.observe(values)
                    line.add(record, self.plan.epoch(made), seconds, data_seconds)
                late = settings.time_limit_s is not None and time.monotonic() - begun > settings.time_limit_s
                reason = stop[0].name if stop else "the time limit" if late else ""
                self._between(made)
                if anywhere(bool(reason), self.process):
                    self.done.stopped_by = reason or "another process"
                elif settings.patience and self._unimproved >= settings.patience:
                    self.done.stopped_by = f"{self._unimproved} evaluations without a better one"
                if self.done.stopped_by is not None:
                    break
                clock.lap()
        if settings.save_every and self.saved != self.done.iterations:
            self.save()
        for file in (log, self.evaluations):
            if file is not None:
                file.close()
        if self.done.iterations >= self.plan.iterations:
            self.done.stopped_by = None
        if self._updates:
            self.done.seconds = self._seconds / self._updates
        return self.done

    def _steps(self, clock: _Clock) -> Iterator[StepRecord]:
        return train_steps(
            distribute(self.model, self.process),
            self.loader(self.done.iterations * self.plan.accumulate + self.offset),
            self.optimizer,
            self.plan.schedule,
            iterations=self.plan.iterations,
            start=self.done.iterations,
            iterations_per_epoch=self.plan.updates_per_epoch,
            accumulate=self.plan.accumulate,
            amp_dtype=self.amp,
            scaler=self.scaler,
            on_nonfinite="skip" if self.settings.on_nonfinite == "skip" else "raise",
            mark=clock.mark,
            channels_last=self.settings.channels_last,
        )

    def _between(self, made: int) -> None:
        """Evaluate and save if due."""
        settings = self.settings
        every, last = settings.eval_every, made == self.plan.iterations
        best = False
        if self.evaluate is not None and every != 0 and (last or every and made % every == 0):
            best = self._evaluated(made)
        if settings.save_every and (best or last or made % settings.save_every == 0):
            path = self.save()
            if best and self.process.main:
                checkpoints.point_to(settings.folder / checkpoints.BEST, path)

    def _evaluated(self, made: int) -> bool:
        """Evaluate; return whether it is the best so far. The random state of training is not affected."""
        device = self.process.device
        state = checkpoints.random_state(device)
        share_buffers(self.model, self.process)
        self.done.metrics = self.evaluate(self.model if self.ema is None else self.ema.module)
        training_mode(self.model, self.plan.schedule)
        checkpoints.set_random_state(state, device)
        if not self.done.metrics:
            return False
        if self.evaluations is not None:
            values = {"iteration": made, "epoch": round(self.plan.epoch(made), 4), **self.done.metrics}
            self.evaluations.write(values)
            self.observe(values)
        name, value = next(iter(self.done.metrics.items()))
        self.say(f"update {made}: {name} {value:.2f}")
        if self.done.best is not None and value <= self.done.best["value"]:
            self._unimproved += 1
            return False
        self._unimproved = 0
        self.done.best = {"metric": name, "value": value, "iteration": made}
        return True

    def save(self) -> Path:
        """Write a checkpoint of the current state; all processes call it."""
        self.saved = self.done.iterations
        averaged = self.ema is not None
        self.done.checkpoint = checkpoints.save(
            self.settings.folder,
            self.model,
            self.optimizer,
            self.saved,
            scaler=self.scaler,
            entry=self.entry,
            keep=self.settings.keep,
            process=self.process,
            more={
                "stream": self.stream,
                "schedule": self.plan.schedule.model_dump(),
                "row": self.row,
                "best": self.done.best,
                "unimproved": self._unimproved,
                "offset": self.offset,
                "averaged": self.ema.module.state_dict() if averaged else None,
                "averaged_updates": int(self.ema.n_averaged) if averaged else 0,
            },
        )
        return self.done.checkpoint


class _Clock:
    """Seconds of the update since the last lap, and the part of them spent waiting for data."""

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
def _stopping() -> Iterator[list[signal.Signals]]:
    """A list that receives the stop signal; a second signal ends the process immediately."""
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
