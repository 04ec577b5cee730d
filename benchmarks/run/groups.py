"""The metric groups; each is a generator that yields results as soon as they are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any, NamedTuple

from detection_zoo.benchmarks.measure.telemetry import Watch, marked, watching
from detection_zoo.benchmarks.run.subject import Subject, training_data
from detection_zoo.benchmarks.spec import OWN_PROTOCOL, UNSTEADY, BenchmarkSpec, Measurement, MetricGroup

PARTS_SHARE = 0.08  # time for timing the parts of the forward phase, as a fraction of the main timing

Found = Iterator[dict[str, Any]]  # fields of `Run`: measurements, absent, files


def measure(subject: Subject, spec: BenchmarkSpec) -> Found:
    """Measure the groups of a specification in a fixed order; training comes last, because it changes the
    weights.

    Args:
        subject: model, data, and output folder.
        spec: the specification.

    Yields:
        Fields of `Run`, and `stage`: the current step.
    """
    for group in GROUPS:
        if not set(group.metrics) & set(spec.groups):
            continue
        yield {"stage": group.stage}
        timed: dict[str, Measurement] = {}
        with watching(spec.device) as watch:
            for found in group.measure(subject, spec):
                timed |= found.get("measurements", {})
                yield found
        measurements = with_telemetry(timed, watch, spec)
        yield {"telemetry": {group.name: watch.result.thinned()}, "measurements": measurements}


def with_telemetry(
    found: dict[str, Measurement], watch: Watch, spec: BenchmarkSpec
) -> dict[str, Measurement]:
    """Add telemetry to timed measurements: start times and suspect samples, energy per image
    if power was read; epoch time loses its interval if the device was throttled or shared."""
    values: dict[str, Measurement] = {}
    epoch = found.get("epoch_time_s")
    if epoch is not None and epoch.interval and watch.result.verdict in UNSTEADY:
        note = f"{epoch.note}; no interval: the device was {watch.result.verdict} while steps were timed"
        values["epoch_time_s"] = epoch.model_copy(update={"interval": None, "note": note})
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
                f"mean GPU board power ({len(during)} readings during sequential"
                f" timing) multiplied by the end-to-end time per image; batch {spec.batch_size}"
            ),
        )
    return values


def _inference(subject: Subject, spec: BenchmarkSpec) -> Found:
    from detection_zoo.benchmarks.measure.inference import measure_inference
    from detection_zoo.benchmarks.measure.phases import measure_phases
    from detection_zoo.benchmarks.measure.protocols import measure_protocol

    if spec.protocol != OWN_PROTOCOL:
        yield {"measurements": measure_protocol(subject, spec)}
        return
    start = time.monotonic()
    found = measure_inference(subject, spec)
    yield {"measurements": found, "timed": subject.timed}
    parts, absent = measure_phases(subject, spec, PARTS_SHARE * (time.monotonic() - start))
    yield {"measurements": parts, "absent": {} if parts else absent}  # a model has the parts that it has


def _memory(subject: Subject, spec: BenchmarkSpec) -> Found:
    from detection_zoo.benchmarks.measure.inference import measure_inference_memory

    measurements, absent = measure_inference_memory(subject, spec)
    yield {"measurements": measurements, "absent": absent}


def _throughput(subject: Subject, spec: BenchmarkSpec) -> Found:
    from detection_zoo.benchmarks.measure.throughput import measure_throughput

    yield {"measurements": measure_throughput(subject, spec)}


def _ap(subject: Subject, spec: BenchmarkSpec) -> Found:
    from detection_zoo.benchmarks.evaluation.ap_intervals import subset_intervals
    from detection_zoo.benchmarks.measure.detection import measure_accuracy

    if subject.is_classifier:
        if "top1" not in spec.groups:  # else that is its accuracy
            yield {"absent": {"box_ap": "a classifier has no boxes"}}
        return
    folder = subject.folder
    measurements, absent, files = measure_accuracy(subject, spec, folder)
    measurements |= subset_intervals(
        measurements, subject.dataset, {kind: folder.parent / file.name for kind, file in files.items()}
    )
    yield {"measurements": measurements, "absent": absent, "files": files}


def _top1(subject: Subject, spec: BenchmarkSpec) -> Found:
    from detection_zoo.benchmarks.measure.detection import measure_top_k

    if not subject.is_classifier:
        if "ap" not in spec.groups:
            yield {"absent": {"top1": "a detector has no image class"}}
        return
    yield {"measurements": measure_top_k(subject, spec)}


def _training(subject: Subject, spec: BenchmarkSpec) -> Found:
    """Memory and epoch time are measured in the same steps; only requested metrics are kept."""
    from detection_zoo.benchmarks.measure.memory import ON_CPU, ON_GPU, memory_metric
    from detection_zoo.benchmarks.measure.training import measure_training, why_no_training

    if why := why_no_training(subject):
        names = {
            "memory": [memory_metric("train", name) for name in (*ON_GPU, *ON_CPU)],
            "epoch": ["epoch_time_s"],
        }
        yield {"absent": {name: why for group in spec.groups for name in names.get(group, ())}}
        return
    dataset, note = training_data(subject.entry, subject.sources)
    measurements, absent = measure_training(subject, dataset, note, spec)
    if "memory" not in spec.groups:
        measurements, absent = {name: m for name, m in measurements.items() if "memory" not in name}, {}
    if "epoch" not in spec.groups:
        measurements.pop("epoch_time_s")
    yield {"measurements": measurements, "absent": absent}


class Group(NamedTuple):
    """Metrics measured together: telemetry name, step named by a failed run,
    metric groups that need it, function."""

    name: str
    stage: str
    metrics: tuple[MetricGroup, ...]
    measure: Callable[[Subject, BenchmarkSpec], Found]


GROUPS = (
    Group("inference", "timing", ("inference",), _inference),
    Group("memory", "measuring memory", ("memory",), _memory),
    Group("throughput", "measuring throughput", ("throughput",), _throughput),
    Group("ap", "detecting", ("ap",), _ap),
    Group("top1", "classifying", ("top1",), _top1),
    Group("training", "training", ("memory", "epoch"), _training),
)
