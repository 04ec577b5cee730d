"""Compile a .cu file once for its options and device, and launch its kernels on torch's current stream."""
from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

Argument = torch.Tensor | np.generic | np.ndarray | None
COMPILER_FLAGS = ("--std=c++17", "--fmad=false")  # a product and a sum are rounded once each, as the reference rounds them


class Runner(Protocol):
    """What executes a launch: `run_on_gpu`, or the host shim of the tests."""

    def __call__(self, file: str, kernel: str, options: tuple[str, ...], grid: tuple[int, ...], block: tuple[int, ...],
                 args: Sequence[Argument], shared_bytes: int) -> None: ...


def launch(file: str, kernel: str, defines: Mapping[str, object], grid: tuple[int, ...], block: tuple[int, ...],
           args: Sequence[Argument], shared_bytes: int = 0) -> None:
    """Start one kernel; returns at once, and does nothing for an empty grid.

    Args:
        file: name of the .cu file in this folder.
        kernel: name of an extern "C" kernel in it.
        defines: macros the file is compiled with.
        grid, block: up to three sizes each.
        args: tensors (passed as pointers), NumPy scalars and structured arrays (passed by value), or None (a null pointer).
        shared_bytes: dynamic shared memory of a block, at most 48 KiB.
    Raises:
        TypeError: for an argument of another type, since CuPy would pass a Python int as 64 bits whatever the kernel declares.
    """
    for index, arg in enumerate(args):
        if not isinstance(arg, torch.Tensor | np.generic | np.ndarray | None):
            raise TypeError(f"{kernel} in {file}: argument {index} is {type(arg).__name__}; wrap it as a NumPy scalar")
    if min(grid) > 0:
        runner(file, kernel, compile_options(defines), grid, block, args, shared_bytes)


def compile_options(defines: Mapping[str, object]) -> tuple[str, ...]:
    """The NVRTC options of a file with these macros."""
    return (*COMPILER_FLAGS, *(f"-D{name}={value}" for name, value in defines.items()))


@functools.cache
def source_of(file: str) -> str:
    """A .cu file's text with the headers of this folder put in place of their #include lines, so that a cache sees every change."""
    folder = Path(__file__).parent
    lines = (folder / file).read_text().splitlines(keepends=True)
    return "".join(source_of(line.split('"')[1]) if line.startswith('#include "') else line for line in lines)


def run_on_gpu(file: str, kernel: str, options: tuple[str, ...], grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Argument],
               shared_bytes: int) -> None:
    """The `Runner` that launches through CuPy on the device of the first tensor."""
    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    if device.type != "cuda":
        raise ValueError(f"backend 'cuda' needs CUDA tensors, {kernel} got one on {device}; move it, or use backend='reference'")
    cupy = _cupy()
    with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index):
        _function(file, kernel, options, device.index)(grid, block, tuple(_value(arg) for arg in args), shared_mem=shared_bytes)


def _value(arg: Argument) -> np.generic | np.ndarray:
    if isinstance(arg, torch.Tensor):
        return np.uint64(arg.data_ptr())
    return np.uint64(0) if arg is None else arg


@functools.cache
def _function(file: str, kernel: str, options: tuple[str, ...], device_index: int):  # noqa: ANN202 - a class of an optional package
    """One compiled kernel; CuPy keeps the binaries on disk as well, so that a new process compiles nothing."""
    headers = tuple(f"-I{folder}" for folder in cuda_include_folders()[:1])
    return _cupy().RawModule(code=source_of(file), options=options + headers, backend="nvrtc").get_function(kernel)


def cuda_include_folders() -> list[Path]:
    """Where NVIDIA's wheels keep cuda_fp16.h, newest CUDA first; empty where CUDA was installed otherwise (CuPy then finds it)."""
    spec = importlib.util.find_spec("nvidia")
    roots = [] if spec is None else [Path(root) for root in spec.submodule_search_locations or ()]
    found = [header.parent for root in roots for header in root.glob("*/include/cuda_fp16.h")]
    return sorted(found, key=lambda folder: (folder.parent.name[2:].isdigit(), folder.parent.name), reverse=True)  # cu13 before cuda_runtime


@functools.cache
def _cupy():  # noqa: ANN202 - an optional package
    try:
        import cupy
    except ImportError as error:
        major = (torch.version.cuda or "13").split(".")[0]
        raise RuntimeError(f"the CUDA kernels need CuPy, which is not installed; run: pip install cupy-cuda{major}x "
                           "(or ask for backend='reference')") from error
    return cupy


runner: Runner = run_on_gpu
