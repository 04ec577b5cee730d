"""Copies of the kernels with one mistake each, run in the host shim: every mistake must be noticed. Run by
test_kernel_source.py.

Prints a line a mistake, beginning "noticed" or "UNNOTICED". Each runs in a process of its own, since some end
in a crash, which counts.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

import numpy as np
import torch
from cuda_on_cpu import BACKWARD, FORWARD, SHUFFLED, CudaOnCpu
from kernel_backends import clustered_boxes, normal_input

import detection_zoo.kernels.launch as launching
from detection_zoo.kernels.launch import launch
from detection_zoo.kernels.nms import batched_nms
from detection_zoo.kernels.nms_labelled import nms_labelled
from detection_zoo.kernels.nms_sorted import nms_sorted
from detection_zoo.kernels.roi_align import multilevel_roi_align
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.kernels.soft_nms import soft_nms


def suppress() -> None:
    boxes, scores = clustered_boxes(400, seed=1)
    few = {"max_candidates": 130, "max_keep": 20}
    for num_groups, limits in ((1, {}), (1, {"max_candidates": 130}), (3, few)):
        groups = None if num_groups == 1 else torch.arange(400) % 3
        more = limits | {"offset": 1.0} | ({} if groups is None else {"num_groups": num_groups})
        found, expected = (
            batched_nms(boxes, scores, groups, 0.6, backend=name, **more) for name in ("cuda", "reference")
        )
        assert torch.equal(found, expected)


def begin() -> None:
    """Where each of 1,100 groups begins; a block finds 1,024 at a time."""
    counts = torch.arange(1100, dtype=torch.int32) * 7919 % 5
    starts = torch.empty_like(counts)
    launch("nms.cu", "nms_starts", {"SCALAR": "float"}, (1,), (1024,), (counts, starts, np.int32(1100)), 4096)
    assert torch.equal(starts, (counts.cumsum(0) - counts).int())


def suppress_sorted() -> None:
    """Lists of 1, 3 and 33 words, the last longer than a warp has lanes; boxes that are absent among them."""
    for lists, rows, limit in ((2, 40, 40), (2, 150, 36), (1, 2100, 2100)):
        boxes = clustered_boxes(lists * rows, seed=rows)[0].reshape(lists, rows, 4)
        boxes[0, ::7], present = torch.nan, torch.arange(lists * rows).reshape(lists, rows) % 5 > 0
        found, expected = (
            nms_sorted(boxes, 0.6, present=present, offset=1.0, max_keep=limit, backend=name)
            for name in ("cuda", "reference")
        )
        assert torch.equal(found, expected)


def suppress_by_label() -> None:
    """Lists of 3 words with 3 labels, more columns of the result than rows that are kept; coarse corners, so
    that the IoU of many pairs is the threshold."""
    boxes = clustered_boxes(300, seed=5)[0].mul(0.25).round().reshape(2, 150, 4)
    labels = torch.arange(300).reshape(2, 150) % 3
    found, expected = (
        nms_labelled(boxes, labels, 0.5, inclusive=True, max_keep=160, backend=name)
        for name in ("cuda", "reference")
    )
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def suppress_softly() -> None:
    boxes, scores = clustered_boxes(200, seed=2)
    assert torch.equal(
        soft_nms(boxes, scores, backend="cuda")[0], soft_nms(boxes, scores, backend="reference")[0]
    )


def align() -> None:
    """300 RoIs, more than a block of the deterministic form looks at together; those beyond lie apart, on
    tiles of their own."""
    random = torch.Generator().manual_seed(0)
    corners = 30 * torch.rand(300, 2, generator=random)
    corners[256:, 0] += 70
    rois = torch.cat(
        [torch.zeros(300, 1), corners, corners + 8 + 30 * torch.rand(300, 2, generator=random)], 1
    )
    for layout in (torch.channels_last, torch.contiguous_format):
        maps = [
            normal_input(level, (1, 4, 24 >> level, 28 >> level))
            .contiguous(memory_format=layout)
            .requires_grad_()
            for level in range(2)
        ]
        pooled = [
            multilevel_roi_align(
                maps,
                rois,
                2,
                [1 / 4, 1 / 8],
                2,
                True,
                canonical_scale=60,
                min_level=3,
                channels_last=False,
                backend=name,
            )
            for name in ("cuda", "reference")
        ]
        torch.testing.assert_close(*pooled, rtol=1e-5, atol=1e-5)
        for deterministic in (False, True):
            # use_deterministic_algorithms imports what takes a second
            torch.set_deterministic_debug_mode("error" if deterministic else "default")
            grads = [torch.autograd.grad(each.sum(), maps, retain_graph=True) for each in pooled]
            torch.set_deterministic_debug_mode("default")
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-3)


def align_in_bands() -> None:
    """14 x 14 bins of 128 channels: the tile holds half of the rows at a time."""
    maps = normal_input(1, (1, 128, 12, 14)).contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0, 3.0, 2, 40, 44], [0, -5, 10, 30, 30]])
    pooled = [
        multilevel_roi_align([maps], rois, 14, [1 / 4], 2, channels_last=False, backend=name)
        for name in ("cuda", "reference")
    ]
    torch.testing.assert_close(*pooled, rtol=1e-5, atol=1e-5)


def pool() -> None:
    maps, rois = (
        normal_input(3, (2, 4, 20, 30)),
        torch.tensor([[0, 10.3, 12.7, 100.2, 90.9], [1, 33.7, 20.2, 190.6, 40.8]]),
    )
    assert torch.equal(
        roi_pool(maps, rois, 4, 1 / 8, backend="cuda"), roi_pool(maps, rois, 4, 1 / 8, backend="reference")
    )


BARRIER = "__syncthreads()"
LEFT_OUT = """extern "C" char* getenv(const char*) noexcept;
static const int left_out = *getenv("LEFT_OUT") - '0';
"""
# What a tired author might write: the check that must notice, what stands in the source, and what he wrote;
# or the barrier he left out.
PLANTED = [
    (suppress, "column + 63 < row", "column + 62 < row"),
    (suppress, "found.size > max_candidates", "found.size < max_candidates"),
    (suppress, "const int end = column <= row ? row :", "const int end = column <= row ? row - 1 :"),
    (suppress, "ones_below(kept, lane) < room", "ones_below(kept, lane) <= room"),
    (suppress, "row < other_row", "row > other_row"),
    (suppress, "kept & removers_high", "kept & removers_low"),
    (suppress, "each < row + 4", "each < row + 3"),
    *((begin, BARRIER, place) for place in range(4)),
    *((suppress, BARRIER, place) for place in range(4, 6)),
    (suppress_sorted, "((1ull << thread) - 1)", "((2ull << thread) - 1)"),
    (suppress_sorted, "(word)absent << thread", "0"),
    (suppress_sorted, "is_wrong(box, least_side)", "false"),
    (suppress_sorted, "diagonal += 64 * words + 1", "diagonal += 64 * words"),
    (suppress_sorted, "min(lane + 32, words - 1)", "min(lane, words - 1)"),
    (suppress_sorted, "slots[(index & 1) * WARPS", "slots[0 * WARPS"),
    (suppress_sorted, "max_keep - count, lane", "max_keep, lane"),
    (suppress_sorted, "row < rows; row += blockDim.x", "row < 0; row += blockDim.x"),
    *((suppress_sorted, BARRIER, place) for place in range(3)),
    (suppress_by_label, "bits &= same;", ""),
    (suppress_by_label, "unsure &= same;", ""),
    (suppress_by_label, "rival_labels[first + k]", "rival_labels[k]"),
    (suppress_by_label, "ones_below(kept, thread)]", "thread]"),
    (suppress_by_label, "place = count + thread", "place = count + thread + 1"),
    (suppress_softly, "b.row, a.key, a.row", "a.row, a.key, b.row"),
    *((suppress_softly, BARRIER, place) for place in range(2)),
    (align, "(SUM)point + (SUM)0.5", "(SUM)point"),
    (align, "min(low + 1, last)", "low"),
    (align, "tile_row = 32 * PACK +", "tile_row = 32 * PACK - 2 +"),
    (align, "axis.start, end) - (SUM)1", "axis.start, end) + (SUM)1"),
    (align, "weight += tap.weight_high", "weight = tap.weight_high"),
    (align, "bins[bin * line + channel] =", "bins[bin * slice + channel] ="),
    (align, "vertical ? at : MAX_CELLS + at", "at"),
    (align, "high = bin + 1", "high = bin"),
    *((align, BARRIER, place) for place in (0, 1, 2, 4, 5, 6, 7, 8)),
    (align_in_bands, BARRIER, 3),
    (align_in_bands, "begin * POOLED_W + bin :", "bin :"),
    (align_in_bands, "(ph - begin) * POOLED_W", "ph * POOLED_W"),
    (pool, "end - start + (SUM)1", "end - start"),
    (pool, "is_end ? ceil(at)", "is_end ? floor(at)"),
]


def planted(what: str, instead: str | int) -> Callable[[str], str]:
    """An edit of a source: every occurrence of a text replaced, or the n-th barrier left out. For all
    barriers of a file g++ makes one library, which reads when it is loaded which of them to leave out."""

    def edit(source: str) -> str:
        first, *others = source.split(what)
        assert len(others) > (instead if isinstance(instead, int) else 0), (
            f"{what!r} no longer stands in the source; plant another mistake"
        )
        if isinstance(instead, str):
            return instead.join((first, *others))
        os.environ["LEFT_OUT"] = str(instead)
        parts = (f"if (left_out != {place}) {what}{part}" for place, part in enumerate(others))
        return LEFT_OUT + first + "".join(parts)

    return edit


def unnoticed(check: Callable[[], None], edit: Callable[[str], str]) -> int:
    """0 if the check fails with threads run in some order, 1 if it passes in all three."""
    for order in (FORWARD, BACKWARD, SHUFFLED):
        launching.runner = CudaOnCpu(order, edit, ("-O0",))
        try:
            check()
        except (AssertionError, RuntimeError) as error:
            if "could not build" in str(error):
                raise  # a mistake that does not compile says nothing of the check
            return 0
    return 1


def exit_status(check: Callable[[], None], edit: Callable[[str], str]) -> int:
    """What `unnoticed` says in a child process; negative if it died of a signal."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        resource.setrlimit(
            resource.RLIMIT_CPU, (5, 5)
        )  # a mistake may never end: 1 s is what the checks take
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a crash's own words
        status = 2
        try:
            status = unnoticed(check, edit)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for each in (
        begin,
        suppress,
        suppress_sorted,
        suppress_by_label,
        suppress_softly,
        align,
        align_in_bands,
        pool,
    ):  # in this process, so that what torch prepares once is inherited
        print(
            "passes as it stands" if unnoticed(each, lambda source: source) else "FAILS as it stands",
            each.__name__,
            flush=True,
        )
    for each, text, mistake in PLANTED:
        outcome = exit_status(each, planted(text, mistake))
        verdict = "noticed" if outcome <= 0 else "UNNOTICED" if outcome == 1 else "BROKEN"
        print(
            f"{verdict}: {each.__name__}: {text!r}"
            f" {f'-> {mistake!r}' if isinstance(mistake, str) else f'number {mistake} left out'}",
            flush=True,
        )
