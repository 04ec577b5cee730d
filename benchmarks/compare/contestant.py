"""One model of a comparison, in its own process: runs the given batches and returns
times."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from detection_zoo.benchmarks.compare.options import Entrant
from detection_zoo.benchmarks.compare.paired import hodges_lehmann
from detection_zoo.benchmarks.compare.planted import ExtraWork, with_extra_work
from detection_zoo.benchmarks.environment import collect_environment
from detection_zoo.benchmarks.measure.inference import MODEL, Turns, timed_batches
from detection_zoo.benchmarks.measure.memory import memory_metric, peak_memory
from detection_zoo.benchmarks.measure.timing import PhaseClock
from detection_zoo.benchmarks.run.progress import beat
from detection_zoo.benchmarks.run.subject import (
    Sources,
    identify_data,
    open_data,
    path_notes,
    prepare,
    take_path,
)
from detection_zoo.benchmarks.spec import BenchmarkSpec, StoredFile
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.trained_row import row_of_checkpoint

TIMES = {"model_ms": MODEL, "forward_ms": ("forward",), "postprocess_ms": ("postprocess",)}
BURST = 0.2  # fraction of a turn: duration of the units of extra work that are timed together


class Contestant:
    """A built model and the images it is timed on.

    Args:
        entrant, spec, data: the row, how it is measured, on what.
        weights: argument of `build_model`.
        threads: CPU threads per torch operator.
    """

    def __init__(self, entrant: Entrant, spec: BenchmarkSpec, data: str, weights: str, threads: int) -> None:
        if spec.device == "cpu":
            torch.set_num_threads(threads)
        spec = entrant.spec(spec)
        self.spec = spec
        entry = row_of_checkpoint(row_named(entrant.row), weights)
        self.subject = prepare(entry, spec, open_data(entry, data, spec.images), weights)
        self.subject.sources = Sources(data, weights, exported=entrant.file)
        self.compared = take_path(self.subject, spec)
        self.subject.model.eval()
        if entrant.extra_units:
            self.subject.model = with_extra_work(
                self.subject.model, ExtraWork(self.subject.device), entrant.extra_units
            )
        self.batches = timed_batches(len(self.subject.dataset), spec)
        self.turns = Turns(self.subject, spec, PhaseClock(self.subject.device))

    def describe(self) -> dict[str, Any]:
        """Machine, data, the digest of the image list, how many batches there are."""
        dataset = self.subject.dataset
        ids = " ".join(str(dataset.image_id(index)) for batch in self.batches for index in batch)
        return {
            "environment": collect_environment(self.spec.device),
            "data": identify_data(dataset),
            "batches": len(self.batches),
            "image_list": hashlib.sha256(ids.encode()).hexdigest(),
            "timed_images": sum(map(len, self.batches)),
        }

    def notes(self) -> list[str]:
        """What its path was compared with, and how it ran until now."""
        return [*self.compared, *path_notes(self.subject)]

    def turn(self, batches: list[int]) -> dict[str, float]:
        """Run batches by index; return wall milliseconds per image of each metric, and on a CPU also CPU
        time ("model_cpu_ms"), summed over the batches."""
        clock = self.turns.clock = PhaseClock(self.subject.device)
        for number in batches:
            self.turns(self.batches[number])
            beat()
        found = {name: sum(clock.sums_ms(phases)) for name, phases in TIMES.items()} | {
            "end_to_end_ms": sum(clock.sums_ms(list(clock.samples_ms)))
        }
        if clock.cpu_ms:
            found |= {
                name.replace("_ms", "_cpu_ms"): sum(clock.sums_ms(phases, clock="cpu"))
                for name, phases in TIMES.items()
            }
            found["end_to_end_cpu_ms"] = sum(clock.sums_ms(list(clock.cpu_ms), clock="cpu"))
        return found

    def turn_with_peak(self, batches: list[int]) -> dict[str, float]:
        """Peak memory in MiB of running these batches, by metric name."""
        with peak_memory(self.subject.device) as peak:
            self.turn(batches)
        return {memory_metric("inference", name): value for name, value in peak.mib.items()}

    def detect(self, folder: Path) -> dict[str, StoredFile]:
        """Write the detections (for a classifier: classes) of every image to `folder`; return the files."""
        from detection_zoo.benchmarks.evaluation.classification import class_scores, write_classes
        from detection_zoo.benchmarks.measure.detection import measure_accuracy

        if self.subject.is_classifier:
            scores, _ = class_scores(self.subject, self.spec)
            return write_classes(scores, self.subject.dataset, folder)
        return measure_accuracy(self.subject, self.spec, folder)[2]

    def cost_of_unit(self, pairs: int) -> float:
        """Return the cost of one unit of extra work as a fraction of an image's model time, from
        `pairs` alternating pairs of turns and bursts of units."""
        work, on_cpu = ExtraWork(self.subject.device), self.subject.device.type == "cpu"
        name = "model_cpu_ms" if on_cpu else "model_ms"
        turn_ms = self.turn([0])[name]
        work.do(100)
        units = max(1, round(BURST * turn_ms / (work.time_ms(1000) / 1000)))
        costs = []
        for number in range(pairs):
            image_ms = self.turn([number % len(self.batches)])[name]
            costs.append(work.time_ms(units) / units / image_ms)
        return hodges_lehmann(costs)
