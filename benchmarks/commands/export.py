"""The command export."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from detection_zoo.benchmarks.commands.app import app, checking_arguments, say
from detection_zoo.benchmarks.commands.options import (
    CLASSES,
    DATA,
    FORMAT,
    MAP,
    ROW,
    WEIGHTS,
    data_of,
    size_of,
)


@app.command()
def export(
    row: ROW,
    to: Annotated[
        Literal["torch-export", "onnx", "openvino", "tensorrt-onnx"],
        typer.Option(help="tensorrt-onnx: ONNX in which only NMS has data-dependent shapes"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="output file; default: ./ROW with the suffix of the format"),
    ] = None,
    weights: WEIGHTS = "published",
    checkpoint_format: FORMAT = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="input size, pixels; default: large enough for the compared images"),
    ] = None,
    data: DATA = "shapes",
    classes: CLASSES = "all",
    renamed: MAP = "",
    images: Annotated[
        int | None,
        typer.Option(min=1, help="number of images of the data to compare on; default: 2, with --int8 20"),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="openvino: 8-bit post-training quantisation of the network")
    ] = False,
    calibrate: Annotated[
        str | None, typer.Option(metavar="DATA", help="calibration images for --int8, given like --data")
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="use only the first N calibration images")
    ] = 100,
) -> None:
    """Export a detector with its pre- and post-processing, and compare the file's detections with the
    model's."""
    from detection_zoo.benchmarks.run.arguments import checked_rows
    from detection_zoo.benchmarks.run.exporting import export_subject
    from detection_zoo.benchmarks.run.progress import clock
    from detection_zoo.benchmarks.run.subject import Sources, build_subject, identify_weights, open_data
    from detection_zoo.zoo.export.kinds import INT8_PACKAGES, PACKAGES, SUFFIXES

    wanted, images = size_of(size), images or (20 if int8 else 2)
    if int8 and to != "openvino":
        raise typer.BadParameter("works only with --to openvino", param_hint="--int8")
    if int8 != (calibrate is not None):
        raise typer.BadParameter("give --int8 and --calibrate DATA together", param_hint="--int8")
    needed = INT8_PACKAGES if int8 else PACKAGES[to]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise typer.BadParameter(
            f"{to} needs {', '.join(missing)}: pip install 'detection-zoo[export]'",
            param_hint="--int8" if int8 else "--to",
        )
    path = out or Path(f"{row}{SUFFIXES[to]}")
    if path.suffix != SUFFIXES[to]:
        raise typer.BadParameter(f"{path}: a file for {to} ends in {SUFFIXES[to]}", param_hint="--out")
    sources = Sources(data_of(data, classes, renamed), weights, None, checkpoint_format)
    with checking_arguments(), clock("checking row, weights and data"):
        [entry] = checked_rows([row], sources, images, say)
        if calibrate:
            open_data(entry, calibrate, calibration_images)
        if entry.task != "detection":
            raise typer.BadParameter(
                f"{row} is a classifier; only detectors can be exported", param_hint="ROW"
            )
    with clock(f"exporting {row}"):
        subject = build_subject(entry, identify_weights(entry, weights)[1], "cpu", checkpoint_format)
        subject.model.eval()
        subject.dataset = open_data(entry, sources.data, images)
        chosen = open_data(entry, calibrate, calibration_images) if calibrate else None
        lines = export_subject(subject, to, path, wanted, chosen)
    for line in lines:
        say(line)
