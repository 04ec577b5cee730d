"""Which implementation of an operator runs: the plain reference, a faster one for CPUs, the CUDA kernel, or
torchvision as a peer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("reference", "cpu", "cuda", "torchvision")
_forced: str | None = None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every kernel called inside the block on one backend, for the whole process.

    Args:
        name: "reference", "cpu", "cuda" or "torchvision"; operators that lack it raise.
    Raises:
        ValueError: for another name.
    """
    global _forced
    before, _forced = _forced, _known(name)
    try:
        yield
    finally:
        _forced = before


def backend_for(
    tensor: torch.Tensor, backend: str | None = None, *, operator: str, known: tuple[str, ...]
) -> str:
    """Name the backend that will run on a tensor: the one asked for, the one of `use_backend`, else the
    device's own.

    Args:
        tensor: the operator's first input, of any shape (R, ...); a CUDA tensor runs the kernel, any other
            "cpu" where it is known, else the reference.
        backend: one of `BACKENDS`, or None to leave the choice open.
        operator: its name in messages. known: the backends it has.
    Raises:
        ValueError: for a name that is unknown, or not known to the operator ("cuda" with a tensor that is not
            on a GPU is refused at the launch).
    """
    chosen = backend if backend is not None else _forced
    if chosen is None:
        return "cuda" if tensor.is_cuda else "cpu" if "cpu" in known else "reference"
    if _known(chosen) not in known:
        raise ValueError(f"backend {chosen!r} has no {operator}; use one of {', '.join(known)}")
    return chosen


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown kernel backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return name
