"""What compiled operators share: bfloat16 as its bits."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from detection_zoo.kernels.machine_code import as_array, narrow, widen


@njit
def widened(numbers, out):
    for n in range(len(numbers)):
        out[n] = widen(numbers[n])


@njit
def narrowed(numbers, out):
    for n in range(len(numbers)):
        out[n] = narrow(numbers[n], out[0])


def test_every_bfloat16_is_widened_as_by_torch() -> None:
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    found = torch.empty(1 << 16)
    widened(as_array(halves), as_array(found))
    assert torch.equal(found.view(torch.int32), halves.float().view(torch.int32))


def test_float32_is_narrowed_as_by_torch() -> None:
    """Each upper half with lower halves around the tie; NaN stays NaN."""
    upper = torch.arange(1 << 16, dtype=torch.int64)[:, None] << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    numbers = (upper + lower).flatten().to(torch.uint32).view(torch.float32)
    found, answer = torch.empty(len(numbers), dtype=torch.bfloat16), numbers.bfloat16()
    narrowed(as_array(numbers), as_array(found))
    nan = answer.isnan()
    assert torch.equal(found.isnan(), nan)
    assert torch.equal(found[~nan].view(torch.uint16), answer[~nan].view(torch.uint16))


def test_numbers_of_other_types_stay() -> None:
    for kind in (np.float32, np.float64):
        given, found = np.array([1.5, -0.0, np.inf], kind), np.empty(3, kind)
        widened(given, found)
        narrowed(found, found)
        assert np.array_equal(found, given)
