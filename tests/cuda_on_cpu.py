"""The `Runner` of kernels.launch that executes a .cu file on the CPU: built by g++ with
tests/host_shim/cuda_on_cpu.h."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from detection_zoo.kernels.launch import Argument, source_of

SHIM = Path(__file__).parent / "host_shim"
BUILD = Path(__file__).parent.parent / "build" / "host_shim"
HEADER = "cuda_on_cpu.h"
# kernels run briefly: optimising more takes g++ longer than it saves
FLAGS = ("-std=c++17", "-Og", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w")
FORWARD, BACKWARD, SHUFFLED = 0, 1, 12345  # order in which the threads of a block run
# address: reads and writes one element beyond a tensor; undefined: overflows, shifts, conversions that do not
# fit. Needs libasan preloaded.
SANITIZE = (
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=all",
    "--param",
    "asan-stack=0",
    "-O0",
)
COUNTS = ("threads", "barriers", "warp_operations", "atomics")


class CudaOnCpu:
    """Executes kernels on CPU tensors; raises RuntimeError for what would hang or corrupt memory on a
    device."""

    def __init__(
        self,
        order: int = FORWARD,
        edit: Callable[[str], str] = lambda source: source,
        flags: tuple[str, ...] = (),
    ) -> None:
        self.order, self.edit, self.flags, self.counts = order, edit, flags, {}

    def __call__(
        self,
        file: str,
        kernel: str,
        options: tuple[str, ...],
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Argument],
        shared_bytes: int,
    ) -> None:
        library = _library(
            self.edit(source_of(file)), tuple(flag for flag in options if flag.startswith("-D")) + self.flags
        )
        values = [np.atleast_1d(_value(kernel, index, arg)) for index, arg in enumerate(args)]
        describe = getattr(library, f"shim_arguments_{kernel}")
        describe.restype = ctypes.c_char_p
        given = [f"{value.dtype.kind}{value.dtype.itemsize}" for value in values]
        declared = describe().decode().split()
        if given != declared:
            raise TypeError(f"{kernel} in {file} declares arguments {declared}, the launch gives {given}")
        run = getattr(library, f"shim_{kernel}")
        run.restype = ctypes.c_char_p
        sizes = [(ctypes.c_uint * 3)(*size, *(1,) * (3 - len(size))) for size in (grid, block)]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        problem = run(*sizes, ctypes.c_size_t(shared_bytes), self.order, pointers)
        taken = (ctypes.c_uint64 * len(COUNTS))()
        library.shim_take_counts(taken)
        self.counts[kernel] = [
            old + new for old, new in zip(self.counts.get(kernel, [0] * len(COUNTS)), taken, strict=True)
        ]
        if problem:
            raise RuntimeError(f"{kernel} in {file}: {problem.decode()}")


def _value(kernel: str, index: int, arg: Argument) -> np.generic | np.ndarray:
    if isinstance(arg, torch.Tensor):
        if arg.device.type != "cpu":
            raise ValueError(f"{kernel}: argument {index} is on {arg.device}, this runner reads CPU memory")
        return np.uint64(arg.data_ptr())
    return np.uint64(0) if arg is None else arg


@functools.cache
def _library(source: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Build and load the kernels of one file."""
    kernels = re.findall(r"__global__ void (\w+)\(", source)
    text = f'#include "{HEADER}"\n{source}' + "".join(f"\nSHIM_KERNEL({name})" for name in kernels) + "\n"
    others = tuple(flag for flag in flags if not flag.startswith("-D"))
    header = _built(f"{HEADER}.gch", (SHIM / HEADER).read_text(), ("-x", "c++-header", *others))
    running = tuple(flag for flag in others if not flag.startswith("-O"))
    shim = _built("shim.so", (SHIM / "cuda_on_cpu.cpp").read_text(), ("-shared", "-O2", *running))
    linked = (
        "-nodefaultlibs",
        str(shim),
        "-lm",
        "-lc",
    )  # g++ takes 0.04 s for libstdc++, which the shim brings
    return ctypes.CDLL(str(_built("kernels.so", text, ("-shared", f"-I{header.parent}", *flags), linked)))


@functools.cache
def _built(name: str, text: str, flags: tuple[str, ...], libraries: tuple[str, ...] = ()) -> Path:
    """The file that g++ makes of a text, once for each text, shim and flags, kept in build/host_shim. The
    shim's header is precompiled, since g++ takes 0.2 s for it."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError(
            "g++ is not installed; the kernels' source is executed on the CPU by every test run, so"
            " install it"
        )
    command = [compiler, *FLAGS, *flags, f"-I{SHIM}"]
    shim = "".join(header.read_text() for header in sorted(SHIM.glob("*.h")))
    path = BUILD / hashlib.sha256("\0".join([text, shim, *command[1:]]).encode()).hexdigest()[:24] / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{os.getpid()}-{name}")  # several processes may build the same
        source = own.with_suffix(".cpp")
        source.write_text(text)
        # g++ itself needs no libasan, which may be preloaded here
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        made = subprocess.run(
            [*command, "-o", str(own), str(source), *libraries],
            env=environment,
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise RuntimeError(f"g++ could not build the kernels:\n{made.stderr[:4000]}")
        source.rename(path.with_suffix(".cpp"))
        own.rename(path)
    return path
