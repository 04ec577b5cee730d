"""Options shared by several commands, and checks of their values. Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from detection_zoo.benchmarks.terminal import terminal_width

MOST_WORKERS = 8  # upper limit of --workers auto


def row_names(incomplete: str) -> list[str]:
    """Row names with this prefix, for shell completion."""
    from detection_zoo.zoo.manifest_files import load_manifests

    return [name for name in load_manifests().entries if name.startswith(incomplete)]


ROW = Annotated[
    str, typer.Argument(help="name of a model in the manifests (a row)", autocompletion=row_names)
]
JSON = Annotated[bool, typer.Option("--json", help="print JSON")]
WIDE = Annotated[bool, typer.Option("--wide", help="do not wrap lines at the terminal width")]
STORE = Annotated[
    Path | None, typer.Option(file_okay=False, help="folder of measurement records; default: ./results/runs")
]
READ_STORE = Annotated[
    Path | None,
    typer.Option(
        "--store", exists=True, file_okay=False, help="folder of measurement records; default: ./results/runs"
    ),
]
PROTOCOL = Annotated[
    str, typer.Option(help="timing protocol of manifests/protocols.toml; each table shows one protocol")
]
METRICS = Annotated[
    str | None,
    typer.Option(
        help="comma-separated: inference, ap, top1, memory, epoch, throughput; default: all but throughput"
    ),
]
DATA = Annotated[
    str,
    typer.Option(
        help=(
            "PATH of your own data (COCO, YOLO, VOC or ImageNet layout), coco:DIR[:SPLIT],"
            " voc:VOCDEVKIT:YEAR:SPLIT,"
            " imagenet:DIR or shapes[:SPLIT]"
        )
    ),
]
CLASSES = Annotated[
    Literal["all", "common"],
    typer.Option(help="common: only the classes that both the data and the model have"),
]
MAP = Annotated[
    str, typer.Option("--map", help='rename classes of the data to classes of the model: "car=vehicle,..."')
]
WEIGHTS = Annotated[
    str,
    typer.Option(
        help="random, published, the path of a checkpoint, or stand-in:FOLDER (weights used by"
        " the parity tests)"
    ),
]
FORMAT = Annotated[
    str | None, typer.Option("--format", help="checkpoint format of the file; default: the row's")
]
DEVICE = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="auto: cuda if torch finds a GPU, otherwise cpu")
]
IMAGES = Annotated[int | None, typer.Option(min=1, help="use only the first N images and their ground truth")]
WORKERS = Annotated[str, typer.Option(help="data loading processes; auto: up to 8 per GPU, 0 on a CPU")]
BATCH = Annotated[int, typer.Option(min=1, help="images per forward pass")]
DTYPE = Annotated[
    Literal["float32", "float16", "bfloat16"], typer.Option(help="float16 and bfloat16 use torch.autocast")
]
PATH = Annotated[
    Literal["eager", "fast", "onnxruntime", "openvino"],
    typer.Option(
        help=(
            "eager: plain PyTorch; fast: folded BatchNorm, channels-last, weights in"
            " --dtype; onnxruntime, openvino: the exported"
            " model. The output is first compared with eager's"
        )
    ),
]
STALL = Annotated[float, typer.Option(min=1, help="kill a model after this many seconds without progress")]
TF32 = Annotated[bool, typer.Option("--tf32", help="allow TensorFloat-32 matrix products and convolutions")]


def data_of(data: str, classes: str, renamed: str) -> str:
    """Combine --data with the choice of classes; an invalid --map is wrong usage."""
    from detection_zoo.zoo.data.class_choice import ClassChoice
    from detection_zoo.zoo.errors import DatasetError

    try:
        return ClassChoice.parse(classes == "common", renamed).attach(data)
    except DatasetError as error:
        raise typer.BadParameter(str(error), param_hint="--map") from None


def workers_of(text: str, device: str) -> int:
    """Parse --workers as a number; an invalid value is wrong usage."""
    from detection_zoo.benchmarks.environment import usable_cores

    if text == "auto":  # on a CPU, workers would compete with the model for cores
        processes = int(os.environ.get("WORLD_SIZE") or 1)  # processes started by torchrun share the cores
        return min(MOST_WORKERS, max(usable_cores() // processes, 1)) if device == "cuda" else 0
    if not (text.isascii() and text.isdecimal() and int(text) <= 256):
        raise typer.BadParameter(f"{text!r} is neither auto nor a number up to 256", param_hint="--workers")
    return int(text)


def width_of(wide: bool) -> int | None:
    """Return the output width in characters: COLUMNS or the terminal's width; None with --wide or when stdout
    is not a terminal."""
    return None if wide else terminal_width()


def groups_of(text: str | None) -> tuple[str, ...]:
    """Parse --metrics; an unknown name is wrong usage."""
    from detection_zoo.benchmarks.spec import METRIC_GROUPS
    from detection_zoo.zoo.registry import did_you_mean

    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in METRIC_GROUPS:
            raise typer.BadParameter(
                f"unknown metric group {name!r}: {did_you_mean(name, METRIC_GROUPS)}", param_hint="--metrics"
            )
    return tuple(names)


def check_metric(name: str) -> None:
    """Check --metric: it must be a metric that tables show for all rows; any other is wrong usage."""
    from detection_zoo.zoo.manifest_files import load_manifests
    from detection_zoo.zoo.registry import did_you_mean

    known = [name for name, metric in load_manifests().metrics.items() if metric.overview]
    if name not in known:
        raise typer.BadParameter(
            f"unknown metric {name!r}: {did_you_mean(name, known)}", param_hint="--metric"
        )


def check_path(path: str, device: str, dtype: str) -> None:
    """Check --path: the engine must be installed and support the device and dtype, or it is wrong usage."""
    from detection_zoo.zoo.export.kinds import engine_problem

    if problem := engine_problem(path, device, dtype):
        raise typer.BadParameter(problem, param_hint="--path")


def checked_file(file: Path, path: str, rows: Sequence[str], batch: int) -> Any:
    """The description of an exported file (`benchmarks.spec.ExportedFile`); wrong usage where --path does not
    run it, or it is another row's."""
    from detection_zoo.benchmarks.run.arguments import exported_file
    from detection_zoo.zoo.errors import ManifestError
    from detection_zoo.zoo.export.kinds import ENGINE_SUFFIXES

    if file.suffix != ENGINE_SUFFIXES.get(path):
        kinds = ", ".join(f"--path {name} runs {suffix}" for name, suffix in ENGINE_SUFFIXES.items())
        raise typer.BadParameter(f"{file}: {kinds}, --path is {path}", param_hint="--exported")
    try:
        row, _, exported = exported_file(file, batch)
    except ManifestError as error:
        raise typer.BadParameter(str(error), param_hint="--exported") from None
    if list(rows) != [row]:
        raise typer.BadParameter(f"{file} is of row {row}; give that row alone", param_hint="--exported")
    return exported


def device_of(wanted: str) -> str:
    """Parse --device; a missing GPU is wrong usage."""
    from detection_zoo.benchmarks.environment import choose_device

    try:
        return choose_device(wanted)
    except RuntimeError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None


def size_of(text: str | None) -> tuple[int, int] | None:
    """Parse "HxW" as (height, width); any other text is wrong usage."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise typer.BadParameter(f"{text!r} is not HxW in pixels, such as 800x1344", param_hint="--size")
    return int(sides[0]), int(sides[1])
