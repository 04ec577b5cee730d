"""The time that a dry run estimates."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from detection_zoo.benchmarks.train import dry_run
from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.training.distributed import Process
from detection_zoo.zoo.training.plan import Plan

COMPILING, PASS = 100.0, 2.0  # seconds


class _SlowAtFirst(nn.Module):
    """A model whose first pass takes longer, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.now = nn.Linear(3, 1), 0.0

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        self.now += PASS if self.now else COMPILING
        return {"loss": self.layer(values).sum()}


def test_the_first_pass_which_compiles_operators_is_not_in_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _SlowAtFirst()
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: model.now))
    schedule = Schedule(
        images_per_batch=2, lr=0.1, momentum=0.9, weight_decay=0.0, weight_decay_bias=0.0, iterations=5
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = dry_run.look_ahead(
        model, [(torch.ones(2, 3),)], Plan(schedule, 5, 1, 1), Process(0, 1, torch.device("cpu")), None
    )
    assert (found["seconds_of_an_update"], found["seconds"]) == (PASS, 5 * PASS)
    assert found["memory_mib"]["activations"] >= 0 and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
