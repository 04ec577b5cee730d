"""Training: train."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from detection_zoo.benchmarks.commands.app import app, checking_arguments, emit, say
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
    row: Annotated[str, typer.Argument(help="name of a row; every default below is the row's own")],
    out: Annotated[Path, typer.Option(file_okay=False, help="folder of the run")],
    data: Annotated[
        str,
        typer.Option(
            help="PATH of own data, coco:DIR[:SPLIT], voc:VOCDEVKIT:YEAR:SPLIT, imagenet:DIR or shapes"
        ),
    ] = "shapes",
    eval_data: Annotated[
        str | None, typer.Option(help="validation images; default: the validation split beside --data")
    ] = None,
    classes: Annotated[
        Literal["all", "common"],
        typer.Option(help="all: the data's, and a new head where they differ; common: those of the row too"),
    ] = "all",
    renamed: MAP = "",
    images: Annotated[int | None, typer.Option(min=1, help="the first N training images only")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="to start from: initial (what the row starts from), random, published, a file,"
            " backbone:FILE of a classifier, or backbone:timm (timm's hub); default: initial, or published"
            " where the classes are not the row's"
        ),
    ] = None,
    checkpoint_format: FORMAT = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="of schedules.toml; default: the row's, or fine_tune where the classes are other"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="images of one forward pass, over all processes")
    ] = None,
    fit_gb: Annotated[
        float | None,
        typer.Option(min=0.1, help="in place of --batch: the largest that fits in so many GB, found by fit"),
    ] = None,
    accumulate: Annotated[
        int, typer.Option(min=1, help="forward passes an update; their gradients are summed")
    ] = 1,
    lr: Annotated[float | None, typer.Option(help="learning rate, for that batch")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="updates")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="in place of --iterations")] = None,
    lr_steps: Annotated[
        str | None,
        typer.Option(help="comma-separated: where the rate drops, in iterations (or epochs, with --epochs)"),
    ] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="iterations of the warm-up")] = None,
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"] | None, typer.Option(help="default: the row's own")
    ] = None,
    policy: Annotated[
        Literal["steps", "cosine"] | None, typer.Option(help="how the rate falls; default: the row's own")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(min=0.0, help="largest norm of the gradients")] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="rate of a stage of the backbone over that of the next one"),
    ] = None,
    ema: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="decay of a moving average of the weights")
    ] = None,
    scale_lr: Annotated[
        bool, typer.Option("--scale-lr", help="scale the rate to the batch though the source does not")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="of the row or its schedule: image.size=600, schedule.gamma=0.5",
        ),
    ] = None,
    class_agnostic: Annotated[
        bool, typer.Option("--class-agnostic", help="one box a RoI, whatever its class")
    ] = False,
    on_nan: Annotated[
        Literal["stop", "skip", "back"],
        typer.Option(help="a loss that is not finite: stop, leave the update out, or back to the checkpoint"),
    ] = "stop",
    patience: Annotated[
        int | None, typer.Option(min=1, help="stop after N evaluations without a better one")
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="hours after which it is saved and ends")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="only operators that repeat to the last digit; slower")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last checkpoint in --out, where there is one")
    ] = False,
    save_every: Annotated[int, typer.Option(min=1, help="updates between checkpoints")] = 1000,
    keep: Annotated[int, typer.Option(min=0, help="checkpoints that stay; 0: all")] = 2,
    no_save: Annotated[bool, typer.Option("--no-save", help="write no checkpoint")] = False,
    eval_every: Annotated[
        int | None, typer.Option(min=0, help="updates between evaluations; default: at the end; 0: never")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="write event files in --out")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show groups, schedule, memory and time; train nothing")
    ] = False,
    log_every: Annotated[int, typer.Option(min=1, help="updates a line")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of weights, order and augmentation")] = 0,
    precision: DTYPE = "float32",
    channels_last: Annotated[
        bool,
        typer.Option(
            "--channels-last", help="layout of images and weights on a GPU: NHWC, as always on a CPU"
        ),
    ] = False,
    sync_bn: Annotated[
        bool, typer.Option("--sync-bn", help="statistics of batch norms over all processes")
    ] = False,
    workers: WORKERS = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="of one operator on a CPU")] = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Train a row by its source's recipe; a stopped training goes on with --resume."""
    from detection_zoo.zoo.manifest import load_manifests

    data = data_of(data, classes, renamed)
    eval_data = eval_data and data_of(eval_data, classes, renamed)
    with checking_arguments():
        load_manifests().entry(row)
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
        raise typer.BadParameter(f"{lr_steps!r} is no list of numbers", param_hint="--lr-steps") from None
    if fit_gb is not None:
        if batch is not None:
            raise typer.BadParameter("give it or --batch, not both", param_hint="--fit-gb")
        from detection_zoo.benchmarks.train.largest_batch import largest_batch

        try:
            batch = largest_batch(row, fit_gb, device_of(device), precision, say)
        except ValueError as error:
            say(f"error: {error}")
            raise typer.Exit(1) from None
        batch *= int(os.environ.get("WORLD_SIZE", "1"))
        say(f"batch: {batch} fit in {fit_gb:g} GB")
    wishes = Wishes(
        batch,
        accumulate,
        lr,
        iterations,
        epochs,
        steps,
        warmup,
        optimizer=optimizer,
        policy=policy,
        clip_norm=clip_norm,
        layer_decay=layer_decay,
        scale_lr=scale_lr,
    )
    settings = Settings(
        out,
        seed=seed,
        resume=resume,
        save_every=0 if no_save else save_every,
        keep=keep,
        log_every=log_every,
        precision=precision,
        channels_last=channels_last,
        eval_every=eval_every,
        sync_bn=sync_bn,
        ema=ema,
        on_nonfinite=on_nan,
        patience=patience,
        time_limit_s=None if time_limit is None else time_limit * 3600,
    )
    request = Request(
        row,
        data,
        eval_data,
        images,
        weights,
        schedule,
        loaders,
        where,
        tuple(changes or ()),
        tensorboard,
        class_agnostic,
        checkpoint_format,
    )
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
    if os.environ.get("RANK", "0") != "0":  # the first of several processes prints
        return
    emit(asdict(done) | {"checkpoint": done.checkpoint and str(done.checkpoint)}, as_json, table)
    say(
        f"{row}: {done.iterations} updates, loss {done.loss:.4g} (median of the last"
        f" {min(LOSSES, done.iterations)})"
        + ("" if done.checkpoint is None else f", saved as {done.checkpoint}")
    )
    if done.stopped_by is not None:
        say(f"stopped by {done.stopped_by}; go on with --resume")
        number = getattr(signal, done.stopped_by, None)
        raise typer.Exit(0 if number is None else 128 + number)


