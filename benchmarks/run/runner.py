"""One row, one specification, one run: every group of metrics in turn; a failure is a run too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from detection_zoo.benchmarks.measure.telemetry import Watch, marked, watching
from detection_zoo.benchmarks.run.isolation import BEAT, Outcome, Report, failure, run_isolated
from detection_zoo.benchmarks.run.progress import clock
from detection_zoo.benchmarks.run.subject import (
    Sources,
    Subject,
    identify_data,
    open_data,
    prepare,
    training_data,
)
from detection_zoo.benchmarks.spec import (
    OWN_PROTOCOL,
    BenchmarkSpec,
    Measurement,
    MetricGroup,
    Run,
    WeightsIdentity,
)
from detection_zoo.benchmarks.store import new_id
from detection_zoo.zoo.manifest import load_manifests

BEAT_S = 1.0  # seconds between signs of life
PARTS_SHARE = 0.08  # of the time that timing took: what the parts of the forward phase may take besides


@dataclass
class Draft:
    """A run as it grows: what the work reports is laid in, so that nothing is lost when it fails."""

    row: str
    spec: BenchmarkSpec
    id: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.id = self.id or new_id(self.row, self.started)

    def add(self, report: dict[str, Any]) -> None:
        """Lay a report in: mappings are merged, lists are joined, anything else replaces what was there."""
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
        """The run, as it stands."""
        finished = outcome.status == "finished"
        stage = None if finished else self.fields.get("stage")
        fields = {name: value for name, value in self.fields.items() if name != "stage"}
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
    stall_s: float | None = None,
    limit_s: float | None = None,
    memory_mib: float | None = None,
    environment: dict[str, str] | None = None,
    cancel: Any = None,
    work: Callable[..., None] | None = None,
) -> Run:
    """Measure one row.

    Args:
        row: its name.
        spec: what and how.
        sources: where the data is.
        weights: their identity, and what `build_model` takes.
        folder: where files that belong to the run are kept.
        isolate: in a process of its own, so that a crash or an exhausted memory ends that process only.
        stall_s, limit_s, memory_mib, environment, cancel: see `run_isolated`; without isolation they are not
            used.
        work: what measures; `measure` unless a test plants a fault.

    Returns:
        The run, finished or failed; Ctrl-C gives a run marked interrupted inside the exception `Interrupted`.
    """
    draft = Draft(row, spec)
    draft.add({"weights": weights[0], "stage": "starting"})
    arguments = (row, spec, sources, weights[1], folder / draft.id)
    try:
        if isolate:
            return draft.finish(
                run_isolated(
                    work or measure,
                    arguments,
                    draft.add,
                    stall_s=stall_s,
                    limit_s=limit_s,
                    memory_mib=memory_mib,
                    environment=environment,
                    cancel=cancel,
                )
            )
        return draft.finish(_in_process(work or measure, arguments, draft))
    except KeyboardInterrupt:
        raise Interrupted(draft.finish(Outcome("failed", "stopped by Ctrl-C"), "interrupted")) from None


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; `run` holds what had been measured by then."""

    def __init__(self, run: Run) -> None:
        super().__init__("stopped by Ctrl-C")
        self.run = run


def _in_process(work: Callable[..., None], arguments: tuple[Any, ...], draft: Draft) -> Outcome:
    def report(value: Any) -> None:
        if value != BEAT:
            draft.add(value)

    try:
        work(*arguments, report)
    except (
        Exception
    ) as error:  # whatever goes wrong with one model is told in its record and ends that model only
        return failure(error)
    return Outcome("finished")


def measure(
    row: str, spec: BenchmarkSpec, sources: Sources, weights: str, folder: Path, report: Report
) -> None:
    """Prepare a row and measure every group of the specification, reporting each thing as soon as it is
    known.

    Args:
        row, spec, sources, folder: see `run_row`.
        weights: what `build_model` takes.
        report: gets mappings of fields of `Run`, and `stage`.
    """
    from detection_zoo.benchmarks.environment import collect_environment

    entry = load_manifests().entry(row)
    report({"stage": "describing the machine"})
    report({"environment": collect_environment(spec.device)})
    report({"stage": "opening the data"})
    with clock(f"{row}: open data"):
        dataset = open_data(entry, sources.data, spec.images)
        report({"data": identify_data(dataset), "stage": "building the model"})
    with clock(f"{row}: build model"):
        subject = prepare(entry, spec, dataset, weights, sources.checkpoint_format)
    report({"measurements": count_cost(subject)})
    measure_groups(subject, spec, sources, folder, report)


