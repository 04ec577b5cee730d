"""Measure one row by one specification: all metric groups. A failure is also recorded as a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from detection_zoo.benchmarks.run.groups import measure
from detection_zoo.benchmarks.run.isolation import NO_LIMITS, Limits, Outcome, Report, failure, run_isolated
from detection_zoo.benchmarks.run.progress import clock
from detection_zoo.benchmarks.run.subject import (
    Sources,
    Subject,
    identify_data,
    open_data,
    path_notes,
    prepare,
    take_path,
)
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement, Run, WeightsIdentity
from detection_zoo.benchmarks.statistics import of_processes
from detection_zoo.benchmarks.store import new_id
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.trained_row import row_of_checkpoint

OPENING = "opening the data"


@dataclass
class Draft:
    """A run in progress: reports are merged as they arrive, so that a failure loses no results."""

    row: str
    spec: BenchmarkSpec
    id: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.id = self.id or new_id(self.row, self.started)

    def add(self, report: dict[str, Any]) -> None:
        """Merge a report: mappings are merged, lists are joined, anything else replaces what was there."""
        for name, value in report.items():
            old = self.fields.get(name)
            self.fields[name] = (
                {**old, **value}
                if isinstance(old, dict)
                else [*old, *value]
                if isinstance(old, list)
                else value
            )

    def finish(
        self, outcome: Outcome, status: Literal["finished", "failed", "interrupted"] | None = None
    ) -> Run:
        """Return the run so far."""
        finished = outcome.status == "finished"
        stage = None if finished else self.fields.get("stage")
        fields = {name: value for name, value in self.fields.items() if name not in ("stage", "timed")}
        return Run(
            id=self.id,
            row=self.row,
            status=status or outcome.status,
            stage=stage,
            reason=outcome.reason,
            traceback=outcome.traceback,
            started=self.started.isoformat(timespec="seconds"),
            duration_s=time.monotonic() - self.clock,
            spec=self.spec,
            **fields,
        )


def run_row(
    row: str,
    spec: BenchmarkSpec,
    sources: Sources,
    weights: tuple[WeightsIdentity, str],
    folder: Path,
    *,
    isolate: bool = True,
    limits: Limits = NO_LIMITS,
    environment: dict[str, str] | None = None,
    cancel: Any = None,
    work: Callable[..., None] | None = None,
) -> Run:
    """Measure one row.

    Args:
        row: its name.
        spec: the specification.
        sources: where the data is.
        weights: their identity, and the argument for `build_model`.
        folder: folder for files that belong to the run.
        isolate: run in its own process, so that a crash or running out of memory ends only that process.
        limits, environment, cancel: see `run_isolated`; not used without isolation.
        work: function that measures; default: `measure_row`.

    Returns:
        The run, finished or failed. Ctrl-C raises `Interrupted` with a run marked as interrupted.
    """
    draft, work = Draft(row, spec), work or measure_row
    draft.add({"weights": weights[0], "stage": "starting"})
    arguments = (row, spec, sources, weights[1], folder / draft.id)
    isolated = partial(run_isolated, limits=limits, environment=environment, cancel=cancel, keep_memory=True)
    try:
        if not isolate:
            work(*arguments, draft.add)
            return draft.finish(Outcome("finished"))
        outcome = isolated(work, arguments, draft.add)
        if outcome.status == "finished" and spec.processes > 1 and "timed" in draft.fields:
            time_in_more_processes(draft, isolated, arguments)
        return draft.finish(outcome)
    except KeyboardInterrupt:
        raise Interrupted(draft.finish(Outcome("failed", "stopped by Ctrl-C"), "interrupted")) from None
    except Exception as error:  # an error of one model is recorded and does not stop the others
        return draft.finish(failure(error))


def time_in_more_processes(
    draft: Draft, isolated: Callable[..., Outcome], arguments: tuple[Any, ...]
) -> None:
    """Time the same images in several fresh processes and join the samples; a
    failed process leaves a note."""
    parts: list[dict[str, Measurement]] = []

    def take(found: dict[str, Any]) -> None:
        parts.append(found["measurements"])
        draft.add({"notes": [f"process {number} of the timing: {note}" for note in found["notes"]]})

    draft.add({"stage": "timing in more processes"})
    for number in range(2, draft.spec.processes + 1):
        timed = (*arguments[:4], draft.fields["timed"])
        outcome = isolated(time_again, timed, take)
        if outcome.status != "finished":
            draft.add({"notes": [f"timing process {number} failed: {outcome.reason}"]})
    if parts:
        first = draft.fields["measurements"]
        again = of_processes([{name: first[name] for name in parts[0]}, *parts])
        moments = {name: (first[name].times_s, first[name].marked) for name in again}
        draft.add(
            {
                "measurements": {
                    name: one.model_copy(update=dict(zip(("times_s", "marked"), moments[name], strict=True)))
                    for name, one in again.items()
                }
            }
        )


def time_again(
    row: str, spec: BenchmarkSpec, sources: Sources, weights: str, batches: list[list[int]], report: Report
) -> None:
    """Time the batches of another process in this one; reports the measurements and notes."""
    from detection_zoo.benchmarks.measure.inference import measure_inference

    entry = row_named(row)
    dataset = open_data(entry, sources.data, spec.images)
    subject = prepare(entry, spec, dataset, weights, sources.checkpoint_format)
    subject.sources = sources
    take_path(subject, spec)
    found = measure_inference(subject, spec, batches)
    report({"measurements": found, "notes": path_notes(subject)})


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; `run` holds the measurements made until then."""

    def __init__(self, run: Run) -> None:
        super().__init__("stopped by Ctrl-C")
        self.run = run


