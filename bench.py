"""Door 1: list, show, run, compare and tabulate detectors. It parses, calls and prints; `python bench.py
COMMAND --help` explains each command."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from detection_zoo.zoo.errors import ZooError, in_one_line

INTERRUPTED = 130


class _Doors(TyperGroup):
    """Turns the project's errors into one line and an exit code, and Ctrl-C into a sentence."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; 1 for what failed, 130 for Ctrl-C or a polite kill."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read our output has left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (ZooError, OSError) as error:
            typer.echo(f"error: {in_one_line(error)}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("stopped by Ctrl-C; what had been stored before is kept", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Doors,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Benchmark tables of object detectors: rows of the manifests, measured here and as published.",
)

JSON = Annotated[bool, typer.Option("--json", help="print JSON")]
STORE = Annotated[Path | None, typer.Option(file_okay=False, help="folder of records; default: results/runs")]
READ_STORE = Annotated[
    Path | None,
    typer.Option("--store", exists=True, file_okay=False, help="folder of records; default: results/runs"),
]
PROTOCOL = Annotated[
    str, typer.Option(help="timing protocol of manifests/protocols.toml; a table shows one alone")
]


def _print(value: Any, as_json: bool, text: str) -> None:
    """Data to stdout."""
    typer.echo(json.dumps(value, indent=2) if as_json else text)


def _say(text: str) -> None:
    """Talk to stderr."""
    typer.echo(text, err=True)


@app.command("list")
def list_rows(
    pattern: Annotated[str, typer.Argument(help="part of a name, a shell pattern, or a source")] = "*",
    as_json: JSON = False,
) -> None:
    """List the rows of the manifests."""
    from detection_zoo.benchmarks.report.listing import listing, summary
    from detection_zoo.zoo.manifest import load_manifests

    entries = load_manifests().find(pattern)
    _print([summary(entry) for entry in entries], as_json, listing(entries))
    _say(f"{len(entries)} rows")
    if not entries:
        raise typer.Exit(1)


@app.command()
def show(row: Annotated[str, typer.Argument(help="name of a row")], as_json: JSON = False) -> None:
    """Show everything the manifests say of one row."""
    from detection_zoo.benchmarks.report.listing import described
    from detection_zoo.zoo.manifest import load_manifests

    entry = load_manifests().entry(row)
    _print(entry.model_dump(mode="json", exclude_none=True), as_json, described(entry))


@app.command()
def table(
    source: Annotated[
        str | None, typer.Argument(help="source or table; default: every source with a measured row")
    ] = None,
    store: READ_STORE = None,
    out: Annotated[Path | None, typer.Option(help="write the table here as well")] = None,
    protocol: PROTOCOL = "zoo",
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
    as_json: JSON = False,
) -> None:
    """Print a source's own table, published beside measured."""
    from detection_zoo.benchmarks.report.tables import tables_of, text_of

    tables, problems = tables_of(source, store, protocol)
    text = text_of(tables, "json" if as_json else "csv" if as_csv else "markdown")
    if out is not None:
        out.write_text(text, encoding="utf-8")
    typer.echo(text, nl=False)
    for problem in problems:
        _say(f"warning: {problem}")
    if source is None and not tables:
        _say("no row is measured yet; name a source to see what it publishes")
    _say(
        f"{len(tables)} tables, {sum(len(t.rows) for t in tables)} lines"
        + (f"; {len(problems)} records could not be used" if problems else "")
    )


METRICS = Annotated[
    str | None,
    typer.Option(
        help="comma-separated: inference, ap, top1, memory, epoch, throughput; default: all but throughput"
    ),
]
DATA = Annotated[
    str, typer.Option(help="coco:DIR[:SPLIT], voc:VOCDEVKIT:YEAR:SPLIT, imagenet:DIR or shapes[:SPLIT]")
]
WEIGHTS = Annotated[
    str, typer.Option(help="random, published, stand-in:REFERENCE_FOLDER, or a checkpoint's path")
]
FORMAT = Annotated[
    str | None, typer.Option("--format", help="checkpoint format of a file that is not in the row's own")
]
DEVICE = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: cuda where torch sees a GPU")]
IMAGES = Annotated[
    int | None, typer.Option(min=1, help="the first N images only; ground truth is restricted to them")
]
WORKERS = Annotated[int, typer.Option(min=0, help="processes that load data")]


