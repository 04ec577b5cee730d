"""RoIPool on every backend: bins by hand, torchvision and the recorded originals as judges, gradients, and
rows that cannot be pooled."""

from __future__ import annotations

import pytest
import torch
import torchvision
from kernel_backends import Backend, every_backend, matches, normal_input, recorded  # noqa: F401 - a fixture

from detection_zoo.kernels.roi_pool import _roi_pool_op, roi_pool

ROIS = torch.tensor(
    [
        [0, 10.3, 12.7, 100.2, 90.9],
        [1, 33.7, 20.2, 190.6, 40.8],
        [0, -42.4, -37.9, 90.3, 240.6],
        [1, 900, 900, 950, 990],
        [1, 60, 60, 60, 60],
        [1, 0, 0, 239, 159],
    ]
)


@pytest.fixture(params=[False, True], ids=["atomic", "deterministic"])
def deterministic(request: pytest.FixtureRequest):
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def gradient(maps: torch.Tensor, pool, upstream: torch.Tensor) -> torch.Tensor:
    maps = maps.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    pool(maps).backward(upstream.to(maps))
    return maps.grad.cpu()


def test_bins_by_hand(backend: Backend) -> None:
    """A box of 3 cells in 2 bins: both bins take the middle cell. 0.5 rounds to 1, -0.5 to -1; the cell at -1
    is off the map."""
    maps = torch.tensor([[[[1.0, 5, 2, 4], [0, 0, 0, 0]]]], device=backend.device)
    rois = torch.tensor(
        [[0.0, 0, 0, 2, 0], [0, 0.5, 0, 2.4, 0], [0, -0.5, 0, 0.4, 0], [0, 3, 0, 1, 0]], device=backend.device
    )
    pooled = roi_pool(maps, rois, (1, 2), 1.0, backend=backend.name)[:, 0, 0]
    assert pooled.tolist() == [[5, 5], [5, 2], [0, 1], [4, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_against_torchvision(
    backend: Backend, dtype: torch.dtype, layout: torch.memory_format, deterministic: bool
) -> None:
    maps = normal_input(21, (2, 5, 20, 30)).to(dtype).to(backend.device).contiguous(memory_format=layout)
    rois, upstream = ROIS.to(dtype).to(backend.device), normal_input(22, (len(ROIS), 5, 3, 4))
    pooled = roi_pool(maps, rois, (3, 4), 1 / 8, backend=backend.name)
    assert torch.equal(pooled.cpu(), torchvision.ops.roi_pool(maps.cpu(), rois.cpu(), (3, 4), 1 / 8))
    grad = gradient(maps, lambda given: roi_pool(given, rois, (3, 4), 1 / 8, backend=backend.name), upstream)
    torch.use_deterministic_algorithms(False)  # the judge has no deterministic form
    expected = gradient(
        maps.cpu(), lambda given: torchvision.ops.roi_pool(given, rois.cpu(), (3, 4), 1 / 8), upstream
    )
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(backend: Backend, dtype: torch.dtype, deterministic: bool) -> None:
    maps, rois, upstream = (
        normal_input(23, (2, 5, 20, 30)).to(dtype).to(backend.device),
        ROIS.to(backend.device),
        normal_input(24, (len(ROIS), 5, 3, 3)),
    )
    assert torch.equal(
        roi_pool(maps, rois, 3, 1 / 8, backend=backend.name).float(),
        roi_pool(maps.float(), rois, 3, 1 / 8, backend=backend.name),
    )
    grad = gradient(maps, lambda given: roi_pool(given, rois, 3, 1 / 8, backend=backend.name), upstream)
    expected = gradient(
        maps.float(), lambda given: roi_pool(given, rois, 3, 1 / 8, backend=backend.name), upstream.to(dtype)
    )
    torch.testing.assert_close(grad.float(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("size", [7, 14])
def test_recorded_detnet(backend: Backend, size: int) -> None:
    maps, rois = (
        normal_input(40, (2, 6, 20, 30)).to(backend.device),
        recorded("detnet/in.roi_boxes").to(backend.device),
    )
    matches(roi_pool(maps, rois, size, 1 / 16, backend=backend.name), f"detnet/roi_pool_{size}")
    cell = _roi_pool_op(maps, rois, [size, size], 1 / 16, backend.name)[1].cpu()
    plane = rois[:, 0].long().cpu()[:, None, None, None] * 6 + torch.arange(6)[:, None, None]
    matches(torch.where(cell < 0, -1, plane * 600 + cell), f"detnet/roi_pool_{size}_argmax")


def test_recorded_detnet_gradient(backend: Backend, deterministic: bool) -> None:
    """A box that ends before it starts pools a cell but passes no gradient."""
    rois, maps = (
        recorded("detnet/in.roi_boxes").to(backend.device),
        normal_input(40, (2, 6, 20, 30)).to(backend.device),
    )
    grad = gradient(
        maps,
        lambda given: roi_pool(given, rois, 7, 1 / 16, backend=backend.name),
        normal_input(41, (9, 6, 7, 7)),
    )
    matches(grad, "detnet/roi_pool_7_grad")


def test_recorded_detectron(backend: Backend) -> None:
    maps, rois = (
        recorded("detectron/pool.features").to(backend.device),
        recorded("detectron/pool.rois").to(backend.device),
    )
    matches(roi_pool(maps, rois, 3, 1 / 16, backend=backend.name), "detectron/pool.roi_pool")


def test_rows_that_cannot_be_pooled(backend: Backend, deterministic: bool) -> None:
    rois = ROIS[[0] * 7].clone()
    rois[1, 0], rois[2, 0], rois[3, 0], rois[4, 2], rois[5, 4] = -1, 2, torch.nan, torch.nan, torch.inf
    rois[6, 1:] = torch.tensor([-1e30, -1e30, 1e30, 1e30])
    maps = normal_input(25, (2, 3, 9, 11)).to(backend.device)
    pooled = roi_pool(maps, rois.to(backend.device), 2, 1 / 16, backend=backend.name).cpu()
    assert pooled[2:6].isnan().all() and (pooled[1] == 0).all() and pooled[[0, 6]].isfinite().all()
    grad = gradient(
        maps,
        lambda given: roi_pool(given, rois.to(backend.device), 2, 1 / 16, backend=backend.name),
        torch.ones(7, 3, 2, 2),
    )
    expected = gradient(
        maps,
        lambda given: roi_pool(given, rois[[0, 6]].to(backend.device), 2, 1 / 16, backend=backend.name),
        torch.ones(2, 3, 2, 2),
    )
    torch.testing.assert_close(grad, expected)


def test_sides_beyond_all_numbers(backend: Backend) -> None:
    """The side overflows to infinity: the first bin is the whole map, the others lie behind it."""
    maps = torch.arange(12.0, device=backend.device).view(1, 1, 3, 4)
    rois = torch.tensor([[0, -1e38, -1e38, 3e38, 3e38]], device=backend.device)
    assert roi_pool(maps, rois, 2, 1.0, backend=backend.name).flatten().tolist() == [11, 0, 0, 0]


def test_the_first_maximum_and_the_first_nan_win(backend: Backend) -> None:
    maps = torch.tensor([[[[3.0, 7, 7], [7, 1, torch.nan], [torch.nan, 7, 0]]]], device=backend.device)
    rois = torch.tensor([[0.0, 0, 0, 1, 1], [0, 0, 0, 2, 2]], device=backend.device)
    pooled, cell = _roi_pool_op(maps, rois, [1, 1], 1.0, backend.name)
    assert pooled[0].item() == 7 and pooled[1].isnan().all() and cell.flatten().tolist() == [1, 5]


def test_empty_inputs(backend: Backend) -> None:
    maps = normal_input(1, (2, 3, 5, 5)).to(backend.device)
    none = roi_pool(maps.clone().requires_grad_(), ROIS[:0].to(backend.device), 7, 0.1, backend=backend.name)
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert roi_pool(maps[:, :0], ROIS.to(backend.device), 7, 0.1, backend=backend.name).shape == (
        len(ROIS),
        0,
        7,
        7,
    )
    assert roi_pool(maps[:0], ROIS.to(backend.device), 7, 0.1, backend=backend.name).isnan().all()
    assert (roi_pool(maps[..., :0], ROIS.to(backend.device), 7, 0.1, backend=backend.name) == 0).all()


def test_gradcheck() -> None:
    maps = normal_input(9, (2, 1, 4, 5)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: roi_pool(given, ROIS.double(), 2, 1 / 40), maps)


def test_shapes_that_raise() -> None:
    for maps, rois, size in (
        (torch.zeros(1, 2, 4), ROIS, 7),
        (torch.zeros(1, 2, 4, 4), ROIS[:, 1:], 7),
        (torch.zeros(1, 2, 4, 4), ROIS, 0),
    ):
        with pytest.raises(ValueError, match="must be"):
            roi_pool(maps, rois, size, 0.1)
