"""The commands compare, compare-seeds, compare-records and self-check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from detection_zoo.benchmarks.commands.app import app, checking_arguments, emit, gather, say
from detection_zoo.benchmarks.commands.options import (
    BATCH,
    CLASSES,
    DATA,
    DEVICE,
    DTYPE,
    IMAGES,
    JSON,
    MAP,
    PATH,
    READ_STORE,
    STALL,
    TF32,
    WEIGHTS,
    WIDE,
    check_path,
    data_of,
    device_of,
    width_of,
)
from detection_zoo.zoo.entry import INTERRUPTED

SMALLEST = Annotated[
    float,
    typer.Option(
        min=0.0, max=0.5, help="smallest difference in time that matters, as a fraction (0.02 is 2 %)"
    ),
]
SMALLEST_AP = Annotated[
    float, typer.Option(min=0.0, help="smallest difference in AP or top-1 that matters, in percentage points")
]
BLOCKS = Annotated[
    int, typer.Option(min=2, help="maximum number of blocks; each block starts fresh processes")
]
ROUNDS = Annotated[
    int, typer.Option(min=2, help="rounds per block; in each round, every model runs on the same images")
]
BUDGET = Annotated[float, typer.Option(min=1, help="start no new block after this many seconds")]
THREADS = Annotated[
    int,
    typer.Option(
        min=1, help="CPU threads per operator; with 1, the verdict uses CPU time, otherwise wall time"
    ),
]
TIMED_IMAGES = Annotated[int, typer.Option(min=1, help="number of different images to time")]
SEED = Annotated[int, typer.Option(min=0, help="random seed for the order of the models")]


def _spec(
    device: str,
    dtype: Any,
    tf32: bool,
    images: int | None,
    batch: int,
    timed_images: int,
    path: Any = "eager",
) -> Any:
    from detection_zoo.benchmarks.spec import BenchmarkSpec

    where = device_of(device)
    check_path(path, where, dtype)
    return gather(BenchmarkSpec, locals(), groups=("inference",), device=where, batch_size=batch)


def _entrants(
    rows: list[str], weights: str, data: str, images: int | None, files: Sequence[Path] = (), batch: int = 1
) -> list[Any]:
    """Resolve and check the rows, exported files and weights; any problem is wrong usage."""
    from detection_zoo.benchmarks.compare.options import entrants_of
    from detection_zoo.benchmarks.run.arguments import check_row
    from detection_zoo.benchmarks.run.subject import Sources
    from detection_zoo.zoo.created_row import row_named

    with checking_arguments():
        entrants = entrants_of(rows, weights, files, batch)
        notes = dict[str, None]()
        for entrant in entrants:
            sources = Sources(data, entrant.weights)
            notes |= dict.fromkeys(check_row(row_named(entrant.row), sources, images))
    for note in notes:
        say(f"data: {note}")
    return entrants


@app.command()
def compare(
    rows: Annotated[
        list[str],
        typer.Argument(
            metavar="ROW[@WEIGHTS]...",
            help="two or more rows, or one with --exported; the first is the reference",
        ),
    ],
    data: DATA = "shapes",
    classes: CLASSES = "all",
    renamed: MAP = "",
    weights: WEIGHTS = "published",
    device: DEVICE = "auto",
    images: IMAGES = None,
    batch: BATCH = 1,
    dtype: DTYPE = "float32",
    tf32: TF32 = False,
    path: PATH = "eager",
    exported: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help="also compare this exported file in its engine; repeatable"
        ),
    ] = None,
    smallest: SMALLEST = 0.015,
    smallest_ap: SMALLEST_AP = 0.5,
    with_ap: Annotated[
        bool,
        typer.Option(
            "--ap", help="also compare AP (top-1 for classifiers) with a paired bootstrap over images"
        ),
    ] = False,
    blocks: BLOCKS = 32,
    rounds: ROUNDS = 12,
    budget_s: BUDGET = 1800.0,
    threads: THREADS = 1,
    timed_images: TIMED_IMAGES = 100,
    stall_s: STALL = 300.0,
    seed: SEED = 0,
    store: Annotated[
        Path | None, typer.Option(help="folder of comparison records; default: ./results/comparisons")
    ] = None,
    wide: WIDE = False,
    as_json: JSON = False,
) -> None:
    """Run models alternately; give a verdict per metric: FASTER, SAME, SLOWER or UNDECIDED."""
    from detection_zoo.benchmarks.compare.options import CompareOptions
    from detection_zoo.benchmarks.compare.text import comparison_text
    from detection_zoo.benchmarks.folders import COMPARISONS
    from detection_zoo.benchmarks.store import results_folder, write_record

    files = exported or []
    if len(rows) + len(files) < 2:
        raise typer.BadParameter("name two rows or more, or a row and --exported", param_hint="ROW")
    folder = store or results_folder() / COMPARISONS
    options = gather(CompareOptions, locals(), accuracy=with_ap, files=folder.parent / "detections")
    spec = _spec(device, dtype, tf32, images, batch, timed_images, path)
    data = data_of(data, classes, renamed)
    entrants = _entrants(rows, weights, data, images, files, batch)
    for one in entrants:
        check_path(one.spec(spec).path, spec.device, dtype)
    from detection_zoo.benchmarks.compare.match import compare as run_comparison  # after the checks: torch

    found = run_comparison(entrants, spec, data, options, say)
    path = write_record(folder, found)
    emit(
        found.model_dump(mode="json", exclude_defaults=True), as_json, comparison_text(found, width_of(wide))
    )
    say(f"{found.status}: {found.ended}; stored as {path.name}")
    if found.status != "finished":
        raise typer.Exit(INTERRUPTED if found.status == "interrupted" else 1)


@app.command("compare-seeds")
def compare_seeds(
    rows: Annotated[
        list[str],
        typer.Argument(
            metavar="ROW[@WEIGHTS]...",
            help="one ROW@WEIGHTS per training run (seed); the first row is the reference",
        ),
    ],
    data: DATA = "shapes",
    classes: CLASSES = "all",
    renamed: MAP = "",
    weights: WEIGHTS = "published",
    device: DEVICE = "auto",
    images: IMAGES = None,
    smallest_ap: SMALLEST_AP = 0.5,
    seed: SEED = 0,
    wide: WIDE = False,
    as_json: JSON = False,
) -> None:
    """Compare rows over several training seeds: AP spread per row, and the AP difference with its
    interval."""
    from dataclasses import asdict

    from detection_zoo.benchmarks.tabular import render

    spec = _spec(device, "float32", False, images, 1, 1).model_copy(update={"seed": seed})
    data = data_of(data, classes, renamed)
    entrants = _entrants(rows, weights, data, images)
    from detection_zoo.benchmarks.compare.seeds import compare_seeds as run_seeds
    from detection_zoo.benchmarks.compare.seeds import distinct_weights, seeds_table

    with checking_arguments():
        chosen = distinct_weights(entrants)
    lines = run_seeds(list(zip(entrants, chosen, strict=True)), spec, data, smallest_ap, say)
    found = [asdict(line) | {"spread": line.spread} for line in lines]
    emit(found, as_json, render([seeds_table(lines, smallest_ap)], "text", width_of(wide)))


@app.command("compare-records")
def compare_records(
    names: Annotated[
        list[str],
        typer.Argument(metavar="ROW|RECORD...", help="rows or record IDs; the first is the reference"),
    ],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="compare records with different settings too, with footnotes")
    ] = False,
    relative_to: Annotated[
        str | None, typer.Option(help="print times relative to this row's time on the same hardware")
    ] = None,
    store: READ_STORE = None,
    wide: WIDE = False,
    as_json: JSON = False,
) -> None:
    """Print ratios of stored records and the spread between runs; for verdicts use `compare`."""
    from detection_zoo.benchmarks.compare.stored import compare_stored, relative_speeds
    from detection_zoo.benchmarks.compare.text import relative_text, stored_text
    from detection_zoo.benchmarks.store import stored_runs

    stored = stored_runs(store)
    for problem in stored.problems:
        say(f"warning: {problem}")
    if relative_to is not None:
        speeds = [
            speed
            for speed in relative_speeds(stored.runs, relative_to)
            if speed["row"] in {*names, relative_to} or speed["record"] in names
        ]
        emit(speeds, as_json, relative_text(speeds, relative_to, width_of(wide)))
        return
    if len(names) < 2:
        raise typer.BadParameter("name two rows or records, or more", param_hint="ROW|RECORD")
    pairs = compare_stored(names, stored.runs, anyway)
    emit([pair.as_dict() for pair in pairs], as_json, stored_text(pairs, width_of(wide)))


@app.command("self-check")
def self_check(
    row: Annotated[
        str | None, typer.Argument(metavar="ROW[@WEIGHTS]", help="the row to compare with itself")
    ] = None,
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics", help="needs no row: error rates of the intervals and verdicts on simulated times"
        ),
    ] = False,
    runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="comparisons of each kind (default 20); with --statistics, simulated runs (default 1000)",
        ),
    ] = None,
    slow_down: Annotated[
        float, typer.Option(min=0.001, max=1, help="extra work of the slowed-down copy, as a fraction")
    ] = 0.03,
    data: DATA = "shapes",
    weights: WEIGHTS = "published",
    device: DEVICE = "auto",
    images: IMAGES = None,
    batch: BATCH = 1,
    dtype: DTYPE = "float32",
    tf32: TF32 = False,
    smallest: SMALLEST = 0.015,
    blocks: BLOCKS = 32,
    rounds: ROUNDS = 12,
    budget_s: BUDGET = 1800.0,
    threads: THREADS = 1,
    timed_images: TIMED_IMAGES = 100,
    stall_s: STALL = 300.0,
    seed: SEED = 0,
    as_json: JSON = False,
) -> None:
    """Check the method: compare a row many times with itself and with a slowed-down copy; count the
    verdicts."""
    if statistics:
        from detection_zoo.benchmarks.compare.coverage import RUNS, coverage, coverage_text

        lines = coverage(runs or RUNS, seed)
        emit([vars(line) for line in lines], as_json, coverage_text(lines))
        return
    if row is None:
        raise typer.BadParameter("name a row, or give --statistics", param_hint="ROW")
    from detection_zoo.benchmarks.compare.options import CompareOptions

    spec = _spec(device, dtype, tf32, images, batch, timed_images)
    (entrant,) = _entrants([row], weights, data, images)
    options = gather(CompareOptions, locals())
    from detection_zoo.benchmarks.compare.self_check import self_check as check_row  # after the checks: torch

    check = check_row(entrant.row, entrant.weights, spec, data, options, runs or 20, slow_down, say)
    emit(check.as_dict(), as_json, check.summary())
    if not check.ok:
        raise typer.Exit(1)