def count_cost(subject: Subject) -> dict[str, Measurement]:
    """Millions of parameters (buffers, which frozen norms and anchors are, not counted), and 10^9 MACs where
    every image has one size."""
    from detection_zoo.benchmarks.measure.cost import model_cost

    parameters = sum(parameter.numel() for parameter in subject.model.parameters()) / 1e6
    found = {
        "parameters_m": Measurement(
            value=parameters, unit="M", covers="parameters of the whole model; buffers are not counted"
        )
    }
    rule = subject.entry.conventions.image if subject.entry.conventions else None
    if rule is not None and rule.resize in ("fixed", "centre_crop") and rule.size:
        covers = (
            f"an image of {rule.size} x {rule.size}: products and sums of layers, norms counted twice and"
            " activations once for each value"
        )
        found["gmacs"] = Measurement(
            value=model_cost(subject.model, (rule.size, rule.size)).gmacs, unit="GMAC", covers=covers
        )
    return found


def measure_groups(
    subject: Subject, spec: BenchmarkSpec, sources: Sources, folder: Path, report: Report
) -> None:
    """Measure the groups of a specification in a fixed order; training comes last, because it changes the
    weights."""
    beat = _beating(report)
    for step in _STEPS:
        if any(group in spec.groups for group in step.groups):
            report({"stage": step.stage})
            with _watched(step.name, spec, report) as passing:
                step.work(subject, spec, sources, folder, passing, beat)


@contextmanager
def _watched(step: str, spec: BenchmarkSpec, report: Report) -> Iterator[Report]:
    """Telemetry of a block; measurements that pass through are reported again with what the telemetry says of
    them."""
    seen: dict[str, Measurement] = {}

    def passing(value: Any) -> None:
        if isinstance(value, dict):
            seen.update(value.get("measurements", {}))
        report(value)

    with watching(spec.device) as watch:
        yield passing
    report({"telemetry": {step: watch.result}, "measurements": with_telemetry(seen, watch, spec)})


def with_telemetry(
    found: dict[str, Measurement], watch: Watch, spec: BenchmarkSpec
) -> dict[str, Measurement]:
    """Timed measurements with their moments on the telemetry's clock and suspect samples marked, and the
    energy an image where power was read."""
    values: dict[str, Measurement] = {}
    for name, one in found.items():
        if one.times_s:
            times_s = [moment - watch.start_s for moment in one.times_s]
            values[name] = one.model_copy(
                update={"times_s": times_s, "marked": marked(times_s, watch.result)}
            )
    timed, power = values.get("model_ms"), watch.result.samples.get("power_w", [])
    if timed is not None and "end_to_end_ms" in found and power:
        pairs = zip(watch.result.samples["time_s"], power, strict=True)
        during = [
            watts for moment, watts in pairs if timed.times_s[0] <= moment <= timed.times_s[-1]
        ] or power
        an_image_s = found["end_to_end_ms"].value / 1e3
        values["energy_j_per_image"] = Measurement(
            value=fmean(during) * an_image_s,
            unit="J/image",
            statistic="mean",
            n=len(during),
            covers=(
                f"mean power of the whole GPU board, {len(during)} readings while images were timed one after"
                f" another, times the end-to-end time of an image; batch {spec.batch_size}"
            ),
        )
    return values


def _beating(report: Report) -> Callable[[], None]:
    """A heartbeat that reports at most once a second."""
    last = [time.monotonic()]

    def beat() -> None:
        if time.monotonic() - last[0] >= BEAT_S:
            last[0] = time.monotonic()
            report(BEAT)

    return beat


