"""Planted slow-downs: real extra work of a known share of a model's time, by which a comparison can be
tested."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from detection_zoo.benchmarks.compare.paired import hodges_lehmann
from detection_zoo.benchmarks.measure.timing import synchronise

if TYPE_CHECKING:
    from detection_zoo.benchmarks.compare.contestant import Contestant

SIDE = 128
BURST = 0.2  # of a turn: how long the units run that are timed together


class ExtraWork:
    """Products of two small matrices on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.left = self.right = torch.ones(SIDE, SIDE, device=device) / SIDE
        self.out = torch.empty_like(self.left)

    def do(self, units: int) -> None:
        """So many products."""
        for _ in range(units):
            torch.mm(self.left, self.right, out=self.out)

    def time_ms(self, units: int) -> float:
        """Milliseconds of so many products: of the processor on a CPU, of the wall on a GPU."""
        now = time.process_time if self.device.type == "cpu" else time.perf_counter
        synchronise(self.device)
        start = now()
        self.do(units)
        synchronise(self.device)
        return (now() - start) * 1e3


def with_extra_work(model: nn.Module, work: ExtraWork, units: int) -> nn.Module:
    """The same detector, doing so many more products an image in its forward phase; images (N, 3, H, W)."""
    raw = model.raw

    def slowed(images: torch.Tensor, sizes: torch.Tensor):
        found = raw(images, sizes)
        work.do(units * len(images))
        return found

    model.raw = slowed
    return model


def cost_of_unit(contestant: Contestant, pairs: int) -> float:
    """What one product costs as a fraction of the model time of an image, from so many alternating pairs of
    turns and bursts."""
    work, on_cpu = ExtraWork(contestant.subject.device), contestant.subject.device.type == "cpu"
    name = "model_cpu_ms" if on_cpu else "model_ms"
    turn_ms = contestant.turn([0])[name]
    work.do(100)
    units = max(1, round(BURST * turn_ms / (work.time_ms(1000) / 1000)))
    costs = []
    for number in range(pairs):
        image_ms = contestant.turn([number % len(contestant.batches)])[name]
        costs.append(work.time_ms(units) / units / image_ms)
        contestant.beat()
    return hodges_lehmann(costs)
