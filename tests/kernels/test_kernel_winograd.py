"""Winograd's convolution: beside the definition in double precision, borders, tiles, threads, wrong input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detection_zoo.kernels import winograd
from detection_zoo.kernels.winograd import winograd_conv, winograd_filters

# of the map's norm; measured in float32 at most 1.0e-6 with 1,024 channels, direct sums 6e-7
BOUND = {torch.float32: 5e-6, torch.bfloat16: 0.02}


def layer(channels: int, outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, channels, 3, 3, generator=draw), torch.randn(outputs, generator=draw)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 4), (1, 5, 7, 9), (2, 16, 33, 18), (1, 64, 70, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", list(BOUND))
def test_the_definition_is_kept(
    shape: tuple[int, ...], layout: torch.memory_format, biased: bool, dtype: torch.dtype
) -> None:
    weight, bias = layer(shape[1], 6)
    maps = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    maps = maps.contiguous(memory_format=layout)
    found = winograd_conv(maps, winograd_filters(weight, dtype), bias if biased else None)
    answer = F.conv2d(maps.double(), weight.double(), bias.double() if biased else None, padding=1)
    assert found.shape == answer.shape and found.is_contiguous(memory_format=torch.channels_last)
    norm = answer.norm()
    if dtype == torch.bfloat16:  # taps on the border are rounded too: the norm expected of random numbers
        norm = torch.maximum(norm, maps.double().norm() * weight.double().norm() / shape[1] ** 0.5)
    assert found.dtype == dtype and (found - answer).norm() <= BOUND[dtype] * norm


def test_whole_numbers_are_exact() -> None:
    """The centre times 225, so that the transformed filter is whole."""
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 225.0
    maps = torch.arange(90.0).view(1, 1, 9, 10)
    assert torch.equal(winograd_conv(maps, winograd_filters(weight)), 225 * maps)


def test_every_filter_tap_reaches_its_pixel() -> None:
    maps = torch.randn(1, 1, 11, 13, generator=torch.Generator().manual_seed(2))
    for tap in range(9):
        weight = torch.zeros(9)
        weight[tap] = 1.0
        weight = weight.view(1, 1, 3, 3)
        answer = F.conv2d(maps, weight, padding=1)
        torch.testing.assert_close(winograd_conv(maps, winograd_filters(weight)), answer, rtol=0, atol=2e-5)


def test_strips_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = layer(8, 8)
    maps, filters = torch.randn(1, 8, 50, 30), winograd_filters(weight)
    whole = winograd_conv(maps, filters, bias)
    monkeypatch.setattr(winograd, "TILES", 1)  # a row of tiles at a time
    torch.testing.assert_close(winograd_conv(maps, filters, bias), whole, rtol=1e-6, atol=1e-5)
    monkeypatch.undo()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.testing.assert_close(winograd_conv(maps, filters, bias), whole, rtol=1e-6, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_wrong_input_is_refused() -> None:
    filters = winograd_filters(layer(4, 2)[0])
    for maps, said in (
        (torch.zeros(1, 3, 8, 8), r"maps are \(N, 4, H, W\) float32 on a CPU, got \(1, 3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.float64), "torch.float64 on cpu"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), "float32 on a CPU, got .*torch.bfloat16 on cpu"),
        (torch.zeros(1, 4, 8, 8, device="meta"), "on meta"),
        (torch.zeros(4, 8, 8), r"got \(4, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=said):
            winograd_conv(maps, filters)
    with pytest.raises(ValueError, match=r"filters are \(K, C, 3, 3\), got \(2, 4, 5, 5\)"):
        winograd_filters(torch.zeros(2, 4, 5, 5))
