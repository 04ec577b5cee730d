"""Comparison of models in separate processes that run the same images alternately in random order, until each
difference is known or the time budget is used up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from detection_zoo.benchmarks.compare.contestant import Contestant
from detection_zoo.benchmarks.compare.judging import accuracy_pairs, judge_pairs
from detection_zoo.benchmarks.compare.options import CompareOptions, Entrant
from detection_zoo.benchmarks.compare.paired import confidence_of_each, planned_looks
from detection_zoo.benchmarks.compare.record import Comparison, Pair
from detection_zoo.benchmarks.compare.sides import State, footnotes
from detection_zoo.benchmarks.compare.workers import Worker, WorkerFailed, preload
from detection_zoo.benchmarks.measure.telemetry import watching
from detection_zoo.benchmarks.run.isolation import ALLOCATOR_NOTE
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.subject import identify_weights
from detection_zoo.benchmarks.spec import BenchmarkSpec, Telemetry, counted
from detection_zoo.benchmarks.store import new_id
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.errors import DatasetError

Say = Callable[[str], None]


class _Match:
    """The state of a comparison and its steps."""

    def __init__(
        self, entrants: Sequence[Entrant], spec: BenchmarkSpec, data: str, options: CompareOptions, say: Say
    ) -> None:
        self.spec, self.data, self.options, self.say = spec, data, options, say
        rows = [row_named(one.row) for one in entrants]
        self.states = {
            one.label: State(one, *identify_weights(row, one.weights))
            for one, row in zip(entrants, rows, strict=True)
        }
        parts = [part.name.partition(".") for row in rows for part in (row.detector, row.backbone)]
        preload(package for package, dot, _ in parts if dot)
        self.reference, self.draw = entrants[0].label, random.Random(options.seed)
        self.orders: list[list[list[str]]] = []
        self.per_turn = 1  # batches
        self.upcoming: list[int] = []  # indices of batches that remain in this pass over the images
        self.looks = planned_looks(options.blocks)
        self.confidence = confidence_of_each(len(self.looks), len(entrants) - 1)

    @property
    def decides(self) -> str:
        """The metric that ends the comparison."""
        return (
            "model_cpu_ms" if self.spec.device == "cpu" and self.options.clock == "processor" else "model_ms"
        )

    @property
    def running(self) -> list[str]:
        """Labels of the models that have not failed."""
        return [label for label, state in self.states.items() if state.failure is None]

    def possible(self) -> bool:
        """Whether at least two models are left to compare."""
        return self.states[self.reference].failure is None and len(self.running) > 1

    def worker(self, label: str) -> Worker:
        state = self.states[label]
        return Worker(
            label, Contestant, (state.entrant, self.spec, self.data, state.argument, self.options.threads)
        )

    def block(self) -> None:
        """Fresh processes, warm-up, rounds, memory. A failed model is excluded, and the block is discarded
        for all models."""
        workers: dict[str, Worker] = {}

        def ask(label: str, name: str, *given: Any) -> Any:
            return workers[label].call(name, *given, stall_s=self.options.stall_s)

        labels = self.shuffled(self.running)
        samples: dict[str, dict[str, list[float]]] = {label: {} for label in labels}
        orders: list[list[str]] = []
        try:
            for label in labels:
                workers[label] = self.worker(label)
            for label in workers:
                ask(label, "ready")
            if not self.orders:
                self.meet({label: ask(label, "describe") for label in workers})
            self.warm_up(list(workers), ask)
            for number in range(self.options.rounds):
                # every second round reverses the order of the previous one, so that no model
                # runs first more often
                orders.append(orders[-1][::-1] if number % 2 else self.shuffled(list(workers)))
                batches = self.next_batches()
                for label in orders[-1]:
                    for name, value in ask(label, "turn", batches).items():
                        samples[label].setdefault(name, []).append(value)
            batches = self.next_batches()
            for label in workers:
                for name, value in ask(label, "turn_with_peak", batches).items():
                    samples[label][name] = [value]
                self.states[label].notes = ask(label, "notes")
        except WorkerFailed as failed:
            self.states[failed.label].failure = failed.outcome
            self.say(f"    {failed.label} failed and is excluded: {failed.outcome.reason}")
            return
        except KeyboardInterrupt:
            for worker in workers.values():
                worker.kill()
            raise
        finally:
            for worker in workers.values():
                worker.close()
        self.orders.append(orders)
        for label, found in samples.items():
            for name, values in found.items():
                self.states[label].samples.setdefault(name, []).append(values)

    def shuffled(self, labels: list[str]) -> list[str]:
        return self.draw.sample(labels, len(labels))

    def meet(self, about: dict[str, dict[str, Any]]) -> None:
        """Raise DatasetError unless every model runs the same images."""
        for label, description in about.items():
            self.states[label].about = description
            if description["image_list"] != about[self.reference]["image_list"]:
                raise DatasetError(
                    f"{label} and {self.reference} would run different images of {self.data};"
                    " choose data that suits both rows"
                )

    def warm_up(self, labels: list[str], ask: Callable[..., Any]) -> None:
        turns = [self.next_batches() for _ in range(self.options.warm_up)]
        times = {label: [ask(label, "turn", turn)["model_ms"] for turn in turns] for label in labels}
        if not self.orders:
            fastest = min(median(values) for values in times.values()) * self.spec.batch_size / self.per_turn
            self.per_turn = max(1, min(ceil(self.options.turn_ms / fastest), 50))

    def next_batches(self) -> list[int]:
        """The batches of the next turn; every batch is used once before any is repeated."""
        chosen = []
        while len(chosen) < self.per_turn:
            if not self.upcoming:
                self.upcoming = self.draw.sample(range(self.count), self.count)
            chosen.append(self.upcoming.pop())
        return chosen

    @property
    def count(self) -> int:
        """How many batches there are."""
        return self.states[self.reference].about["batches"]

    def pairs(self, confidence: float) -> list[Pair]:
        """Every metric of every other model beside the reference's."""
        others = [label for label in self.running if label != self.reference]
        samples = {label: self.states[label].samples for label in self.states}
        return judge_pairs(samples, self.reference, others, self.options.smallest, confidence, self.decides)

    def decided(self) -> bool:
        """Whether the deciding metric has a verdict for every model; reports the state."""
        pairs = [pair for pair in self.pairs(self.confidence) if pair.decides]
        for pair in pairs:
            low, high = pair.interval or (float("nan"),) * 2
            self.say(
                f"    block {len(self.orders)}: {pair.other} takes {pair.value:.4f} ({low:.4f}-{high:.4f})"
                f" times as long as {pair.reference}: {pair.verdict}"
            )
        return bool(pairs) and all(pair.verdict != "UNDECIDED" for pair in pairs)

    def run(self) -> str:
        """Run blocks until all verdicts are reached or the time is used up; return why it ended."""
        start = time.monotonic()
        with progress("compare", self.options.blocks) as tick:
            while self.possible():
                self.block()
                tick()
                done = len(self.orders)
                if done in self.looks and self.decided():
                    return f"the deciding verdicts were reached after {done} blocks"
                if done >= self.options.blocks:
                    return f"the maximum number of blocks was run, {done}"
                if time.monotonic() - start > self.options.budget_s:
                    return f"the time budget of {self.options.budget_s:g} s was used up after {done} blocks"
        return (
            "fewer than two models remained"
            if self.states[self.reference].failure is None
            else f"the reference {self.reference} failed"
        )

    def detect(self, folder: Path, identity: str) -> None:
        """Detections, or classes, of every model that is left."""
        for label in self.running:
            worker = self.worker(label)
            try:
                self.states[label].files = worker.call(
                    "detect", folder / f"{identity}-{_file_name(label)}", stall_s=self.options.stall_s
                )
            except WorkerFailed as failed:
                self.states[label].failure = failed.outcome
                self.say(f"    {label} failed while detecting: {failed.outcome.reason}")
            except KeyboardInterrupt:
                worker.kill()
                raise
            finally:
                worker.close()


