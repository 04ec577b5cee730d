"""Timing as the sources did it: named protocols of manifests/protocols.toml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from detection_zoo.benchmarks.measure.inference import COVERS, Turns, timed_batches
from detection_zoo.benchmarks.measure.timing import PhaseClock
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.subject import Subject
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement
from detection_zoo.benchmarks.statistics import summarise
from detection_zoo.zoo.manifest_files import load_manifests


@contextmanager
def cudnn_benchmark(wanted: bool) -> Iterator[None]:
    """Set torch.backends.cudnn.benchmark inside the block, as the protocol specifies."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@dataclass
class _RandomTurns(Turns):
    """Runs the network on random batches; no file is read."""

    height: int = 0
    width: int = 0

    def __call__(self, indices: list[int]) -> float:
        """Run a batch of normally distributed random numbers; return its model time per image in
        milliseconds."""
        shape = (len(indices), 3, self.height, self.width)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(indices[0])).to(
            self.subject.device
        )
        sizes = torch.tensor([[self.height, self.width]] * len(indices))
        return self.network(images, sizes, sizes, len(indices))


def measure_protocol(subject: Subject, spec: BenchmarkSpec) -> dict[str, Measurement]:
    """Time a model by the specification's protocol.

    Args:
        subject: model in any mode; left in evaluation mode.
        spec: names the protocol, the batch size and the images.

    Returns:
        model_ms: time of the protocol's phases per image, by the protocol's statistic.
    """
    subject.model.eval()
    protocol, clock = load_manifests().protocol(spec.protocol), PhaseClock(subject.device)
    if protocol.input == "random":
        turns: Turns = _RandomTurns(subject, spec, clock, protocol.height or 0, protocol.width or 0)
        batches = [
            list(range(place * spec.batch_size, (place + 1) * spec.batch_size))
            for place in range(protocol.turns or 1)
        ]
    else:
        turns, batches = Turns(subject, spec, clock), timed_batches(len(subject.dataset), spec)
    with (
        cudnn_benchmark(protocol.cudnn_benchmark),
        progress(f"{subject.entry.name}: protocol {spec.protocol}", len(batches)) as tick,
    ):
        for batch in batches:
            turns(batch)
            tick()
    samples = clock.sums_ms(protocol.inside)[protocol.skip :] or clock.sums_ms(protocol.inside)
    inside = " + ".join(COVERS[phase] for phase in protocol.inside)
    found = summarise(
        samples,
        "ms",
        covers=f"{inside}; batch {spec.batch_size}, per image; {protocol.title}",
        note=f"protocol {spec.protocol}"
        + (", cudnn.benchmark as in the source" if protocol.cudnn_benchmark else ""),
    )
    value = {"mean": sum(samples) / len(samples), "last": samples[-1], "median": found.value}[
        protocol.statistic
    ]
    if protocol.statistic != "median":
        found = found.model_copy(update={"value": value, "statistic": protocol.statistic, "interval": None})
    return {"model_ms": found}
