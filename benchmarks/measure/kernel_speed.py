"""The kernels beside torchvision's operators, in one run: first whether the answers agree, then the time of
each.

Calls of ours and of the peer take turns, so that both see the same machine. On a GPU the time is the
device's, by events, with the L2 cache flushed before each call; for work that waits for the host it is the
wall time until the answer is there. On a CPU what the zoo runs there is timed
beside torchvision's CPU operators (soft-NMS beside OpenCV's, since torchvision has none); only the ratio
means something, and the title says so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

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
from detection_zoo.benchmarks.measure.limits import PROBE_S, Clock, measure_limits
from detection_zoo.benchmarks.report.kernel_cases import (
    DeviceLimits,
    KernelCase,
    KernelTimings,
    Work,
    kernel_table,
    write_timings,
)
from detection_zoo.benchmarks.statistics import summarise
from detection_zoo.benchmarks.tabular import render
from detection_zoo.kernels.backend import BACKENDS, backend_for

FLUSH_BYTES = 512 << 20
TIMED_US = 1e5  # of short calls on a CPU, all together
FLUSHES = (
    8  # about a millisecond: longer than a host takes to queue the work, which would otherwise be counted
)


def run_kernel_benchmark(
    device: str, limits: DeviceLimits, repeats: int | None = None, cases: Iterable[Case] | None = None
) -> list[KernelCase]:
    """Check and time every case.

    Args:
        device: "cuda" or "cpu"; a CPU gets fewer and smaller cases.
        limits: what the device can do at most.
        repeats: calls timed of each; None for 50 on a GPU, and on a CPU 7 to 50 by how long they take.
        cases: one is made after another; None: the operators.
    """
    if cases is None:
        on_gpu = on_cuda(device)
        cases = nms_cases(device, on_gpu) + soft_nms_cases(device) + pooling_cases(device, on_gpu)
    return [_measure(case, device, limits, repeats) for case in cases]


def report(
    device: str,
    as_json: bool = False,
    store: Path | None = None,
    width: int | None = None,
    probe_s: float = PROBE_S,
    *,
    detectors: Iterable[Case] | None = None,
    repeats: int | None = None,
) -> int:
    """Measure the device's limits and the kernels, print a table or JSON, and store both where a folder is
    given.

    Args:
        device: "cuda" or "cpu".
        as_json: print the cases of the record and their ratios.
        store: folder of timings.
        width: letters of a line; None: no limit.
        probe_s: seconds of copies, and of matrix products, that the limits come from.
        detectors: measured instead of the operators. repeats: see `run_kernel_benchmark`.

    Returns:
        0, or 1 where an answer differs.
    """
    limits = measure_limits(device, _clock(device), probe_s)
    measured = run_kernel_benchmark(device, limits, repeats, detectors)
    timings = timings_of(measured, device, limits, "operators" if detectors is None else "detectors")
    if as_json:
        plain = [
            case.model_dump(mode="json", exclude_defaults=True) | {"ratio": case.ratio} for case in measured
        ]
        print(json.dumps(plain, indent=2))
    else:
        print(render([kernel_table(timings)], "text", width))
    if store is not None:
        print(f"stored as {write_timings(store, timings).name}", file=sys.stderr)
    return 0 if all(case.correct for case in measured) else 1


def timings_of(
    cases: list[KernelCase], device: str, limits: DeviceLimits, work: Work = "operators"
) -> KernelTimings:
    """The cases of `run_kernel_benchmark` as the record that reports are made from, begun now."""
    return KernelTimings(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        backend="cuda" if on_cuda(device) else "cpu",
        work=work,
        peer=f"torchvision {torchvision.__version__}",
        environment=collect_environment(device),
        limits=limits,
        cases=cases,
    )


def _measure(case: Case, device: str, limits: DeviceLimits, repeats: int | None) -> KernelCase:
    with torch.no_grad() if "backward" not in case.name else torch.enable_grad():
        if case.agrees is None:
            judge = case.peer if case.peer_judges and not on_cuda(device) else case.answer
            agrees = _agree(case.ours(), judge(), case.tolerance)
        else:
            agrees = case.agrees()
        clock = _clock(device, case.by_wall)
        works = case.ours, case.peer
        if repeats is None:
            repeats = 50 if on_cuda(device) else _enough(clock(case.peer))
        times = _in_turns(works, clock, repeats, 3 if on_cuda(device) else 1)
    covers = _covers(device, case.by_wall)
    ours, peer = (summarise(samples, "us", covers=covers) for samples in times)
    least_us = {
        "bandwidth": case.least_bytes / limits.copy_gb_s / 1e3,
        "arithmetic": case.flops / limits.matrix_gflop_s / 1e3,
    }
    limit = max(least_us, key=lambda name: least_us[name]) if any(least_us.values()) else None
    share = None if limit is None else least_us[limit] / ours.value
    backend = backend_for(torch.empty(0, device=device), operator=case.name, known=BACKENDS)
    notes = [f"backend {backend}", *[covers] * on_cuda(device)]
    notes += [] if share is None else [f"{share:.0%} of the {limit} limit"]
    return KernelCase(
        name=case.name,
        ours=ours,
        peer=peer,
        correct=agrees,
        note="; ".join(notes),
        limit=limit,
        share_of_limit=share,
    )


def _enough(call_us: float) -> int:
    """Calls of a CPU that are timed, 7 to 50: the first of a short one find cold caches."""
    return max(7, min(50, int(TIMED_US / max(call_us, 1.0))))


def _covers(device: str, by_wall: bool) -> str:
    if not on_cuda(device):
        return f"{'processor' if _one_thread() else 'wall'} time of one call"
    return (
        "wall time of one call until its answer is there"
        if by_wall
        else "device time of one call, L2 flushed"
    )


def _agree(found: Tensor | tuple[Tensor, ...], answer: Tensor | tuple[Tensor, ...], tolerance: float) -> bool:
    if isinstance(found, tuple):
        return all(_agree(*pair, tolerance) for pair in zip(found, answer, strict=True))
    found, answer = found.cpu(), answer.cpu()
    if tolerance == 0.0:
        return torch.equal(found, answer)
    return bool((found.double() - answer.double()).norm() <= tolerance * answer.double().norm())


def _in_turns(
    works: Sequence[Callable[[], object]], clock: Clock, repeats: int, warm_up: int
) -> list[list[float]]:
    """Times of each piece of work, in microseconds; in every round each is called once, and the order turns
    round from one round to the next."""
    for _ in range(warm_up):
        for work in works:
            work()
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats):
        for place in range(len(works)) if turn % 2 == 0 else reversed(range(len(works))):
            times[place].append(clock(works[place]))
    return times


def _clock(device: str, by_wall: bool = False) -> Clock:
    """What runs a piece of work once and gives its time in microseconds; by_wall: on a GPU until the device
    has finished, by the host's clock."""
    if not on_cuda(device):
        # with one thread the processor's time is the latency without waiting for others
        now = time.process_time if _one_thread() else time.perf_counter

        def host(work: Callable[[], object]) -> float:
            start = now()
            work()
            return 1e6 * (now() - start)

        return host
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def by_events(work: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSHES):
            flush.zero_()
        start.record()
        work()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end)

    def by_host(work: Callable[[], object]) -> float:
        flush.zero_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return 1e6 * (time.perf_counter() - start)

    return by_host if by_wall else by_events


def _one_thread() -> bool:
    return torch.get_num_threads() == 1
