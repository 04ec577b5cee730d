"""Parity of whole schedules: the rate of every update of a training beside that of the original's own loop.

A folder with schedule.npz and schedule.json records, for each training, the rates of the optimiser's groups
from each update at which they change.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from detection_zoo.zoo.manifest import ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.parity.base import Output, ParityReport, compare
from detection_zoo.zoo.parity.files import ParityError, read_arrays, read_json
from detection_zoo.zoo.training.recipe import (
    collect_scale,
    learning_rate,
    momentum_factor,
    parameter_groups,
    scale_schedule,
    total_iterations,
)

FILE = "schedule.npz"
RATES = 1e-12
DETECTRON, HARDNET = "tools/train_net_step.py", "train_test.py"


def check_schedules(folder: Path) -> ParityReport:
    """Recompute the rates of every update of every training in a folder, and what else its run had in force.

    Raises:
        ParityError: a file cannot be read, or no row or schedule corresponds to a recorded training.
    """
    path = folder / "schedule.json"
    described, arrays = read_json(path, "schedule.json and schedule.npz"), read_arrays(folder / FILE)
    outputs: dict[str, Output] = {}
    for name, training in described.items():
        if name not in arrays:
            raise ParityError(f"{folder / FILE}: has no array {name!r}, which {path.name} describes")
        command = shlex.split(training.get("command", ""))
        script = command[0] if command else ""
        if script == DETECTRON:
            found = _detectron(command, training, arrays[name])
        elif script == HARDNET:
            found = _hardnet(command, training, arrays[name])
        elif not script:
            found = _maskrcnn_benchmark(name, training, arrays[name])
        else:
            raise ParityError(f"{path}: {name}: there is no schedule for the script {script!r}")
        outputs |= {f"{name}.{part}": output for part, output in found.items()}
    lines = tuple(compare(name, output, None, "float64") for name, output in outputs.items())
    return ParityReport(str(folder), folder.parent.name, None, "float64", lines)


def flags(command: list[str]) -> dict[str, str]:
    """The flags of a command line, each with the words that follow it."""
    found: dict[str, str] = {}
    name = ""
    for word in command[1:]:
        if word.startswith("-"):
            name = word
            found[name] = ""
        elif name:
            found[name] = f"{found[name]} {word}".strip()
    return found


def _schedule_of(entry: ModelEntry) -> Schedule:
    if entry.schedule is None:
        raise ParityError(f"row {entry.name} has no schedule to compare")
    return load_manifests().schedules[entry.schedule]


def _rates(schedule: Schedule, updates: int, per_epoch: int | None = None) -> np.ndarray:
    """The rate of the weights in every update, (updates,) float64."""
    return np.array([learning_rate(schedule, iteration, per_epoch) for iteration in range(updates)])


def _recorded(changes: np.ndarray, updates: int) -> np.ndarray:
    """Rows of every update, (updates, columns), from the rows at which a number changes."""
    counts = np.diff(np.append(changes[:, 0].astype(np.int64), updates))
    return np.repeat(changes[:, 1:], counts, axis=0)


def _group_factors(schedule: Schedule) -> dict[str, tuple[float, float]]:
    """Factor of the rate, and decay, of weight, bias, norm weight and norm bias."""
    names = {"0.weight": "weight", "0.bias": "bias", "1.weight": "norm weight", "1.bias": "norm bias"}
    groups = parameter_groups(nn.Sequential(nn.Conv2d(1, 1, 1), nn.GroupNorm(1, 1)), schedule)
    return {
        names[name]: (group["lr_factor"], group["weight_decay"])
        for group in groups
        for name in group["names"]
    }


def _compared(rates: np.ndarray, factors: list[float], recorded: np.ndarray) -> dict[str, Output]:
    """One line a group, with the rate of every update."""
    return {
        f"rates.group{place}": Output(rates * factor, RATES, expected=recorded[:, place])
        for place, factor in enumerate(factors)
    }


def _detectron(command: list[str], training: Mapping[str, Any], changes: np.ndarray) -> dict[str, Output]:
    """Detectron.pytorch: rates by the batch size given, the momentum rule, the proposals collected."""
    asked = flags(command)
    entry = load_manifests().by_config(asked["--cfg"], ("detectron_pytorch",))
    published = _schedule_of(entry)
    batch = int(asked.get("--bs", published.images_per_batch))
    schedule = scale_schedule(published, batch, int(asked.get("--iter_size", 1)))
    updates, effective = training["updates"], training["effective"]
    recorded = _recorded(changes, updates)
    rates = _rates(schedule, updates)
    factors = _group_factors(schedule)
    corrections = np.ones(updates)
    for update in np.flatnonzero(np.diff(rates)) + 1:
        corrections[update:] *= momentum_factor(rates[update - 1], rates[update])
    found = _compared(rates, [factors[part][0] for part in ("weight", "bias", "norm weight")], recorded)
    found |= {
        "momentum_corrections": Output(corrections, RATES, expected=recorded[:, 3]),
        "updates": Output(total_iterations(schedule), 0.0, expected=updates),
        "lr": Output(schedule.lr, RATES, expected=effective["base_lr"]),
        "steps": Output([0, *schedule.steps], 0.0, effective["steps"]),
    }
    if entry.neck is not None:
        scale = collect_scale(published, batch, training["gpus"])
        found["rpn_collect_scale"] = Output(scale, RATES, expected=effective["rpn_collect_scale"])
    return found


def _maskrcnn_benchmark(name: str, training: Mapping[str, Any], changes: np.ndarray) -> dict[str, Output]:
    """maskrcnn-benchmark and its VoVNet fork: rates of four groups, and their decays."""
    schedule = _schedule_of(load_manifests().by_config(name, ("vovnet", "maskrcnn_benchmark")))
    updates = training["updates"]
    factors = _group_factors(schedule)
    parts = ("weight", "bias", "norm weight", "norm bias")
    found = _compared(
        _rates(schedule, updates), [factors[part][0] for part in parts], _recorded(changes, updates)
    )
    return found | {
        "weight_decay": Output([factors[part][1] for part in parts], RATES, training["weight_decay"]),
        "updates": Output(total_iterations(schedule), 0.0, expected=updates),
        "steps": Output(schedule.steps, 0.0, training["steps"]),
        "images_per_batch": Output(schedule.images_per_batch, 0.0, expected=training["images_per_batch"]),
    }


def _hardnet(command: list[str], training: Mapping[str, Any], changes: np.ndarray) -> dict[str, Output]:
    """PytorchSSD-HarDNet: rates of its one group, by its flags."""
    asked = flags(command)
    per_epoch = training["images"] // training["batch"]
    published = load_manifests().schedules[f"hardnet_{asked['-d'].lower()}"]
    updates = training["iterations"]
    schedule = hardnet_schedule(published, asked, per_epoch)
    return {
        **_compared(_rates(schedule, updates, per_epoch), [1.0], _recorded(changes, updates)),
        "updates": Output(total_iterations(schedule, per_epoch), 0.0, expected=updates),
        "updates_per_epoch": Output(per_epoch, 0.0, expected=training["epoch_size"]),
        "weight_decay": Output(
            sorted({decay for _, decay in _group_factors(schedule).values()}),
            RATES,
            [training["weight_decay"]],
        ),
    }


def hardnet_schedule(published: Schedule, asked: Mapping[str, str], per_epoch: int) -> Schedule:
    """The schedule of a command line of PytorchSSD-HarDNet's training script.

    Args:
        published: of the data set.
        asked: flags of the command line.
        per_epoch: updates an epoch.
    """
    rate = float(asked.get("--lr", 4e-3))
    decay = float(asked.get("--weight_decay", 1e-4))
    changes: dict[str, Any] = {"lr": rate, "weight_decay": decay, "weight_decay_bias": decay}
    changes["epochs"] = int(asked.get("-max", 150))
    if ramp := int(asked.get("-we", 0)):  # it counts epochs from 1 and ends the ramp before the last of them
        changes |= {
            "warmup_iterations": ramp * per_epoch,
            "warmup_stop": (ramp - 1) * per_epoch,
            "warmup_factor": 1e-6 / rate,
        }
    return published.model_copy(update=changes)
