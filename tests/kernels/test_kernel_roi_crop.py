"""RoICrop and its grid on every backend: torch's grid_sample and the recorded originals as judges, gradients,
and odd points."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import Backend, every_backend, matches, normal_input, recorded  # noqa: F401 - a fixture
from test_kernel_roi_pool import deterministic, gradient  # noqa: F401 - a fixture

from detection_zoo.kernels.roi_crop import affine_grid, roi_crop


def test_grid_by_hand() -> None:
    """A box over cells 1..3 of 5 rows and 0..8 of 9 columns, in units of half the map."""
    grid = affine_grid(torch.tensor([[0.0, 0, 10, 80, 30]]), (5, 9), (3, 2), 0.1)
    assert grid[0, :, 0, 0].tolist() == [-0.5, 0.0, 0.5] and grid[0, 0, :, 1].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_against_grid_sample(
    backend: Backend,
    dtype: torch.dtype,
    layout: torch.memory_format,
    deterministic: bool,  # noqa: F811
) -> None:  # noqa: F811
    maps = normal_input(31, (3, 5, 9, 12)).to(dtype).to(backend.device).contiguous(memory_format=layout)
    grid, images = 0.9 * normal_input(32, (6, 4, 3, 2)).to(backend.device), torch.tensor([0, 0, 1, 1, 2, 2])
    upstream = normal_input(33, (6, 5, 4, 3)).to(dtype)
    cropped = roi_crop(maps, grid, backend=backend.name)
    grad = gradient(maps, lambda given: roi_crop(given, grid, backend=backend.name), upstream)
    torch.use_deterministic_algorithms(False)  # the judge has no deterministic form on a GPU

    def judge(given: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.grid_sample(
            given[images], grid.cpu().flip(3).to(given.dtype), align_corners=True
        )

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(
        cropped.cpu().to(wide), judge(maps.cpu().to(wide)), rtol=tolerance, atol=tolerance
    )
    expected = gradient(maps.cpu().to(wide), judge, upstream.to(wide))
    torch.testing.assert_close(grad.to(wide), expected, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("size", [7, 14])
def test_recorded_detnet(backend: Backend, size: int) -> None:
    maps, rois = (
        normal_input(40, (2, 6, 20, 30)).to(backend.device),
        recorded("detnet/in.crop_rois").to(backend.device),
    )
    grid = affine_grid(rois, (20, 30), size)
    matches(grid, f"detnet/roi_crop_{size}_grid_yx", 1e-6)
    cropped = roi_crop(maps, grid, backend=backend.name)
    matches(cropped, f"detnet/roi_crop_{size}")
    if size == 14:
        matches(torch.nn.functional.max_pool2d(cropped, 2, 2), "detnet/roi_crop_14_max_pool")


def test_recorded_detnet_gradient(backend: Backend, deterministic: bool) -> None:  # noqa: F811
    maps, grid = (
        normal_input(40, (2, 6, 20, 30)).to(backend.device),
        affine_grid(recorded("detnet/in.crop_rois").to(backend.device), (20, 30), 7),
    )
    matches(
        gradient(
            maps, lambda given: roi_crop(given, grid, backend=backend.name), normal_input(42, (8, 6, 7, 7))
        ),
        "detnet/roi_crop_7_grad",
    )


def test_recorded_detectron(backend: Backend) -> None:
    maps, rois = (
        recorded("detectron/pool.features").to(backend.device),
        recorded("detectron/pool.roi_crop_rois").to(backend.device),
    )
    cropped = roi_crop(maps, affine_grid(rois, (8, 10), 6), backend=backend.name)
    matches(cropped, "detectron/pool.roi_crop6")
    matches(torch.nn.functional.max_pool2d(cropped, 2, 2), "detectron/pool.roi_crop3")


def test_points_and_images_off_the_map(backend: Backend, deterministic: bool) -> None:  # noqa: F811
    maps = torch.full((2, 1, 3, 3), torch.nan, device=backend.device)
    maps[0] = 1.0
    grid = torch.zeros(6, 1, 1, 2, device=backend.device)
    grid[1], grid[2, ..., 0], grid[3, ..., 1] = 1e30, torch.nan, -torch.inf
    images = torch.tensor([0, 0, 0, 0, -1, 7], device=backend.device)
    assert roi_crop(maps, grid, images, backend=backend.name).flatten().tolist() == [1, 0, 0, 0, 0, 0]
    grad = gradient(
        maps, lambda given: roi_crop(given, grid, images, backend=backend.name), torch.ones(6, 1, 1, 1)
    )
    assert grad[0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]] and (grad[1] == 0).all()


def test_gradcheck_to_the_map_alone() -> None:
    maps, grid = (
        normal_input(9, (2, 1, 4, 5)).double().requires_grad_(),
        normal_input(10, (2, 2, 2, 2)).double().requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda given: roi_crop(given, grid), maps)
    roi_crop(maps, grid).sum().backward()
    assert grid.grad is None


def test_empty_inputs_and_wrong_shapes(backend: Backend) -> None:
    maps = normal_input(1, (2, 3, 5, 5)).to(backend.device)
    assert roi_crop(maps, torch.zeros(0, 2, 2, 2, device=backend.device), backend=backend.name).shape == (
        0,
        3,
        2,
        2,
    )
    for grid, images, what in (
        (torch.zeros(3, 2, 2, 2), None, "divide"),
        (torch.zeros(2, 2, 2, 3), None, "must be"),
        (torch.zeros(2, 2, 2, 2), torch.zeros(2), "integers"),
    ):
        with pytest.raises(ValueError, match=what):
            roi_crop(
                maps,
                grid.to(backend.device),
                None if images is None else images.to(backend.device),
                backend=backend.name,
            )
    with pytest.raises(ValueError, match="at least 2"):
        affine_grid(torch.zeros(1, 5), (1, 9), 7)
