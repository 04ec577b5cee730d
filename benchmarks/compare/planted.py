"""Injected slow-downs: extra work of a known fraction of a model's time, to test comparisons."""

from __future__ import annotations

import time

import torch
from torch import nn

from detection_zoo.benchmarks.measure.timing import synchronise

SIDE = 128


class ExtraWork:
    """Products of two small matrices on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.left = self.right = torch.ones(SIDE, SIDE, device=device) / SIDE
        self.out = torch.empty_like(self.left)

    def do(self, units: int) -> None:
        """Do `units` products."""
        for _ in range(units):
            torch.mm(self.left, self.right, out=self.out)

    def time_ms(self, units: int) -> float:
        """Return the milliseconds of `units` products: CPU time on a CPU, wall time on a GPU."""
        now = time.process_time if self.device.type == "cpu" else time.perf_counter
        synchronise(self.device)
        start = now()
        self.do(units)
        synchronise(self.device)
        return (now() - start) * 1e3


def with_extra_work(model: nn.Module, work: ExtraWork, units: int) -> nn.Module:
    """Let a detector do `units` extra products per image in its forward phase; images (N, 3, H, W)."""
    raw = model.raw

    def slowed(images: torch.Tensor, sizes: torch.Tensor):
        found = raw(images, sizes)
        work.do(units * len(images))
        return found

    model.raw = slowed
    return model
