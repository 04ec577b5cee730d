"""The commands run, reproduce and detect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from detection_zoo.benchmarks.commands.app import app, checking_arguments, emit, gather, say
from detection_zoo.benchmarks.commands.options import (
    BATCH,
    CLASSES,
    DATA,
    DEVICE,
    DTYPE,
    FORMAT,
    IMAGES,
    JSON,
    MAP,
    METRICS,
    PATH,
    PROTOCOL,
    ROW,
    STALL,
    STORE,
    TF32,
    WEIGHTS,
    WIDE,
    WORKERS,
    check_path,
    checked_file,
    data_of,
    device_of,
    groups_of,
    row_names,
    width_of,
    workers_of,
)
from detection_zoo.benchmarks.terminal import terminal_width
from detection_zoo.zoo.entry import INTERRUPTED


@app.command()
def run(
    rows: Annotated[
        list[str] | None,
        typer.Argument(
            help="rows, patterns such as ssd*, or sources such as vovnet", autocompletion=row_names
        ),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="benchmark an untrained backbone that has no row: a registered name or timm.NAME; repeatable"
        ),
    ] = None,
    detector: Annotated[
        str, typer.Option(help="detector built on --backbone; classifier for ImageNet")
    ] = "faster_rcnn",
    data: DATA = "shapes",
    classes: CLASSES = "all",
    renamed: MAP = "",
    weights: WEIGHTS = "published",
    checkpoint_format: FORMAT = None,
    train_data: Annotated[
        str | None,
        typer.Option(help="images for timed training steps; default: the training split next to --data"),
    ] = None,
    metrics: METRICS = None,
    device: DEVICE = "auto",
    images: IMAGES = None,
    batch: BATCH = 1,
    workers: WORKERS = "auto",
    dtype: DTYPE = "float32",
    tf32: TF32 = False,
    path: PATH = "eager",
    exported: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="exported file to run in the engine of --path"),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta", help="measure accuracy with test-time augmentation: the row's setting, or Detectron's"
        ),
    ] = False,
    soft_nms: Annotated[
        Literal["none", "linear", "gaussian"], typer.Option(help="use soft-NMS instead of the row's NMS")
    ] = "none",
    protocol: PROTOCOL = "zoo",
    budget_s: Annotated[float, typer.Option(min=0.1, help="seconds spent on each timed metric group")] = 60.0,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="number of fresh processes to time in; default: 3 on a CPU, 1 on a GPU"),
    ] = None,
    warm_up_s: Annotated[float, typer.Option(min=0.1, help="maximum warm-up, seconds")] = 20.0,
    timed_images: Annotated[
        int, typer.Option(min=1, help="number of different images to time; each pass repeats them")
    ] = 100,
    train_images: Annotated[int, typer.Option(min=1, help="images per training step")] = 2,
    train_steps: Annotated[int, typer.Option(min=2, help="maximum number of timed training steps")] = 200,
    train_warm_up: Annotated[int, typer.Option(min=1, help="warm-up training steps")] = 3,
    store: STORE = None,
    again: Annotated[bool, typer.Option("--again", help="repeat finished measurements")] = False,
    in_process: Annotated[bool, typer.Option("--in-process", help="run all models in this process")] = False,
    stall_s: STALL = 600.0,
    limit_s: Annotated[float | None, typer.Option(min=1, help="kill a model after this many seconds")] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="kill a model that uses more memory than this, in GiB; default: almost all free memory",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=1, help="models measured in parallel, each on its own GPU (on a CPU they share the cores)"
        ),
    ] = 1,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="local, or ray: the Ray cluster of RAY_ADDRESS, one GPU per model"),
    ] = "local",
    check: Annotated[
        bool,
        typer.Option("--check", help="compare AP with the expected AP in the manifest; exit 1 if it differs"),
    ] = False,
    wide: WIDE = False,
    as_json: JSON = False,
) -> None:
    """Benchmark models. Results are stored as they finish; rerun to resume."""
    from detection_zoo.benchmarks.folders import RUNS
    from detection_zoo.benchmarks.report.listing import results
    from detection_zoo.benchmarks.run.arguments import checked_rows
    from detection_zoo.benchmarks.run.isolation import Limits
    from detection_zoo.benchmarks.run.options import SweepOptions
    from detection_zoo.benchmarks.run.progress import clock
    from detection_zoo.benchmarks.run.subject import Sources
    from detection_zoo.benchmarks.run.sweep import run_sweep
    from detection_zoo.benchmarks.spec import WITH_TRAINING, BenchmarkSpec
    from detection_zoo.benchmarks.store import results_folder
    from detection_zoo.zoo.created_row import created_name
    from detection_zoo.zoo.manifest_files import load_manifests

    load_manifests().protocol(protocol)  # an unknown one is wrong usage
    if bool(rows) == bool(backbone):
        raise typer.BadParameter("give rows, or a backbone with --backbone", param_hint="ROWS")
    if backbone and weights == "published":  # a backbone without a row has no published weights
        weights = "random"
    rows = rows or [created_name(one, detector, data) for one in backbone]
    groups, data = groups_of(metrics or ("ap" if check else None)), data_of(data, classes, renamed)
    train_data = train_data and data_of(train_data, classes, renamed)
    sources = Sources(data, weights, train_data, checkpoint_format, exported)
    where = device_of(device)
    check_path(path, where, dtype)
    file = None if exported is None else checked_file(exported, path, rows, batch)
    if path != "eager" and (trained := set(groups or ()) & set(WITH_TRAINING)):
        raise typer.BadParameter(
            f"{', '.join(sorted(trained))}: training has no {path} path", param_hint="--path"
        )
    if in_process and (processes or 1) > 1:
        raise typer.BadParameter("works only with --processes 1", param_hint="--in-process")
    spec = gather(
        BenchmarkSpec,
        locals(),
        device=where,
        processes=processes or (3 if where == "cpu" and not in_process else 1),
        exported=file,
        batch_size=batch,
        workers=workers_of(workers, where),
        time_budget_s=budget_s,
        warm_up_budget_s=warm_up_s,
        train_images_per_step=train_images,
        train_warm_up_steps=train_warm_up,
    )
    if in_process and (jobs > 1 or engine == "ray"):
        raise typer.BadParameter("works only with --jobs 1", param_hint="--in-process")
    limits = Limits(stall_s, limit_s, None if memory_gb is None else memory_gb * 1024)
    folder = store or results_folder() / RUNS
    options = SweepOptions(folder, again, not in_process, limits, jobs, engine)
    with checking_arguments(), clock("checking rows, weights and data"):
        entries = checked_rows(rows, sources, images, say, fetch=engine == "local")
    if check and all(entry.training is None for entry in entries):
        raise typer.BadParameter("no row has an expected accuracy", param_hint="--check")
    sweep = run_sweep(entries, spec, sources, options, say)
    done = [*sweep.known, *sweep.runs]
    emit(
        [one.model_dump(mode="json", exclude_defaults=True) for one in done],
        as_json,
        results(done, width_of(wide)),
    )
    _finish(sweep, not check or _as_expected(entries, done))


def _as_expected(entries: Any, runs: Any) -> bool:
    """Return whether every accuracy matches the one expected in the manifest; print each."""
    from detection_zoo.benchmarks.run.expected import check_runs

    good, lines = check_runs(entries, runs)
    for line in lines:
        say(line)
    return good


def _finish(sweep: Any, good: bool = True) -> None:
    say(sweep.summary())
    if sweep.interrupted or sweep.failed or sweep.unsaved or not good:
        raise typer.Exit(INTERRUPTED if sweep.interrupted else 1)


@app.command()
def reproduce(
    source: Annotated[str, typer.Argument(help="a source, such as vovnet or detectron")],
    data: Annotated[str | None, typer.Option(help="as in bench.py run")] = None,
    metrics: METRICS = None,
    device: DEVICE = "auto",
    images: IMAGES = None,
    workers: WORKERS = "auto",
    store: STORE = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list what can be run, and run nothing")] = False,
    wide: WIDE = False,
    as_json: JSON = False,
) -> None:
    """Benchmark every row of a source that has weights; list what the other rows lack."""
    from detection_zoo.benchmarks.report.tables import tables_of
    from detection_zoo.benchmarks.run.options import SweepOptions
    from detection_zoo.benchmarks.run.progress import clock
    from detection_zoo.benchmarks.run.reproduce import missing_text, plan_source
    from detection_zoo.benchmarks.run.subject import Sources
    from detection_zoo.benchmarks.run.sweep import Sweep, run_sweep
    from detection_zoo.benchmarks.spec import BenchmarkSpec
    from detection_zoo.benchmarks.tabular import render
    from detection_zoo.zoo.manifest_files import load_manifests

    with clock(f"checking weights and data of {source}"):
        missing = plan_source(source, data)
    ready = [load_manifests().entry(row) for row, reasons in missing.items() if not reasons]
    where, sweep = device_of(device), Sweep()
    spec = BenchmarkSpec(
        groups=groups_of(metrics), device=where, images=images, workers=workers_of(workers, where)
    )
    say(missing_text(missing))
    say(
        f"{len(ready)} of {len(missing)} rows can be run here:"
        f" {', '.join(entry.name for entry in ready) or 'none'}"
    )
    if ready and data is not None and not dry_run:
        options = SweepOptions(store) if store else SweepOptions()
        sweep = run_sweep(ready, spec, Sources(data, "published"), options, say)
    tables, _ = tables_of(source, store)
    emit(
        {"missing": missing, "table": json.loads(render(tables, "json"))},
        as_json,
        render(tables, "text", width_of(wide)),
    )
    _finish(sweep)


@app.command()
def detect(
    row: ROW,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help='images, videos, folders, patterns ("shots/**/*.jpg"), camera indices (0)',
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the output images and videos")],
    weights: WEIGHTS = "published",
    checkpoint_format: FORMAT = None,
    device: DEVICE = "auto",
    dtype: DTYPE = "float32",
    path: PATH = "eager",
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="minimum score of a detection to draw and save")
    ] = 0.5,
    save: Annotated[
        Literal["json", "csv", "yolo", "coco"] | None,
        typer.Option(help="also write the detections to --out in this format"),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, help="maximum number of frames per video; default: all (a camera runs until Ctrl-C)"
        ),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Detect objects in images and videos, and draw the boxes, masks and keypoints."""
    from detection_zoo.benchmarks.run.arguments import check_weights
    from detection_zoo.benchmarks.run.detect import check_detect, detect_files, text_of_files
    from detection_zoo.benchmarks.run.inputs import inputs_of
    from detection_zoo.benchmarks.spec import BenchmarkSpec
    from detection_zoo.zoo.created_row import row_named

    spec = BenchmarkSpec(device=device_of(device), dtype=dtype, path=path)
    check_path(path, spec.device, dtype)
    with checking_arguments():
        entry = row_named(row)
        found = inputs_of(inputs)
        check_detect(entry, found, out)
        check_weights(entry, weights)
    records, interrupted = detect_files(
        entry,
        found,
        out,
        spec=spec,
        weights=weights,
        min_score=min_score,
        checkpoint_format=checkpoint_format,
        save=save,
        frames=frames,
    )
    emit(records, as_json, text_of_files(records), terminal_width())
    for note in records[0]["notes"] if records else ():
        say(note)
    say(
        f"{len({record['drawn'] for record in records})} files in {out},"
        f" {sum(len(record['detections']) for record in records)} detections with a score"
        f" of at least {min_score:g}" + ("; stopped by Ctrl-C" if interrupted else "")
    )
    if interrupted:
        raise typer.Exit(INTERRUPTED)
