"""Time the parts of the forward phase (backbone, neck, RPN, heads) in separate passes that do not
affect the main timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch

from detection_zoo.benchmarks.measure.inference import Turns, timed_batches
from detection_zoo.benchmarks.measure.parts import around_parts, parts_of
from detection_zoo.benchmarks.measure.timing import PhaseClock, synchronise, time_passes
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.subject import Subject, autocast
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement
from detection_zoo.benchmarks.statistics import summarise

COVERS = {
    "backbone": "backbone",
    "neck": "FPN or extra layers between backbone and heads",
    "rpn": "RPN head, anchors, and proposal selection",
    "heads": (
        "heads of the forward phase, including RoI pooling (mask and keypoint heads on kept boxes"
        " belong to post-processing)"
    ),
}
REST = "all other steps: anchors, box decoding, resizing inside the network"


class PartTimes:
    """Milliseconds of each part's calls within one batch; for nested parts, the outermost
    counts."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spent_ms, self.inside = device, dict[str, float](), False

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a timed version of a call; the device is synchronised before and after it."""

        @wraps(call)
        def timed(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return call(*arguments, **options)
            self.inside = True
            synchronise(self.device)
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                synchronise(self.device)
                self.spent_ms[name] = self.spent_ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3
                self.inside = False

        return timed


def measure_phases(
    subject: Subject, spec: BenchmarkSpec, budget_s: float
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Time the parts of the forward phase batch by batch, at least one batch.

    Args:
        subject: model that has been warmed up; left in evaluation mode.
        spec: batch size, images, precision.
        budget_s: seconds.

    Returns:
        backbone_ms, neck_ms, rpn_ms, heads_ms for parts that the model has, and forward_rest_ms, per
        image; the other metrics with the reason.
    """
    subject.model.eval()
    parts, found = parts_of(subject.model), list[dict[str, float]]()
    absent = {f"{name}_ms": "the model has no such part" for name in COVERS if name not in parts}
    if not parts:
        return {}, absent
    batches = timed_batches(len(subject.dataset), spec)

    def work(batch: list[int]) -> float:
        found.append(parts_of_turn(subject, spec, batch))
        tick()
        return found[-1]["forward"]

    with progress(f"{subject.entry.name}: parts", None) as tick:
        start = time.perf_counter()
        work(batches[0])
        count = min(len(batches), max(1, int(budget_s / (time.perf_counter() - start)) - 1))
        chosen = [batches[place * len(batches) // count] for place in range(count)]
        time_passes(
            [partial(work, batch) for batch in chosen],
            least_passes=1,
            least_s=0.0,
            precision=spec.precision,
            budget_s=budget_s,
        )
    return _measurements(found, [*parts, "forward_rest"], spec), absent


def parts_of_turn(subject: Subject, spec: BenchmarkSpec, indices: list[int]) -> dict[str, float]:
    """Run one batch through the forward phase; return milliseconds per image of every part, of the rest
    ("forward_rest") and in total ("forward")."""
    images, sizes, _ = Turns(subject, spec, PhaseClock(subject.device)).load(indices)
    times, whole = PartTimes(subject.device), PhaseClock(subject.device)
    with (
        torch.inference_mode(),
        autocast(spec),
        around_parts(subject.model, parts_of(subject.model), times.around),
        whole.phase("forward"),
    ):
        subject.forward(images, sizes)
    spent = dict.fromkeys(parts_of(subject.model), 0.0) | times.spent_ms
    total = whole.samples_ms["forward"][0]
    return {
        name: ms / len(indices)
        for name, ms in {**spent, "forward_rest": total - sum(spent.values()), "forward": total}.items()
    }


def _measurements(
    turns: list[dict[str, float]], names: list[str], spec: BenchmarkSpec
) -> dict[str, Measurement]:
    total = sum(turn["forward"] for turn in turns)
    how = f"in separate passes, synchronised before and after each part; batch {spec.batch_size}, per image"
    found = {}
    for name in names:
        samples = [turn[name] for turn in turns]
        note = f"{sum(samples) / total:.1%} of the forward time in these passes"
        found[f"{name}_ms"] = summarise(samples, "ms", covers=f"{COVERS.get(name, REST)}; {how}", note=note)
    return found
