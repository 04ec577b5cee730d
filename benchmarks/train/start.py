"""Set up a training run from the arguments of `bench.py train`: data, model, plan, recipe.json."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from detection_zoo.benchmarks.run.splits import split_beside, training_split
from detection_zoo.benchmarks.run.subject import identify_weights, open_data, weights_file
from detection_zoo.benchmarks.terminal import terminal_width
from detection_zoo.benchmarks.train.dry_run import look_ahead
from detection_zoo.benchmarks.train.evaluate import evaluator
from detection_zoo.benchmarks.train.outcome import event_writer, result_table, write_curves, write_results
from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.data.base import Dataset
from detection_zoo.zoo.data.class_choice import ClassChoice
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.data.training_loader import TrainingLoader, training_batches
from detection_zoo.zoo.errors import CheckpointError, DatasetError, ManifestError
from detection_zoo.zoo.manifest import ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.registry import did_you_mean
from detection_zoo.zoo.settings import with_settings
from detection_zoo.zoo.trained_row import row_classes, with_classes
from detection_zoo.zoo.training.distributed import Process, joined
from detection_zoo.zoo.training.own_classes import build_for
from detection_zoo.zoo.training.plan import Plan, Wishes, plan_training
from detection_zoo.zoo.training.recipe import collect_scale, scale_collect
from detection_zoo.zoo.training.trainer import Outcome, Settings, Trainer, start_of
from detection_zoo.zoo.weights.fetch.one import fetch_weights
from detection_zoo.zoo.weights.load import has_own_names, load_backbone
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import listed

RECIPE = "recipe.json"
BACKBONE = "backbone:"  # prefix of a classifier's file in --weights
TIMM = "timm."  # prefix of a timm backbone's name
FINE_TUNE = "fine_tune"  # schedule for rows without one, and for training weights on other classes


@dataclass(frozen=True)
class Request:
    """What to train, and on which data.

    row; data, eval_data: arguments of `open_dataset`; images: use only the first N; weights: None:
    the row's initial weights, or its published weights if the classes differ; schedule: None: the row's;
    workers: data loading processes; changes: "KEY=VALUE" of row or schedule; tensorboard: write events;
    class_agnostic: one box per RoI; checkpoint_format: of a weights file.
    """

    row: str
    data: str
    eval_data: str | None = None
    images: int | None = None
    weights: str | None = None
    schedule: str | None = None
    workers: int = 0
    device: str = "cpu"
    changes: tuple[str, ...] = ()
    tensorboard: bool = False
    class_agnostic: bool = False
    checkpoint_format: str | None = None

    @property
    def settings(self) -> tuple[str, ...]:
        """Every "KEY=VALUE", including those of flags."""
        return (*self.changes, "detector.deltas=object") if self.class_agnostic else self.changes


@dataclass
class Task:
    """A resolved request: the row to train, its dataset, the schedule before (base) and after (plan)
    adaptation to batch size and length, the initial weights, and every "KEY=VALUE" that changes the row."""

    entry: ModelEntry
    dataset: Dataset
    base: Schedule
    plan: Plan
    weights: str
    checkpoint_format: str | None
    own_classes: bool
    lines: list[str]
    settings: tuple[str, ...] = ()


def prepare_task(request: Request, wishes: Wishes) -> Task:
    """Resolve row, data, schedule and weights of a request.

    Raises:
        ManifestError, DatasetError: something is missing or invalid.
    """
    entry = row_named(request.row)
    dataset, lines, own = open_training_data(entry, request.data, request.images)
    if own:
        entry = with_classes(entry, dataset.classes)
    schedule, name = schedule_for(entry, request.schedule, own)
    if name != entry.schedule:
        lines.append(f"schedule: {entry.schedule or 'none'} -> {name}")
    weights = request.weights
    if weights is None:
        weights = "published" if name == FINE_TUNE and entry.trained_weights else "initial"
        lines += ["weights: initial -> published"] if weights == "published" else []
    settings = (*images_of_timm(entry, weights), *request.settings)
    entry, schedule, by_hand = with_settings(entry, schedule, settings)
    batch = wishes.batch or schedule.images_per_batch
    batches = training_batches(entry, dataset, batch=batch, schedule=schedule)
    plan = plan_training(schedule, wishes, batches.entries, len(batches.order(0)))
    return Task(
        entry,
        dataset,
        schedule,
        plan,
        weights,
        request.checkpoint_format,
        own,
        [*lines, *by_hand, *plan.changes],
        settings,
    )


def open_training_data(entry: ModelEntry, data: str, images: int | None) -> tuple[Dataset, list[str], bool]:
    """Return the training dataset, notes on it, and whether its classes differ from the row's."""
    data, own, names = training_split(data), False, row_classes(entry)
    if entry.task == "classification":
        dataset, own = _open_labelled(entry, data)
    else:
        if not (names and ClassChoice.split(data)[1].common):
            dataset = open_dataset(data, keypoints=entry.has_keypoints, training=True)
            own = set(dataset.classes) != set(names)
        if not own:
            dataset = open_data(entry, data, training=True)
    if images is not None:
        dataset = dataset.subset(images)
    lines = [f"data: {note}" for note in dataset.notes]
    if own:
        shown = ", ".join(dataset.classes[:8]) + (", ..." if len(dataset.classes) > 8 else "")
        lines.append(f"classes: {entry.classes} of {entry.dataset} -> {len(dataset.classes)} ({shown})")
    return dataset, lines, own


