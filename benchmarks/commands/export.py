"""Models as files for other engines: export."""

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
        typer.Option(help="tensorrt-onnx: no size inside depends on values but NMS's"),
    ],
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="file; default: ./ROW with its suffix")
    ] = None,
    weights: WEIGHTS = "published",
    checkpoint_format: FORMAT = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="input, pixels; default: holds the compared images")
    ] = None,
    data: DATA = "shapes",
    classes: CLASSES = "all",
    renamed: MAP = "",
    images: Annotated[int, typer.Option(min=1, help="how many images of the data are compared")] = 2,
) -> None:
    """Write a detector, from image to detections, as a file for another engine; compare it with the model."""
    from detection_zoo.benchmarks.run.arguments import checked_rows
    from detection_zoo.benchmarks.run.exporting import export_subject
    from detection_zoo.benchmarks.run.progress import clock
    from detection_zoo.benchmarks.run.subject import Sources, build_subject, identify_weights, open_data
    from detection_zoo.zoo.export.kinds import PACKAGES, SUFFIXES

    wanted = size_of(size)
    missing = [name for name in PACKAGES[to] if find_spec(name) is None]
    if missing:
        raise typer.BadParameter(
            f"{to} needs {', '.join(missing)}: pip install 'detection-zoo[export]'", param_hint="--to"
        )
    path = out or Path(f"{row}{SUFFIXES[to]}")
    if path.suffix != SUFFIXES[to]:
        raise typer.BadParameter(f"{path}: a file for {to} ends in {SUFFIXES[to]}", param_hint="--out")
    sources = Sources(data_of(data, classes, renamed), weights, None, checkpoint_format)
    with checking_arguments(), clock("check row, weights and data"):
        [entry] = checked_rows([row], sources, images, say)
        if entry.task != "detection":
            raise typer.BadParameter(f"{row} is a classifier; a detector is exported", param_hint="ROW")
    with clock(f"export {row}"):
        subject = build_subject(entry, identify_weights(entry, weights)[1], "cpu", checkpoint_format)
        subject.model.eval()
        subject.dataset = open_data(entry, sources.data, images)
        lines = export_subject(subject, to, path, wanted)
    for line in lines:
        say(line)
