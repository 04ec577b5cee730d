"""Measure many rows in sequence: finished measurements are skipped, and a failure does not stop the
others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.environment import present_hardware
from detection_zoo.benchmarks.evaluation.coco_results import SUBMISSION
from detection_zoo.benchmarks.run.isolation import Outcome, failure
from detection_zoo.benchmarks.run.jobs import run_parallel, slots_of
from detection_zoo.benchmarks.run.options import SweepOptions
from detection_zoo.benchmarks.run.runner import OPENING, Draft, Interrupted, measure_row, run_row
from detection_zoo.benchmarks.run.subject import Sources, identify_data, identify_weights, open_data
from detection_zoo.benchmarks.spec import BenchmarkSpec, Run, run_key
from detection_zoo.benchmarks.store import read_runs, write_record
from detection_zoo.zoo.errors import ZooError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.trained_row import row_of_checkpoint

Say = Callable[[str], None]
LOOKING = "finding weights and data"
NOT_STARTED = (LOOKING, OPENING)  # stages before anything is measured


@dataclass
class Sweep:
    """The outcome of a sweep: new runs, and rows that were already measured, with their runs."""

    runs: list[Run] = field(default_factory=list)
    known: list[Run] = field(default_factory=list)
    interrupted: bool = False
    # id -> a run that could not be stored, and why
    unsaved: dict[str, tuple[Run, str]] = field(default_factory=dict)

    @property
    def failed(self) -> list[Run]:
        """New runs that failed; a run stopped by Ctrl-C does not count."""
        return [run for run in self.runs if run.status == "failed"]

    def summary(self) -> str:
        """One-line summary."""
        finished = sum(run.status == "finished" for run in self.runs)
        text = f"{finished} measured, {len(self.failed)} failed, {len(self.known)} already measured"
        text += (
            f"; {len(self.unsaved)} COULD NOT BE STORED: {next(iter(self.unsaved.values()))[1]}"
            if self.unsaved
            else ""
        )
        return text + ("; stopped by Ctrl-C; rerun the same command to resume" if self.interrupted else "")


def run_sweep(
    entries: list[ModelEntry],
    spec: BenchmarkSpec,
    sources: Sources,
    options: SweepOptions,
    say: Say = lambda text: None,
    work: Callable[..., None] = measure_row,
) -> Sweep:
    """Measure rows in order, and store each run as soon as it ends.

    Args:
        entries: the rows.
        spec: the specification.
        sources: data and weights.
        options: store, isolation and limits.
        say: called with a line before and after every row.
        work: function that measures a row; tests may inject faults here.

    Raises:
        OSError: the store's folder is missing and cannot be created; nothing has been measured.
    """
    sweep = Sweep()
    options.store.mkdir(parents=True, exist_ok=True)
    stored = read_runs(options.store)
    for problem in stored.problems:
        say(f"warning: {problem}")
    finished = {} if options.again else {run.key: run for run in stored.runs if run.status == "finished"}
    numbers = {entry.name: number for number, entry in enumerate(entries, start=1)}

    one = partial(measure_entry, spec=spec, sources=sources, options=options, finished=finished, work=work)

    def begin(entry: ModelEntry, environment: dict[str, str], cancel: Any) -> Run:
        announce(entry)
        return one(entry, environment=environment, cancel=cancel)

    def announce(entry: ModelEntry) -> None:
        say(f"[{numbers[entry.name]}/{len(entries)}] {entry.name}")

    def done(entry: ModelEntry, run: Run) -> None:
        if run.key in finished and finished[run.key] is run:
            sweep.known.append(run)
            say(f"    {entry.name}: already measured in {run.id}; --again repeats it")
            return
        sweep.runs.append(run)
        if run.stage not in NOT_STARTED:  # a run that never started is not recorded
            keep(run, options.store, sweep, say)
        sweep.interrupted |= run.status == "interrupted"
        say(
            f"    {entry.name}: {run.status} in {run.duration_s:.0f} s"
            + (f", while {run.stage}: {run.reason}" if run.reason else "")
        )
        for name, file in run.files.items():
            if name.endswith(SUBMISSION):
                say(f"    for COCO's evaluation server: {options.files / file.name}")

    if options.engine == "ray":
        from detection_zoo.benchmarks.run.ray_engine import run_on_ray

        sweep.interrupted |= run_on_ray(entries, spec, sources, options, finished, done, say, work)
    elif options.jobs > 1:
        sweep.interrupted |= run_parallel(entries, begin, done, slots_of(options.jobs, spec.device))
    else:
        try:
            for entry in entries:
                announce(entry)
                done(entry, one(entry))
                if sweep.interrupted:
                    break
        except KeyboardInterrupt:  # before this row was started
            sweep.interrupted = True
    store_unsaved(options.store, sweep, say)
    return sweep


def keep(run: Run, store: Path, sweep: Sweep, say: Say) -> None:
    """Store a run. If that fails (for example, the disk is full), keep it in
    memory and retry with every later run."""
    sweep.unsaved[run.id] = (run, "")
    store_unsaved(store, sweep, say)


def store_unsaved(store: Path, sweep: Sweep, say: Say) -> None:
    """Retry storing unsaved runs; warn on the first failure of a run."""
    for run, known in list(sweep.unsaved.values()):
        try:
            write_record(store, run)
            del sweep.unsaved[run.id]
        except OSError as error:
            sweep.unsaved[run.id] = (run, str(error))
            if not known:
                say(
                    f"    warning: {run.id} could not be stored ({error}); free some disk space;"
                    " storing is retried after the next row and at the end"
                )


def measure_entry(
    entry: ModelEntry,
    *,
    spec: BenchmarkSpec,
    sources: Sources,
    options: SweepOptions,
    finished: dict[tuple[str, ...], Run],
    work: Callable[..., None] = measure_row,
    environment: dict[str, str] | None = None,
    cancel: Any = None,
) -> Run:
    """Measure one row of a sweep.

    Args:
        entry: the row.
        spec, sources, options, work: as for `run_sweep`.
        finished: finished runs by key; a run with the same row, data, weights and machine is returned
        unchanged. environment, cancel: see `run_isolated`.

    Returns:
        The new run (finished, failed or interrupted), or the stored finished one.
    """
    spec = spec.for_task(entry.task)
    draft = Draft(entry.name, spec, fields={"stage": LOOKING})
    try:
        if entry.published_only:
            raise ZooError(f"row {entry.name} has published numbers only: {entry.published_only}")
        weights = identify_weights(entry, sources.weights)
        draft.add({"weights": weights[0]})
        if finished:
            trained = row_of_checkpoint(entry, weights[1])
            data = identify_data(open_data(trained, sources.data, spec.images))
            known = finished.get(run_key(entry.name, spec, data, weights[0], present_hardware(spec.device)))
            if known is not None:
                return known
        return run_row(
            entry.name,
            spec,
            sources,
            weights,
            options.files,
            isolate=options.isolate,
            limits=options.limits.with_memory(1 / options.jobs),
            environment=environment,
            cancel=cancel,
            work=work,
        )
    except (ZooError, OSError) as error:
        return draft.finish(failure(error))
    except Interrupted as stopped:
        return stopped.run
    except KeyboardInterrupt:
        return draft.finish(Outcome("failed", "stopped by Ctrl-C"), "interrupted")
