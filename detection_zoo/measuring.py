"""`evaluate`, `benchmark` and `compare`: Python functions for the commands of the same names."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection_zoo.models import Model, _device, _spec, load

if TYPE_CHECKING:
    from detection_zoo.benchmarks.compare.record import Comparison
    from detection_zoo.benchmarks.spec import Run


def evaluate(model: Model | str, data: str = "shapes", *, images: int | None = None) -> dict[str, float]:
    """AP of a detector, in percent, by metric of manifests/metrics.toml.

    Args:
        model: of `load` or `create`, or a row's name for its published weights.
        data: as `--data` of the commands: "coco:DIR", "shapes" ...
        images: only the first N images.

    Raises:
        DatasetError: the data cannot be read, or its classes are not the model's.

    Examples:
        >>> model = load("faster_rcnn_resnet14_slim_fpn.demo", weights="random", device="cpu")
        >>> sorted(evaluate(model, "shapes", images=2))[:3]
        ['box_ap', 'box_ap50', 'box_ap75']
    """
    from detection_zoo.benchmarks.measure.detection import measure_accuracy
    from detection_zoo.benchmarks.run.subject import open_data

    model = load(model) if isinstance(model, str) else model
    model.subject.dataset = open_data(model.entry, data, images)
    with tempfile.TemporaryDirectory() as folder:
        spec = model.spec.model_copy(update={"images": images})
        found, _, _ = measure_accuracy(model.subject, spec, Path(folder))
    return {name: measurement.value for name, measurement in found.items()}


def benchmark(
    row: str,
    data: str = "shapes",
    *,
    weights: str = "published",
    metrics: str | Sequence[str] = ("inference", "ap"),
    device: str = "auto",
    **options: Any,
) -> Run:
    """Measure a row in this process and return its record, which is not stored.

    Args:
        row: its name.
        data: as `--data` of `bench.py run`.
        weights: as in `load`.
        metrics: of inference, ap, top1, memory, epoch, throughput.
        device: as in `load`.
        **options: fields of BenchmarkSpec: images, batch_size, time_budget_s ...

    Raises:
        ManifestError, DatasetError, DownloadError, CheckpointError: row, data or weights cannot be used.
        ValueError: an option or metric is unknown, or its value is out of range.

    Examples:
        >>> row = "faster_rcnn_resnet14_slim_fpn.demo"
        >>> run = benchmark(row, weights="random", metrics=["ap"], images=2, device="cpu")
        >>> run.status, run.measurements["box_ap"].unit
        ('finished', '%')
    """
    from detection_zoo.benchmarks.run.arguments import check_row
    from detection_zoo.benchmarks.run.runner import run_row
    from detection_zoo.benchmarks.run.subject import Sources, identify_weights
    from detection_zoo.zoo.created_row import row_named

    groups = tuple(metrics.replace(" ", "").split(",") if isinstance(metrics, str) else metrics)
    spec = _spec(groups=groups, device=_device(device), **options)
    sources, entry = Sources(data, str(weights)), row_named(row)
    check_row(entry, sources, spec.images)
    chosen = identify_weights(entry, sources.weights)
    with tempfile.TemporaryDirectory() as folder:
        return run_row(row, spec, sources, chosen, Path(folder), isolate=False)


def compare(
    rows: Sequence[str],
    data: str = "shapes",
    *,
    weights: str = "published",
    exported: Sequence[str | Path] = (),
    accuracy: bool = False,
    images: int | None = None,
    device: str = "auto",
    **options: Any,
) -> Comparison:
    """Compare rows head to head, the first is the reference; returns the record, which is not stored.

    Args:
        rows: two names or more, or one with exported files; "ROW@WEIGHTS" for weights of its own.
        data: as `--data` of `bench.py compare`.
        weights: as in `load`.
        exported: files of `bench.py export`, compared in their engines after the rows.
        accuracy: compare AP on the same images too.
        images: only the first N images.
        device: as in `load`.
        **options: of CompareOptions: blocks and rounds (2 at least), budget_s ...

    Raises:
        ManifestError, DatasetError, DownloadError, CheckpointError: rows, data or weights cannot be used.
        ValueError: fewer than two models, or an option is out of range.

    Models run in separate processes, so a script calls it below `if __name__ == "__main__":`.

    Examples:
        >>> rows = ["faster_rcnn_resnet14_slim_fpn.demo", "retinanet_resnet14_slim_fpn.demo"]
        >>> compare(rows, weights="random", blocks=2, rounds=2, device="cpu").status
        'finished'
    """
    from detection_zoo.benchmarks.compare.match import compare as run_comparison
    from detection_zoo.benchmarks.compare.options import CompareOptions, entrants_of
    from detection_zoo.benchmarks.run.arguments import check_row
    from detection_zoo.benchmarks.run.subject import Sources
    from detection_zoo.zoo.created_row import row_named
    from detection_zoo.zoo.export.kinds import engine_problem

    if isinstance(rows, str) or len(rows) + len(exported) < 2:
        raise ValueError(f"rows is {rows!r}; name two rows or more in a list")
    spec = _spec(device=_device(device), images=images)
    entrants = entrants_of(rows, str(weights), [Path(file) for file in exported])
    for one in entrants:
        if problem := engine_problem(one.spec(spec).path, spec.device, spec.dtype):
            raise ValueError(problem)
    with tempfile.TemporaryDirectory() as folder:
        chosen = CompareOptions(accuracy=accuracy, files=Path(folder), **options)
        for entrant in entrants:
            check_row(row_named(entrant.row), Sources(data, entrant.weights), images)
        return run_comparison(entrants, spec, data, chosen)
