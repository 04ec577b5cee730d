"""Compile a .cu file with NVRTC, which needs no GPU, and read what ptxas says of each kernel's registers and
spills."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from detection_zoo.kernels.launch import compile_options, cuda_include_folder, source_with


class Usage(NamedTuple):
    """Registers of a thread, bytes it stores to memory for want of registers, and bytes of its stack."""

    registers: int
    spilled_bytes: int
    stack_bytes: int


def compile_for(
    file: str, kernels: Collection[str], defines: dict[str, object], architecture: int
) -> dict[str, Usage]:
    """What these kernels of a file use on an architecture (70 for sm_70); RuntimeError with the compiler's
    words if it refuses."""
    library = _library_for(architecture)
    options = [
        *compile_options(defines),
        f"--gpu-architecture=sm_{architecture}",
        "--ptxas-options=-v",
        f"-I{cuda_include_folder()}",
    ]
    program = ctypes.c_void_p()
    source = source_with(file, kernels).encode()
    library.nvrtcCreateProgram(ctypes.byref(program), source, file.encode(), 0, None, None)
    failed = library.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    )
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(f"NVRTC refused {file} for sm_{architecture}:\n{log.value.decode()[:4000]}")
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers",
        log.value.decode(),
        re.DOTALL,
    )
    return {
        kernel: Usage(int(registers), int(spilled), int(stack)) for kernel, stack, spilled, registers in found
    }


def version_for(architecture: int) -> str:
    """The version of the NVRTC that compiles for an architecture (70 for sm_70)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library_for(architecture).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


@functools.cache
def _library_for(architecture: int) -> ctypes.CDLL:
    """The newest NVRTC of NVIDIA's wheels that knows an architecture (CUDA 13 forgot sm_70, CUDA 12 knows
    it)."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in spec.submodule_search_locations or ()] if spec else []
    names = sorted(
        (path for root in roots for path in root.glob("*/lib/libnvrtc.so.*")),
        key=lambda path: int(path.name.rsplit(".", 1)[1]),
    )
    for name in reversed(names):
        library = ctypes.CDLL(str(name))
        count = ctypes.c_int()
        library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        library.nvrtcGetSupportedArchs(known)
        if architecture in known:
            return library
    raise RuntimeError(
        f"no NVRTC for sm_{architecture} among {[name.name for name in names]}; install the test"
        " dependencies: pip install -e .[test]"
    )