def measure_row(
    row: str, spec: BenchmarkSpec, sources: Sources, weights: str, folder: Path, report: Report
) -> None:
    """Prepare a row and measure every metric group of the specification; report each result
    immediately.

    Args:
        row, spec, sources, folder: see `run_row`.
        weights: argument of `build_model`.
        report: called with mappings of `Run` fields and `stage`.
    """
    from detection_zoo.benchmarks.environment import collect_environment

    entry = row_of_checkpoint(row_named(row), weights)
    report({"stage": "describing the machine"})
    report({"environment": collect_environment(spec.device)})
    report({"stage": OPENING})
    with clock(f"{row}: opening data"):
        dataset = open_data(entry, sources.data, spec.images)
        report({"data": identify_data(dataset), "stage": "building the model"})
    with clock(f"{row}: building model"):
        subject = prepare(entry, spec, dataset, weights, sources.checkpoint_format)
    subject.sources, subject.folder = sources, folder
    report({"measurements": count_cost(subject), "notes": take_path(subject, spec)})
    try:
        for found in measure(subject, spec):
            report(found)
    finally:
        report({"notes": path_notes(subject)})


def count_cost(subject: Subject) -> dict[str, Measurement]:
    """Count parameters in millions (without buffers, such as frozen norms and anchors), and 10^9 MACs
    if all images have one size."""
    from detection_zoo.benchmarks.measure.cost import model_cost

    parameters = sum(parameter.numel() for parameter in subject.model.parameters()) / 1e6
    found = {
        "parameters_m": Measurement(
            value=parameters, unit="M", covers="parameters of the model, without buffers"
        )
    }
    rule = subject.entry.conventions.image if subject.entry.conventions else None
    if rule is not None and rule.resize in ("fixed", "centre_crop") and rule.size:
        covers = (
            f"an image of {rule.size} x {rule.size}: multiply-adds of layers; norms count"
            " 2 and activations 1 per value"
        )
        found["gmacs"] = Measurement(
            value=model_cost(subject.model, (rule.size, rule.size)).gmacs, unit="GMAC", covers=covers
        )
    return found
