"""Measured limits of the device: bytes per second of a copy, operations per second of a matrix
product. Kernel times are compared with them (roofline model, Williams et al., CACM 2009)."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from detection_zoo.benchmarks.report.kernel_cases import DeviceLimits

PROBE_S = 5.0  # seconds for each of the two measurements
LEAST_CALLS = 5
COPY_BYTES = 256 << 20  # larger than the caches
SIDES = {"cpu": 1024, "cuda": 8192}  # side of the square matrices

Clock = Callable[[Callable[[], object]], float]


def measure_limits(device: str, clock: Clock, seconds: float = PROBE_S) -> DeviceLimits:
    """Time copies of one large array into another and products of two square float32 matrices.

    The fastest call counts, because other load can only slow a call down.

    Args:
        device: "cuda" or "cpu".
        clock: calls a function once and returns its time in microseconds; also used to time the kernels.
        seconds: seconds for each of the two measurements; at least five calls are made.
    """
    return DeviceLimits(
        copy_gb_s=_copy_rate(device, clock, seconds), matrix_gflop_s=_matrix_rate(device, clock, seconds)
    )


def _copy_rate(device: str, clock: Clock, seconds: float) -> float:
    """Return 10^9 bytes per second, read plus written."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _fastest(lambda: target.copy_(source), clock, seconds) / 1e3


def _matrix_rate(device: str, clock: Clock, seconds: float) -> float:
    """Return 10^9 floating-point operations per second."""
    side = SIDES[torch.device(device).type]
    left, right = (torch.ones(side, side, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / _fastest(lambda: torch.mm(left, right, out=out), clock, seconds) / 1e3


def _fastest(work: Callable[[], object], clock: Clock, seconds: float) -> float:
    work()
    end, times = time.monotonic() + seconds, []
    while len(times) < LEAST_CALLS or time.monotonic() < end:
        times.append(clock(work))
    return min(times)
