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
from detection_zoo.zoo.parity.base import ParityLine, relative_difference
from detection_zoo.zoo.parity.files import ParityError, read_arrays, read_json
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
    in sums of magnitudes. gradient_updates: the first so many alone are held to that of gradients; None:
    all."""

    losses: float = 1e-4
    gradients: float = 1e-3
    parameters: float = 1e-6
    momentum: float = 1e-3
    gradient_updates: int | None = None


@dataclass(frozen=True)
class Recorded:
    """One run of a folder: its arrays without the run's name, and what the folder says of it."""

    folder: Path
    name: str
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    caution: str = ""

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
    """What a folder says of itself, and its runs.

    Raises:
        ParityError: a file is missing or cannot be read.
    """
    wanted = f"train_steps.json and {FILE}"
    meta = read_json(folder / "train_steps.json", wanted)
    arrays = read_arrays(folder / FILE, wanted)
    runs = []
    for name, described in meta["runs"].items():
        own = {key.split("|", 1)[1]: array for key, array in arrays.items() if key.startswith(f"{name}|")}
        runs.append(Recorded(folder, name, own, described, meta.get("caution", "")))
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

    def add(self, name: str, differences: Iterable[float] | np.ndarray, tolerance: float) -> None:
        """One quantity: differences already divided by what they are measured in."""
        values = np.asarray(list(differences), np.float64)
        worst = float(np.nan_to_num(values, nan=np.inf).max(initial=0.0))
        ok = worst <= tolerance
        reason = None if ok else f"at update {int(np.argmax(np.nan_to_num(values, nan=np.inf))) + 1}"
        self.lines.append(
            ParityLine(
                f"{self.run}.{name}", values.shape, worst, tolerance, "ok" if ok else "differs", reason
            )
        )

    def same(self, name: str, differing: int) -> None:
        """One quantity that must be equal: how many of its items are not."""
        self.lines.append(
            ParityLine(f"{self.run}.{name}", (), float(differing), 0.0, "differs" if differing else "ok")
        )


