"""Compile a kernel of a .cu file once for its options and device, and launch it on torch's current stream."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

Argument = torch.Tensor | np.generic | np.ndarray | None
_ARGUMENTS = (torch.Tensor, np.generic, np.ndarray, type(None))  # building a union takes 0.3 us an argument
SHARED_BYTES = 48 * 1024  # per block, available on every GPU without opting in to more
# no fused multiply-add: each operation is rounded separately, as in the reference
COMPILER_FLAGS = ("--std=c++17", "--fmad=false")
KERNEL = re.compile(r'extern "C"(?: __launch_bounds__\([^)]*\))? __global__ void (\w+)(?=\()')


class Runner(Protocol):
    """Executes a launch: `run_on_gpu`, or the host shim of the tests."""

    def __call__(
        self,
        file: str,
        kernel: str,
        options: tuple[str, ...],
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Argument],
        shared_bytes: int,
    ) -> None: ...


def launch(
    file: str,
    kernel: str,
    defines: Mapping[str, object],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    args: Sequence[Argument],
    shared_bytes: int = 0,
) -> None:
    """Launch one kernel asynchronously; does nothing for an empty grid.

    Args:
        file: name of the .cu file in this folder.
        kernel: name of an extern "C" kernel in it.
        defines: macros the file is compiled with.
        grid, block: up to three sizes each.
        args: tensors (passed as pointers), NumPy scalars and structured arrays (passed by value), or None (a
            null pointer).
        shared_bytes: dynamic shared memory of a block.
    Raises:
        TypeError: an argument has another type; CuPy would pass a Python int as 64 bits, whatever the kernel
            declares.
        ValueError: more shared memory than a block may use.
    """
    if shared_bytes > SHARED_BYTES:
        raise ValueError(
            f"{kernel} in {file} would need {shared_bytes} bytes of shared memory, a block has"
            f" {SHARED_BYTES}; pool to fewer bins"
        )
    for index, arg in enumerate(args):
        if not isinstance(arg, _ARGUMENTS):
            raise TypeError(
                f"{kernel} in {file}: argument {index} is {type(arg).__name__}; wrap it as a NumPy scalar"
            )
    if min(grid) > 0:
        runner(file, kernel, compile_options(defines), grid, block, args, shared_bytes)


def compile_options(defines: Mapping[str, object]) -> tuple[str, ...]:
    """The NVRTC options of a file with these macros."""
    return (*COMPILER_FLAGS, *(f"-D{name}={value}" for name, value in defines.items()))


@functools.cache
def source_of(file: str) -> str:
    """Return the text of a .cu file with the headers of this folder inserted at their #include lines, so that
    cache keys depend on them."""
    folder = Path(__file__).parent
    lines = (folder / file).read_text().splitlines(keepends=True)
    return "".join(source_of(line.split('"')[1]) if line.startswith('#include "') else line for line in lines)


def source_with(file: str, kernels: Collection[str]) -> str:
    """Return `source_of` a file where its other kernels are functions that nothing calls, which NVRTC drops:
    RoIAlign's forward alone compiles five times as fast as the whole file."""
    return KERNEL.sub(
        lambda found: found[0] if found[1] in kernels else f"static __device__ void {found[1]}",
        source_of(file),
    )


def run_on_gpu(
    file: str,
    kernel: str,
    options: tuple[str, ...],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    args: Sequence[Argument],
    shared_bytes: int,
) -> None:
    """The `Runner` that launches through CuPy on the device of the first tensor."""
    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    if device.type != "cuda":
        raise ValueError(
            f"backend 'cuda' needs CUDA tensors, {kernel} got one on {device}; move it, or use"
            " backend='reference'"
        )
    cupy = _cupy()
    with cupy.cuda.Device(device.index), cupy.cuda.Stream.from_external(torch.cuda.current_stream(device)):
        _function(file, kernel, options, device.index)(
            grid, block, tuple(_value(arg) for arg in args), shared_mem=shared_bytes
        )


def _value(arg: Argument) -> np.generic | np.ndarray:
    if isinstance(arg, torch.Tensor):
        return np.uint64(arg.data_ptr())
    return np.uint64(0) if arg is None else arg


@functools.cache
def _function(file: str, kernel: str, options: tuple[str, ...], device_index: int):
    """Return a compiled kernel, loaded on the current device."""
    cupy = _cupy()
    return cupy.RawModule(
        path=str(binary_of(file, kernel, options, int(cupy.cuda.Device(device_index).compute_capability)))
    ).get_function(kernel)


@functools.cache
def binary_of(file: str, kernel: str, options: tuple[str, ...], architecture: int) -> Path:
    """Compile a kernel of a .cu file for an architecture (90 for sm_90), or return the compiled file from
    CuPy's cache folder.

    NVRTC is called directly because CuPy's RawModule adds -ftz=true: numbers below 1e-38 would become 0,
    unlike in the reference.
    """
    _cupy()
    from cupy.cuda import nvrtc

    newest = max((arch for arch in nvrtc.getSupportedArchs() if arch <= architecture), default=None)
    if newest is None:
        raise RuntimeError(
            f"this CuPy's NVRTC {'.'.join(map(str, nvrtc.getVersion()))} does not know sm_{architecture};"
            " install cupy-cuda12x in its place"
        )
    # for a newer GPU than this NVRTC supports, the driver compiles the PTX
    kind = "sm" if newest == architecture else "compute"
    options = (*options, f"--gpu-architecture={kind}_{newest}", f"-I{cuda_include_folder()}")
    source = source_with(file, (kernel,))
    parts = [source, *options, *map(str, nvrtc.getVersion())]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    path = folder / f"detection-zoo-{kernel}-{key}.{'cubin' if kind == 'sm' else 'ptx'}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=folder, suffix=".part", delete=False
        ) as part:  # several processes may compile it at the same time
            part.write(_compile(file, source, options))
        os.replace(part.name, path)
    return path


def _compile(file: str, source: str, options: tuple[str, ...]) -> bytes:
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source, file, (), ())
    try:
        nvrtc.compileProgram(program, options)
        found = (
            nvrtc.getCUBIN(program) if any("=sm_" in option for option in options) else nvrtc.getPTX(program)
        )
    except nvrtc.NVRTCError as error:
        raise RuntimeError(
            f"NVRTC refused kernels/{file} with {' '.join(options)}:\n{nvrtc.getProgramLog(program)[:4000]}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)
    return found.encode() if isinstance(found, str) else found


@functools.cache
def cuda_include_folder() -> str:
    """Return the folder of cuda_fp16.h: in NVIDIA's wheels, or in the CUDA installation."""
    from cuda.pathfinder import find_nvidia_header_directory

    found = find_nvidia_header_directory("cudart")
    if found is None:
        raise RuntimeError(
            "the CUDA kernels need CUDA's headers, which are not here; run: pip install nvidia-cuda-runtime,"
            " or set CUDA_PATH"
        )
    return found


@functools.cache
def _cupy():
    try:
        import cupy
    except ImportError as error:
        major = (torch.version.cuda or "13").split(".")[0]
        raise RuntimeError(
            f"the CUDA kernels need CuPy, which is not installed; run: pip install cupy-cuda{major}x "
            "(or ask for backend='reference')"
        ) from error
    return cupy


runner: Runner = run_on_gpu