def _open_labelled(entry: ModelEntry, data: str) -> tuple[Dataset, bool]:
    """Return a classifier's dataset, and whether its number of classes differs from the row's; raises
    DatasetError."""
    try:
        return open_data(entry, data, training=True), False
    except DatasetError:
        dataset = open_dataset(data, training=True)
    if dataset.layout != "imagenet":
        raise DatasetError(f"--data {data}: row {entry.name} is a classifier; give imagenet:DIR")
    return dataset, True


def check_start(task: Task, settings: Settings) -> None:
    """Raise CheckpointError, ManifestError or DownloadError if training cannot start: its folder
    already contains a run, or the initial weights are missing."""
    if start_of(settings.folder, settings.resume) is not None or task.weights == "initial":
        return
    if not task.weights.startswith(BACKBONE):
        identify_weights(task.entry, task.weights)
        return
    where = task.weights.removeprefix(BACKBONE)
    if where != TIMM.rstrip(".") and not weights_file(where).is_file():
        raise CheckpointError(
            f"{weights_file(where)}: no such file; --weights {BACKBONE}FILE needs a classifier's checkpoint"
        )


def start_training(
    task: Task, request: Request, wishes: Wishes, settings: Settings, say: Callable[[str], None]
) -> tuple[Outcome, str]:
    """Train a row; the settings are written to recipe.json.

    Args:
        task: result of `prepare_task` for the same request and wishes.
        request, wishes, settings: the user's settings.
        say: called with every line of output.

    Returns:
        the outcome, and the results in the columns of the sources' READMEs.

    Raises:
        CheckpointError, DownloadError, DatasetError: weights do not match the model, or an image cannot be
        read.
        FloatingPointError: the loss is not finite.
    """
    with joined(request.device) as process:
        batch = task.plan.schedule.images_per_batch
        if batch % process.world:
            raise ValueError(f"--batch {batch} is not divisible by the {process.world} processes")
        tell = say if process.main else lambda text: None
        tell(describe(task, settings, process))
        for text in (*task.lines, *(f"warning: {one}" for one in task.plan.warnings)):
            tell(text)
        resumed = start_of(settings.folder, settings.resume) is not None
        model = starting_model(task, "random" if resumed else task.weights, settings.seed, tell)
        if text := scale_collect(model, collect_scale(task.base, batch, process.world)):
            tell(text)
        if process.main:
            write_recipe(request, wishes, settings, task)
        log_events = request.tensorboard and process.main
        observe, close = event_writer(settings.folder) if log_events else (lambda values: None, lambda: None)
        trainer = Trainer(
            model,
            lambda start: loader_of(task, request, settings, process, start),
            task.plan,
            settings,
            entry=task.entry.name,
            row={
                "classes": list(task.dataset.classes) if task.own_classes else None,
                "settings": list(task.settings),
            },
            process=process,
            say=tell,
            evaluate=None if settings.eval_every == 0 else _evaluator(task, request, process, tell),
            observe=observe,
        )
        if not resumed:
            seed_everything(settings.seed + process.rank)
        try:
            done = trainer.run()
        finally:
            close()
            if process.main and write_curves(settings.folder) is None:
                tell("no curves.svg: matplotlib is not installed, or there was no iteration")
        text = ""
        if process.main:
            table = result_table(task.entry.name, task.plan, done, process)
            text = write_results(settings.folder, table, terminal_width())
        return done, text


