"""The commands evaluate and parity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from detection_zoo.benchmarks.commands.app import app, emit, say
from detection_zoo.benchmarks.commands.options import DATA, IMAGES, JSON, MAP, data_of


@app.command()
def evaluate(
    results_file: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS", help="COCO results file, or folder of VOC results files (comp4_det_...txt)"
        ),
    ],
    data: DATA = "shapes",
    renamed: MAP = "",
    images: IMAGES = None,
    as_json: JSON = False,
    kind: Annotated[
        Literal["bbox", "segm", "keypoints"] | None, typer.Option(help="default: recognised from the file")
    ] = None,
    every_image: Annotated[
        bool, typer.Option("--every-image", help="count images that have no detection as processed")
    ] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="also print the AP of every class")] = False,
    errors: Annotated[
        bool, typer.Option("--errors", help="also print the AP50 lost to each error type (TIDE)")
    ] = False,
) -> None:
    """Compute COCO or VOC accuracy from a file of detections."""
    from detection_zoo.benchmarks.evaluation.accuracy import AccuracyReport, evaluate_results_file
    from detection_zoo.benchmarks.report.listing import accuracy, class_accuracy, mistakes
    from detection_zoo.benchmarks.run.progress import clock
    from detection_zoo.zoo.data.datasets import open_dataset
    from detection_zoo.zoo.data.fields import no_collection

    def evaluated() -> tuple[AccuracyReport, list[str]]:
        dataset = open_dataset(data_of(data, "all", renamed), images=images, keypoints=kind == "keypoints")
        report = evaluate_results_file(
            results_file, dataset, kind, whole=True, every_image=every_image, details=errors
        )
        notes = [f"data: {note}" for note in dataset.notes]
        notes += [f"{measured}: {note}" for measured, note in report.notes.items()]
        notes.append(f"{results_file.name} on {dataset.name}: {len(dataset)} of {dataset.full_size} images")
        return report, notes

    with (
        clock("evaluate"),
        no_collection(),
    ):  # the dataset is freed before garbage collection is enabled again
        report, notes = evaluated()
    text = [accuracy(report.metrics)]
    text += [class_accuracy(report.per_class)] if per_class else []
    text += [mistakes(kind, shares) for kind, shares in report.errors.items()]
    emit(report.as_dict(), as_json, "\n\n".join(text))
    for note in notes:
        say(note)


@app.command()
def parity(
    reference: Annotated[Path, typer.Option(help="folder with outputs recorded from the original code")],
    row: Annotated[
        str | None, typer.Argument(help="default: the row for the configuration named in the folder")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float64"], typer.Option(help="precision of the computation")
    ] = "float32",
    checkpoint_format: Annotated[
        str | None,
        typer.Option("--format", help="checkpoint format to load from the folder; default: the source's"),
    ] = None,
    write_settings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="write the settings that the folder's notes state, and compare nothing; as the folder's"
            " settings.json they are used in place of the notes",
        ),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Compare a model's outputs with those recorded from the original code; exit 1 if any differs."""
    from detection_zoo.benchmarks.run.parity import check_reference, folder_settings
    from detection_zoo.benchmarks.run.progress import clock

    if write_settings is not None:
        settings = folder_settings(reference)
        write_settings.write_text(settings.to_json(), encoding="utf-8")
        say(f"{write_settings}: settings of {len(settings.notes)} notes of {reference}")
        return

    with clock(f"parity with {reference.name}"):
        report = check_reference(reference, row, dtype, checkpoint_format)
    emit(report.to_json(), as_json, "\n".join(str(line) for line in report.lines))
    for note in report.notes:
        say(f"note: {note}")
    say(report.summary())
    if not report.ok:
        raise typer.Exit(1)