def _groups(text: str | None) -> tuple[str, ...]:
    """The --metrics argument; an unknown name is wrong usage."""
    from detection_zoo.benchmarks.spec import METRIC_GROUPS
    from detection_zoo.zoo.registry import did_you_mean

    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in METRIC_GROUPS:
            raise typer.BadParameter(
                f"unknown metric group {name!r}: {did_you_mean(name, METRIC_GROUPS)}", param_hint="--metrics"
            )
    return tuple(names)


def _protocol(name: str) -> None:
    """The --protocol argument; an unknown name is wrong usage."""
    from detection_zoo.zoo.manifest import load_manifests
    from detection_zoo.zoo.registry import did_you_mean

    if name not in (known := load_manifests().protocols):
        raise typer.BadParameter(
            f"unknown timing protocol {name!r}: {did_you_mean(name, known)}", param_hint="--protocol"
        )


def _device(wanted: str) -> str:
    """The --device argument; a GPU that is not there is wrong usage."""
    from detection_zoo.benchmarks.environment import choose_device

    try:
        return choose_device(wanted)
    except RuntimeError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None


@app.command()
def run(
    rows: Annotated[list[str], typer.Argument(help="rows, shell patterns, or sources")],
    data: DATA = "shapes",
    weights: WEIGHTS = "random",
    checkpoint_format: FORMAT = None,
    train_data: Annotated[
        str | None, typer.Option(help="images for training steps; default: the training split beside --data")
    ] = None,
    metrics: METRICS = None,
    device: DEVICE = "auto",
    images: IMAGES = None,
    batch: Annotated[int, typer.Option(min=1, help="images a forward pass")] = 1,
    workers: WORKERS = 0,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="the shorter ones by autocast")
    ] = "float32",
    tf32: Annotated[bool, typer.Option("--tf32", help="allow TensorFloat-32 products")] = False,
    tta: Annotated[
        bool,
        typer.Option("--tta", help="accuracy with test-time augmentation: the row's own, or Detectron's"),
    ] = False,
    soft_nms: Annotated[
        Literal["none", "linear", "gaussian"], typer.Option(help="soft-NMS in place of the row's own NMS")
    ] = "none",
    protocol: PROTOCOL = "zoo",
    budget_s: Annotated[float, typer.Option(min=0.1, help="seconds of each timed group")] = 60.0,
    warm_up_s: Annotated[float, typer.Option(min=0.1, help="most seconds of warm-up")] = 20.0,
    timed_images: Annotated[int, typer.Option(min=1, help="images that are timed, again and again")] = 100,
    train_images: Annotated[int, typer.Option(min=1, help="images a training step")] = 2,
    train_steps: Annotated[int, typer.Option(min=2, help="most training steps that are timed")] = 50,
    train_warm_up: Annotated[int, typer.Option(min=1, help="training steps before those")] = 3,
    store: STORE = None,
    again: Annotated[bool, typer.Option("--again", help="measure what is measured already")] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="no process of its own for each model")
    ] = False,
    stall_s: Annotated[
        float, typer.Option(min=1, help="end a model that shows no sign of life for so long")
    ] = 600.0,
    limit_s: Annotated[float | None, typer.Option(min=1, help="end a model that takes longer")] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="end a model that holds more memory, GB of 2^30 bytes; default: nearly all that is free",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="models at once, each on a GPU of its own (on a CPU they share it)")
    ] = 1,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="ray: the cluster of RAY_ADDRESS, a GPU a model")
    ] = "local",
    as_json: JSON = False,
) -> None:
    """Measure rows; each finished model is stored, and a sweep that was stopped goes on where it stopped."""
    from detection_zoo.benchmarks.report.listing import results
    from detection_zoo.benchmarks.run.subject import Sources
    from detection_zoo.benchmarks.run.sweep import SweepOptions, chosen_rows, run_sweep
    from detection_zoo.benchmarks.spec import BenchmarkSpec
    from detection_zoo.benchmarks.store import DEFAULT_STORE

    _protocol(protocol)
    spec = BenchmarkSpec(
        groups=_groups(metrics),
        device=_device(device),
        dtype=dtype,
        tf32=tf32,
        tta=tta,
        soft_nms=soft_nms,
        protocol=protocol,
        images=images,
        batch_size=batch,
        workers=workers,
        time_budget_s=budget_s,
        warm_up_budget_s=warm_up_s,
        timed_images=timed_images,
        train_images_per_step=train_images,
        train_steps=train_steps,
        train_warm_up_steps=train_warm_up,
    )
    if in_process and (jobs > 1 or engine == "ray"):
        raise typer.BadParameter("one process can measure one model at a time", param_hint="--in-process")
    memory_mib = None if memory_gb is None else memory_gb * 1024
    options = SweepOptions(
        store or DEFAULT_STORE, again, not in_process, stall_s, limit_s, memory_mib, jobs, engine
    )
    sweep = run_sweep(
        chosen_rows(rows), spec, Sources(data, weights, train_data, checkpoint_format), options, _say
    )
    done = [*sweep.known, *sweep.runs]
    _print([one.model_dump(mode="json", exclude_defaults=True) for one in done], as_json, results(done))
    _finish(sweep)


