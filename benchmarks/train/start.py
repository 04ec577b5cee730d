"""From the arguments of `bench.py train` to a training: data, model, plan, recipe.json."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from detection_zoo.benchmarks.run.subject import Sources, identify_weights, training_data
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.training_loader import TrainingLoader, training_batches, training_loader
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import ModelEntry, load_manifests
from detection_zoo.zoo.settings import with_settings
from detection_zoo.zoo.training.distributed import joined
from detection_zoo.zoo.training.plan import Plan, Wishes, plan_training, schedule_of
from detection_zoo.zoo.training.recipe import collect_scale, scale_collect
from detection_zoo.zoo.training.trainer import Outcome, Settings, start_of, train
from detection_zoo.zoo.weights.fetch.one import fetch_weights
from detection_zoo.zoo.weights.load import load_backbone

INITIAL = "initial"
RECIPE = "recipe.json"


@dataclass(frozen=True)
class Request:
    """What is trained on what: row, form of `open_dataset`, weights to start from, processes that load data,
    device, "KEY=VALUE" of row or schedule."""

    row: str
    data: str
    weights: str = INITIAL
    workers: int = 0
    device: str = "cpu"
    changes: tuple[str, ...] = ()


def start_training(
    request: Request, wishes: Wishes, settings: Settings, say: Callable[[str], None]
) -> Outcome:
    """Train a row; recipe.json in the folder says how.

    Raises:
        ManifestError, DatasetError, CheckpointError, DownloadError: what is missing or does not fit.
        FloatingPointError: the loss is not finite.
    """
    entry = load_manifests().entry(request.row)
    if entry.task == "classification":
        raise ManifestError(f"row {entry.name} is a classifier; train takes detectors")
    own = schedule_of(entry)
    entry, base, set_by_hand = with_settings(entry, own, request.changes)
    dataset, which = training_data(entry, Sources(request.data, train_data=_training_split(request.data)))
    with joined(request.device) as process:
        batch = wishes.batch or own.images_per_batch
        if batch % process.world:
            raise ValueError(f"--batch {batch} is not divisible by the {process.world} processes")
        plan = plan_training(base, wishes, _images(entry, dataset))
        say(
            f"{entry.name}: {plan.iterations} updates of {batch * plan.accumulate} images,"
            f" {plan.updates_per_epoch} updates an epoch, {which}, {settings.precision} on {process.device}"
        )
        for text in (*set_by_hand, *plan.changes, *(f"warning: {one}" for one in plan.warnings)):
            say(text)
        resumed = start_of(settings.folder, settings.resume) is not None
        model = _model(entry, "random" if resumed else request.weights, settings.seed)
        if text := scale_collect(model, collect_scale(base, batch, process.world)):
            say(text)

        def loader(start: int) -> TrainingLoader:
            return training_loader(
                entry,
                dataset,
                batch=batch // process.world,
                workers=request.workers,
                seed=settings.seed,
                rank=process.rank,
                world_size=process.world,
                start=start,
                schedule=plan.schedule,
                pin_memory=process.device.type == "cuda",
            )

        if process.main:
            write_recipe(request, wishes, settings, plan, dataset, set_by_hand)
        seed_everything(settings.seed + process.rank)
        return train(
            model, loader, plan, settings, entry=entry.name, process=process, say=say if process.main else _no
        )


def _no(_: str) -> None:
    """Other processes than the first print nothing."""


def _training_split(data: str) -> str | None:
    """The data as given where it names a split; None: the training split beside it."""
    return data if data.startswith(("shapes:", "voc:")) or data.count(":") > 1 else None


def _images(entry: ModelEntry, dataset: Dataset) -> int:
    return training_batches(entry, dataset, batch=1).entries


def _model(entry: ModelEntry, weights: str, seed: int) -> nn.Module:
    """The row's model with the weights that its training starts from."""
    seed_everything(seed)
    if weights != INITIAL:
        _, path = identify_weights(entry, weights)
        return build_model(entry, weights=None if path == "random" else path)
    model = build_model(entry)
    for spec in load_manifests().initial_weights(entry)[:1]:
        file = fetch_weights(spec, entry.name).path
        load_backbone(model, file, spec.format, row=entry.name)
    return model


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy (the legacy one) and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def write_recipe(
    request: Request, wishes: Wishes, settings: Settings, plan: Plan, dataset: Dataset, set_by_hand: list[str]
) -> dict[str, Any]:
    """Write recipe.json: what was asked, the whole schedule in force, and what differs from the row's own."""
    recipe = {
        "request": asdict(request),
        "wishes": asdict(wishes),
        "settings": {
            name: value for name, value in asdict(settings).items() if name not in ("folder", "resume")
        },
        "schedule": plan.schedule.model_dump(),
        "changes": [*set_by_hand, *plan.changes],
        "updates": plan.iterations,
        "updates_per_epoch": plan.updates_per_epoch,
        "dataset": dataset.describe() | {"classes": list(dataset.classes)},
    }
    settings.folder.mkdir(parents=True, exist_ok=True)
    (settings.folder / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    return recipe
