"""The parts that a model names: every call of one goes through a function of ours, and afterwards the model
is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

from torch import nn

Call = Callable[..., Any]


def parts_of(model: nn.Module) -> Mapping[str, Sequence[str]]:
    """What the forward phase of a model is made of: backbone, neck, rpn, heads -> dotted names of what is
    called; empty where it names none."""
    return getattr(model, "parts", {})


@contextmanager
def around_parts(
    model: nn.Module, parts: Mapping[str, Sequence[str]], around: Callable[[str, Call], Call]
) -> Iterator[None]:
    """In this block, calls of the parts go through `around(name of the part, what was called)`; modules and
    methods alike.

    Args:
        model: holds the parts.
        parts: as `parts_of` gives them.
        around: gives what is called instead.
    """
    with ExitStack() as stack:
        for name, places in parts.items():
            for place in places:
                owner, attribute = _called(model, place)
                stack.enter_context(_replaced(owner, attribute, around(name, getattr(owner, attribute))))
        yield


def _called(model: nn.Module, place: str) -> tuple[Any, str]:
    """Where the function stands that a call of this dotted name runs."""
    *path, last = place.split(".")
    owner = reduce(getattr, path, model)
    target = getattr(owner, last)
    return (target, "forward") if isinstance(target, nn.Module) else (owner, last)


@contextmanager
def _replaced(owner: Any, attribute: str, call: Call) -> Iterator[None]:
    """An attribute of this one object is another function for a while."""
    own = attribute in vars(owner)  # else it is the class's, and is seen again when ours is gone
    before = getattr(owner, attribute)
    setattr(owner, attribute, call)
    try:
        yield
    finally:
        if own:
            setattr(owner, attribute, before)
        else:
            delattr(owner, attribute)
