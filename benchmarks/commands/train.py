"""The commands train and train-step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from detection_zoo.benchmarks.commands.app import app, checking_arguments, emit, gather, say
from detection_zoo.benchmarks.commands.options import (
    DEVICE,
    DTYPE,
    FORMAT,
    JSON,
    MAP,
    WORKERS,
    data_of,
    device_of,
    workers_of,
)
from detection_zoo.benchmarks.terminal import terminal_width


@app.command()
def train(
    row: Annotated[str, typer.Argument(help="name of a row; it sets the defaults of the options below")],
    out: Annotated[Path, typer.Option(file_okay=False, help="output folder: logs and checkpoints")],
    data: Annotated[
        str,
        typer.Option(
            help="PATH of your own data, coco:DIR[:SPLIT], voc:VOCDEVKIT:YEAR:SPLIT, imagenet:DIR or shapes"
        ),
    ] = "shapes",
    eval_data: Annotated[
        str | None, typer.Option(help="validation data; default: the validation split next to --data")
    ] = None,
    classes: Annotated[
        Literal["all", "common"],
        typer.Option(
            help="all: all classes of the data, with new output layers if they differ from the"
            " row's; common: only classes that the row has too"
        ),
    ] = "all",
    renamed: MAP = "",
    images: Annotated[int | None, typer.Option(min=1, help="use only the first N training images")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="initial weights: initial (as the row's recipe says), random, published, a checkpoint file,"
            " backbone:FILE (a classifier's checkpoint) or backbone:timm (from timm's"
            " hub); default: initial, or published"
            " if the classes differ from the row's"
        ),
    ] = None,
    checkpoint_format: FORMAT = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="schedule of schedules.toml; default: the row's, or fine_tune if the classes differ"
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="images per forward pass, summed over all processes")
    ] = None,
    fit_gb: Annotated[
        float | None,
        typer.Option(min=0.1, help="use the largest batch that fits in this many GiB, instead of --batch"),
    ] = None,
    accumulate: Annotated[
        int, typer.Option(min=1, help="gradient accumulation: forward passes per optimizer step")
    ] = 1,
    lr: Annotated[float | None, typer.Option(help="learning rate for this batch size")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="updates")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="number of epochs, instead of --iterations")
    ] = None,
    lr_steps: Annotated[
        str | None,
        typer.Option(
            help="comma-separated iterations at which the learning rate drops (epochs, with --epochs)"
        ),
    ] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="warm-up iterations")] = None,
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"] | None, typer.Option(help="optimizer; default: the row's")
    ] = None,
    policy: Annotated[
        Literal["steps", "cosine"] | None, typer.Option(help="learning rate schedule; default: the row's")
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(min=0.0, help="clip the gradient norm to this value")
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="layer-wise decay: learning rate of a backbone stage divided by the next stage's",
        ),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="decay of the exponential moving average of the weights"),
    ] = None,
    scale_lr: Annotated[
        bool,
        typer.Option(
            "--scale-lr",
            help="scale the learning rate linearly with the batch size, even if the source does not",
        ),
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="change a setting of the row or its schedule: image.size=600, schedule.gamma=0.5",
        ),
    ] = None,
    class_agnostic: Annotated[
        bool, typer.Option("--class-agnostic", help="class-agnostic box regression: one box per RoI")
    ] = False,
    on_nan: Annotated[
        Literal["stop", "skip", "back"],
        typer.Option(
            help="if the loss is not finite: stop, skip the update, or return to the last checkpoint"
        ),
    ] = "stop",
    patience: Annotated[
        int | None, typer.Option(min=1, help="early stopping: stop after N evaluations without improvement")
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="save and stop after this many hours")] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="use only deterministic operators (bitwise reproducible); slower"
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the last checkpoint in --out, if there is one")
    ] = False,
    save_every: Annotated[int, typer.Option(min=1, help="iterations between checkpoints")] = 1000,
    keep: Annotated[int, typer.Option(min=0, help="number of checkpoints to keep; 0: all")] = 2,
    no_save: Annotated[bool, typer.Option("--no-save", help="write no checkpoint")] = False,
    eval_every: Annotated[
        int | None,
        typer.Option(min=0, help="iterations between evaluations; default: only at the end; 0: never"),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="write TensorBoard event files to --out")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="show parameter groups, schedule, memory and time, without training"),
    ] = False,
    log_every: Annotated[int, typer.Option(min=1, help="iterations per log line")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="random seed of weights, data order and augmentation")] = 0,
    precision: DTYPE = "float32",
    channels_last: Annotated[
        bool,
        typer.Option(
            "--channels-last",
            help="use the channels-last (NHWC) memory layout on a GPU, as is always done on a CPU",
        ),
    ] = False,
    sync_bn: Annotated[
        bool, typer.Option("--sync-bn", help="synchronize BatchNorm statistics over all processes")
    ] = False,
    workers: WORKERS = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads per operator")] = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Train a row with its source's recipe; continue a stopped training with --resume."""
    from detection_zoo.zoo.created_row import row_named

    data = data_of(data, classes, renamed)
    eval_data = eval_data and data_of(eval_data, classes, renamed)
    with checking_arguments():
        row_named(row)
    where = device_of(device)
    loaders = workers_of(workers, where)
    from dataclasses import asdict  # after the checks: torch

    import torch

    from detection_zoo.benchmarks.train.dry_run import text_of
    from detection_zoo.benchmarks.train.start import Request, check_start, prepare_task, start_training
    from detection_zoo.benchmarks.train.start import dry_run as look
    from detection_zoo.zoo.training.plan import Wishes
    from detection_zoo.zoo.training.trainer import LOSSES, Settings

    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        steps = None if lr_steps is None else tuple(int(part) for part in lr_steps.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{lr_steps!r} is not a comma-separated list of numbers", param_hint="--lr-steps"
        ) from None
    if fit_gb is not None:
        if batch is not None:
            raise typer.BadParameter("give --fit-gb or --batch, not both", param_hint="--fit-gb")
        from detection_zoo.benchmarks.train.largest_batch import largest_batch

        try:
            batch = largest_batch(row, fit_gb, device_of(device), precision, say)
        except ValueError as error:
            say(f"error: {error}")
            raise typer.Exit(1) from None
        batch *= int(os.environ.get("WORLD_SIZE", "1"))
        say(f"batch size: {batch} images fit in {fit_gb:g} GiB")
    wishes = gather(Wishes, locals(), lr_steps=steps)
    settings = gather(
        Settings,
        locals(),
        folder=out,
        save_every=0 if no_save else save_every,
        on_nonfinite=on_nan,
        time_limit_s=None if time_limit is None else time_limit * 3600,
    )
    request = gather(Request, locals(), workers=loaders, device=where, changes=tuple(changes or ()))
    with checking_arguments():
        task = prepare_task(request, wishes)
        if not dry_run:
            check_start(task, settings)
    try:
        if dry_run:
            ahead = look(task, request, settings, say)
            emit(ahead, as_json, text_of(ahead), terminal_width())
            return
        done, table = start_training(task, request, wishes, settings, say)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from None
    if os.environ.get("RANK", "0") != "0":  # only the first process prints
        return
    emit(asdict(done) | {"checkpoint": done.checkpoint and str(done.checkpoint)}, as_json, table)
    say(
        f"{row}: {done.iterations} iterations, loss {done.loss:.4g} (median of the last"
        f" {min(LOSSES, done.iterations)})"
        + ("" if done.checkpoint is None else f", saved as {done.checkpoint}")
    )
    if done.stopped_by is not None:
        say(f"stopped by {done.stopped_by}; continue with --resume")
        number = getattr(signal, done.stopped_by, None)
        raise typer.Exit(0 if number is None else 128 + number)


