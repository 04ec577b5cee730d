"""The CPU's compiled operators: numba is imported at the first call and no earlier, and what is said without it."""

from __future__ import annotations

import subprocess

import pytest
import torch
from forked import run_forked

from detection_zoo.kernels.backend import backend_for, cpu_form
from detection_zoo.kernels.machine_code import in_threads

WITHOUT = "import sys, warnings; sys.modules['numba'] = None; warnings.simplefilter('always')\n"
CALL = """
import torch
from detection_zoo.kernels.nms import nms
boxes, scores = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]]), torch.tensor([0.9, 0.8])
for _ in range(2):
    print(nms(boxes, scores, 0.5).tolist())
"""


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    return run_forked("-c", code, imports=("torch",))


@pytest.mark.parametrize(
    "module", ["detection_zoo.bench", "detection_zoo.zoo.build", "detection_zoo.kernels.nms"]
)
def test_numba_is_not_imported_with_the_project(module: str) -> None:
    done = run_code(f"import sys, {module}; print('numba' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_without_numba_the_reference_answers_and_one_warning_says_so() -> None:
    done = run_code(WITHOUT + CALL)
    assert done.stdout == "[0]\n[0]\n", done.stderr
    assert done.stderr.count("numba is not installed") == 1 and "pip install numba" in done.stderr


def test_without_numba_the_cpu_backend_says_what_is_missing() -> None:
    done = run_code(WITHOUT + CALL.replace("0.5)", "0.5, backend='cpu')"))
    last = done.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: ") and "pip install numba" in last and "backend='reference'" in last


def test_a_module_that_is_missing_is_not_blamed_on_numba() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_operator_cpu"):
        cpu_form("no_such_operator")


def test_the_cpu_backend_is_for_tensors_on_a_cpu() -> None:
    elsewhere = torch.empty(3, 4, device="meta")
    with pytest.raises(ValueError, match="needs tensors on a CPU, NMS got one on meta"):
        backend_for(elsewhere, "cpu", operator="NMS", known=("reference", "cpu"))
    assert backend_for(elsewhere, operator="NMS", known=("reference", "cpu")) == "reference"


@pytest.mark.parametrize(
    ("count", "threads", "least", "parts"),
    [
        (10, 3, 1, [(0, 3), (3, 6), (6, 10)]),
        (10, 3, 5, [(0, 5), (5, 10)]),
        (3, 8, 9, [(0, 3)]),
        (0, 2, 1, [(0, 0)]),
    ],
)
def test_work_is_cut_into_equal_parts(
    count: int, threads: int, least: int, parts: list[tuple[int, int]]
) -> None:
    done: list[tuple[int, int]] = []
    in_threads(lambda start, end: done.append((start, end)), count, threads, least)
    assert sorted(done) == parts
