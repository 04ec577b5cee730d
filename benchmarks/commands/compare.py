"""Models side by side: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detection_zoo.benchmarks.commands.app import INTERRUPTED, app, emit, say
from detection_zoo.benchmarks.commands.options import (
    BATCH,
    DATA,
    DEVICE,
    DTYPE,
    IMAGES,
    JSON,
    TF32,
    WEIGHTS,
    device_of,
)


def _compare_stored(
    names: list[str],
    smallest: float,
    anyway: bool,
    relative_to: str | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    from detection_zoo.benchmarks.compare.stored import chosen_runs, compare_stored, relative_speeds
    from detection_zoo.benchmarks.compare.text import relative_text, stored_text
    from detection_zoo.benchmarks.store import stored_runs

    kept = stored_runs(folder)
    for problem in kept.problems:
        say(f"warning: {problem}")
    if relative_to is not None:
        found = [
            one
            for one in relative_speeds(kept.runs, relative_to)
            if one["row"] in {*names, relative_to} or one["record"] in names
        ]
        emit(found, as_json, relative_text(found, relative_to))
        return
    pairs = compare_stored(chosen_runs(names, kept.runs), smallest, anyway)
    emit([pair.as_dict() for pair in pairs], as_json, stored_text(pairs))


SELF_CHECK = typer.Option(
    "--self-check",
    min=1,
    help="compare one row with itself and with a slowed copy, so often each, and count verdicts",
)


@app.command()
def compare(
    rows: Annotated[
        list[str],
        typer.Argument(metavar="ROW[@WEIGHTS]...", help="two rows or more; the first is the reference"),
    ],
    data: DATA = "shapes",
    weights: WEIGHTS = "random",
    device: DEVICE = "auto",
    images: IMAGES = None,
    batch: BATCH = 1,
    dtype: DTYPE = "float32",
    tf32: TF32 = False,
    smallest: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="smallest difference of interest, a fraction of the time")
    ] = 0.015,
    smallest_ap: Annotated[
        float, typer.Option(min=0.0, help="smallest difference of interest of AP or top-1, in points")
    ] = 0.5,
    with_ap: Annotated[
        bool,
        typer.Option("--ap", help="AP (of classifiers: top-1) as well, by a paired bootstrap over images"),
    ] = False,
    blocks: Annotated[int, typer.Option(min=2, help="most blocks of fresh processes")] = 32,
    rounds: Annotated[
        int, typer.Option(min=2, help="rounds in a block; in each every model runs the same images")
    ] = 12,
    budget_s: Annotated[float, typer.Option(min=1, help="no block begins after so long")] = 1800.0,
    threads: Annotated[
        int,
        typer.Option(
            min=1, help="of one operator on a CPU; 1: the processor's time decides, more: wall time"
        ),
    ] = 1,
    timed_images: Annotated[int, typer.Option(min=1, help="images that are timed")] = 100,
    stall_s: Annotated[
        float, typer.Option(min=1, help="end a model that shows no sign of life for so long")
    ] = 300.0,
    seed: Annotated[int, typer.Option(min=0, help="of the order")] = 0,
    runs: Annotated[int | None, SELF_CHECK] = None,
    slow_down: Annotated[
        float, typer.Option(min=0.001, max=1, help="extra work of the slowed copy, a fraction")
    ] = 0.03,
    stored: Annotated[
        bool, typer.Option("--stored", help="compare stored records (rows or record ids) and run nothing")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="with --stored: footnotes where the comparison would be refused")
    ] = False,
    relative_to: Annotated[
        str | None, typer.Option(help="with --stored: times as multiples of this row's on the same hardware")
    ] = None,
    runs_folder: Annotated[
        Path | None,
        typer.Option("--runs", exists=True, file_okay=False, help="with --stored: folder of records"),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="folder of comparisons; default: ./results/comparisons")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Run models side by side and say FASTER, SAME, SLOWER or UNDECIDED of every metric."""
    if stored:
        _compare_stored(rows, smallest, anyway, relative_to, runs_folder, as_json)
        return
    from detection_zoo.benchmarks.compare.match import compare as run_comparison
    from detection_zoo.benchmarks.compare.options import CompareOptions, entrants_of
    from detection_zoo.benchmarks.compare.record import write_comparison
    from detection_zoo.benchmarks.compare.self_check import self_check
    from detection_zoo.benchmarks.compare.text import comparison_text
    from detection_zoo.benchmarks.spec import BenchmarkSpec
    from detection_zoo.benchmarks.store import COMPARISONS, results_folder

    folder = store or results_folder() / COMPARISONS
    spec = BenchmarkSpec(
        groups=("inference",),
        device=device_of(device),
        dtype=dtype,
        tf32=tf32,
        images=images,
        batch_size=batch,
        timed_images=timed_images,
    )
    options = CompareOptions(
        smallest,
        smallest_ap,
        blocks,
        rounds,
        budget_s=budget_s,
        threads=threads,
        stall_s=stall_s,
        accuracy=with_ap,
        files=folder.parent / "detections",
        seed=seed,
    )
    if (runs is None) != (len(rows) > 1):
        raise typer.BadParameter("name two rows or more; or one row and --self-check", param_hint="ROW")
    entrants = entrants_of(rows, weights)
    if runs is not None:
        check = self_check(entrants[0].row, entrants[0].weights, spec, data, options, runs, slow_down, say)
        emit(check.as_dict(), as_json, check.summary())
        raise typer.Exit(0 if check.ok else 1)
    found = run_comparison(entrants, spec, data, options, say)
    path = write_comparison(folder, found)
    emit(found.model_dump(mode="json", exclude_defaults=True), as_json, comparison_text(found))
    say(f"{found.status}: {found.ended}; stored as {path.name}")
    if found.status != "finished":
        raise typer.Exit(INTERRUPTED if found.status == "interrupted" else 1)
