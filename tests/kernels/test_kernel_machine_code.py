"""What compiled operators share: bfloat16 as its bits, and machine code on disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from numba import njit

from detection_zoo.kernels.machine_code import as_array, narrow, widen

DOUBLED = """
from detection_zoo.kernels.machine_code import compiled

@compiled
def doubled(number):
    return number + number

@compiled
def of_int(number):
    return doubled(number)

@compiled
def of_float(number):
    return doubled(number)

@compiled
def of_complex(number):
    return doubled(number)
"""
# waits where numba has chosen a name for the code, until another process has compiled, too
AT_ONCE = """
import sys, time
import numba.core.caching as caching
import doubled
def slowly(index, entries, save=caching.IndexDataCacheFile._save_index):
    time.sleep(1)
    save(index, entries)
caching.IndexDataCacheFile._save_index = slowly
print("imported", flush=True)
sys.stdin.readline()
work = getattr(doubled, f"of_{sys.argv[1]}")
print(work({"int": 21, "float": 1.25, "complex": 2j}[sys.argv[1]]), sum(work.stats.cache_hits.values()))
"""
LATER = """
from doubled import doubled
print(doubled(21), doubled(1.25), doubled(2j), sum(doubled.stats.cache_hits.values()))
"""


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


def test_processes_that_compile_at_once_keep_each_other_s_code_and_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doubled.py").write_text(DOUBLED)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)

    def start(code: str, *arguments: str) -> Forked:
        path = {"PYTHONPATH": str(tmp_path)}
        return Forked("-c", code, *arguments, environment=path, stdin=subprocess.PIPE)

    processes = [start(AT_ONCE, kind) for kind in ("int", "float", "complex", "int")]
    assert [one.stdout.readline() for one in processes] == ["imported\n"] * 4
    for one in processes:  # all compile from here on
        one.stdin.write("\n")
        one.stdin.flush()
    first, *others, last = [one.communicate(timeout=120)[0] for one in processes]
    assert others == ["2.5 0\n", "4j 0\n"]
    assert sorted((first, last)) == ["42 0\n", "42 1\n"]  # one has compiled and the other has waited
    assert start(LATER).communicate(timeout=120)[0] == "42 2.5 4j 3\n"
