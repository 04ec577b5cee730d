"""The plan of a training run: the row's schedule with the user's changes, and a list of the differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.training.recipe import learning_rate, scale_schedule, total_iterations


@dataclass(frozen=True)
class Wishes:
    """The user's changes to a row's own schedule; None: unchanged.

    batch: images of one forward pass over all processes; accumulate: forward passes per update; lr: learning
        rate for that batch; iterations, epochs: length; lr_steps: when the learning rate drops, in iterations
        (in epochs if the schedule counts epochs); warmup: iterations; optimizer, policy, clip_norm,
        layer_decay: of the schedule;
    scale_lr: rescale the schedule to the batch even if the source's script does not.
    """

    batch: int | None = None
    accumulate: int = 1
    lr: float | None = None
    iterations: int | None = None
    epochs: int | None = None
    lr_steps: tuple[int, ...] | None = None
    warmup: int | None = None
    optimizer: str | None = None
    policy: str | None = None
    clip_norm: float | None = None
    layer_decay: float | None = None
    scale_lr: bool = False


@dataclass(frozen=True)
class Plan:
    """One training run: its schedule, its length in updates, and the differences from the row's own
    schedule."""

    schedule: Schedule
    iterations: int
    updates_per_epoch: int
    accumulate: int
    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def rate(self, iteration: int) -> float:
        """The learning rate of an update, counted from 0."""
        return learning_rate(self.schedule, iteration, self.updates_per_epoch)

    def epoch(self, iteration: int) -> float:
        """Epochs finished after so many updates."""
        return iteration / self.updates_per_epoch


def plan_training(own: Schedule, wishes: Wishes, images: int, batches: int | None = None) -> Plan:
    """The schedule of a training run, with one line for every difference from the row's own.

    Another batch size changes learning rate, length and steps by the linear rule if the source does so;
    another length scales the steps in proportion, and a warm-up takes at most a tenth of it.

    Args:
        own: the row's schedule.
        wishes: the user's changes.
        images: images per epoch, over all processes.
        batches: forward passes per epoch with that batch; None: computed from the images. Grouping by aspect
            ratio adds incomplete batches.
    """
    schedule, warnings = own, []
    batch = wishes.batch or own.images_per_batch
    if batch * wishes.accumulate != own.images_per_batch or batch != own.images_per_batch:
        if own.scales_with_batch or wishes.scale_lr:
            schedule = scale_schedule(own, batch, wishes.accumulate)
        else:
            schedule = own.model_copy(update={"images_per_batch": batch})
            warnings.append(
                f"the recipe is for {own.images_per_batch} images an update, this training has"
                f" {batch * wishes.accumulate}; the source's script leaves the rate as it is, and so does"
                " this one (--scale-lr scales it)"
            )
    schedule = _of_length(schedule, wishes)
    updates: dict[str, Any] = {}
    if wishes.lr is not None:
        updates["lr"] = wishes.lr
    if wishes.lr_steps is not None:
        updates["steps"] = list(wishes.lr_steps)
    if wishes.warmup is not None:
        updates |= {"warmup_iterations": wishes.warmup, "warmup_stop": None}
    for name in ("optimizer", "policy", "clip_norm", "layer_decay"):
        if getattr(wishes, name) is not None:
            updates[name] = getattr(wishes, name)
    schedule = schedule.model_copy(update=updates)
    per_epoch = max(1, (images // batch if batches is None else batches) // wishes.accumulate)
    return Plan(
        schedule,
        total_iterations(schedule, per_epoch),
        per_epoch,
        wishes.accumulate,
        changed_fields(own.model_dump(), schedule.model_dump()),
        warnings,
    )


def _of_length(schedule: Schedule, wishes: Wishes) -> Schedule:
    """The schedule cut or stretched to the requested number of iterations or epochs."""
    if wishes.iterations is None and wishes.epochs is None:
        return schedule
    if wishes.iterations is not None and wishes.epochs is not None:
        raise ValueError("--iterations and --epochs both give the length; give one of them")
    length = wishes.iterations or wishes.epochs or 0
    old = schedule.iterations if schedule.epochs is None else schedule.epochs
    same_unit = (wishes.epochs is None) == (schedule.epochs is None)
    updates: dict[str, Any] = {"iterations": wishes.iterations, "epochs": wishes.epochs}
    if wishes.iterations is not None:
        updates["extra_iterations"] = 0  # the requested number
    if old:
        updates["steps"] = [int(step * length / old + 0.5) for step in schedule.steps]
    if wishes.iterations is not None and (not same_unit or old != length):
        updates["warmup_iterations"] = min(schedule.warmup_iterations, max(1, length // 10))
        if schedule.warmup_iterations == 0:
            updates["warmup_iterations"] = 0
        updates["warmup_stop"] = None
    return schedule.model_copy(update=updates)


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """ "field: old -> new" for every field of both that differs."""
    return [
        f"{name}: {_shown(value)} -> {_shown(after[name])}"
        for name, value in before.items()
        if name in after and value != after[name]
    ]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
