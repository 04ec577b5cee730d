"""Compilation of CPU operators with numba, at the first call, with machine code cached on disk.

numba caches the code of a function next to its file (or in the user's cache folder, or in NUMBA_CACHE_DIR)
and compiles it again if that file changes, but not if an imported file changes. So each `*_cpu.py` contains
all of its compiled functions; only the functions of this file are shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
from numba.np.arrayobj import np_cfarray
from numpy.typing import NDArray
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ANY = 1 << 60  # length of an array at an address where the length is not checked
_WHOLE = ir.IntType(32)


@contextmanager
def _alone(folder: str, name: str) -> Iterator[None]:
    """One process at a time for this name, where files can be locked."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder, f"{name}.lock"), "w") as lock:
        with suppress(OSError, AttributeError):  # a file system without locks, Windows
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:  # closing the file would not release it where a process was forked meanwhile
            with suppress(OSError, AttributeError):
                fcntl.flock(lock, fcntl.LOCK_UN)


class _Cache(FunctionCache):
    """numba's cache on disk, written by one process at a time. Two processes that compile a function for
    different types at once would otherwise store both under one name, and load one in place of the other."""

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store the machine code of one signature."""
        with _alone(self.cache_path, "numba"):
            super().save_overload(sig, data)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call for each combination of argument types, and cache the code; of
    several processes, one compiles and the others wait for its code.

    It releases the interpreter lock; x / 0 follows IEEE 754 and raises no exception.
    """
    found = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)(function)
    found._cache = _Cache(function)  # as njit(cache=True) sets numba's own
    load_or_compile = found._compile_for_args

    def load_or_compile_alone(*arguments: Any, **named: Any) -> Any:
        with _alone(found._cache.cache_path, function.__name__):
            return load_or_compile(*arguments, **named)

    found._compile_for_args = load_or_compile_alone
    return found


def part_of_compiled(function: Callable[..., Any]) -> Any:
    """A function that only compiled functions call; it is compiled and stored with them."""
    return njit(error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True)(function)


@intrinsic
def array_at(context, address, shape, dtype):
    """Return the contiguous array of this shape and type (or the type of this number) at `tensor.data_ptr()`;
    the caller keeps the tensor alive.

    Passing an address takes 0.1 us, passing a tensor as a NumPy array 1.5 us.
    """
    kind = types.Array(dtype.dtype if isinstance(dtype, types.DTypeSpec) else dtype, len(shape), "C")

    def build(target, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], target.get_value_type(types.voidptr))
        given = kind(types.voidptr, *signature.args[1:])
        return np_cfarray(target, builder, given, (pointer, *arguments[1:]))

    return kind(types.intp, shape, dtype), build


def _chosen(comparison):
    @intrinsic
    def choose(context, a, b):
        def build(target, builder, signature, arguments):
            return builder.select(builder.fcmp_ordered(comparison, *arguments), *arguments)

        return a(a, a), build

    return choose


least, most = _chosen("<"), _chosen(">")  # a where it is less (more) than b, otherwise b; without a branch


@intrinsic
def widen(context, number):
    """A number of type uint16, the bits of a bfloat16, as float32; another as it is."""

    def build(target, builder, signature, arguments):
        if number is not types.uint16:
            return arguments[0]
        wide = builder.zext(arguments[0], _WHOLE)
        return builder.bitcast(builder.shl(wide, _WHOLE(16)), ir.FloatType())

    return (types.float32 if number is types.uint16 else number)(number), build


@intrinsic
def narrow(context, number, like):
    """A float32 as the bits (uint16) of the nearest bfloat16, ties to even, where `like` is of type uint16;
    as it is otherwise."""

    def build(target, builder, signature, arguments):
        if like is not types.uint16:
            return arguments[0]
        bits = builder.bitcast(arguments[0], _WHOLE)
        upper = builder.lshr(bits, _WHOLE(16))
        rounding = builder.add(builder.and_(upper, _WHOLE(1)), _WHOLE(0x7FFF))
        rounded = builder.lshr(builder.add(bits, rounding), _WHOLE(16))
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        found = builder.select(is_nan, builder.or_(upper, _WHOLE(0x40)), rounded)
        return builder.trunc(found, ir.IntType(16))

    return (types.uint16 if like is types.uint16 else number)(number, like), build


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor (...) as an array over its memory; bfloat16, which NumPy lacks, as bits (uint16)."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def in_threads(work: Callable[[int, int], None], count: int, threads: int, least: int = 1) -> None:
    """Call work(start, end) on equal parts of 0..count-1, each in its own thread.

    Args:
        work: releases the GIL (as `compiled` functions do), and may run concurrently on different parts.
        threads: at most this many parts.
        least: minimum size of a part.
    Raises:
        Any exception of `work` in the calling thread, which processes the last part.
    """
    parts = max(1, min(threads, count // max(least, 1)))
    cuts = [count * part // parts for part in range(parts + 1)]
    others = [threading.Thread(target=work, args=(start, end)) for start, end in pairwise(cuts[:-1])]
    for thread in others:
        thread.start()
    try:
        work(cuts[-2], count)
    finally:
        for thread in others:
            thread.join()
