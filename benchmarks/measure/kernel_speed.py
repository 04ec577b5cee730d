"""The kernels beside torchvision's operators, in one run: first whether the answers agree, then the time of
each.

On a GPU the time is the device's, by events, with the L2 cache flushed before each call. On a CPU what the
zoo runs there (`cpu`, or the reference) is timed beside torchvision's CPU operators; only the ratio means
something, and the title says so.
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
from detection_zoo.benchmarks.report.kernel_cases import (
    KernelCase,
    KernelTimings,
    kernel_tables,
    write_timings,
)
from detection_zoo.benchmarks.statistics import summarise
from detection_zoo.benchmarks.tabular import render
from detection_zoo.kernels.nms import batched_nms
from detection_zoo.kernels.roi_align import multilevel_roi_align

IMAGE = (800, 1216)  # height, width in pixels
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
CHANNELS = 256
BANDWIDTH = 4.23e12  # bytes a second, read and write, that a copy reaches on one H200
FLUSH_BYTES = 512 << 20
FLUSHES = (
    8  # about a millisecond: longer than a host takes to queue the work, which would otherwise be counted
)


@dataclass(frozen=True)
class Case:
    """One piece of work: its name, ours, the peer's, the reference's answer, and the bytes it must move (0:
    bound by something else)."""

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    answer: Callable[[], object]
    tolerance: float  # 0: equal bit for bit
    least_bytes: int = 0
    on_cpu: str = "reference"  # the backend that a CPU tensor runs


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
    cases = _nms_cases(device, on_gpu) + _pooling_cases(device, on_gpu)
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


def _nms_cases(device: str, on_gpu: bool) -> list[Case]:
    cases = [
        _suppression(f"NMS, {count:,} boxes", device, count, None, 0.7)
        for count in ((1000, 2000, 6000, 12000) if on_gpu else (1000, 2000))
    ]
    levels = torch.repeat_interleave(torch.arange(5), torch.tensor([1000, 1000, 1000, 1000, 507]))
    cases.append(_suppression("batched NMS, RPN of 1 image (5 levels)", device, 4507, levels, 0.7))
    if on_gpu:
        cases.append(
            _suppression(
                "batched NMS, RPN of 8 images (40 groups of 1,000)",
                device,
                40_000,
                torch.arange(40_000) // 1000,
                0.7,
            )
        )
    return [
        *cases,
        _suppression(
            "batched NMS, 8,000 boxes of 80 classes", device, 8000, torch.arange(8000) * 7919 % 80, 0.5
        ),
    ]


def _suppression(name: str, device: str, count: int, groups: Tensor | None, threshold: float) -> Case:
    boxes, scores = (each.to(device) for each in clustered_proposals(count))
    if groups is None:
        return Case(
            name,
            lambda: batched_nms(boxes, scores, None, threshold),
            lambda: torchvision.ops.nms(boxes, scores, threshold),
            lambda: batched_nms(boxes.cpu(), scores.cpu(), None, threshold, backend="reference"),
            0.0,
            on_cpu="cpu",
        )
    groups = groups.to(device)
    most = int(groups.bincount().max())  # what a detector knows from its top-k

    def ours(
        boxes: Tensor = boxes, scores: Tensor = scores, groups: Tensor = groups, backend: str | None = None
    ) -> Tensor:
        return batched_nms(
            boxes, scores, groups, threshold, num_groups=80, max_candidates=most, backend=backend
        )

    return Case(
        name,
        ours,
        lambda: torchvision.ops.batched_nms(boxes, scores, groups, threshold),
        lambda: ours(boxes.cpu(), scores.cpu(), groups.cpu(), "reference"),
        0.0,
        on_cpu="cpu",
    )


def _pooling_cases(device: str, on_gpu: bool) -> list[Case]:
    if not on_gpu:
        return [
            _pooling(device, 1, 200, 7, torch.float32),
            _pooling(device, 1, 100, 7, torch.float32, backward=True),
        ]
    cases = [
        _pooling(device, images, count, size, dtype)
        for images, count, size in ((1, 1000, 7), (1, 100, 14), (8, 8000, 7))
        for dtype in (torch.float32, torch.float16)
    ]
    return cases + [_pooling(device, images, 512, 7, torch.float32, backward=True) for images in (1, 8)]


def _pooling(
    device: str, images: int, count: int, size: int, dtype: torch.dtype, backward: bool = False
) -> Case:
    random = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(images, CHANNELS, int(IMAGE[0] * scale), int(IMAGE[1] * scale), generator=random).to(
            device, dtype
        )
        for scale in SCALES
    ]
    last = [each.contiguous(memory_format=torch.channels_last) for each in maps] if on_cuda(device) else maps
    boxes = clustered_proposals(count)[0].to(device)
    image = (
        torch.arange(count, device=device) * images // count
    )  # rising, as MultiScaleRoIAlign lines them up
    rois, split = (
        torch.cat([image[:, None].to(boxes.dtype), boxes], 1),
        [boxes[image == each] for each in range(images)],
    )
    peer = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2)

    def pool(given: list[Tensor], backend: str | None = None) -> Tensor:
        return multilevel_roi_align(given, rois, size, SCALES, 2, channels_last=False, backend=backend)

    def judge(given: list[Tensor]) -> Tensor:
        return peer(
            {str(level): each for level, each in enumerate(given)},
            [each.to(dtype) for each in split],
            [IMAGE] * images,
        )

    item, kind = maps[0].element_size(), str(dtype).removeprefix("torch.")
    name = (
        f"multi-level RoIAlign {size}x{size}, {count:,} RoIs, {images} image{'s' * (images > 1)}, {kind}"
        + ", forward + backward" * backward
    )
    moved = count * CHANNELS * size * size * item
    if not backward:
        return Case(
            name,
            lambda: pool(last),
            lambda: judge(maps),
            lambda: pool(last, "reference"),
            1e-4 if item == 4 else 4e-3,
            moved,
        )
    upstream = torch.randn(count, CHANNELS, size, size, generator=random).to(device, dtype)

    def both(function: Callable[[list[Tensor]], Tensor], given: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [each.detach().requires_grad_() for each in given]
        return torch.autograd.grad(function(leaves), leaves, upstream)

    return Case(
        name,
        lambda: both(pool, last),
        lambda: both(judge, maps),
        lambda: both(lambda given: pool(given, "reference"), last),
        1e-3,
        2 * moved,
    )


def on_cuda(device: str) -> bool:
    """Whether a device's name is a GPU's."""
    return torch.device(device).type == "cuda"


def clustered_proposals(count: int) -> tuple[Tensor, Tensor]:
    """Boxes (R, 4) around common centres, as an RPN proposes them in an 800 x 1216 image, and scores (R,),
    all different."""
    random = torch.Generator().manual_seed(count)
    centre = torch.rand(max(count // 20, 1), 2, generator=random) * torch.tensor([IMAGE[1], IMAGE[0]])
    side = torch.exp(torch.rand(len(centre), 2, generator=random) * 3.2 + 2.8)
    chosen = torch.randint(len(centre), (count,), generator=random)
    middle = centre[chosen] + 0.1 * side[chosen] * torch.randn(count, 2, generator=random)
    half = 0.5 * side[chosen] * torch.exp(0.15 * torch.randn(count, 2, generator=random))
    bound = torch.tensor([IMAGE[1], IMAGE[0]] * 2, dtype=torch.float32)
    return (
        torch.minimum(torch.cat([middle - half, middle + half], 1).clamp(min=0), bound),
        torch.randperm(count, generator=random) / count,
    )


def _measure(case: Case, device: str, repeats: int) -> Speed:
    with torch.no_grad() if "backward" not in case.name else torch.enable_grad():
        judge = (
            case.answer if on_cuda(device) else case.peer
        )  # on a CPU torchvision judges, for ours may be the reference
        agrees = _agree(case.ours(), judge(), case.tolerance)
        clock = _device_times if on_cuda(device) else _host_times
        ours, peer = clock(case.ours, repeats), clock(case.peer, repeats)
    moved, typical = case.least_bytes if on_cuda(device) else 0, statistics.median(ours)
    return Speed(
        case.name,
        "cuda" if on_cuda(device) else case.on_cpu,
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
