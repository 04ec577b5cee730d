"""What each kernel takes of a GPU, by NVRTC, which needs none: registers of a thread, stack and spills, and
the threads and shared memory of a block as launched for the work that detectors give it.

    python tests/kernel_resources.py        (from the root, with PYTHONPATH=.) writes kernels/resources.csv
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

import torch
from kernel_backends import clustered_boxes
from nvrtc import Usage, compile_for, version_for

import detection_zoo.kernels.launch as launching
from detection_zoo.kernels.nms import batched_nms
from detection_zoo.kernels.nms_labelled import nms_labelled
from detection_zoo.kernels.nms_sorted import nms_sorted
from detection_zoo.kernels.roi_align import multilevel_roi_align
from detection_zoo.kernels.roi_crop import affine_grid, roi_crop
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.kernels.soft_nms import soft_nms

TABLE = Path(launching.__file__).parent / "resources.csv"
ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
COLUMNS = ("file", "kernel", "options", "threads", "shared_bytes", "stack_bytes", "spilled_bytes")
REGISTERS = 65536  # of a multiprocessor


class Launched(NamedTuple):
    """A kernel as it is launched; options are the macros of its file, "SCALAR=float ..."."""

    file: str
    kernel: str
    options: str
    threads: int
    shared_bytes: int

    def defines(self) -> dict[str, object]:
        """The macros by name."""
        return dict(option.split("=") for option in self.options.split(","))


@functools.cache
def all_launches() -> list[Launched]:
    """Every kernel in every form that detectors launch, once: a runner notes the launches and runs none."""
    found: dict[Launched, None] = {}

    def note(
        file: str,
        kernel: str,
        options: tuple[str, ...],
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[launching.Argument],
        shared_bytes: int,
    ) -> None:
        macros = ",".join(option[2:] for option in options if option.startswith("-D"))
        found[Launched(file, kernel, macros, torch.Size(block).numel(), shared_bytes)] = None

    before, launching.runner = launching.runner, note
    try:
        for dtype in (torch.float32, torch.float64):
            _suppress(dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            _pool(dtype)
    finally:
        launching.runner = before
    return sorted(found)


def _suppress(dtype: torch.dtype) -> None:
    boxes, scores = (each.to(dtype) for each in clustered_boxes(5000, seed=0))
    batched_nms(boxes, scores, None, 0.7, backend="cuda")
    batched_nms(boxes, scores, torch.arange(5000) % 5, 0.7, num_groups=5, max_candidates=1000, backend="cuda")
    nms_sorted(boxes.view(5, 1000, 4), 0.7, backend="cuda")
    labels = torch.arange(5000).view(5, 1000) % 80
    nms_labelled(boxes.view(5, 1000, 4), labels, 0.5, max_keep=100, backend="cuda")
    soft_nms(boxes[:1000], scores[:1000], backend="cuda")


def _pool(dtype: torch.dtype) -> None:
    rois = torch.tensor([[0, 10.0, 10, 90, 70]])
    for layout, size in product((torch.channels_last, torch.contiguous_format), (7, 14)):
        maps = [
            torch.zeros(1, 256, 32 >> level, 40 >> level, dtype=dtype)
            .contiguous(memory_format=layout)
            .requires_grad_()
            for level in range(2)
        ]
        grid, images = affine_grid(rois, (32, 40), size, 1 / 4), torch.zeros(1, dtype=torch.int64)
        pooled = (
            multilevel_roi_align(maps, rois, size, [1 / 4, 1 / 8], 2, channels_last=False, backend="cuda"),
            roi_pool(maps[0], rois, size, 1 / 4, backend="cuda"),
            roi_crop(
                maps[0],
                grid.to(torch.float64 if dtype == torch.float64 else torch.float32),
                images,
                backend="cuda",
            ),
        )
        for deterministic, each in product((False, True), pooled):
            torch.use_deterministic_algorithms(deterministic)
            torch.autograd.grad(each.sum(), maps, retain_graph=True, allow_unused=True)
        torch.use_deterministic_algorithms(False)


def first_of_each_file(launches: Iterable[Launched]) -> list[Launched]:
    """Of each file the launches with one set of macros, in float32 and channels-last where it has layouts."""
    options: dict[str, str] = {}
    for each in sorted(launches, key=lambda own: ("=float" not in own.options, "PACK=4" not in own.options)):
        options.setdefault(each.file, each.options)
    return [each for each in launches if options[each.file] == each.options]


def compiled(launches: Sequence[Launched], architecture: int) -> Iterator[tuple[Launched, Usage]]:
    """What each launch uses on an architecture; the kernels of a file that are launched with the same macros
    are compiled together."""
    for _, group in groupby(sorted(launches, key=_form), _form):
        given = list(group)
        kernels = {each.kernel for each in given}
        made = compile_for(given[0].file, kernels, given[0].defines(), architecture)
        yield from ((each, made[each.kernel]) for each in given)


def _form(each: Launched) -> tuple[str, str]:
    return each.file, each.options


def read_table() -> tuple[dict[Launched, dict[str, str]], dict[str, str]]:
    """Rows of the table by launch, and the version of NVRTC of each architecture ("sm_90")."""
    with TABLE.open(newline="") as text:
        versions, *rows = csv.DictReader(text)
    keyed = {
        Launched(
            row["file"], row["kernel"], row["options"], int(row["threads"]), int(row["shared_bytes"])
        ): row
        for row in rows
    }
    return keyed, versions


def write_table() -> None:
    """Compile everything for all architectures (a minute) and write the table."""
    launches = all_launches()
    rows: dict[Launched, dict[str, object]] = {
        each: dict(zip(COLUMNS, (*each, 0, 0), strict=True)) for each in launches
    }
    versions: dict[str, object] = {"file": "NVRTC"}
    for architecture in ARCHITECTURES:
        versions[f"sm_{architecture}"] = version_for(architecture)
        for each, usage in compiled(launches, architecture):
            row = rows[each]
            row[f"sm_{architecture}"] = usage.registers
            row["stack_bytes"] = max(row["stack_bytes"], usage.stack_bytes)
            row["spilled_bytes"] = max(row["spilled_bytes"], usage.spilled_bytes)
    with TABLE.open("w", newline="") as text:
        columns = (*COLUMNS, *(f"sm_{architecture}" for architecture in ARCHITECTURES))
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows([versions, *rows.values()])


if __name__ == "__main__":
    write_table()
    print(f"wrote {TABLE}")