@app.command("train-step")
def train_step(
    row: Annotated[
        str, typer.Argument(help="Faster R-CNN of a ResNet-50 with a pyramid; the two need one architecture")
    ] = "faster_rcnn_resnet50_fpn_1x.maskrcnn_benchmark",
    images: Annotated[int, typer.Option(min=1, help="of a step")] = 1,
    height: Annotated[int, typer.Option(min=128, help="pixels of the network's input")] = 320,
    width: Annotated[int, typer.Option(min=128, help="pixels of the network's input")] = 480,
    steps: Annotated[int, typer.Option(min=1, help="of each process, after the warm-up")] = 4,
    warm_up: Annotated[int, typer.Option(min=0, help="steps that are not counted")] = 1,
    blocks: Annotated[int, typer.Option(min=1, help="fresh processes of each side, in turns")] = 3,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="both are measured in it as well as in float32")
    ] = "float32",
    as_json: JSON = False,
) -> None:
    """Time a training step beside torchvision's Faster R-CNN: CPU time and peak memory, on one thread."""
    from detection_zoo.benchmarks.tabular import render
    from detection_zoo.benchmarks.train.beside import Batch, beside, summary

    batch = Batch(images, height, width)
    found = beside(row, batch, warm_up=warm_up, steps=steps, blocks=blocks, say=say, precision=precision)
    values, table = summary(found, batch)
    emit(values, as_json, render([table], "text", terminal_width()))
    say(f"{row}: {values['speed']:.2f}x as fast as torchvision, {values['memory']:.2f}x the memory")
