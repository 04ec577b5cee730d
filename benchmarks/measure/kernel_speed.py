"""The kernels beside torchvision's operators, in one run: first whether the answers agree, then the time of
each.

On a GPU the time is the device's, by events, with the L2 cache flushed before each call. On a CPU what the
zoo runs there is timed beside torchvision's CPU operators (soft-NMS beside OpenCV's, since torchvision has
none); only the ratio means something, and the title says so.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from detection_zoo.benchmarks.environment import collect_environment
from detection_zoo.benchmarks.measure.kernel_cases import (
    Case,
    nms_cases,
    on_cuda,
    pooling_cases,
    soft_nms_cases,
)
from detection_zoo.benchmarks.report.kernel_cases import (
    KernelCase,
    KernelTimings,
    kernel_tables,
    write_timings,
)
from detection_zoo.benchmarks.statistics import summarise
from detection_zoo.benchmarks.tabular import render
from detection_zoo.kernels.backend import BACKENDS, backend_for

BANDWIDTH = 4.23e12  # bytes a second, read and write, that a copy reaches on one H200
FLUSH_BYTES = 512 << 20
FLUSHES = (
    8  # about a millisecond: longer than a host takes to queue the work, which would otherwise be counted
)


@dataclass(frozen=True)
class Speed:
    """One line of the table; times in microseconds, median and the 20th and 80th percentile."""

    name: str
    backend: str
    agrees: bool
    ours_us: tuple[float, float, float]
    torchvision_us: tuple[float, float, float]
    ratio: float
    achieved_gb_s: float | None
    share_of_limit: float | None
    ours_samples_us: list[float]
    torchvision_samples_us: list[float]


def run_kernel_benchmark(device: str, repeats: int | None = None) -> list[dict]:
    """Check and time every case.

    Args:
        device: "cuda" or "cpu"; a CPU gets fewer and smaller cases.
        repeats: calls timed of each; None for 50 on a GPU, 7 on a CPU.
    Returns:
        one dict a case, the fields of `Speed`.
    """
    on_gpu = on_cuda(device)
    cases = nms_cases(device, on_gpu) + soft_nms_cases(device) + pooling_cases(device, on_gpu)
    return [asdict(_measure(case, device, repeats or (50 if on_gpu else 7))) for case in cases]


def report(device: str, as_json: bool = False, store: Path | None = None, width: int | None = None) -> int:
    """Print the benchmark as a table or JSON, and store it in a folder where one is given.

    Args:
        device: "cuda" or "cpu".
        as_json: print the dicts of `run_kernel_benchmark`.
        store: folder of timings.
        width: letters of a line; None: no limit.

    Returns:
        0, or 1 where an answer differs.
    """
    rows = run_kernel_benchmark(device)
    timings = timings_of(rows, device)
    print(json.dumps(rows, indent=2) if as_json else render(kernel_tables([timings]), "text", width))
    if store is not None:
        print(f"stored as {write_timings(store, timings).name}", file=sys.stderr)
    return 0 if all(row["agrees"] for row in rows) else 1


def timings_of(rows: list[dict[str, Any]], device: str) -> KernelTimings:
    """The rows of `run_kernel_benchmark` as the record that reports are made from, begun now."""
    covers = (
        "device time of one call, L2 flushed"
        if on_cuda(device)
        else f"{'processor' if _one_thread() else 'wall'} time of one call"
    )

    def case(row: dict[str, Any]) -> KernelCase:
        rate = (
            []
            if row["achieved_gb_s"] is None
            else [f"{row['achieved_gb_s']:,.0f} GB/s, {row['share_of_limit']:.0%} of the limit"]
        )
        ours, peer = (
            summarise(row[f"{side}_samples_us"], "us", covers=covers) for side in ("ours", "torchvision")
        )
        return KernelCase(
            name=row["name"],
            ours=ours,
            peer=peer,
            correct=row["agrees"],
            note="; ".join([f"backend {row['backend']}", *rate]),
        )

    return KernelTimings(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        backend="cuda" if on_cuda(device) else "cpu",
        peer=f"torchvision {torchvision.__version__}",
        environment=collect_environment(device),
        cases=[case(row) for row in rows],
    )


def _measure(case: Case, device: str, repeats: int) -> Speed:
    with torch.no_grad() if "backward" not in case.name else torch.enable_grad():
        judge = case.peer if case.peer_judges and not on_cuda(device) else case.answer
        agrees = _agree(case.ours(), judge(), case.tolerance)
        clock = _device_times if on_cuda(device) else _host_times
        ours, peer = clock(case.ours, repeats), clock(case.peer, repeats)
    moved, typical = case.least_bytes if on_cuda(device) else 0, statistics.median(ours)
    return Speed(
        case.name,
        backend_for(torch.empty(0, device=device), operator=case.name, known=BACKENDS),
        agrees,
        _spread(ours),
        _spread(peer),
        statistics.median(peer) / typical,
        moved / typical / 1e3 if moved else None,
        moved / BANDWIDTH * 1e6 / typical if moved else None,
        ours,
        peer,
    )


def _agree(found: Tensor | tuple[Tensor, ...], answer: Tensor | tuple[Tensor, ...], tolerance: float) -> bool:
    if isinstance(found, tuple):
        return all(_agree(*pair, tolerance) for pair in zip(found, answer, strict=True))
    found, answer = found.cpu(), answer.cpu()
    if tolerance == 0.0:
        return torch.equal(found, answer)
    return bool((found.double() - answer.double()).norm() <= tolerance * answer.double().norm())


def _device_times(work: Callable[[], object], repeats: int) -> list[float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSHES):
            flush.zero_()
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return times


def _host_times(work: Callable[[], object], repeats: int) -> list[float]:
    clock = (
        time.process_time if _one_thread() else time.perf_counter
    )  # with one thread the processor's time is the latency without waiting for others
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(1e6 * (clock() - start))
    return times


def _one_thread() -> bool:
    return torch.get_num_threads() == 1


def _spread(times: list[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return statistics.median(times), fifths[0], fifths[3]
