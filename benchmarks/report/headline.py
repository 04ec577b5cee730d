"""The short table that README opens with: trained models, measured here. No torch."""

from __future__ import annotations

from detection_zoo.benchmarks.report.lines import MeasuredLine
from detection_zoo.benchmarks.report.wide import Overview, WideLine
from detection_zoo.benchmarks.spec import Run
from detection_zoo.benchmarks.tabular import Table
from detection_zoo.zoo.manifest import ModelEntry

HEADLINE = "headline"
ACCURACY = ("box_ap", "top1")


def headline_table(view: Overview) -> Table:
    """One row a measured model with trained weights: data, accuracy, time, memory, weights. Of made-up data,
    only for models that this project trained on it."""
    headers = ["Model", "Images", "Accuracy (%)", "Time (ms)", "Memory (MiB)", "Weights"]
    table = Table(headers, [], name=HEADLINE)
    machines: dict[str, None] = {}
    for line in view.lines:
        found, accuracy = line.line, _number(view, line, *ACCURACY)
        if not isinstance(found, MeasuredLine) or not accuracy:
            continue
        run = found.runs[0]
        if not (line.trusted or _trained_here(line.entry, run)):
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
        "Accuracy: box AP of COCO or `shapes`, or top-1 of ImageNet, on few and easy images, so that it says"
        " which of two rows is better there, and no more."
    ]
    table.notes += [f"Time of one image at batch 1, with its 95 % interval: {one}." for one in machines]
    return table


def _trained_here(entry: ModelEntry, run: Run) -> bool:
    """Whether a run is of weights that come with the project, on the drawn images that they are for."""
    return entry.training is not None and run.weights is not None and run.weights.kind == "published"


def _number(view: Overview, line: WideLine, *names: str) -> str:
    """The first of these metrics that the line has, with its interval."""
    values = line.metrics()
    for name in names:
        if (point := values.get(name)) is not None:
            metric = view.metrics[name]
            text = metric.format(point.value)
            low, high = point.interval or (None, None)
            return text if low is None else f"{text} ({metric.format(low)}-{metric.format(high)})"
    return ""
