"""Make a function a torch operator of the namespace "detection_zoo", as `torch.library.custom_op` does, but
without torch's compiler.

At its first call an operator of `custom_op` imports torch._dynamo, which takes 150 MiB and more than a
second; a process that never compiles needs neither. Fake implementations and gradients are registered with
`torch.library.register_fake` and `register_autograd`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "detection_zoo"
BODIES: dict[str, Callable[..., Any]] = {}  # name -> function, for what runs below torch's dispatcher
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def operator(name: str, *, gradient: bool = False) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Decorate the function that an operator runs on any device; its annotations are the schema.

    Args:
        name: of the operator.
        gradient: `torch.library.register_autograd` follows; otherwise a backward pass raises RuntimeError.
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
    """The function, which torch's compiler, where something has imported it, must not trace into."""
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
        raise RuntimeError(f"{NAMESPACE}::{name} has no gradient; detach what goes into it, or what it gives")

    return backward