def dry_run(task: Task, request: Request, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Show what `start_training` would do, without training or writing. Raises as `start_training`."""
    process = Process(0, 1, torch.device(request.device))
    for text in (describe(task, settings, process), *task.lines, *task.plan.warnings):
        say(text)
    model = starting_model(task, task.weights, settings.seed, say)
    amp = None if settings.precision == "float32" else getattr(torch, settings.precision)
    return look_ahead(model, loader_of(task, request, settings, process, 0), task.plan, process, amp)


def describe(task: Task, settings: Settings, process: Process) -> str:
    """Return one line that describes the training run."""
    plan = task.plan
    return (
        f"{task.entry.name}: {plan.iterations} iterations of"
        f" {plan.schedule.images_per_batch * plan.accumulate} images, {plan.updates_per_epoch} per epoch,"
        f" {task.dataset.name}, {settings.precision} on {process.device}"
        + (f", {process.world} processes" if process.world > 1 else "")
    )


def schedule_for(entry: ModelEntry, name: str | None, own: bool) -> tuple[Schedule, str]:
    """Return a schedule and its name: the given one, the row's, or the one for fine-tuning.

    Raises:
        ManifestError: there is no such schedule.
    """
    known = load_manifests().schedules
    name = name or (FINE_TUNE if own or entry.schedule is None else entry.schedule)
    if name not in known:
        raise ManifestError(f"--schedule: no schedule is named {name!r}; {did_you_mean(name, known)}")
    return known[name], name


def loader_of(
    task: Task, request: Request, settings: Settings, process: Process, start: int
) -> TrainingLoader:
    """Return the batches of a process, starting from a position in the data stream."""
    batches = training_batches(
        task.entry,
        task.dataset,
        batch=task.plan.schedule.images_per_batch // process.world,
        seed=settings.seed,
        rank=process.rank,
        world_size=process.world,
        schedule=task.plan.schedule,
    )
    pin_memory = process.device.type == "cuda"
    return TrainingLoader(batches, workers=request.workers, start=start, pin_memory=pin_memory)


def _evaluator(
    task: Task, request: Request, process: Process, say: Callable[[str], None]
) -> Callable[[nn.Module], dict[str, float]] | None:
    where = request.eval_data or split_beside(request.data, "val")
    if where is None:
        say(
            "there is no validation split next to the data, so nothing is evaluated; give"
            " one with --eval-data"
        )
        return None
    try:
        dataset = open_data(task.entry, where)
    except DatasetError as error:
        if request.eval_data is not None:
            raise
        say(f"nothing is evaluated: {error}; give other data with --eval-data")
        return None
    if request.eval_data is None and dataset.name == task.dataset.name and dataset.notes:
        say("the data has only the training split, so nothing is evaluated; give other data with --eval-data")
        return None
    return evaluator(task.entry, dataset, process, request.workers, say)


def starting_model(task: Task, weights: str, seed: int, say: Callable[[str], None]) -> nn.Module:
    """Return the row's model with its initial weights for training."""
    seed_everything(seed)
    if weights.startswith(BACKBONE):
        return _with_backbone(task, weights.removeprefix(BACKBONE))
    if weights != "initial":
        _, path = identify_weights(task.entry, weights)
        model, left_out = build_for(task.entry, path, task.own_classes, task.checkpoint_format)
        if left_out:
            names = listed(left_out)
            say(f"head rebuilt; {len(left_out)} tensors of the weights are left out: {names}")
        return model
    model = build_model(task.entry)
    for spec in load_manifests().initial_weights(task.entry)[:1]:
        file = fetch_weights(spec, task.entry.name).path
        load_backbone(model, file, spec.format, row=task.entry.name)
    return model


def images_of_timm(entry: ModelEntry, weights: str) -> list[str]:
    """Return mean, std and channel order for a timm backbone's weights, as settings; none for other
    weights."""
    if not weights.startswith(BACKBONE) or not entry.backbone.name.startswith(TIMM):
        return []
    from detection_zoo.zoo.backbones.timm_adapter import timm_images

    return [f"image.{k}={v}" for k, v in timm_images(entry.backbone.name.removeprefix(TIMM)).items()]


def _with_timm_weights(task: Task, where: str) -> nn.Module:
    """Return the row's model with timm's weights in its backbone, from the hub ("timm") or a file; raises
    CheckpointError."""
    from detection_zoo.zoo.backbones.timm_adapter import timm_backbone

    component, source = task.entry.backbone, True
    if where != TIMM.rstrip("."):
        arrays = read_arrays(weights_file(where))
        source = {name: torch.as_tensor(array) for name, array in arrays.items()}
    name = component.name.removeprefix(TIMM)
    body = timm_backbone(name, **{**component.arguments, "pretrained": source})
    model = build_model(task.entry)
    model.backbone.load_state_dict(body.state_dict())
    return model


def _with_backbone(task: Task, where: str) -> nn.Module:
    """Return the row's model with a classifier's weights in its backbone, in the format of the row's initial
    weights; raises CheckpointError."""
    if task.entry.backbone.name.startswith(TIMM):
        return _with_timm_weights(task, where)
    path, model = weights_file(where), build_model(task.entry)
    initial = next((spec.format for spec in load_manifests().initial_weights(task.entry)), "zoo")
    load_backbone(
        model,
        path,
        task.checkpoint_format or ("zoo" if has_own_names(path) else initial),
        row=task.entry.name,
    )
    return model


def seed_everything(seed: int) -> None:
    """Seed the random generators of Python, NumPy (legacy) and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def write_recipe(request: Request, wishes: Wishes, settings: Settings, task: Task) -> None:
    """Write recipe.json: the request, the complete schedule, and differences from the row's schedule."""
    recipe = {
        "request": asdict(request),
        "wishes": asdict(wishes),
        "settings": {
            name: value for name, value in asdict(settings).items() if name not in ("folder", "resume")
        },
        "schedule": task.plan.schedule.model_dump(),
        "changes": task.lines,
        "weights": task.weights,
        "updates": task.plan.iterations,
        "updates_per_epoch": task.plan.updates_per_epoch,
        "dataset": task.dataset.describe() | {"classes": list(task.dataset.classes)},
    }
    settings.folder.mkdir(parents=True, exist_ok=True)
    (settings.folder / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