def compare(
    entrants: Sequence[Entrant],
    spec: BenchmarkSpec,
    data: str,
    options: CompareOptions,
    say: Say = lambda text: None,
) -> Comparison:
    """Compare models; the first is the reference.

    Args:
        entrants: at least two, with different labels.
        spec: device, precision, batch, images; its budgets are not used.
        data: an argument of `open_dataset`.
        options: blocks, rounds, smallest differences.
        say: called with a line for each failure and interim analysis.

    Returns:
        The record, not yet stored; after Ctrl-C, with the measurements made until then.

    Raises:
        ZooError: weights or data are not available, the models would run different images,
            or their accuracy cannot be compared.
    """
    if options.accuracy and data.startswith("voc:"):
        raise DatasetError(
            f"--data {data}: VOC mAP cannot be compared by a paired bootstrap; leave out --ap,"
            " or use COCO or ImageNet data"
        )
    started, clock = datetime.now(UTC), time.monotonic()
    match, ended, pairs, interrupted = _Match(entrants, spec, data, options, say), "", [], False
    identity = new_id("comparison", started)
    telemetry = Telemetry(absent="the comparison ended before its first telemetry reading")
    try:
        with watching(spec.device) as watch:
            ended = match.run()
        telemetry = watch.result
        if options.accuracy and match.possible():
            match.detect(options.files, identity)
            pairs = accuracy_pairs(
                {label: state.files for label, state in match.states.items() if state.files},
                options.files,
                lambda label: match.states[label].entrant.row,
                match.reference,
                data,
                spec,
                options,
            )
    except KeyboardInterrupt:
        interrupted, ended = True, f"Ctrl-C after {len(match.orders)} blocks"
    pairs = [*(match.pairs(match.confidence) if match.orders and match.possible() else []), *pairs]
    about = match.states[match.reference].about
    failed = [label for label, state in match.states.items() if state.failure]
    return Comparison(
        id=identity,
        started=started.isoformat(timespec="seconds"),
        duration_s=time.monotonic() - clock,
        ended=ended,
        status="interrupted" if interrupted else "failed" if failed else "finished",
        spec=spec,
        threads=options.threads if spec.device == "cpu" else None,
        clock="processor" if match.decides == "model_cpu_ms" else "wall",
        protocol=_protocol(match),
        seed=options.seed,
        image_list=about.get("image_list", ""),
        looks=list(match.looks),
        orders=match.orders,
        pairs=pairs,
        telemetry=telemetry.thinned(),
        sides=[state.side(interrupted) for state in match.states.values()],
        footnotes=footnotes(list(match.states.values())),
    )


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in label)


def _protocol(match: _Match) -> str:
    options, images = match.options, match.states[match.reference].about.get("timed_images", 0)
    threads = f"{counted(options.threads, 'thread')} per operator"
    where = f"{threads}, {ALLOCATOR_NOTE}" if match.spec.device == "cpu" else "on one GPU in turn"
    looks, pairs = counted(len(match.looks), "look"), counted(len(match.states) - 1, "comparison")
    return (
        f"{len(match.orders)} blocks of {options.rounds} rounds after {options.warm_up} rounds of warm-up;"
        " fresh processes in each block; in a round every model runs the same"
        f" {match.per_turn * match.spec.batch_size} of {images} images, in random order; {where}. Ratios:"
        " Hodges-Lehmann in a block, Student's t over blocks; joint 95 % intervals over"
        f" {looks} and {pairs} of each metric"
    )
