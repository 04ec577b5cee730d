"""Replay of recorded updates: this project's recipe, loop and model beside the original training script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detection_zoo.zoo.manifest import Schedule
from detection_zoo.zoo.parity.base import ADAPTERS, ParityLine, relative_difference
from detection_zoo.zoo.parity.files import ParityError, read_arrays, read_json
from detection_zoo.zoo.parity.prose import read_settings
from detection_zoo.zoo.parity.rounding import (
    Arrays,
    Quantity,
    double_squares,
    double_sums,
    measured_rounding,
    rounding_note,
    summed_by,
)
from detection_zoo.zoo.parity.settings import Settings
from detection_zoo.zoo.records import Target
from detection_zoo.zoo.training.loop import train_steps
from detection_zoo.zoo.training.recipe import build_optimizer

FILE = "train_steps.npz"
FIRST = 8  # numbers of each tensor that are recorded
INPUTS, RATES, STATISTICS = 1e-5, 1e-12, 1e-5
THREADS = 2  # of the recordings: freshly filled networks amplify sums in another order, from update to update
Batch = tuple[Tensor, Tensor, list[Target]]


@dataclass(frozen=True)
class Tolerances:
    """Allowed differences: of losses, relative; of gradients, in norms; of parameters' sums and of momentum,
    in sums of magnitudes."""

    losses: float = 1e-4
    gradients: float = 1e-3
    parameters: float = 1e-6
    momentum: float = 1e-3


@dataclass(frozen=True)
class Recorded:
    """One run of a folder: its arrays without the run's name, and its description in the folder."""

    folder: Path
    name: str
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    settings: Settings = Settings()

    def array(self, name: str) -> np.ndarray:
        """An array of this run; raises ParityError where it is missing."""
        if name not in self.arrays:
            raise ParityError(f"{self.folder / FILE}: has no array {self.name}|{name}")
        return self.arrays[name]

    def tensor(self, name: str) -> Tensor:
        """The same as a tensor: float32 or int64."""
        value = torch.from_numpy(self.array(name))
        return value.float() if value.is_floating_point() else value.long()

    @property
    def updates(self) -> int:
        """Updates of the run."""
        return int(self.meta["updates"])

    @property
    def forwards(self) -> int:
        """Forward passes of the run."""
        return int(self.meta["forwards"])

    @property
    def data(self) -> Path:
        """The images that every source trained on."""
        return self.folder.parent.parent / "train_data"


def read_runs(folder: Path) -> tuple[dict[str, Any], list[Recorded]]:
    """A folder's description, and its runs.

    Raises:
        ParityError: a file is missing or cannot be read.
    """
    wanted = f"train_steps.json and {FILE}"
    meta = read_json(folder / "train_steps.json", wanted)
    arrays = read_arrays(folder / FILE, wanted)
    settings = read_settings(folder, meta, ADAPTERS.get(meta["source"].split("@")[0], ""))
    runs = []
    for name, described in meta["runs"].items():
        own = {key.split("|", 1)[1]: array for key, array in arrays.items() if key.startswith(f"{name}|")}
        runs.append(Recorded(folder, name, own, described, settings))
    return meta, runs


@dataclass
class Replay:
    """A run set up here.

    model: with the weights of the start, in training mode. names: the original's name of a parameter or
    buffer -> the one here. losses: of a batch, given the pass's number, by the recorded names. batches: one a
    pass. first: updates made before the run. per_epoch: updates an epoch. held: updates in which more
    than rates are compared; None: all. unused: parameters that the original builds and never uses.
    order: the images of each pass as this project's data pipeline orders them, each with whether it is
    flipped, or with the seed of its augmentation. truth: the objects of a batch as the folder writes them, by
    the array's name.
    """

    model: nn.Module
    names: Mapping[str, str]
    schedule: Schedule
    losses: Callable[[int, Batch], dict[str, Tensor]]
    batches: Iterable[Batch]
    tolerances: Tolerances = Tolerances()
    first: int = 0
    per_epoch: int | None = None
    held: int | None = None
    unused: frozenset[str] = frozenset()
    order: Sequence[Sequence[tuple[int, int]]] = ()
    truth: Callable[[Batch], dict[str, np.ndarray]] | None = None