def _finish(sweep: Any) -> None:
    _say(sweep.summary())
    if sweep.interrupted or sweep.failed or sweep.unsaved:
        raise typer.Exit(INTERRUPTED if sweep.interrupted else 1)


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
    from detection_zoo.benchmarks.store import DEFAULT_STORE, read_runs

    kept = read_runs(folder or DEFAULT_STORE)
    for problem in kept.problems:
        _say(f"warning: {problem}")
    if relative_to is not None:
        found = [
            one
            for one in relative_speeds(kept.runs, relative_to)
            if one["row"] in {*names, relative_to} or one["record"] in names
        ]
        _print(found, as_json, relative_text(found, relative_to))
        return
    pairs = compare_stored(chosen_runs(names, kept.runs), smallest, anyway)
    _print([pair.as_dict() for pair in pairs], as_json, stored_text(pairs))


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
    batch: Annotated[int, typer.Option(min=1, help="images a forward pass")] = 1,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="the shorter ones by autocast")
    ] = "float32",
    tf32: Annotated[bool, typer.Option("--tf32", help="allow TensorFloat-32 products")] = False,
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
        Path | None, typer.Option(help="folder of comparisons; default: results/comparisons")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Run models side by side and say FASTER, SAME, SLOWER or UNDECIDED of every metric."""
    if stored:
        _compare_stored(rows, smallest, anyway, relative_to, runs_folder, as_json)
        return
    from detection_zoo.benchmarks.compare.match import CompareOptions, entrants_of
    from detection_zoo.benchmarks.compare.match import compare as run_comparison
    from detection_zoo.benchmarks.compare.record import COMPARISONS, write_comparison
    from detection_zoo.benchmarks.compare.self_check import self_check
    from detection_zoo.benchmarks.compare.text import comparison_text
    from detection_zoo.benchmarks.spec import BenchmarkSpec

    folder = store or COMPARISONS
    spec = BenchmarkSpec(
        groups=("inference",),
        device=_device(device),
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
        check = self_check(entrants[0].row, entrants[0].weights, spec, data, options, runs, slow_down, _say)
        _print(check.as_dict(), as_json, check.summary())
        raise typer.Exit(0 if check.ok else 1)
    found = run_comparison(entrants, spec, data, options, _say)
    path = write_comparison(folder, found)
    _print(found.model_dump(mode="json", exclude_defaults=True), as_json, comparison_text(found))
    _say(f"{found.status}: {found.ended}; stored as {path.name}")
    if found.status != "finished":
        raise typer.Exit(INTERRUPTED if found.status == "interrupted" else 1)


@app.command()
def reproduce(
    source: Annotated[str, typer.Argument(help="a manifest: vovnet, detectron ...")],
    data: Annotated[str | None, typer.Option(help="as for run")] = None,
    metrics: METRICS = None,
    device: DEVICE = "auto",
    images: IMAGES = None,
    workers: WORKERS = 0,
    store: STORE = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what could be run")] = False,
    as_json: JSON = False,
) -> None:
    """Run whatever of a source can be run here with its published weights, and say what is missing for the
    rest."""
    from detection_zoo.benchmarks.report.tables import tables_of, text_of
    from detection_zoo.benchmarks.run.progress import clock
    from detection_zoo.benchmarks.run.reproduce import missing_text, plan_source
    from detection_zoo.benchmarks.run.subject import Sources
    from detection_zoo.benchmarks.run.sweep import Sweep, SweepOptions, run_sweep
    from detection_zoo.benchmarks.spec import BenchmarkSpec
    from detection_zoo.benchmarks.store import DEFAULT_STORE

    with clock(f"looking for weights and data of {source}"):
        plans = plan_source(source, data)
    ready = [plan.entry for plan in plans if not plan.missing]
    spec, sweep = (
        BenchmarkSpec(groups=_groups(metrics), device=_device(device), images=images, workers=workers),
        Sweep(),
    )
    _say(missing_text(plans))
    _say(
        f"{len(ready)} of {len(plans)} rows can be run here:"
        f" {', '.join(entry.name for entry in ready) or 'none'}"
    )
    if ready and data is not None and not dry_run:
        sweep = run_sweep(ready, spec, Sources(data, "published"), SweepOptions(store or DEFAULT_STORE), _say)
    tables, _ = tables_of(source, store)
    missing = {plan.entry.name: list(plan.missing) for plan in plans}
    _print(
        {"missing": missing, "table": json.loads(text_of(tables, "json"))},
        as_json,
        text_of(tables, "markdown"),
    )
    _finish(sweep)


@app.command()
def evaluate(
    results_file: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="COCO results file, or folder of VOC comp4 files")
    ],
    data: DATA = "shapes",
    images: IMAGES = None,
    as_json: JSON = False,
    kind: Annotated[
        Literal["bbox", "segm", "keypoints"] | None, typer.Option(help="default: told by the file")
    ] = None,
    every_image: Annotated[
        bool, typer.Option("--every-image", help="images without a detection were looked at too")
    ] = False,
) -> None:
    """Evaluate stored detections again."""
    from detection_zoo.benchmarks.evaluation.accuracy import evaluate_results_file
    from detection_zoo.benchmarks.evaluation.subset_guard import refuse_naive_subset
    from detection_zoo.benchmarks.report.listing import accuracy
    from detection_zoo.benchmarks.run.progress import clock
    from detection_zoo.zoo.data.datasets import open_dataset

    with clock("evaluate"):
        dataset = open_dataset(data, images=images, keypoints=kind == "keypoints")
        refuse_naive_subset(results_file, dataset, every_image)
        report = evaluate_results_file(results_file, dataset, kind)
    _print(report.as_dict(), as_json, accuracy(report.metrics))
    _say(f"{results_file.name} on {dataset.name}: {len(dataset)} of {dataset.full_size} images")


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
    _print(report.to_json(), as_json, "\n".join(str(line) for line in report.lines))
    for note in report.notes:
        _say(f"note: {note}")
    _say(report.summary())
    if not report.ok:
        raise typer.Exit(1)


@app.command("import-config")
def import_config(
    file: Annotated[Path, typer.Argument(help="YAML file of Detectron or Detectron.pytorch")],
    source: Annotated[
        str | None, typer.Option(help="manifest that the row is for; default: by the file's options")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Turn a configuration of Detectron or Detectron.pytorch into a manifest row; says what was mended, and
    what cannot be honoured."""
    from detection_zoo.zoo.importers.import_config import import_config as read

    found = read(file, source)
    told = {
        "row": found.row,
        "schedule": {found.schedule_name: found.schedule.model_dump(exclude_defaults=True)},
        "new_schedule": found.new_schedule,
        "notes": found.notes,
        "without_effect": found.without_effect,
        "refused": found.refused,
    }
    _print(told, as_json, found.toml().rstrip())
    for line in found.report():
        _say(line)
    _say(
        f"{file.name}: row {found.row['name']}, {len(found.notes)} notes, {len(found.without_effect)} options"
        f" without effect, {len(found.refused)} that cannot be honoured"
    )
    if found.refused:
        raise typer.Exit(1)


