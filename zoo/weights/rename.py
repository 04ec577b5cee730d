"""Rename the tensors of a checkpoint file to a model's names, accounting for every tensor. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError

SHOWN = 6  # names printed of a long list
COUNTERS = (
    r".*\.num_batches_tracked"  # of trained batch norms: frozen norms have none, nor files of PyTorch 0.4
)
Rules = Sequence[tuple[str, str]]  # regular expression, replacement


@dataclass
class Translation:
    """A file's tensors under a model's names.

    state: model name -> array. origin: model name -> file name. dropped: file name -> why the model needs no
        such tensor.
    aliases: model name -> an earlier file name of the same tensor, if a file has a shared module twice.
    defaults: regular expression of model names that this format may lack; those keep their initial value.
    optional: (regular expression of model names, why a model may lack them); such tensors of the file are
        left out.
    """

    state: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    defaults: str | None = None
    optional: tuple[tuple[str, str], ...] = ()

    def put(self, name: str, array: Any, origin: str) -> None:
        """Add a tensor under the model's name, with its name in the file."""
        self.state[name], self.origin[name] = array, origin

    def without(self, name: str) -> str | None:
        """Why a model may lack a tensor of that name, or None."""
        return next((why for pattern, why in self.optional if re.fullmatch(pattern, name)), None)


@dataclass(frozen=True)
class CheckpointFormat:
    """How one kind of file is read and renamed.

    read: path -> arrays by the file's own names. rules: those, without the prefixes of wrappers ->
        Translation.
    """

    read: Callable[[Path], dict[str, Any]]
    rules: Callable[[dict[str, Any]], Translation]

    def translate(self, arrays: Mapping[str, Any]) -> Translation:
        """The arrays of a file under the model's names.

        Raises:
            CheckpointError: two names become one, or the file has a layer that the model cannot have.
        """
        plain, dropped = plain_names(arrays)
        result = self.rules(plain)
        result.dropped.update(dropped)
        return result


@dataclass(frozen=True)
class LoadReport:
    """Outcome for every tensor of a file and of a model.

    matched, defaulted (kept at their initial value, as the format allows), missing: model names. unexpected:
    file names.
    wrong_shape: (model name, shape in the file, shape in the model). dropped: file name -> why it is not
        needed.
    """

    where: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    dropped: Mapping[str, str]
    defaulted: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model and of the file is accounted for."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def summary(self) -> str:
        """One line: how many of each."""
        text = (
            f"{self.where}: {len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)}"
            " unexpected"
        )
        text += f", {len(self.wrong_shape)} of wrong shape"
        for count, word in (
            (len(self.dropped), "left out"),
            (len(self.defaulted), "kept at their initial value"),
        ):
            text += f", {count} {word}" if count else ""
        return text

    def require_complete(self) -> LoadReport:
        """The report itself; raises CheckpointError that lists what does not fit."""
        if self.complete:
            return self
        problems = [
            f"{word}: {listed(names)}"
            for word, names in (
                ("missing from the file", self.missing),
                ("unknown to the model", self.unexpected),
                (
                    "shape mismatch",
                    [
                        f"{name} {list(there)} in the file, {list(here)} in the model"
                        for name, there, here in self.wrong_shape
                    ],
                ),
            )
            if names
        ]
        advice = "is it the file of this row, and the right checkpoint format? Nothing was loaded"
        raise CheckpointError("\n  ".join([self.summary(), *problems, advice]))


def listed(names: Iterable[str]) -> str:
    """The first names of a list, and how many there are."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def rename(name: str, rules: Rules) -> str:
    """Apply all rules to a name, in order; each replaces every match of its expression."""
    return _renamed(name, tuple(rules))


@lru_cache(1 << 14)
def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The same; files of a format have most names in common."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def translate_names(
    arrays: Mapping[str, Any],
    rules: Rules,
    drop: Sequence[tuple[str, str]] = (),
    *,
    last_wins: bool = False,
    defaults: str | None = None,
) -> Translation:
    """Rename every tensor of a file.

    Args:
        arrays: by file name.
        rules: applied in order to each name.
        drop: (regular expression that a whole file name matches, why the tensor is not needed).
        last_wins: two file names may become one model name (a module saved twice); the later one counts, the
            earlier is listed as dropped.
        defaults: of the Translation.

    Raises:
        CheckpointError: two file names become one model name, without `last_wins`.
    """
    result = Translation(defaults=defaults)
    for name, array in arrays.items():
        reason = next((why for pattern, why in drop if re.fullmatch(pattern, name)), None)
        if reason is not None:
            result.dropped[name] = reason
            continue
        target = rename(name, rules)
        if target in result.state:
            if not last_wins:
                raise CheckpointError(
                    f"both {result.origin[target]} and {name} of the file are {target} of the model; is it a"
                    " checkpoint of another format?"
                )
            result.aliases.setdefault(target, result.origin[target])
            result.dropped[result.origin[target]] = (
                f"the same module as {name}, which comes later in the file"
            )
        result.put(target, array, name)
    return result


def with_counters(translation: Translation) -> Translation:
    """The translation for models and files that may lack the counters of batch norms."""
    translation.defaults = COUNTERS
    translation.optional = ((COUNTERS, "a counter of training, which frozen norms do not keep"),)
    return translation


def need(arrays: Mapping[str, Any], name: str) -> Any:
    """An array of a file; raises CheckpointError where it is missing."""
    if name not in arrays:
        raise CheckpointError(f"the file lacks {name}; is it cut short? fetch it again")
    return arrays[name]


def plain_names(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Names without the prefixes of wrappers: `module.` if all have it (DataParallel), `_orig_mod.`
    (torch.compile).

    Returns:
        The arrays, and the names left out with the reason: the counter of averaged weights.

    Raises:
        CheckpointError: two names become one.
    """
    averaged = "n_averaged" in arrays and all(n.startswith("module.") or n == "n_averaged" for n in arrays)
    dropped = {"n_averaged": "a counter of averaged weights"} if averaged else {}
    names = {name: re.sub(r"(^|\.)(_orig_mod\.)+", r"\1", name) for name in arrays if name not in dropped}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {own: name.removeprefix("module.") for own, name in names.items()}
    plain: dict[str, Any] = {}
    for own, name in names.items():
        if name in plain:
            raise CheckpointError(
                f"the file has {own} and another tensor that also maps to {name} of the model"
            )
        plain[name] = arrays[own]
    return plain, dropped


def account(translation: Translation, shapes: Mapping[str, tuple[int, ...]], where: str) -> LoadReport:
    """Compare a translated file with a model.

    Args:
        translation: the file's tensors.
        shapes: what the model needs, by name.
        where: file and row, for messages.
    """
    matched, wrong = [], []
    for name in sorted(translation.state.keys() & shapes.keys()):
        there = tuple(translation.state[name].shape)
        if there == tuple(shapes[name]):
            matched.append(name)
        else:
            wrong.append((name, there, tuple(shapes[name])))
    absent = [name for name in shapes if name not in translation.state]
    defaulted = [name for name in absent if translation.defaults and re.fullmatch(translation.defaults, name)]
    extra = [name for name in translation.state if name not in shapes]
    dropped = {
        translation.origin.get(name, name): why for name in extra if (why := translation.without(name))
    }
    unexpected = [file for name in extra if (file := translation.origin.get(name, name)) not in dropped]
    missing = [name for name in absent if name not in set(defaulted)]
    return LoadReport(
        where,
        tuple(matched),
        tuple(missing),
        tuple(unexpected),
        tuple(wrong),
        {**translation.dropped, **dropped},
        tuple(defaulted),
    )
