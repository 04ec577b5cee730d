"""Recipes: from a manifest's schedule to an optimiser and to the learning rate of every update."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detection_zoo.zoo.manifest import Schedule

MOMENTUM_THRESHOLD = 1.1  # momentum buffers are unchanged for smaller relative changes of the rate
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)


def total_iterations(schedule: Schedule, iterations_per_epoch: int | None = None) -> int:
    """The number of optimiser updates of a schedule.

    Args:
        schedule: with `iterations`, or with `epochs`.
        iterations_per_epoch: updates per epoch; needed if the schedule counts epochs.
    """
    if schedule.iterations is not None:
        return schedule.iterations + schedule.extra_iterations
    if schedule.epochs is None:
        raise ValueError(
            "the schedule gives neither iterations nor epochs; add one to its table in schedules.toml"
        )
    return schedule.epochs * _per_epoch(iterations_per_epoch) + schedule.extra_iterations


def _per_epoch(iterations_per_epoch: int | None) -> int:
    if not iterations_per_epoch or iterations_per_epoch < 1:
        raise ValueError(
            "the schedule counts epochs: iterations_per_epoch must be a positive number, not"
            f" {iterations_per_epoch!r}"
        )
    return iterations_per_epoch


def learning_rate(schedule: Schedule, iteration: int, iterations_per_epoch: int | None = None) -> float:
    """The learning rate of the weights (before any group's own factor) in one update.

    Args:
        schedule: the recipe; its `steps` count iterations, or finished epochs if `epochs` is set.
        iteration: updates already made, from 0.
        iterations_per_epoch: updates per epoch; needed if the schedule counts epochs.
    """
    position = iteration + schedule.scheduler_leads
    rate = schedule.lr * _warmup(schedule, position)
    done = position if schedule.epochs is None else position // _per_epoch(iterations_per_epoch)
    if schedule.policy == "cosine":
        end = schedule.iterations if schedule.epochs is None else schedule.epochs
        if end is None:
            raise ValueError("a cosine schedule needs iterations or epochs")
        return rate * 0.5 * (1 + math.cos(math.pi * done / end))
    return rate * schedule.gamma ** len([step for step in schedule.steps if done >= step])


def _warmup(schedule: Schedule, position: int) -> float:
    """The linear ramp from `warmup_factor` to 1, as a factor."""
    stop = schedule.warmup_iterations if schedule.warmup_stop is None else schedule.warmup_stop
    if position >= stop:
        return 1.0
    done = position / schedule.warmup_iterations
    return schedule.warmup_factor * (1 - done) + done


def scale_schedule(schedule: Schedule, images_per_batch: int, accumulate: int = 1) -> Schedule:
    """The same schedule for another batch size: learning rate in proportion, iterations and steps in inverse
    proportion, warm-up unchanged.

    The linear rule of Detectron.pytorch's training script. Accumulated gradients are summed, so `accumulate`
    shortens the schedule and does not change the learning rate. Schedules in epochs keep their epochs.

    Args:
        schedule: for its own `images_per_batch`.
        images_per_batch: images of one forward pass over all devices.
        accumulate: forward passes per update.
    """
    if images_per_batch < 1 or accumulate < 1:
        raise ValueError(
            f"images_per_batch and accumulate must be at least 1, not {images_per_batch} and {accumulate}"
        )
    ratio = schedule.images_per_batch / (images_per_batch * accumulate)

    def shorten(count: int) -> int:
        return int(count * ratio + 0.5)

    changes: dict[str, object] = {
        "lr": schedule.lr * images_per_batch / schedule.images_per_batch,
        "images_per_batch": images_per_batch,
    }
    if schedule.epochs is None:
        changes["steps"] = [shorten(step) for step in schedule.steps]
        changes["iterations"] = None if schedule.iterations is None else shorten(schedule.iterations)
    return schedule.model_copy(update=changes)


def collect_scale(schedule: Schedule, images_per_batch: int, gpus: int) -> float:
    """Factor of the proposals collected over a GPU's images (RPN_COLLECT_SCALE of Detectron.pytorch).

    Args:
        schedule: for its own `images_per_batch` and `gpus`.
        images_per_batch: images of one forward pass over all GPUs.
        gpus: number of GPUs.

    Returns:
        images per GPU, divided by those of the schedule; 1.0 if the schedule has no number of GPUs.
    """
    if schedule.gpus is None:
        return 1.0
    return (images_per_batch / gpus) / (schedule.images_per_batch / schedule.gpus)


def scale_collect(model: nn.Module, factor: float) -> str | None:
    """Multiply the number of proposals collected over a batch in training, rounding halves up.

    Args:
        model: unchanged if it has no such limit.
        factor: of `collect_scale`.

    Returns:
        "training_proposals.collect: old -> new", or None if nothing changes.
    """
    rules = getattr(getattr(model, "rpn", None), "rules", None)
    if rules is None or factor == 1.0 or rules[True].collect_over != "batch" or not rules[True].collect:
        return None
    old = rules[True].collect
    rules[True] = rules[True].model_copy(update={"collect": int(old * factor + 0.5)})
    return f"training_proposals.collect: {old} -> {rules[True].collect}"


def parameter_groups(model: nn.Module, schedule: Schedule) -> list[dict]:
    """Trainable parameters grouped by the schedule's rules: biases (of norms too), norm weights, all other
    weights; with `layer_decay` by the stage of the backbone as well.

    Returns:
        groups with `params`, `names`, `lr_factor` and `weight_decay`; groups with equal rules are merged.
    """
    norm_decay = schedule.weight_decay if schedule.weight_decay_norm is None else schedule.weight_decay_norm
    groups: dict[tuple[float, float], dict] = {}
    modules = dict(model.named_modules())
    factors = stage_factors(model, schedule.layer_decay)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner, _, leaf = name.rpartition(".")
        if leaf == "bias":
            rule = (schedule.bias_lr_factor, schedule.weight_decay_bias)
        else:
            rule = (1.0, norm_decay if isinstance(modules[owner], NORMS) else schedule.weight_decay)
        stage = next((prefix for prefix in factors if name.startswith(prefix)), "")
        rule = (rule[0] * factors.get(stage, 1.0), rule[1])
        group = groups.setdefault(
            rule, {"params": [], "names": [], "lr_factor": rule[0], "weight_decay": rule[1]}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def stage_factors(model: nn.Module, decay: float | None) -> dict[str, float]:
    """Layer-wise decay (Clark et al. 2020, section 3.3): prefix of each stage of the backbone -> decay to the
    number of stages from it to the neck.

    Args:
        model: its `backbone` has stages as children, or one child that has them.
        decay: None for no layer-wise decay.
    """
    backbone = getattr(model, "backbone", None)
    if decay is None or backbone is None:
        return {}
    prefix, children = "backbone.", [name for name, _ in backbone.named_children()]
    if len(children) == 1:
        prefix = f"backbone.{children[0]}."
        children = [name for name, _ in getattr(backbone, children[0]).named_children()]
    return {f"{prefix}{name}.": decay ** (len(children) - place) for place, name in enumerate(children)}


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over the model's trainable parameters, by the schedule's rules.

    Args:
        model: frozen parameters (requires_grad off) are left out.
        schedule: rates, decay, momentum.

    Returns:
        an optimiser whose groups have `lr_factor` for `set_learning_rate`.
    """
    groups = [
        {**{k: v for k, v in group.items() if k != "names"}, "lr": schedule.lr * group["lr_factor"]}
        for group in parameter_groups(model, schedule)
    ]
    if not groups:
        raise ValueError("the model has no trainable parameters for an optimiser")
    if schedule.optimizer != "sgd":
        kind = torch.optim.Adam if schedule.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=schedule.lr)
    momentum, nesterov = schedule.momentum, schedule.nesterov
    optimizer = torch.optim.SGD(groups, lr=schedule.lr, momentum=momentum, nesterov=nesterov, fused=True)
    optimizer.register_step_pre_hook(_match_layouts)
    optimizer.register_load_state_dict_post_hook(_stay_fused)
    return optimizer


