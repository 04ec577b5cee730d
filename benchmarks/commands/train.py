"""Training: train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from detection_zoo.benchmarks.commands.app import app, emit, say
from detection_zoo.benchmarks.commands.options import DEVICE, DTYPE, JSON, device_of


@app.command()
def train(
    row: Annotated[str, typer.Argument(help="name of a row; every default below is the row's own")],
    out: Annotated[Path, typer.Option(file_okay=False, help="folder of the run")],
    data: Annotated[str, typer.Option(help="coco:DIR[:SPLIT], voc:VOCDEVKIT:YEAR:SPLIT, shapes")] = "shapes",
    weights: Annotated[
        str,
        typer.Option(help="to start from: initial (what the row starts from), random, published, or a file"),
    ] = "initial",
    batch: Annotated[
        int | None, typer.Option(min=1, help="images of one forward pass, over all processes")
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
    optimizer: Annotated[Literal["sgd", "adam"] | None, typer.Option(help="default: the row's own")] = None,
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
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="only operators that repeat to the last digit; slower")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last checkpoint in --out, where there is one")
    ] = False,
    save_every: Annotated[int, typer.Option(min=1, help="updates between checkpoints")] = 1000,
    keep: Annotated[int, typer.Option(min=0, help="checkpoints that stay; 0: all")] = 2,
    no_save: Annotated[bool, typer.Option("--no-save", help="write no checkpoint")] = False,
    log_every: Annotated[int, typer.Option(min=1, help="updates a line")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of weights, order and augmentation")] = 0,
    precision: DTYPE = "float32",
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="layout of images and weights: NHWC")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="processes that load data, each process's own")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="of one operator on a CPU")] = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Train a row by its source's recipe; a stopped training goes on with --resume."""
    import torch

    from detection_zoo.benchmarks.train.start import Request, start_training
    from detection_zoo.zoo.training.plan import Wishes
    from detection_zoo.zoo.training.trainer import Settings

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
    wishes = Wishes(batch, accumulate, lr, iterations, epochs, steps, warmup, optimizer, scale_lr)
    settings = Settings(
        out,
        seed=seed,
        resume=resume,
        save_every=0 if no_save else save_every,
        keep=keep,
        log_every=log_every,
        precision=precision,
        channels_last=channels_last,
    )
    try:
        request = Request(row, data, weights, workers, device_of(device), tuple(changes or ()))
        done = start_training(request, wishes, settings, say)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from None
    found = {
        "updates": done.iterations,
        "loss": done.loss,
        "checkpoint": None if done.checkpoint is None else str(done.checkpoint),
        "stopped_by": None if done.stopped_by is None else done.stopped_by.name,
    }
    emit(
        found,
        as_json,
        f"{row}: {done.iterations} updates, loss {done.loss:.4g}"
        + ("" if done.checkpoint is None else f", saved as {done.checkpoint}"),
    )
    if done.stopped_by is not None:
        say(f"stopped by {done.stopped_by.name}; go on with --resume")
        raise typer.Exit(128 + done.stopped_by.value)
