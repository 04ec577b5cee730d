"""`train --dry-run`: parameter groups, schedule, and memory and time of one iteration, without
training."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.zoo.data.training_loader import TrainingLoader
from detection_zoo.zoo.training.distributed import Process
from detection_zoo.zoo.training.loop import move
from detection_zoo.zoo.training.plan import Plan
from detection_zoo.zoo.training.recipe import parameter_groups, training_mode

MIB = 2**20
STATES = {"sgd": 1, "adam": 2, "adamw": 2}  # optimizer state tensors per parameter


def look_ahead(
    model: nn.Module, loader: TrainingLoader, plan: Plan, process: Process, amp: torch.dtype | None
) -> dict[str, Any]:
    """Estimate a training run from forward and backward passes of its first batch; the weights are not
    changed.

    Returns:
        groups, schedule, memory_mib (weights, gradients, optimizer, activations of one pass), seconds per
        iteration and of the whole training run (from the second pass, at the machine's current load).
    """
    model = training_mode(model.to(process.device), plan.schedule)
    groups = [
        {
            "tensors": len(group["params"]),
            "parameters": sum(p.numel() for p in group["params"]),
            "lr_factor": group["lr_factor"],
            "weight_decay": group["weight_decay"],
            "first": group["names"][0],
        }
        for group in parameter_groups(model, plan.schedule)
    ]
    every = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    batch = move(next(iter(loader)), process.device)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def one_pass() -> None:
        with torch.autocast(process.device.type, amp, enabled=amp is not None):
            total = sum(model(*batch).values())
        total.backward()
        if process.device.type == "cuda":
            torch.cuda.synchronize(process.device)
        model.zero_grad(set_to_none=True)

    one_pass()  # the first pass compiles operators
    begun = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        one_pass()
    seconds = (time.perf_counter() - begun) * plan.accumulate
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    memory = {
        "weights": every / MIB,
        "gradients": trained / MIB,
        "optimizer": trained * STATES[plan.schedule.optimizer] / MIB,
        "activations": sum(size for place, size in kept.items() if place not in own) / MIB,
    }
    return {
        "groups": groups,
        "schedule": plan.schedule.model_dump(exclude_none=True),
        "updates": plan.iterations,
        "rates": {str(i): plan.rate(i) for i in _turns(plan)},
        "memory_mib": {name: round(value, 1) for name, value in memory.items()},
        "seconds_of_an_update": round(seconds, 3),
        "seconds": round(seconds * plan.iterations),
    }


def _turns(plan: Plan) -> list[int]:
    """Return the iterations, from 0, at which the learning rate is shown: start, end of the warm-up, steps,
    end."""
    scale = plan.updates_per_epoch if plan.schedule.epochs is not None else 1
    turns = {0, plan.schedule.warmup_iterations, plan.iterations - 1}
    turns |= {step * scale for step in plan.schedule.steps}
    return sorted(turn for turn in turns if 0 <= turn < plan.iterations)


def text_of(found: dict[str, Any]) -> str:
    """Return the result as text."""
    lines = [
        f"group {number}: {one['tensors']} tensors, {one['parameters']:,} parameters, learning"
        f" rate x {one['lr_factor']:g}, weight decay {one['weight_decay']:g} ({one['first']} ...)"
        for number, one in enumerate(found["groups"], start=1)
    ]
    lines += [f"learning rate of iteration {int(i) + 1}: {rate:.4g}" for i, rate in found["rates"].items()]
    parts = ", ".join(f"{name} {value:g}" for name, value in found["memory_mib"].items())
    lines.append(f"memory: {sum(found['memory_mib'].values()):.0f} MiB ({parts})")
    lines.append(
        f"time: {found['seconds_of_an_update']:g} s per iteration, {timedelta(seconds=found['seconds'])}"
        f" for {found['updates']} iterations, without data loading"
    )
    return "\n".join(lines)
