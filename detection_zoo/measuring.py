"""`evaluate`, `benchmark` and `compare`: what the commands of these names do, for a program."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection_zoo.models import Model, _device, load

if TYPE_CHECKING:
    from detection_zoo.benchmarks.compare.record import Comparison
    from detection_zoo.benchmarks.spec import Run


def evaluate(model: Model | str, data: str = "shapes", *, images: int | None = None) -> dict[str, float]:
    """AP of a detector, in percent, by metric of manifests/metrics.toml.

    Args:
        model: of `load` or `create`, or a row's name for its published weights.
        data: as `--data` of the commands: "coco:DIR", "shapes" ...
        images: the first so many alone.

    Raises:
        DatasetError: the data cannot be read, or its classes are not the model's.

    Examples:
        >>> model = load("faster_rcnn_resnet14_slim_fpn.demo", weights="random", device="cpu")
        >>> sorted(evaluate(model, "shapes", images=2))[:3]
        ['box_ap', 'box_ap50', 'box_ap75']
    """
    from detection_zoo.benchmarks.measure.detection import measure_accuracy
    from detection_zoo.benchmarks.run.subject import open_data
    from detection_zoo.benchmarks.spec import BenchmarkSpec

    model = load(model) if isinstance(model, str) else model
    model.subject.dataset = open_data(model.entry, data, images)
    with tempfile.TemporaryDirectory() as folder:
        spec = BenchmarkSpec(device=model.device.type, images=images)
        found, _, _ = measure_accuracy(model.subject, spec, Path(folder))
    return {name: measurement.value for name, measurement in found.items()}


def benchmark(
    row: str,
    data: str = "shapes",
    *,
    weights: str = "published",
    metrics: Sequence[str] = ("inference", "ap"),
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

    Examples:
        >>> row = "faster_rcnn_resnet14_slim_fpn.demo"
        >>> run = benchmark(row, weights="random", metrics=["ap"], images=2, device="cpu")
        >>> run.status, run.measurements["box_ap"].unit
        ('finished', '%')
    """
    from detection_zoo.benchmarks.run.runner import run_row
    from detection_zoo.benchmarks.run.subject import Sources, identify_weights
    from detection_zoo.benchmarks.spec import BenchmarkSpec
    from detection_zoo.zoo.created_row import row_named

    spec = BenchmarkSpec(groups=tuple(metrics), device=_device(device), **options)
    chosen = identify_weights(row_named(row), weights)
    with tempfile.TemporaryDirectory() as folder:
        return run_row(row, spec, Sources(data, weights), chosen, Path(folder), isolate=False)


def compare(
    rows: Sequence[str],
    data: str = "shapes",
    *,
    weights: str = "published",
    accuracy: bool = False,
    device: str = "auto",
    **options: Any,
) -> Comparison:
    """Compare rows head to head, the first is the reference; returns the record, which is not stored.

    Args:
        rows: two names or more.
        data: as `--data` of `bench.py compare`.
        weights: as in `load`.
        accuracy: compare AP on the same images too.
        device: as in `load`.
        **options: of CompareOptions: blocks and rounds (2 at least), budget_s ...

    Models run in processes of their own, so a script calls it below `if __name__ == "__main__":`.

    Examples:
        >>> rows = ["faster_rcnn_resnet14_slim_fpn.demo", "retinanet_resnet14_slim_fpn.demo"]
        >>> compare(rows, weights="random", blocks=2, rounds=2, device="cpu").status
        'finished'
    """
    from detection_zoo.benchmarks.compare.contestant import Entrant
    from detection_zoo.benchmarks.compare.match import compare as run_comparison
    from detection_zoo.benchmarks.compare.options import CompareOptions
    from detection_zoo.benchmarks.spec import BenchmarkSpec

    entrants = [Entrant(row, row, weights) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        chosen = CompareOptions(accuracy=accuracy, files=Path(folder), **options)
        return run_comparison(entrants, BenchmarkSpec(device=_device(device)), data, chosen)
