"""Register a function as a torch operator in the namespace "detection_zoo", as `torch.library.custom_op`
does, but without importing torch's compiler.

The first call of a `custom_op` operator imports torch._dynamo, which takes 150 MiB and more than a second.
Fake implementations and gradients are registered with `torch.library.register_fake` and `register_autograd`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "detection_zoo"
BODIES: dict[str, Callable[..., Any]] = {}  # name -> function, for code below torch's dispatcher
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def operator(name: str, *, gradient: bool = False) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Decorator that registers a function as the implementation on all devices; its annotations define the
    schema.

    Args:
        name: name of the operator. gradient: `torch.library.register_autograd` follows; otherwise a backward
            pass raises RuntimeError.
    """

    def register(function: Callable[..., Any]) -> torch._ops.OpOverload:
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, _outside_of_graphs(function), "CompositeExplicitAutograd")
        BODIES[name] = function
        overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        if not gradient:
            torch.library.register_autograd(overload, _no_gradient(name), lib=_LIBRARY)
        return overload

    return register


def _outside_of_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function so that torch's compiler, if imported, does not trace into it."""
    untraced: list[Callable[..., Any]] = []

    def run(*args: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args)
        if not untraced:
            untraced.append(torch.compiler.disable(function))
        return untraced[0](*args)

    return run


def _no_gradient(name: str) -> Callable[..., Any]:
    def backward(*_: Any) -> Any:
        raise RuntimeError(f"{NAMESPACE}::{name} has no gradient; detach its inputs or outputs")

    return backward
