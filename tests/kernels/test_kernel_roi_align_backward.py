"""How the CUDA source of RoIAlign's gradient adds: once a cell, four channels at a time where a GPU can, and
sample by sample where a RoI is too large to gather."""

from __future__ import annotations

import kernel_backends
import pytest
import torch
from cuda_on_cpu import BACKWARD, FORWARD, CudaOnCpu
from kernel_backends import normal_input

import detection_zoo.kernels.launch as launching
from detection_zoo.kernels.roi_align import multilevel_roi_align, roi_align
from detection_zoo.kernels.roi_align_cuda import MAX_CELLS, SLICE, _gathered

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
WITHOUT_VECTORS, WITH_VECTORS = (), ("-D__CUDA_ARCH__=900",)  # GPUs before sm_90, and from it on
# the usual ones, an absent row, and one that is not a number
ROIS = torch.cat([kernel_backends.ROIS, torch.tensor([[-1, 0, 0, 50, 50], [0, 0, torch.nan, 50, 50]])])
TERMS = 300  # of a cell, at most: the point's 196 samples, and some of each other RoI


def gradients(
    maps: list[torch.Tensor], upstream: torch.Tensor, ratio: int, size: int, backend: str
) -> list[torch.Tensor]:
    leaves = [each.detach().requires_grad_() for each in maps]
    pooled = multilevel_roi_align(
        leaves, ROIS, size, [1 / 4, 1 / 8], ratio, True, canonical_scale=60, backend=backend
    )
    return torch.autograd.grad(pooled, leaves, upstream)


@pytest.mark.parametrize("flags", [WITHOUT_VECTORS, WITH_VECTORS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "channels", "size", "ratio"),
    [
        (torch.float32, 40, 7, 2),
        (torch.float32, 6, 7, 0),
        (torch.float32, 36, 14, 2),
        (torch.float16, 8, 7, 2),
        (torch.float64, 8, 14, 2),
    ],
)
def test_gathered_gradients_are_the_reference_s(
    flags: tuple[str, ...],
    layout: str,
    dtype: torch.dtype,
    channels: int,
    size: int,
    ratio: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each to n + 4 ulps of the sum of the absolute values of its n terms, which are added in another order;
    float16's sums are rounded once more."""
    maps = [
        normal_input(level, (2, channels, 40 >> level, 60 >> level))
        .to(dtype)
        .contiguous(memory_format=LAYOUTS[layout])
        for level in range(2)
    ]
    upstream = normal_input(6, (len(ROIS), channels, size, size)).to(dtype)
    wide = [each.double() for each in maps]
    exact = gradients(wide, upstream.double(), ratio, size, "reference")
    whole = gradients(wide, upstream.double().abs(), ratio, size, "reference")
    number = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    for order in (FORWARD, BACKWARD):
        run = CudaOnCpu(order, flags=flags)
        monkeypatch.setattr(launching, "runner", run)
        for given in (upstream, upstream.contiguous(memory_format=torch.channels_last)):
            grads = gradients(maps, given, ratio, size, "cuda")
            assert any(found.abs().sum() > 0 for found in grads)
            for found, right, size_of_terms in zip(grads, exact, whole, strict=True):
                bound = (TERMS + 4) * number.eps * size_of_terms
                if dtype == torch.float16:
                    bound = bound + torch.finfo(dtype).eps * right.abs() + torch.finfo(dtype).tiny
                assert bool(((found.double() - right).abs() <= bound).all())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("flags", "at_once"), [(WITHOUT_VECTORS, 1), (WITH_VECTORS, 4)])
def test_a_cell_takes_one_atomic(
    layout: str, flags: tuple[str, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bins of three cells at two points each: 49 bins read up to 16 cells, and 784 additions a channel become
    as many as there are cells."""
    run = CudaOnCpu(flags=flags)
    monkeypatch.setattr(launching, "runner", run)
    features = torch.zeros(1, 32, 30, 40).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    pooled = roi_align(features, torch.tensor([[0, 20.0, 20, 107, 103]]), 7, 1 / 4, 2, backend="cuda")
    run.counts.clear()
    (found,) = torch.autograd.grad(pooled.sum(), features)
    cells = int((found[0, 0] != 0).sum())
    additions = run.counts["roi_align_backward"][3]
    assert 300 < cells < 784 and additions * (at_once if layout == "channels_last" else 1) == 32 * cells


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("box", "size"), [((0, 2, 3, 118, 96), 7), ((0, 2, 3, 40, 36), (70, 30))])
def test_what_cannot_be_gathered_adds_sample_by_sample(
    layout: str, box: tuple[int, ...], size: int | tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A RoI of more cells, and one of more bins, than a block has room for."""
    assert box[3] - box[1] > MAX_CELLS or size == (70, 30)
    monkeypatch.setattr(launching, "runner", CudaOnCpu())
    found = []
    for backend in ("cuda", "reference"):
        features = normal_input(0, (1, 4, 100, 120)).contiguous(memory_format=LAYOUTS[layout])
        features.requires_grad_()
        pooled = roi_align(features, torch.tensor([box]).float(), size, 1.0, 2, True, backend=backend)
        found += torch.autograd.grad(pooled, features, normal_input(1, tuple(pooled.shape)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_a_block_takes_as_many_channels_as_its_bins_leave_room_for() -> None:
    def slice_of(high: int, wide: int, pack: int, number: int) -> int:
        kind = {4: "float", 8: "double"}[number]
        given = {"POOLED_H": high, "POOLED_W": wide, "PACK": pack, "SUM": kind, "OFFSET": "int"}
        return _gathered(given, number)[0]

    assert slice_of(7, 7, 4, 4) == slice_of(14, 14, 4, 4) == slice_of(7, 7, 1, 8) == SLICE
    assert 0 < slice_of(14, 14, 1, 8) < SLICE and slice_of(70, 30, 1, 4) == slice_of(1, 300, 1, 4) == 0