def replayed(replay: Replay, recorded: Recorded) -> list[ParityLine]:
    """Make the recorded updates with this project's loop and compare each with what was recorded of it."""
    found = Lines(recorded.name)
    passes = _Passes(replay, recorded)
    optimizer = build_optimizer(replay.model, replay.schedule)
    _compare_groups(found, optimizer, replay, recorded)
    watch = _Watch(replay, recorded, optimizer)
    steps = train_steps(
        passes,
        replay.batches,
        optimizer,
        replay.schedule,
        iterations=replay.first + recorded.updates,
        start=replay.first,
        iterations_per_epoch=replay.per_epoch,
        accumulate=recorded.forwards // recorded.updates,
    )
    for _ in steps:
        watch.after_update()
    found.add("input", passes.inputs, INPUTS)
    for name, differences in passes.truth.items():
        found.add(name, differences, INPUTS)
    if replay.order:
        wanted = [recorded.array(f"images|{number}").tolist() for number in range(recorded.forwards)]
        own = [[list(image) for image in batch] for batch in replay.order[: recorded.forwards]]
        found.same("images_in_another_order", sum(a != b for a, b in zip(own, wanted, strict=True)))
    held = replay.held or recorded.updates
    _compare_losses(found, passes.losses, recorded, held * recorded.forwards // recorded.updates, replay)
    watch.compare(found, held)
    return found.lines


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


class _Watch:
    """What is looked at in every update, beside what was recorded of it."""

    def __init__(self, replay: Replay, recorded: Recorded, optimizer: torch.optim.Optimizer) -> None:
        self.replay, self.recorded, self.optimizer = replay, recorded, optimizer
        tensors = {**dict(replay.model.named_parameters()), **dict(replay.model.named_buffers())}
        self.watched = {name: tensors[replay.names[name]] for name in recorded.meta["watched"]}
        self.statistics = {name: tensors[replay.names[name]] for name in recorded.meta.get("statistics", ())}
        self.seen: dict[str, list[Any]] = {}
        optimizer.register_step_pre_hook(lambda *_: self.before_update())
        self._look_at_parameters()

    def note(self, name: str, value: Any) -> None:
        self.seen.setdefault(name, []).append(value)

    def _look_at_parameters(self) -> None:
        for kind, tensors in (("param", self.watched), ("stat", self.statistics)):
            for name, tensor in tensors.items():
                self._note_sums(kind, name, tensor)

    def _note_sums(self, kind: str, name: str, tensor: Tensor) -> None:
        values = tensor.detach().double().reshape(-1)
        self.note(f"{kind}_sum|{name}", float(values.sum()))
        self.note(f"{kind}_abs|{name}", float(values.abs().sum()))
        self.note(f"{kind}_first|{name}", values[:FIRST].numpy())

    def before_update(self) -> None:
        """Gradients and rates, just before the update."""
        squares = 0.0
        for group in self.optimizer.param_groups:
            squares += sum(
                float(p.grad.double().square().sum()) for p in group["params"] if p.grad is not None
            )
        self.note("grad_norm_all", squares**0.5)
        for name, parameter in self.watched.items():
            gradient = parameter.grad.detach().double().reshape(-1)
            self.note(f"grad_norm|{name}", float(gradient.norm()))
            self.note(f"grad_first|{name}", gradient[:FIRST].numpy())
        self.note(
            "rates", {id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        )

    def after_update(self) -> None:
        """Parameters, running statistics and momentum, after the update."""
        self._look_at_parameters()
        for name, parameter in self.watched.items():
            self._note_sums("buffer", name, self.optimizer.state[parameter]["momentum_buffer"])

    def compare(self, found: Lines, held: int) -> None:
        """One line a quantity, over the first `held` updates; rates over all."""
        tolerances = self.replay.tolerances
        self._compare_rates(found)
        first = min(held, tolerances.gradient_updates or held)
        self._compare(found, "grad_norm_all", "grad_norm_all", tolerances.gradients, first)
        for name in self.watched:
            norm, size = f"grad_norm|{name}", f"param_abs|{name}"
            self._compare(found, norm, norm, tolerances.gradients, first)
            self._compare(found, f"grad_first|{name}", norm, tolerances.gradients, first)
            self._compare(found, f"param_sum|{name}", size, tolerances.parameters, held + 1)
            self._compare(found, size, size, tolerances.parameters, held + 1)
            self._compare(found, f"param_first|{name}", size, tolerances.parameters, held + 1)
            size = f"buffer_abs|{name}"
            for part in ("sum", "abs", "first"):
                self._compare(found, f"buffer_{part}|{name}", size, tolerances.momentum, held)
        for name in self.statistics:
            for part in ("sum", "abs", "first"):
                self._compare(found, f"stat_{part}|{name}", f"stat_abs|{name}", STATISTICS, held + 1)

    def _compare(self, found: Lines, name: str, size: str, tolerance: float, held: int) -> None:
        """Differences in units of the recorded size."""
        recorded, sizes = self.recorded.array(name)[:held], self.recorded.array(size)[:held]
        apart = np.abs(np.asarray(self.seen[name])[:held] - recorded)
        if apart.ndim > 1:
            apart = np.linalg.norm(apart, axis=1)
        found.add(name.replace("|", "."), apart / np.maximum(sizes, 1e-12), tolerance)

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


def _compare_losses(
    found: Lines, losses: list[dict[str, float]], recorded: Recorded, held: int, replay: Replay
) -> None:
    """Each term of each pass, relative to itself; their sum too."""
    names = [key.split("|", 1)[1] for key in recorded.arrays if key.startswith("loss|")]
    found.same("loss_names_that_differ", len(set(names) ^ set(losses[0])))
    for name in names:
        own = np.array([each.get(name, np.nan) for each in losses])[:held]
        kept = recorded.array(f"loss|{name}")[:held]
        found.add(
            f"loss.{name}", np.abs(own - kept) / np.maximum(np.abs(kept), 1e-8), replay.tolerances.losses
        )
    total = np.array([sum(each.values()) for each in losses])[:held]
    kept = recorded.array("loss_total")[:held]
    found.add("loss_total", np.abs(total - kept) / np.abs(kept), replay.tolerances.losses)
