"""Every kernel on hostile inputs under sanitizers; run by test_kernel_source.py with libasan preloaded, or
(argument "cuda") by compute-sanitizer on a GPU.

Prints "clean" at the end. With the argument "plant" a copy with a read one column beyond the map runs first,
in a process of its own, and what it prints begins with "planted: "; it must not end so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
from cuda_on_cpu import SANITIZE, CudaOnCpu
from kernel_backends import clustered_boxes

import detection_zoo.kernels.launch as launching
from detection_zoo.kernels.nms import batched_nms, nms_padded
from detection_zoo.kernels.nms_labelled import nms_labelled
from detection_zoo.kernels.nms_sorted import nms_sorted
from detection_zoo.kernels.roi_align import multilevel_roi_align
from detection_zoo.kernels.roi_crop import affine_grid, roi_crop
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.kernels.soft_nms import soft_nms

PLANTED = ("return {low, min(low + 1, last),", "return {low, low + 1,")
# inside, beyond each corner, the last cell, huge, a point, inverted, no image, an absent row, not finite
ROIS = torch.tensor(
    [
        [0, 3, 4, 40, 30],
        [1, -90, -90, 20, 20],
        [1, 40, 30, 400, 400],
        [0, 47, 39, 48, 40],
        [0, -1e30, -1e30, 1e38, 1e38],
        [1, 9, 9, 9, 9],
        [0, 30, 30, 5, 5],
        [2, 0, 0, 9, 9],
        [-1, 0, 0, 9, 9],
        [0, torch.nan, 0, torch.inf, 9],
    ]
)


def pool_all(layout: torch.memory_format, channels: int, device: str) -> None:
    rois = ROIS.to(device)
    maps = [
        torch.randn(2, channels, 10 >> level, 12 >> level, device=device)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for level in range(2)
    ]
    poolings: list[Callable[[], torch.Tensor]] = [
        lambda: multilevel_roi_align(
            maps, rois, (3, 2), [1 / 4, 1 / 8], 0, True, canonical_scale=30, min_level=3, backend="cuda"
        ),
        lambda: multilevel_roi_align(
            maps,
            rois,
            (3, 2),
            [1 / 4, 1 / 8],
            9,
            canonical_scale=30,
            min_level=3,
            channels_last=True,
            backend="cuda",
        ),
        lambda: roi_pool(maps[0], rois, (3, 2), 1 / 4, backend="cuda"),
        lambda: roi_crop(
            maps[0],
            affine_grid(rois, (10, 12), (3, 2), 1 / 4),
            torch.tensor([0, 1, 1, 0, 0, 1, 0, 2, -1, 0], device=device),
            backend="cuda",
        ),
    ]
    for deterministic in (False, True):
        # under sanitizers what use_deterministic_algorithms imports takes a second
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
        for pooling in poolings:
            pooling().nan_to_num().sum().backward()
    torch.set_deterministic_debug_mode("default")


def suppress_all(device: str) -> None:
    for count in (1, 63, 65, 130):
        boxes, scores = (each.to(device) for each in clustered_boxes(count, seed=count))
        groups = torch.arange(count, device=device) % 5 - 1
        soft_nms(boxes, scores, backend="cuda")
        batched_nms(boxes, scores, None, 0.5, backend="cuda")
        batched_nms(boxes, scores, groups, 0.5, max_keep=3, backend="cuda")
        boxes[count // 2] = torch.inf
        nms_sorted(boxes[None], 0.5, max_keep=50, backend="cuda")
        nms_sorted(boxes[: count // 2 * 2].reshape(2, -1, 4), 0.5, offset=1.0, backend="cuda")
        nms_labelled(boxes[None], groups[None], 0.5, max_keep=count + 3, backend="cuda")
        nms_padded(boxes, scores, groups, 0.5, num_groups=3, max_keep=7, max_candidates=40, backend="cuda")


def run_all(device: str, word: str) -> None:
    pool_all(torch.contiguous_format, 3, device)
    pool_all(torch.channels_last, 4, device)
    suppress_all(device)
    print(word, flush=True)


def run_planted() -> None:
    """Print how the process of the planted read ends."""
    child = os.fork()
    if child == 0:
        launching.runner = CudaOnCpu(edit=lambda source: source.replace(*PLANTED), flags=SANITIZE)
        run_all("cpu", "planted: clean")
        os._exit(0)
    print(f"planted: exit code {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    if given == "plant":
        run_planted()
    device = "cuda" if given == "cuda" else "cpu"
    if device == "cpu":
        launching.runner = CudaOnCpu(flags=SANITIZE)
    run_all(device, "clean")
