"""What rounding allows a recorded training, and that mistakes differ all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.parity import updates
from detection_zoo.zoo.parity.rounding import MOST, MULTIPLE, Quantity, measured_rounding, summed_by
from detection_zoo.zoo.training.recipe import build_optimizer

# of V-39 of VoVNet in updates 1 and 2, between one thread and two; parameters (in lengths of their way) from
# update 0 on
V39 = {"loss": [1e-7, 7e-7], "grad": [1.3e-5, 6.5e-4], "buffer": [2.2e-5, 3.2e-4], "param": [0.0, 2e-5, 1e-4]}


def _quantity(kind: str, steps: list[float] | None = None) -> Quantity:
    size = np.full(3, 2.0)
    return Quantity(kind, kind, size, 1e-3, None if steps is None else np.array(steps))


def test_rounding_is_the_largest_of_a_kind_so_far() -> None:
    quantities = [_quantity("loss"), _quantity("grad"), replace(_quantity("grad"), name="other")]
    first = {"loss": np.zeros(3), "grad": np.zeros((3, 2)), "other": np.zeros(3)}
    second = {
        "loss": np.array([0.0, 0.2, 0.1]),
        "grad": np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]),
        "other": np.array([0.0, 0.0, 8.0]),
    }
    found = measured_rounding(quantities, [first, second, first])
    assert found["loss"].tolist() == [0.0, 0.1, 0.1] and found["grad"].tolist() == [2.5, 2.5, 4.0]


def test_a_number_is_allowed_its_tolerance_or_a_multiple_of_rounding_and_never_more_than_the_most() -> None:
    one = _quantity("grad")
    assert one.allowed({}).tolist() == [1e-3] * 3 and one.allowed({"loss": np.ones(3)}).tolist() == [1e-3] * 3
    assert one.allowed({"grad": np.array([1e-5, 2e-3, 9.0])}).tolist() == [1e-3, MULTIPLE * 2e-3, MOST]


def test_rounding_of_parameters_is_counted_in_the_way_that_they_went() -> None:
    one = _quantity("param", [0.0, 0.1, 0.2])
    second = {"param": np.array([0.0, 0.02, 0.02])}
    found = measured_rounding([one], [{"param": np.zeros(3)}, second])
    np.testing.assert_allclose(found["param"], [0.0, 0.1, 0.1])
    np.testing.assert_allclose(one.allowed(found), [1e-3, MOST * 0.1, MOST * 0.2])
    tight = replace(one, tolerance=1e-6)
    np.testing.assert_allclose(tight.allowed({"param": np.full(3, 1e-3)}), [1e-6, 1e-3, 2e-3])


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 5)
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.constant_(self.layer.bias, 0.1)


def _small(recorded: updates.Recorded) -> updates.Replay:
    model = _Small()
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 4, 4, generator=draw)

    def losses(number: int, batch: updates.Batch) -> dict[str, torch.Tensor]:
        found = model.layer(batch[0].flatten(1) * (number + 1)).relu()
        return {"square": found.square().mean(), "linear": found.mean()}

    schedule = Schedule(images_per_batch=2, lr=1e-4, momentum=0.9, weight_decay=1e-4, weight_decay_bias=1e-4)
    names = {name: name for name, _ in model.named_parameters()}
    batches = ((images, torch.tensor([[4, 4]] * 2), []) for _ in range(recorded.forwards))
    return updates.Replay(model, names, schedule, losses, batches)


@pytest.fixture
def small(tmp_path: Path) -> updates.Recorded:
    """Two updates of a small network, as a recording of them has them."""
    rules = {"weight_decay": 1e-4, "momentum": 0.9, "nesterov": False}
    meta = {"updates": 2, "forwards": 2, "watched": ["layer.weight", "layer.bias"]}
    bare = updates.Recorded(tmp_path, "steps", {}, {**meta, "parameter_groups": [rules]})
    seen = {"lr": np.full((2, 1), 1e-4), "loss|square": np.zeros(2), "loss|linear": np.zeros(2)}
    for number in range(2):
        (images, _, _), *_ = _small(bare).batches
        kept = {"shape": np.array(images.shape), "stride": np.array(1), "samples": images.flatten().numpy()}
        seen |= {f"input|{number}|{part}": value for part, value in kept.items()}
    made = updates._make_updates(_small(bare), replace(bare, arrays=seen))
    return replace(bare, arrays={**seen, **made.numbers})


def _with_rule(replay: updates.Replay, **factors: float) -> updates.Replay:
    """The replay with fields of its schedule multiplied."""
    changes = {name: getattr(replay.schedule, name) * factor for name, factor in factors.items()}
    return replace(replay, schedule=replay.schedule.model_copy(update=changes))


def _with_terms(replay: updates.Replay, **factors: float) -> updates.Replay:
    """The replay with terms of its loss multiplied; those times 0 are left out."""
    whole = replay.losses

    def losses(*batch: object) -> dict[str, torch.Tensor]:
        found = whole(*batch)
        return {name: found[name] * factors.get(name, 1.0) for name in found if factors.get(name) != 0}

    return replace(replay, losses=losses)


def _differing(made: updates._Made) -> set[str]:
    """Lines that differ where rounding is as large as V-39's."""
    lines = made.compare({kind: np.array(apart) for kind, apart in V39.items()})
    return {one.name.removeprefix("steps.") for one in lines if one.verdict == "differs"}