@app.command()
def detect(
    row: Annotated[str, typer.Argument(help="name of a row")],
    images: Annotated[list[Path], typer.Argument(help="pictures, or folders of them")],
    out: Annotated[Path, typer.Option(help="folder for the drawn pictures")],
    weights: WEIGHTS = "published",
    checkpoint_format: FORMAT = None,
    device: DEVICE = "auto",
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="draw detections of at least this score")
    ] = 0.5,
    as_json: JSON = False,
) -> None:
    """Draw a row's detections on pictures: boxes, masks, keypoints."""
    from detection_zoo.benchmarks.run.detect import detect_files, text_of_files

    found = detect_files(
        row,
        images,
        out,
        weights=weights,
        device=_device(device),
        min_score=min_score,
        checkpoint_format=checkpoint_format,
    )
    _print(found, as_json, text_of_files(found))
    _say(
        f"{len(found)} pictures in {out}, {sum(len(one['detections']) for one in found)} detections of score"
        f" {min_score:g} and more"
    )


@app.command()
def explain(
    row: Annotated[str, typer.Argument(help="name of a row")],
    data: DATA = "shapes",
    weights: WEIGHTS = "published",
    images: IMAGES = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="SECTION.FIELD=VALUE: what differs in the setup in question"),
    ] = None,
    suspects: Annotated[str | None, typer.Option(help="comma-separated names; default: all")] = None,
    expected: Annotated[float | None, typer.Option(help="the number that was expected, in percent")] = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Say why a number differs: change each usual suspect and measure again on the same images."""
    from dataclasses import asdict

    from detection_zoo.benchmarks.ask.explain import explain as explain_row
    from detection_zoo.benchmarks.ask.explain import text_of
    from detection_zoo.zoo.manifest import load_manifests

    only = [name.strip() for name in (suspects or "").split(",") if name.strip()]
    found = explain_row(
        load_manifests().entry(row),
        data,
        weights,
        images=images,
        settings=settings or [],
        only=only,
        expected=expected,
        device=_device(device),
        say=_say,
    )
    _print(asdict(found) | {"named": found.named}, as_json, text_of(found))


@app.command()
def pick(
    max_ms: Annotated[float | None, typer.Option(help="model time an image, milliseconds")] = None,
    max_gb: Annotated[float | None, typer.Option(help="training memory, GiB")] = None,
    min_ap: Annotated[float | None, typer.Option(help="accuracy in percent, of --metric")] = None,
    metric: Annotated[
        Literal["box_ap", "mask_ap", "keypoint_ap", "voc_map", "top1"],
        typer.Option(help="what --min-ap is of"),
    ] = "box_ap",
    max_parameters: Annotated[float | None, typer.Option(help="millions")] = None,
    licence: Annotated[str | None, typer.Option(help="permissive, or an SPDX name")] = None,
    hardware: Annotated[str | None, typer.Option(help="part of the name of the processor or GPU")] = None,
    others: Annotated[int, typer.Option(min=0, help="how many of the other rows are told")] = 10,
    store: READ_STORE = None,
    as_json: JSON = False,
) -> None:
    """Pick the rows that fit a budget, best first, and say why others do not."""
    from dataclasses import asdict

    from detection_zoo.benchmarks.ask.pick import Wish, text_of
    from detection_zoo.benchmarks.ask.pick import pick as pick_rows

    wish = Wish(max_ms, max_gb, min_ap, metric, max_parameters, licence, hardware)
    fits, rest = pick_rows(wish, store)
    _print(
        {"qualify": [asdict(one) for one in fits], "others": [asdict(one) for one in rest]},
        as_json,
        text_of(fits, rest, wish, others),
    )
    _say(f"{len(fits)} lines qualify, {len(rest)} rows do not")
    if not fits:
        raise typer.Exit(1)


@app.command()
def fit(
    row: Annotated[str, typer.Argument(help="name of a row")],
    gb: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="memory that a process may hold, GB of 2^30 bytes: the GPU's, or on a CPU the machine's",
        ),
    ],
    train: Annotated[bool, typer.Option("--train", help="training steps in place of inference")] = False,
    only: Annotated[
        Literal["batch", "image"] | None, typer.Option(help="search for this alone; default: both")
    ] = None,
    image: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT of the image files in pixels; the row's rule resizes them")
    ] = "640x480",
    max_batch: Annotated[int, typer.Option(min=1, help="largest batch that is tried")] = 1024,
    max_side: Annotated[
        int, typer.Option(min=64, help="largest shorter side of an image that is tried, pixels")
    ] = 8192,
    weights: WEIGHTS = "random",
    device: DEVICE = "auto",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="the shorter ones by autocast")
    ] = "float32",
    limit_s: Annotated[float, typer.Option(min=1, help="a trial that takes longer ends its search")] = 600.0,
    as_json: JSON = False,
) -> None:
    """Find the largest batch and the largest image that fit in so much memory, each trial in a process of its
    own."""
    from detection_zoo.benchmarks.ask.fit_find import MIB_PER_GB, check_row, text_of
    from detection_zoo.benchmarks.ask.fit_find import fit as search
    from detection_zoo.benchmarks.ask.fit_trial import Case
    from detection_zoo.benchmarks.environment import present_hardware
    from detection_zoo.benchmarks.run.subject import identify_weights
    from detection_zoo.zoo.manifest import load_manifests

    width, _, height = image.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise typer.BadParameter(
            f"{image!r} is no size; write WIDTHxHEIGHT in pixels, as in 640x480", param_hint="--image"
        )
    entry, where = load_manifests().entry(row), _device(device)
    check_row(entry, train)
    case = Case(row, identify_weights(entry, weights)[1], where, dtype, train, 1, (int(width), int(height)))
    found = search(
        case,
        gb * MIB_PER_GB,
        (only,) if only else ("batch", "image"),
        most_batch=max_batch,
        most_side=max_side,
        limit_s=limit_s,
        say=_say,
    )
    _print(found.as_dict(), as_json, text_of(found, present_hardware(where)))
    _say(f"{len(found.trials)} trials" + ("; stopped by Ctrl-C" if found.interrupted else ""))
    if found.interrupted or not found.ok:
        raise typer.Exit(INTERRUPTED if found.interrupted else 1)


@app.command()
def doctor(as_json: JSON = False) -> None:
    """Look at hardware, libraries, manifests, records and disk; exit 1 where something is broken."""
    from detection_zoo.benchmarks.ask.doctor import examine

    findings, environment = examine()
    text = "\n".join(f"{finding.state:8} {finding.what}: {finding.text}" for finding in findings)
    _print({"findings": [vars(finding) for finding in findings], "environment": environment}, as_json, text)
    broken = [finding for finding in findings if finding.state == "broken"]
    _say(f"{len(findings)} things looked at, {len(broken)} broken")
    if broken:
        raise typer.Exit(1)


@app.command()
def report(
    out: Annotated[
        Path | None, typer.Option(help="folder to write into; default: results, and README's blocks with it")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="comma-separated: md, csv, json, latex, svg, png, html")
    ] = "md,csv,svg,html",
    store: READ_STORE = None,
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; exit 1 where results or README is stale")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Make tables, figures and the page from stored records alone."""
    from detection_zoo.benchmarks.report.generate import FORMATS, make_report, stale_report

    wanted = {name.strip() for name in formats.split(",") if name.strip()}
    if wanted - set(FORMATS):
        raise typer.BadParameter(
            f"unknown format {', '.join(sorted(wanted - set(FORMATS)))}; there are {', '.join(FORMATS)}",
            param_hint="--format",
        )
    if store is not None and out is None:
        raise typer.BadParameter(
            "results and README are made from results/runs alone; say with --out where another store's report"
            " goes",
            param_hint="--store",
        )
    try:
        done, problems = stale_report() if check else make_report(store, out, wanted)
    except (ModuleNotFoundError, ValueError) as error:
        _say(f"error: {error}")
        raise typer.Exit(1) from None
    _print({"stale" if check else "files": done, "problems": problems}, as_json, "\n".join(done))
    for problem in problems:
        _say(f"warning: {problem}")
    _say(f"{len(done)} {'things are stale; bench.py report makes them anew' if check else 'files'}")
    if check and done:
        raise typer.Exit(1)


@app.command()
def kernels(
    device: DEVICE = "auto",
    as_json: JSON = False,
    store: Annotated[Path | None, typer.Option(help="folder of timings; default: results/kernels")] = None,
) -> None:
    """Time the GPU operators beside torchvision's."""
    from detection_zoo.benchmarks.measure.kernel_speed import report
    from detection_zoo.benchmarks.report.kernel_cases import NAME
    from detection_zoo.benchmarks.store import RESULTS_FOLDER

    raise typer.Exit(report(_device(device), as_json, store or RESULTS_FOLDER / NAME))


def main() -> None:
    """Entry point of the `bench` command."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA numbers GPUs as NVML does then
    app(prog_name="bench.py" if sys.argv[0].endswith(".py") else None)


if __name__ == "__main__":
    main()