class _Passes(nn.Module):
    """The model as the loop calls it: pass after pass, with the draws that were recorded."""

    def __init__(self, replay: Replay, recorded: Recorded) -> None:
        super().__init__()
        self.model, self.replay, self.recorded = replay.model, replay, recorded
        self.losses: list[dict[str, float]] = []
        self.inputs: list[float] = []  # relative difference of each pass's images, and of its objects
        self.truth: dict[str, list[float]] = {}

    def forward(self, images: Tensor, sizes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        number, batch = len(self.losses), (images, sizes, targets)
        self.inputs.append(self._input_difference(number, images))
        for name, value in (self.replay.truth(batch) if self.replay.truth else {}).items():
            kept = self.recorded.array(f"{name}|{number}")
            apart = relative_difference(value, kept) if value.shape == kept.shape else np.inf
            self.truth.setdefault(name, []).append(apart)
        losses = self.replay.losses(number, batch)
        self.losses.append({name: float(value.detach()) for name, value in losses.items()})
        return losses

    def _input_difference(self, number: int, images: Tensor) -> float:
        """Of images (N, 3, H, W) from the recorded samples of them."""
        kept = {
            part: self.recorded.array(f"input|{number}|{part}") for part in ("shape", "stride", "samples")
        }
        if tuple(images.shape) != tuple(kept["shape"]):
            return np.inf
        values = images.reshape(-1)[:: int(kept["stride"])][: len(kept["samples"])].numpy()
        size = max(float(np.linalg.norm(kept["samples"])), 1e-12)
        return float(np.linalg.norm(values - kept["samples"])) / size


@dataclass
class Lines:
    """Compared numbers of a run, one line a quantity: the largest difference over all updates."""

    run: str
    lines: list[ParityLine] = field(default_factory=list)

    def add(self, name: str, differences: Iterable[float], tolerance: float | np.ndarray) -> None:
        """One quantity: differences already divided by what they are measured in; the tolerance of all, or
        of each. Of several, the one that is nearest to its tolerance is shown."""
        values = np.nan_to_num(np.asarray(list(differences), np.float64), nan=np.inf)
        allowed = np.broadcast_to(np.asarray(tolerance, np.float64), values.shape)
        place = int(np.argmax(values / allowed)) if len(values) else 0
        worst, limit = (float(each[place]) if len(values) else 0.0 for each in (values, allowed))
        ok = worst <= limit
        self.lines.append(
            ParityLine(
                f"{self.run}.{name}",
                values.shape,
                worst,
                limit,
                "ok" if ok else "differs",
                None if ok else f"at update {place + 1}",
            )
        )

    def same(self, name: str, differing: int) -> None:
        """One quantity that must be equal: how many of its items are not."""
        self.lines.append(
            ParityLine(f"{self.run}.{name}", (), float(differing), 0.0, "differs" if differing else "ok")
        )


def replayed(set_up: Callable[[Recorded], Replay], recorded: Recorded) -> tuple[list[ParityLine], list[str]]:
    """Make the recorded updates with this project's loop and compare each with the record: lines, and notes.

    Where a number is further off than its tolerance, and none is further off than rounding is ever allowed,
    the updates are made twice more with sums in another order: `zoo.parity.rounding` gives the tolerance.

    Args:
        set_up: the run, anew each time. recorded: what was recorded of it.
    """
    with summed_by(THREADS):
        made = _make_updates(set_up(recorded), recorded)
    lines = made.compare({})
    most = made.compare({one.kind: np.full(recorded.forwards + 1, np.inf) for one in made.quantities()})
    if any(line.verdict != "ok" for line in most) or all(line.verdict == "ok" for line in lines):
        return lines, []
    others = []
    for onednn in (True, False):
        with summed_by(1, onednn=onednn):
            others.append(_make_updates(set_up(recorded), recorded).numbers)
    rounding = measured_rounding(made.quantities(), [made.numbers, *others])
    return made.compare(rounding), [f"{recorded.name}: {rounding_note(rounding)}"]


def _make_updates(replay: Replay, recorded: Recorded) -> _Made:
    """Make the updates of a run."""
    passes = _Passes(replay, recorded)
    optimizer = build_optimizer(replay.model, replay.schedule)
    made = _Made(replay, recorded, passes, optimizer)
    hook = optimizer.register_step_pre_hook(lambda *_: made.before_update())
    for _ in train_steps(
        passes,
        replay.batches,
        optimizer,
        replay.schedule,
        iterations=replay.first + recorded.updates,
        start=replay.first,
        iterations_per_epoch=replay.per_epoch,
        accumulate=recorded.forwards // recorded.updates,
    ):
        made.after_update()
    hook.remove()
    return made


def _compare_groups(
    found: Lines, optimizer: torch.optim.Optimizer, replay: Replay, recorded: Recorded
) -> None:
    """Which parameters are trained, and the decay and momentum of each."""
    places = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(replay.model.named_parameters())
    ours = {theirs: parameters[name] for theirs, name in replay.names.items() if name in parameters}
    trained = {theirs for theirs, parameter in ours.items() if id(parameter) in places}
    members = group_members(recorded, list(ours))
    wanted = {name for group in members for name in group} - replay.unused
    found.same("trained_that_differ", len(trained ^ wanted))
    wrong = 0
    for group, described in zip(members, recorded.meta["parameter_groups"], strict=True):
        for name in set(group) - replay.unused:
            own = places.get(id(ours.get(name)), {})
            wrong += any(own.get(key) != described[key] for key in ("weight_decay", "momentum", "nesterov"))
    found.same("group_rules_that_differ", wrong)


def group_members(recorded: Recorded, every: list[str]) -> list[list[str]]:
    """The original's names of the parameters of each group of its optimiser."""
    described = recorded.meta.get("group_members")
    if described is None:  # one group of everything
        return [every]
    return [[item] if isinstance(item, str) else list(item) for item in described]


class _Made:
    """The updates of a run as they are made: what is measured in each, beside what was recorded of it."""

    def __init__(
        self, replay: Replay, recorded: Recorded, passes: _Passes, optimizer: torch.optim.Optimizer
    ) -> None:
        self.replay, self.recorded, self.passes, self.optimizer = replay, recorded, passes, optimizer
        self.held = replay.held or recorded.updates
        tensors = {**dict(replay.model.named_parameters()), **dict(replay.model.named_buffers())}
        self.watched = {name: tensors[replay.names[name]] for name in recorded.meta["watched"]}
        self.statistics = {name: tensors[replay.names[name]] for name in recorded.meta.get("statistics", ())}
        self.seen: dict[str, list[Any]] = {}
        self._look_at_parameters()

    def note(self, name: str, value: Any) -> None:
        self.seen.setdefault(name, []).append(value)

    def _look_at_parameters(self) -> None:
        for kind, tensors in (("param", self.watched), ("stat", self.statistics)):
            for name, tensor in tensors.items():
                self._note_sums(kind, name, tensor)

    def _note_sums(self, kind: str, name: str, tensor: Tensor) -> None:
        values = tensor.detach().reshape(-1)
        total, magnitudes = double_sums(values)
        self.note(f"{kind}_sum|{name}", total)
        self.note(f"{kind}_abs|{name}", magnitudes)
        self.note(f"{kind}_first|{name}", values[:FIRST].double().numpy())

    def before_update(self) -> None:
        """Gradients and rates, just before the update."""
        places = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        squares = {id(p): double_squares(p.grad) for p in places}
        self.note("grad_norm_all", sum(squares.values()) ** 0.5)
        for name, parameter in self.watched.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()
            self.note(f"grad_norm|{name}", squares.get(id(parameter), 0.0) ** 0.5)
            self.note(f"grad_first|{name}", gradient.reshape(-1)[:FIRST].double().numpy())
        self.note(
            "rates", {id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        )

    def after_update(self) -> None:
        """Parameters, running statistics and momentum, after the update."""
        self._look_at_parameters()
        for name, parameter in self.watched.items():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            self._note_sums("buffer", name, torch.zeros_like(parameter) if buffer is None else buffer)

    @property
    def numbers(self) -> Arrays:
        """Everything seen, by the recorded names."""
        losses = self.passes.losses
        terms = {f"loss|{name}": np.array([each.get(name, np.nan) for each in losses]) for name in self.terms}
        total = np.array([sum(each.values()) for each in losses])
        seen = {name: np.asarray(values) for name, values in self.seen.items() if name != "rates"}
        return {**seen, **terms, "loss_total": total}

    @property
    def terms(self) -> list[str]:
        """Recorded names of the losses."""
        return [key.split("|", 1)[1] for key in self.recorded.arrays if key.startswith("loss|")]

    def quantities(self) -> list[Quantity]:
        """What is compared, over the updates that are compared."""
        recorded, allowed, held = self.recorded, self.replay.tolerances, self.held
        passes = held * recorded.forwards // recorded.updates
        found = []
        for name in (*(f"loss|{name}" for name in self.terms), "loss_total"):
            size = np.maximum(np.abs(recorded.array(name)[:passes]), 1e-8)
            found.append(Quantity(name, "loss", size, allowed.losses))
        norm = recorded.array("grad_norm_all")[:held]
        found.append(Quantity("grad_norm_all", "grad", norm, allowed.gradients))
        for name in self.watched:
            norm = recorded.array(f"grad_norm|{name}")[:held]
            for part in ("norm", "first"):
                found.append(Quantity(f"grad_{part}|{name}", "grad", norm, allowed.gradients))
            size, way = recorded.array(f"param_abs|{name}")[: held + 1], self._way(name)
            for part in ("sum", "abs", "first"):
                found.append(Quantity(f"param_{part}|{name}", "param", size, allowed.parameters, way))
            size = recorded.array(f"buffer_abs|{name}")[:held]
            for part in ("sum", "abs", "first"):
                found.append(Quantity(f"buffer_{part}|{name}", "buffer", size, allowed.momentum))
        for name in self.statistics:
            size = recorded.array(f"stat_abs|{name}")[: held + 1]
            for part in ("sum", "abs", "first"):
                found.append(Quantity(f"stat_{part}|{name}", "stat", size, STATISTICS))
        return found

    def _way(self, name: str) -> np.ndarray:
        """The most that a parameter's sum of magnitudes can have changed by each update, over that sum:
        rates times momentum, added up."""
        recorded = self.recorded
        groups = group_members(recorded, list(self.replay.names))
        place = next(place for place, group in enumerate(groups) if name in group)
        steps = recorded.array("lr")[: self.held, place] * recorded.array(f"buffer_abs|{name}")[: self.held]
        way = np.concatenate([[0.0], np.cumsum(steps)])
        return way / np.maximum(recorded.array(f"param_abs|{name}")[: self.held + 1], 1e-12)

    def compare(self, rounding: Arrays) -> list[ParityLine]:
        """One line a quantity, over the updates that are compared; rates over all."""
        found, recorded, replay = Lines(self.recorded.name), self.recorded, self.replay
        _compare_groups(found, self.optimizer, replay, recorded)
        found.add("input", self.passes.inputs, INPUTS)
        for name, differences in self.passes.truth.items():
            found.add(name, differences, INPUTS)
        if replay.order:
            wanted = [recorded.array(f"images|{number}").tolist() for number in range(recorded.forwards)]
            own = [[list(image) for image in batch] for batch in replay.order[: recorded.forwards]]
            found.same("images_in_another_order", sum(a != b for a, b in zip(own, wanted, strict=True)))
        found.same("loss_names_that_differ", len(set(self.terms) ^ set(self.passes.losses[0])))
        self._compare_rates(found)
        numbers = self.numbers
        for one in self.quantities():
            apart = one.apart(numbers, recorded.arrays)
            found.add(one.name.replace("|", "."), apart, one.allowed(rounding))
        return found.lines

    def _compare_rates(self, found: Lines) -> None:
        """The rate of every parameter in every update, relative."""
        parameters = dict(self.replay.model.named_parameters())
        worst = np.zeros(self.recorded.updates)
        recorded = self.recorded.array("lr")[: len(worst)]
        for place, group in enumerate(group_members(self.recorded, list(self.replay.names))):
            for name in group:
                own = parameters.get(self.replay.names.get(name, ""))
                if own is None or not own.requires_grad:
                    continue
                rates = np.array([seen[id(own)] for seen in self.seen["rates"]])
                worst = np.maximum(worst, np.abs(rates / recorded[:, place] - 1))
        found.add("lr", worst, RATES)
