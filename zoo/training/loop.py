"""The training loop: forward, backward, update and nothing else, so that benchmarks measure exactly this."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.training.recipe import learning_rate, set_learning_rate

Batch = tuple[Tensor, Tensor, list[Target]]  # images (N, 3, H, W), sizes (N, 2), targets
Stage = Literal["data", "forward", "backward", "update"]


@dataclass(frozen=True)
class StepRecord:
    """One update: its number, learning rate, losses (summed over accumulated passes, on the CPU), number of
    images, whether it was skipped."""

    iteration: int
    learning_rate: float
    losses: dict[str, float]
    images: int
    skipped: bool = False

    @property
    def total_loss(self) -> float:
        """The sum of the loss terms."""
        return sum(self.losses.values())


def move(value: Any, device: torch.device) -> Any:
    """A tensor, or a list, tuple, dict or dataclass of them, on the device; anything else unchanged,
    including fields of records that stay on the host."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, (list, tuple)):
        return type(value)(move(item, device) for item in value)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{
                f.name: move(getattr(value, f.name), device)
                for f in dataclasses.fields(value)
                if f.init and not f.metadata.get("on_host")
            },
        )
    return value


def train_steps(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    iterations: int,
    start: int = 0,
    iterations_per_epoch: int | None = None,
    accumulate: int = 1,
    amp_dtype: torch.dtype | None = None,
    on_nonfinite: Literal["raise", "skip"] = "raise",
    scaler: torch.amp.GradScaler | None = None,
    mark: Callable[[Stage], None] | None = None,
    channels_last: bool = False,
) -> Iterator[StepRecord]:
    """Train, yielding a record after every update, so that the caller can log, save and stop.

    Args:
        model: in training mode; maps (images, sizes, targets) to a dict of scalar losses. It may be a
            DistributedDataParallel wrapper.
        batches: at least (iterations - start) * accumulate of them.
        optimizer: by `build_optimizer`.
        schedule: rate of each update, momentum rule.
        iterations: total updates; start: updates already made.
        accumulate: forward passes per update; their gradients are summed, not averaged.
        amp_dtype: torch.bfloat16 or torch.float16 for automatic mixed precision; None for float32.
        on_nonfinite: a loss that is NaN or infinite raises FloatingPointError, or its update is skipped (as
            noted in the record).
        scaler: loss scaling for float16.
        mark: called at the end of each stage; used for a benchmark's timers.
        channels_last: convert the images to that layout; the caller converts the weights.
    """
    device = next(model.parameters()).device
    stream, mark = iter(batches), mark or (lambda stage: None)
    for iteration in range(start, iterations):
        rate = learning_rate(schedule, iteration, iterations_per_epoch)
        set_learning_rate(optimizer, rate, schedule.rescale_momentum)
        optimizer.zero_grad(set_to_none=True)
        terms: dict[str, float] = {}
        images = 0
        for turn in range(accumulate):
            pixels, sizes, targets = _next(stream, iteration)  # sizes: only read on the host
            batch = move(pixels, device), sizes, move(targets, device)
            if channels_last:
                batch = (batch[0].contiguous(memory_format=torch.channels_last), *batch[1:])
            mark("data")
            with (
                _unsynchronised(model, turn < accumulate - 1),
                torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None),
            ):
                losses = model(*batch)
                total = sum(losses.values())
            mark("forward")
            with _unsynchronised(model, turn < accumulate - 1):
                (scaler.scale(total) if scaler else total).backward()
            mark("backward")
            for name, value in _numbers(losses).items():
                terms[name] = terms.get(name, 0.0) + value
            images += len(batch[0])
        skipped = not _finite(terms, iteration, on_nonfinite, device)
        if not skipped:
            _update(optimizer, scaler, schedule.clip_norm)
        mark("update")
        yield StepRecord(iteration, rate, terms, images, skipped)


def _next(stream: Iterator[Batch], iteration: int) -> Batch:
    try:
        return next(stream)
    except StopIteration:
        raise ValueError(f"the batches end before update {iteration}; give an endless iterable") from None


def _unsynchronised(model: nn.Module, wanted: bool) -> AbstractContextManager:
    """Distributed wrappers exchange gradients once per update, not once per pass."""
    return model.no_sync() if wanted and hasattr(model, "no_sync") else nullcontext()


def _numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    """The terms on the CPU, in one transfer."""
    values = torch.stack([value.detach().float().reshape(()) for value in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


def _finite(terms: dict[str, float], iteration: int, on_nonfinite: str, device: torch.device) -> bool:
    """Whether all terms are finite in every process; raises if requested."""
    bad = {name: value for name, value in terms.items() if not math.isfinite(value)}
    anywhere = bool(bad)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # if one process skips an update the others must too, or their weights diverge
        flag = torch.tensor(float(anywhere), device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        anywhere = bool(flag)
    if anywhere and on_nonfinite == "raise":
        where = ", ".join(f"{name} = {value}" for name, value in bad.items()) or "in another process"
        raise FloatingPointError(
            f"the loss of update {iteration} is not finite: {where}; lower the learning rate, or leave such"
            " updates out"
        )
    return not anywhere


def _update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, clip_norm: float | None
) -> None:
    if clip_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
