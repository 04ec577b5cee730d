"""Intercept calls to the named parts of a model; afterwards the model is
restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

from torch import nn

Call = Callable[..., Any]


def parts_of(model: nn.Module) -> Mapping[str, Sequence[str]]:
    """Return the parts of a model's forward phase: backbone, neck, rpn, heads -> dotted names of the called
    modules or methods; empty if the model names none."""
    return getattr(model, "parts", {})


@contextmanager
def around_parts(
    model: nn.Module, parts: Mapping[str, Sequence[str]], around: Callable[[str, Call], Call]
) -> Iterator[None]:
    """Inside this block, replace the called module or method of each part by `around(part
    name, callable)`.

    Args:
        model: model with these parts.
        parts: result of `parts_of`.
        around: returns the replacement callable.
    """
    with ExitStack() as stack:
        for name, places in parts.items():
            for place in places:
                owner, attribute = _called(model, place)
                stack.enter_context(_replaced(owner, attribute, around(name, getattr(owner, attribute))))
        yield


def _called(model: nn.Module, place: str) -> tuple[Any, str]:
    """Return the object and attribute of the function that this dotted name calls."""
    *path, last = place.split(".")
    owner = reduce(getattr, path, model)
    target = getattr(owner, last)
    return (target, "forward") if isinstance(target, nn.Module) else (owner, last)


@contextmanager
def _replaced(owner: Any, attribute: str, call: Call) -> Iterator[None]:
    """Temporarily replace an attribute of one object."""
    own = attribute in vars(owner)  # otherwise it is the class's, visible again after deletion
    before = getattr(owner, attribute)
    setattr(owner, attribute, call)
    try:
        yield
    finally:
        if own:
            setattr(owner, attribute, before)
        else:
            delattr(owner, attribute)
