"""The two short tables of the README: trained models, and numbers of one source compared with ours. Does not
import torch."""

from __future__ import annotations

from detection_zoo.benchmarks.report.lines import MeasuredLine, PublishedLine, measured_lines, published_lines
from detection_zoo.benchmarks.report.wide import Overview, WideLine
from detection_zoo.benchmarks.spec import MADE_UP_WEIGHTS, Metric
from detection_zoo.benchmarks.tabular import Table
from detection_zoo.zoo.manifest import ModelEntry

HEADLINE = "headline"
BESIDE, BESIDE_LAYOUT = "vovnet_beside", "vovnet_detectors"
AP, TIME = "box_ap", "inference_time_ms"
BESIDE_METRICS = {AP: 1, TIME: 0, "train_memory_gb": 1}  # digits
PER_DETECTION = ("mask_rcnn", "keypoint_rcnn")  # time depends on the number of detections
ACCURACY = ("box_ap", "top1")


def headline_table(view: Overview) -> Table:
    """Return one line per measured model with trained weights: data, accuracy, time, memory, weights.
    Synthetic data only for models that this project trained on it."""
    headers = ["Model", "Images", "Accuracy (%)", "Time (ms)", "Memory (MiB)", "Weights"]
    table = Table(headers, [], name=HEADLINE)
    machines: dict[str, None] = {}
    for line in view.lines:
        found, accuracy = line.line, _number(view, line, *ACCURACY)
        if not isinstance(found, MeasuredLine) or not accuracy:
            continue
        run = found.runs[0]
        published = run.weights is not None and run.weights.kind == "published"
        trained_here = published and line.entry.training is not None  # on its synthetic images
        if not (line.trusted or trained_here):
            continue
        data, weights = run.data, run.weights
        table.rows.append(
            [
                line.entry.name,
                f"{data.images} of {data.name.partition(':')[0]}" if data else "",
                accuracy,
                _number(view, line, "model_ms") or "-",
                _number(view, line, "inference_memory_resident_mib", "inference_memory_allocated_mib") or "-",
                f"{weights.kind} {weights.digest[:8]}" if weights else "",
            ]
        )
        if run.environment:
            machines[f"{run.environment.device_name}"] = None
    table.notes = [
        "Accuracy: box AP of COCO or `shapes`, or top-1 of ImageNet, on few and easy images: use it only"
        " to rank these rows."
    ]
    table.notes += [f"Time of one image at batch 1, with its 95 % interval: {one}." for one in machines]
    return table


def _number(view: Overview, line: WideLine, *names: str) -> str:
    """The first of these metrics that the line has, with interval; empty if it has none."""
    values = line.metrics()
    for name in names:
        if (point := values.get(name)) is not None:
            metric = view.metrics[name]
            text = metric.format(point.value)
            low, high = point.interval or (None, None)
            return text if low is None else f"{text} ({metric.format(low)}-{metric.format(high)})"
    return ""


def beside_table(view: Overview) -> Table:
    """Return the rows of one source, with published / measured values; ratios are to the first row of each
    detector."""
    heads = [f"{view.metrics[name].title} ({view.metrics[name].unit})" for name in BESIDE_METRICS]
    table = Table(["Backbone", "Detector", *heads], [], name=BESIDE)
    first: dict[str, tuple[PublishedLine, MeasuredLine | None]] = {}
    machines: dict[str, None] = {}
    for entry in view.layouts[BESIDE_LAYOUT].select(view.manifests.entries):
        published, here = published_lines(entry)[0], next(iter(measured_lines(entry, view.runs)), None)
        base = first.setdefault(entry.table["Detector"], (published, here))
        cells = []
        for name, digits in BESIDE_METRICS.items():
            numbers = [
                _value(view.metrics[name], entry, line, beside if name != AP else None, digits)
                for line, beside in zip((published, here), base, strict=True)
            ]
            cells.append(" / ".join(numbers))
        table.rows.append([entry.table["Backbone"], entry.table["Detector"], *cells])
        if here and here.runs[0].environment and here.runs[0].data:
            machines[f"{here.runs[0].environment.device_name}, images of {here.runs[0].data.name}"] = None
        table.notes = [f"Published on {(published.hardware or '').split(' (')[0]}. Ratios to R-50."]
    table.notes += [
        f"Measured: {one}, random weights: no AP, and an arbitrary number of detections, on"
        " which Mask R-CNN's time depends."
        for one in machines
    ]
    return table


def _value(
    metric: Metric,
    entry: ModelEntry,
    line: PublishedLine | MeasuredLine | None,
    base: PublishedLine | MeasuredLine | None,
    digits: int,
) -> str:
    """A value of a line and its ratio to that of the first line; "-" if there is no value."""
    own, first = (_number_of(metric, entry, one) for one in (line, base))
    if own is None:
        return "-"
    return f"{own:.{digits}f}" + (f" ({own / first:.2f}x)" if first and line is not base else "")


def _number_of(metric: Metric, entry: ModelEntry, line: PublishedLine | MeasuredLine | None) -> float | None:
    """A value of a line; None if it is meaningless with untrained weights."""
    depends = metric.name == AP or (metric.name == TIME and entry.detector.name in PER_DETECTION)
    if line is None or (line.weights_kind in MADE_UP_WEIGHTS and depends):
        return None
    point = line.point(metric)
    return point and point.value