@app.command("train-step")
def train_step(
    row: Annotated[
        str,
        typer.Argument(help="a Faster R-CNN with ResNet-50 and FPN, the same architecture as torchvision's"),
    ] = "faster_rcnn_resnet50_fpn_1x.maskrcnn_benchmark",
    images: Annotated[int, typer.Option(min=1, help="images per training step")] = 1,
    height: Annotated[int, typer.Option(min=128, help="input height, pixels")] = 320,
    width: Annotated[int, typer.Option(min=128, help="input width, pixels")] = 480,
    steps: Annotated[int, typer.Option(min=1, help="timed steps of each process, after the warm-up")] = 4,
    warm_up: Annotated[int, typer.Option(min=0, help="warm-up steps, not timed")] = 1,
    blocks: Annotated[int, typer.Option(min=1, help="fresh processes per model; the two alternate")] = 3,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="data type measured in addition to float32")
    ] = "float32",
    as_json: JSON = False,
) -> None:
    """Compare a training step with torchvision's Faster R-CNN: CPU time and peak memory, on one thread."""
    from detection_zoo.benchmarks.tabular import render
    from detection_zoo.benchmarks.train.beside import Batch, beside, summary

    batch = Batch(images, height, width)
    found = beside(row, batch, warm_up=warm_up, steps=steps, blocks=blocks, say=say, precision=precision)
    values, table = summary(found, batch)
    emit(values, as_json, render([table], "text", terminal_width()))
    say(f"{row}: {values['speed']:.2f}x as fast as torchvision, {values['memory']:.2f}x the memory")
