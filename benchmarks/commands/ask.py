"""The commands explain, pick, fit, doctor, kernels and paths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from detection_zoo.benchmarks.commands.app import app, checking_arguments, emit, say
from detection_zoo.benchmarks.commands.options import (
    CLASSES,
    DATA,
    DEVICE,
    DTYPE,
    IMAGES,
    JSON,
    MAP,
    READ_STORE,
    ROW,
    WEIGHTS,
    WIDE,
    check_metric,
    data_of,
    device_of,
    row_names,
    size_of,
    width_of,
)
from detection_zoo.benchmarks.terminal import terminal_width
from detection_zoo.zoo.entry import INTERRUPTED

KERNEL_STORE = Annotated[Path | None, typer.Option(help="folder of timings; default: ./results/kernels")]


@app.command()
def explain(
    row: ROW,
    data: DATA = "shapes",
    classes: CLASSES = "all",
    renamed: MAP = "",
    weights: WEIGHTS = "published",
    images: IMAGES = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="SECTION.FIELD=VALUE: change a setting of the row before explaining"),
    ] = None,
    suspects: Annotated[
        str | None, typer.Option(help="comma-separated names of settings to try; default: all")
    ] = None,
    expected: Annotated[float | None, typer.Option(help="the accuracy that you expected, in percent")] = None,
    device: DEVICE = "auto",
    as_json: JSON = False,
) -> None:
    """Explain an unexpected accuracy: change one likely setting at a time, and measure again on the same
    images."""
    from dataclasses import asdict

    from detection_zoo.benchmarks.run.arguments import check_row
    from detection_zoo.benchmarks.run.subject import Sources
    from detection_zoo.zoo.created_row import row_named

    data = data_of(data, classes, renamed)
    with checking_arguments():
        entry = row_named(row)
        check_row(entry, Sources(data, weights), images)
    from detection_zoo.benchmarks.ask.explain import explain as explain_row  # after the checks: torch
    from detection_zoo.benchmarks.ask.explain import text_of

    only = [name.strip() for name in (suspects or "").split(",") if name.strip()]
    found = explain_row(
        entry,
        data,
        weights,
        images=images,
        settings=settings or [],
        only=only,
        expected=expected,
        device=device_of(device),
        say=say,
    )
    emit(asdict(found) | {"named": found.named}, as_json, text_of(found, terminal_width()), terminal_width())


@app.command()
def pick(
    max_ms: Annotated[float | None, typer.Option(help="maximum model time per image, milliseconds")] = None,
    max_gb: Annotated[float | None, typer.Option(help="maximum training memory, GiB")] = None,
    min_ap: Annotated[float | None, typer.Option(help="minimum of --metric, in percent")] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="metric for --min-ap: box_ap, mask_ap, voc_map, top1 ... (see manifests/metrics.toml)"
        ),
    ] = "box_ap",
    max_parameters: Annotated[float | None, typer.Option(help="millions")] = None,
    licence: Annotated[str | None, typer.Option(help="permissive, or an SPDX name")] = None,
    hardware: Annotated[str | None, typer.Option(help="part of the name of the processor or GPU")] = None,
    others: Annotated[int, typer.Option(min=0, help="how many of the other rows to show")] = 10,
    every_row: Annotated[
        bool, typer.Option("--all", help="include rows that cannot be built or lack weights")
    ] = False,
    store: READ_STORE = None,
    wide: WIDE = False,
    as_json: JSON = False,
) -> None:
    """List the rows within a budget, best first, and why the others are not."""
    from dataclasses import asdict

    from detection_zoo.benchmarks.ask.pick import Wish, text_of
    from detection_zoo.benchmarks.ask.pick import pick as pick_rows

    check_metric(metric)
    wish = Wish(max_ms, max_gb, min_ap, metric, max_parameters, licence, hardware, every_row)
    fits, rest = pick_rows(wish, store)
    emit(
        {"qualify": [asdict(one) for one in fits], "others": [asdict(one) for one in rest]},
        as_json,
        text_of(fits, rest, wish, others, width_of(wide)),
    )
    say(f"{len(fits)} results are within the budget, {len(rest)} rows are not")
    if not fits:
        raise typer.Exit(1)


@app.command()
def fit(
    row: ROW,
    gb: Annotated[float, typer.Option(min=0.01, help="memory limit in GiB: GPU memory, or RAM on a CPU")],
    train: Annotated[bool, typer.Option("--train", help="search for training instead of inference")] = False,
    only: Annotated[
        Literal["batch", "image"] | None, typer.Option(help="what to search for; default: both")
    ] = None,
    image: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT of the images in pixels, before resizing")
    ] = "640x480",
    max_batch: Annotated[int, typer.Option(min=1, help="largest batch to try")] = 1024,
    max_side: Annotated[int, typer.Option(min=64, help="largest shorter image side to try, pixels")] = 8192,
    weights: WEIGHTS = "published",
    device: DEVICE = "auto",
    dtype: DTYPE = "float32",
    limit_s: Annotated[
        float, typer.Option(min=1, help="stop the search when a trial takes longer than this many seconds")
    ] = 600.0,
    as_json: JSON = False,
) -> None:
    """Find the largest batch and the largest image that fit in a memory limit."""
    from detection_zoo.benchmarks.ask.fit_find import MIB_PER_GB, check_row, text_of
    from detection_zoo.benchmarks.ask.fit_find import fit as search
    from detection_zoo.benchmarks.ask.fit_trial import Case
    from detection_zoo.benchmarks.environment import present_hardware
    from detection_zoo.benchmarks.run.arguments import check_weights
    from detection_zoo.benchmarks.run.subject import identify_weights
    from detection_zoo.zoo.created_row import row_named

    width, _, height = image.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise typer.BadParameter(
            f"{image!r} is not a size; write WIDTHxHEIGHT in pixels, as in 640x480", param_hint="--image"
        )
    with checking_arguments():
        entry = row_named(row)
        check_row(entry, train)
        check_weights(entry, weights)
    where = device_of(device)
    identity, argument = identify_weights(entry, weights)
    case = Case(row, argument, where, dtype, train, 1, (int(width), int(height)))
    found = search(
        case,
        gb * MIB_PER_GB,
        (only,) if only else ("batch", "image"),
        most_batch=max_batch,
        most_side=max_side,
        limit_s=limit_s,
        say=say,
    )
    head = f"weights: {identity}\n"
    emit(
        found.as_dict() | {"weights": identity.model_dump()},
        as_json,
        head + text_of(found, present_hardware(where), terminal_width()),
        terminal_width(),
    )
    say(f"{len(found.trials)} trials" + ("; stopped by Ctrl-C" if found.interrupted else ""))
    if found.interrupted or not found.ok:
        raise typer.Exit(INTERRUPTED if found.interrupted else 1)


@app.command()
def doctor(as_json: JSON = False) -> None:
    """Check hardware, libraries, manifests, records and disk space; exit 1 if anything is broken."""
    from detection_zoo.benchmarks.ask.doctor import examine

    findings, environment = examine()
    text = "\n".join(f"{finding.state:8} {finding.what}: {finding.text}" for finding in findings)
    emit(
        {"findings": [vars(finding) for finding in findings], "environment": environment},
        as_json,
        text,
        terminal_width(),
    )
    broken = [finding for finding in findings if finding.state == "broken"]
    say(f"{len(findings)} checks, {len(broken)} broken")
    if broken:
        raise typer.Exit(1)


@app.command()
def kernels(
    device: DEVICE = "auto", as_json: JSON = False, store: KERNEL_STORE = None, wide: WIDE = False
) -> None:
    """Time the GPU operators of this project and of torchvision."""
    from detection_zoo.benchmarks.folders import KERNELS
    from detection_zoo.benchmarks.measure.kernel_speed import report
    from detection_zoo.benchmarks.store import results_folder

    folder = store or results_folder() / KERNELS
    raise typer.Exit(report(device_of(device), as_json, folder, width_of(wide)))


@app.command()
def paths(
    rows: Annotated[
        list[str] | None,
        typer.Argument(
            help="detectors, or shell patterns; default: one row of each of five families",
            autocompletion=row_names,
        ),
    ] = None,
    device: DEVICE = "auto",
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="input size, pixels; default: the usual size of each detector"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=3, help="timed calls per model")] = 5,
    as_json: JSON = False,
    store: KERNEL_STORE = None,
    wide: WIDE = False,
) -> None:
    """Compare the fast path with the eager path and torchvision, with random weights."""
    from detection_zoo.benchmarks.run.arguments import chosen_rows

    height_width, where = size_of(size), device_of(device)
    with checking_arguments():
        named = [entry for entry in chosen_rows(rows or ()) if entry.task == "detection"] if rows else None
    if named == []:
        raise typer.BadParameter(f"{', '.join(rows or ())}: none of these is a detector", param_hint="ROWS")
    from detection_zoo.benchmarks.folders import KERNELS
    from detection_zoo.benchmarks.measure.detector_cases import DETECTORS, detector_cases
    from detection_zoo.benchmarks.measure.kernel_speed import report
    from detection_zoo.benchmarks.store import results_folder

    cases = detector_cases(where, DETECTORS if named is None else [e.name for e in named], height_width)
    folder = store or results_folder() / KERNELS
    raise typer.Exit(report(where, as_json, folder, width_of(wide), detectors=cases, repeats=repeats))