@pytest.mark.parametrize("rule", ["momentum", "weight_decay"])
def test_a_rule_that_is_off_by_one_per_cent_differs(small: updates.Recorded, rule: str) -> None:
    replay = _with_rule(_small(small), **{rule: 1.01})
    lines = updates.Lines("steps")
    updates._compare_groups(lines, build_optimizer(replay.model, replay.schedule), replay, small)
    assert [one.name for one in lines.lines if one.verdict == "differs"] == ["steps.group_rules_that_differ"]


def test_a_rate_and_a_term_that_are_off_by_one_per_cent_differ(small: updates.Recorded) -> None:
    replay = _with_terms(_with_rule(_small(small), lr=1.01), linear=1.01)
    found = _differing(updates._make_updates(replay, small))
    assert found >= {"lr", "loss.linear"} and "loss.square" not in found


def test_a_term_that_is_left_out_differs(small: updates.Recorded) -> None:
    replay = _with_terms(_small(small), linear=0)
    found = _differing(updates._make_updates(replay, small))
    assert found >= {"loss_names_that_differ", "loss.linear"}


def test_a_number_beyond_its_tolerance_is_judged_by_updates_made_with_other_sums(
    small: updates.Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, notes = updates.replayed(_small, small)
    assert len(lines) > 20 and not notes and all(one.verdict == "ok" for one in lines)
    arrays = {name: array.copy() for name, array in small.arrays.items()}
    arrays["buffer_abs|layer.weight"][1] *= 1.002  # twice the tolerance
    wrong = replace(small, arrays=arrays)
    lines, notes = updates.replayed(_small, wrong)
    assert [one.name for one in lines if one.verdict == "differs"] == ["steps.buffer_abs.layer.weight"]
    assert "with sums in another order (one thread; no oneDNN)" in notes[0]
    rounding = {kind: np.array(apart) for kind, apart in V39.items()}
    monkeypatch.setattr(updates, "measured_rounding", lambda *_: rounding)
    lines, _ = updates.replayed(_small, wrong)
    (line,) = [one for one in lines if one.name == "steps.buffer_abs.layer.weight"]
    assert all(one.verdict == "ok" for one in lines) and line.tolerance == MULTIPLE * V39["buffer"][1]


def test_sums_in_another_order_leave_settings_as_they_were() -> None:
    before = torch.get_num_threads(), torch.backends.mkldnn.enabled
    with summed_by(3, onednn=False):
        assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == (3, False)
    assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == before
