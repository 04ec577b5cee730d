"""Numbers that must come out the same: evaluate, parity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from detection_zoo.benchmarks.commands.app import app, emit, say
from detection_zoo.benchmarks.commands.options import DATA, IMAGES, JSON, MAP, data_of


@app.command()
def evaluate(
    results_file: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="COCO results file, or folder of VOC comp4 files")
    ],
    data: DATA = "shapes",
    renamed: MAP = "",
    images: IMAGES = None,
    as_json: JSON = False,
    kind: Annotated[
        Literal["bbox", "segm", "keypoints"] | None, typer.Option(help="default: as the file says")
    ] = None,
    every_image: Annotated[
        bool, typer.Option("--every-image", help="images without a detection were looked at too")
    ] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="AP of every class as well")] = False,
    errors: Annotated[
        bool, typer.Option("--errors", help="what AP50 loses to each kind of mistake as well (TIDE)")
    ] = False,
) -> None:
    """Evaluate stored detections again."""
    from detection_zoo.benchmarks.evaluation.accuracy import evaluate_results_file
    from detection_zoo.benchmarks.report.listing import accuracy, class_accuracy, mistakes
    from detection_zoo.benchmarks.run.progress import clock
    from detection_zoo.zoo.data.datasets import open_dataset
    from detection_zoo.zoo.data.fields import no_collection

    with clock("evaluate"), no_collection():
        dataset = open_dataset(data_of(data, "all", renamed), images=images, keypoints=kind == "keypoints")
        report = evaluate_results_file(
            results_file, dataset, kind, whole=True, every_image=every_image, details=errors
        )
    text = [accuracy(report.metrics)]
    text += [class_accuracy(report.per_class)] if per_class else []
    text += [mistakes(kind, shares) for kind, shares in report.errors.items()]
    emit(report.as_dict(), as_json, "\n\n".join(text))
    for note in dataset.notes:
        say(f"data: {note}")
    for measured, note in report.notes.items():
        say(f"{measured}: {note}")
    say(f"{results_file.name} on {dataset.name}: {len(dataset)} of {dataset.full_size} images")


@app.command()
def parity(
    reference: Annotated[Path, typer.Option(help="folder of recorded outputs")],
    row: Annotated[
        str | None, typer.Argument(help="default: the row whose configuration the folder names")
    ] = None,
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="of the recomputation")] = "float32",
    checkpoint_format: Annotated[
        str | None,
        typer.Option("--format", help="which of the folder's checkpoints; default: the source's own"),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Compare a model with outputs recorded from the original code; exit 1 where anything differs."""
    from detection_zoo.benchmarks.run.parity import check_reference
    from detection_zoo.benchmarks.run.progress import clock

    with clock(f"parity with {reference.name}"):
        report = check_reference(reference, row, dtype, checkpoint_format)
    emit(report.to_json(), as_json, "\n".join(str(line) for line in report.lines))
    for note in report.notes:
        say(f"note: {note}")
    say(report.summary())
    if not report.ok:
        raise typer.Exit(1)