def _inference(
    subject: Subject,
    spec: BenchmarkSpec,
    sources: Sources,
    folder: Path,
    report: Report,
    beat: Callable[[], None],
) -> None:
    from detection_zoo.benchmarks.measure.inference import measure_inference
    from detection_zoo.benchmarks.measure.phases import measure_phases
    from detection_zoo.benchmarks.measure.protocols import measure_protocol

    if spec.protocol != OWN_PROTOCOL:
        report({"measurements": measure_protocol(subject, spec, beat)})
        return
    start = time.monotonic()
    report({"measurements": measure_inference(subject, spec, beat)})
    parts, absent = measure_phases(subject, spec, PARTS_SHARE * (time.monotonic() - start), beat)
    report({"measurements": parts, "absent": absent})


def _memory(
    subject: Subject,
    spec: BenchmarkSpec,
    sources: Sources,
    folder: Path,
    report: Report,
    beat: Callable[[], None],
) -> None:
    from detection_zoo.benchmarks.measure.inference import measure_inference_memory

    measurements, absent = measure_inference_memory(subject, spec, beat)
    report({"measurements": measurements, "absent": absent})


def _throughput(
    subject: Subject,
    spec: BenchmarkSpec,
    sources: Sources,
    folder: Path,
    report: Report,
    beat: Callable[[], None],
) -> None:
    from detection_zoo.benchmarks.measure.throughput import measure_throughput

    report({"measurements": measure_throughput(subject, spec, beat)})


def _ap(
    subject: Subject,
    spec: BenchmarkSpec,
    sources: Sources,
    folder: Path,
    report: Report,
    beat: Callable[[], None],
) -> None:
    from detection_zoo.benchmarks.evaluation.ap_intervals import subset_intervals
    from detection_zoo.benchmarks.measure.detection import measure_accuracy

    if subject.is_classifier:
        report({"absent": {"box_ap": "a classifier gives no boxes"}})
        return
    measurements, absent, files = measure_accuracy(subject, spec, folder, beat)
    measurements |= subset_intervals(
        measurements, subject.dataset, {kind: folder.parent / file.name for kind, file in files.items()}
    )
    report({"measurements": measurements, "absent": absent, "files": files})


def _top1(
    subject: Subject,
    spec: BenchmarkSpec,
    sources: Sources,
    folder: Path,
    report: Report,
    beat: Callable[[], None],
) -> None:
    from detection_zoo.benchmarks.measure.detection import measure_top_k

    if not subject.is_classifier:
        report({"absent": {"top1": "a detector gives no class of the whole image"}})
        return
    report({"measurements": measure_top_k(subject, spec, beat)})


def _training(
    subject: Subject,
    spec: BenchmarkSpec,
    sources: Sources,
    folder: Path,
    report: Report,
    beat: Callable[[], None],
) -> None:
    """Memory and epoch time come from the same steps; only what was asked for is kept."""
    from detection_zoo.benchmarks.measure.memory import ON_CPU, ON_GPU, memory_metric
    from detection_zoo.benchmarks.measure.training import measure_training, why_no_training

    if why := why_no_training(subject):
        names = {
            "memory": [memory_metric("train", name) for name in (*ON_GPU, *ON_CPU)],
            "epoch": ["epoch_time_s"],
        }
        report({"absent": {name: why for group in spec.groups for name in names.get(group, ())}})
        return
    dataset, note = training_data(subject.entry, sources)
    measurements, absent = measure_training(subject, dataset, note, spec, beat)
    if "memory" not in spec.groups:
        measurements, absent = {name: m for name, m in measurements.items() if "memory" not in name}, {}
    if "epoch" not in spec.groups:
        measurements.pop("epoch_time_s")
    report({"measurements": measurements, "absent": absent})


@dataclass(frozen=True)
class _Step:
    """One piece of a run: the name of its telemetry, what a failed run says was going on, the groups that ask
    for it, what does it."""

    name: str
    stage: str
    groups: tuple[MetricGroup, ...]
    work: Callable[..., None]


_STEPS = (
    _Step("inference", "timing", ("inference",), _inference),
    _Step("memory", "measuring memory", ("memory",), _memory),
    _Step("throughput", "measuring throughput", ("throughput",), _throughput),
    _Step("ap", "detecting", ("ap",), _ap),
    _Step("top1", "classifying", ("top1",), _top1),
    _Step("training", "training", ("memory", "epoch"), _training),
)
