"""Selection of an operator's implementation: plain reference, compiled for CPU (numba), CUDA kernel, or
torchvision for comparison."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

BACKENDS = ("reference", "cpu", "cuda", "torchvision")
_forced: str | None = None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use one backend for all operators inside the block, in the whole process.

    Args:
        name: "reference", "cpu", "cuda" or "torchvision"; operators without it raise ValueError.
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
    """Return the backend for a tensor: the requested one, that of `use_backend`, otherwise the default of the
    device.

    Args:
        tensor: the operator's first input, of any shape (R, ...). For CUDA tensors the CUDA kernel; for CPU
            tensors the numba implementation, or the reference if numba is not installed (with one warning);
            for other devices the reference.
        backend: one of `BACKENDS`, or None for the default.
        operator: name of the operator, for messages. known: backends that it has.
    Raises:
        ValueError: the backend is unknown, or the operator does not have it, or it is "cpu" for a tensor on
            another device ("cuda" with a tensor that is not on a GPU raises at the launch).
    """
    chosen = backend if backend is not None else _forced
    if chosen is None:
        if tensor.is_cuda:
            return "cuda"
        return "cpu" if tensor.is_cpu and "cpu" in known and _has_numba() else "reference"
    if _known(chosen) not in known:
        raise ValueError(f"backend {chosen!r} has no {operator}; use one of {', '.join(known)}")
    if chosen == "cpu" and not tensor.is_cpu:
        raise ValueError(
            f"backend 'cpu' needs tensors on a CPU, {operator} got one on {tensor.device}; move it"
        )
    return chosen


@functools.cache
def cpu_form(operator: str) -> ModuleType:
    """Import and return the module kernels.<operator>_cpu; the import is delayed because it imports numba.

    Raises:
        RuntimeError: numba is not installed.
    """
    try:
        return importlib.import_module(f"detection_zoo.kernels.{operator}_cpu")
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise RuntimeError(
            "the CPU's operators are compiled by numba, which is not installed; run: pip install numba (or"
            " ask for backend='reference', which gives the same answers more slowly)"
        ) from error


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether a call with a tensor (R, ...) may be traced (compile, export, a tensor subclass, a dispatch
    mode) and must use the registered torch operator; otherwise the function is called directly, which saves
    12 us."""
    return (
        type(tensor) is not torch.Tensor
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
    )


@functools.cache
def _has_numba() -> bool:
    if importlib.util.find_spec("numba") is not None:
        return True
    warnings.warn(
        "numba is not installed: NMS runs its reference in NumPy on this CPU, with the same"
        " answers and many times slower; run: pip install numba",
        RuntimeWarning,
        stacklevel=3,
    )
    return False


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown kernel backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return name
