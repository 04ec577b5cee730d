"""Registries: a name to a builder, for backbones, necks, detectors and checkpoint formats."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SHOWN = 12  # at most so many names are listed where none is near


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known names; when none is near, all of
    them where they are few.

    Args:
        name: the requested name.
        known: the names that exist.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if not near and (letters := _letters(name)):  # a part of a long name, written differently
        near = sorted((n for n in known if letters in _letters(n)), key=len)[:3]
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    if len(known) > SHOWN:
        return f"none of the {len(known)} known names is similar"
    return f"known: {', '.join(known)}" if known else "no names are known"


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


class Registry:
    """Builders by name. A duplicate name raises; an unknown one reports the nearest known name.

    Args:
        kind: what the builders build, in the singular, for messages ("backbone").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._builders: dict[str, Callable[..., Any]] = {}
        self._families: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator that registers a builder under `name`; raises ValueError where the name is taken."""

        return functools.partial(self._add, self._builders, name)

    def family(self, prefix: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator that registers a builder for every name PREFIX.NAME of another library: it is called with
        NAME first. Families are not listed."""

        return functools.partial(self._add, self._families, prefix)

    def _add(self, known: dict[str, Any], name: str, builder: Callable[..., Any]) -> Callable[..., Any]:
        if name in known:
            kind = self.kind if known is self._builders else f"{self.kind} family"
            modules = f"{known[name].__module__} and {builder.__module__}"
            raise ValueError(f"{kind} {name!r} is registered twice: {modules}")
        known[name] = builder
        return builder

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The builder of that name; raises KeyError with the nearest known names."""
        if name in self._builders:
            return self._builders[name]
        prefix, _, rest = name.partition(".")
        if rest and prefix in self._families:
            return functools.partial(self._families[prefix], rest)
        raise KeyError(
            f"unknown {self.kind} {name!r}:"
            f" {did_you_mean(name, [*self._builders, *(f'{known}.' for known in self._families)])}"
        )

    def __contains__(self, name: str) -> bool:
        return name in self._builders or name.partition(".")[0] in self._families and "." in name

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._builders))

    def __len__(self) -> int:
        return len(self._builders)


BACKBONES = Registry("backbone")
NECKS = Registry("neck")
DETECTORS = Registry("detector")
CHECKPOINT_FORMATS = Registry("checkpoint format")