def _match_layouts(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Convert gradients and momentum buffers to the memory layout of their parameter: the fused update on a
    CPU reads all three in storage order and ignores strides."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if parameter.grad is not None:
                parameter.grad = _like(parameter, parameter.grad)
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"] = _like(parameter, state["momentum_buffer"])


def _like(parameter: Tensor, values: Tensor) -> Tensor:
    """The values in the memory layout of a parameter of the same shape; a copy only if it differs."""
    if values.stride() == parameter.stride():
        return values
    return torch.empty_like(parameter).copy_(values)


def _stay_fused(optimizer: torch.optim.Optimizer) -> None:
    """Keep the fused update if a checkpoint was saved without it: a GradScaler needs it."""
    for group in optimizer.param_groups:
        group["fused"] = True


def training_mode(model: nn.Module, schedule: Schedule) -> nn.Module:
    """Put a model into training mode; batch norms stay in evaluation mode if the schedule freezes them.

    On a CPU the weights and thus all maps become channels-last, which is faster for strided convolutions,
    pooling and RoIAlign.
    """
    model.train()
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        model.to(memory_format=torch.channels_last)
    if schedule.freeze_norms:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
    return model


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, rescale_momentum: bool = False) -> None:
    """Set the learning rate of every group, and optionally keep the last update's size by rescaling SGD's
    momentum.

    Detectron's momentum buffer includes the learning rate and is therefore rescaled when the rate changes
    abruptly. torch's does not, so the same multiplication shrinks the buffer once more; Detectron.pytorch
    does it nevertheless, and it is reproduced here to follow its loss curves.

    Args:
        optimizer: made by `build_optimizer`.
        rate: learning rate of the weights; each group multiplies it by its own `lr_factor`.
        rescale_momentum: multiply the buffers by new/old if the rate changes by more than a factor of 1.1.
    """
    first = optimizer.param_groups[0]
    before = first["lr"] / first["lr_factor"]
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
    factor = momentum_factor(before, rate) if rescale_momentum else 1.0
    if factor == 1.0:
        return
    for state in optimizer.state.values():
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"].mul_(factor)


def momentum_factor(before: float, rate: float) -> float:
    """Detectron's factor of SGD's momentum when the learning rate changes from `before` to `rate`: new over
    old if they differ by more than a factor of 1.1, otherwise 1."""
    if before <= 1e-7 or max(before, rate) <= MOMENTUM_THRESHOLD * min(before, rate):
        return 1.0
    return rate / before
