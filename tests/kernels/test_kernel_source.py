"""The CUDA source itself: NVRTC accepts it for every architecture, the host shim catches planted mistakes,
the sanitizers find none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_on_cpu import CudaOnCpu
from forked import ROOT, run_forked
from kernel_resources import ARCHITECTURES, REGISTERS, all_launches, compiled, first_of_each_file, read_table
from nvrtc import compile_for, version_for

import detection_zoo.kernels.launch as launching
from detection_zoo.kernels.launch import binary_of, compile_options, launch, run_on_gpu

HALF = {"SCALAR": "__half", "SUM": "float"}
FILES = {
    "nms.cu": {"SCALAR": "float"},
    "nms_sorted.cu": {"SCALAR": "float"},
    "soft_nms.cu": {"SCALAR": "float"},
    "roi_pool.cu": HALF,
    "roi_crop.cu": HALF,
    "roi_align.cu": {
        "SCALAR": "float",
        "SUM": "float",
        "POOLED_H": 7,
        "POOLED_W": 7,
        "PACK": 4,
        "OFFSET": "int",
    },
}


def kernels_of(file: str) -> set[str]:
    return set(re.findall(r"__global__ void (\w+)\(", launching.source_of(file)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills_or_takes_more_than_the_table_says(architecture: int) -> None:
    """Each file in one form on every architecture, and on sm_90 every form of float32 and float16; all forms
    on all with DETECTION_ZOO_TEST_RESOURCES=all."""
    launches = all_launches()
    rows, versions = read_table()
    assert set(rows) == set(launches), "run tests/kernel_resources.py"
    given = first_of_each_file(launches)
    if os.environ.get("DETECTION_ZOO_TEST_RESOURCES") == "all":
        given = launches
    elif architecture == 90:
        given = [
            each for each in launches if "bfloat16" not in each.options and "=double" not in each.options
        ]
    for each, usage in compiled(given, architecture):
        recorded = int(rows[each][f"sm_{architecture}"])
        assert usage.spilled_bytes == 0, each
        if version_for(architecture) == versions[f"sm_{architecture}"]:
            assert usage.registers <= recorded, each
            assert usage.stack_bytes <= int(rows[each]["stack_bytes"]), each


def test_the_table_has_every_kernel_and_each_block_fits_a_multiprocessor() -> None:
    rows, versions = read_table()
    assert {(each.file, each.kernel) for each in rows} == {
        (file, kernel) for file in FILES for kernel in kernels_of(file)
    }
    for each, row in rows.items():
        assert row["spilled_bytes"] == "0" and each.shared_bytes <= launching.SHARED_BYTES, each
        for architecture in ARCHITECTURES:
            given = -(-int(row[f"sm_{architecture}"]) // 8) * 8  # to a thread, which gets a multiple of 8
            assert given * each.threads <= REGISTERS, each
    assert all(versions[f"sm_{architecture}"] for architecture in ARCHITECTURES)


@pytest.mark.parametrize("file", ["nms.cu", "nms_sorted.cu", "soft_nms.cu", "roi_pool.cu"])
def test_nvrtc_compiles_double_precision(file: str) -> None:
    usage = compile_for(file, kernels_of(file), {"SCALAR": "double", "SUM": "double"}, 90)
    assert set(usage) == kernels_of(file) and all(each.spilled_bytes == 0 for each in usage.values())


@pytest.mark.parametrize("other", [{}, {"SCALAR": "__nv_bfloat16", "PACK": 8}], ids=["half", "bfloat16"])
def test_nvrtc_compiles_maps_of_more_than_2_to_the_31_elements(other: dict[str, object]) -> None:
    kernels, given = kernels_of("roi_align.cu"), FILES["roi_align.cu"] | other | {"OFFSET": "long long"}
    usage = compile_for("roi_align.cu", kernels, given, 90)
    assert set(usage) == kernels
    assert all(each.spilled_bytes == 0 for each in usage.values())


@pytest.mark.parametrize("file", FILES)
def test_what_a_gpu_loads_keeps_small_numbers(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PTX for a GPU that is newer than NVRTC and a binary for a known one, each with one kernel; no operation
    may take a subnormal number for 0, as the reference does not."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    binary_of.cache_clear()
    options, made, floats = compile_options(FILES[file]), {}, False
    for kernel in sorted(kernels_of(file)):
        text, binary = (binary_of(file, kernel, options, architecture) for architecture in (999, 90))
        words = text.read_text()
        assert re.findall(r"\.entry (\w+)", words) == [kernel]
        # ex2.approx.ftz is part of exp itself, whose argument was brought into range before
        assert ".ftz" not in words.replace("ex2.approx.ftz", "")
        assert binary.read_bytes().startswith(b"\x7fELF")
        made |= {path: path.stat().st_mtime_ns for path in (text, binary)}
        floats |= ".f32" in words
    assert floats and sorted((tmp_path / "cache").iterdir()) == sorted(made)
    binary_of.cache_clear()
    again = binary_of(file, kernel, options, 90)  # a new process compiles nothing
    assert again == binary and again.stat().st_mtime_ns == made[binary]


def test_a_gpu_too_old_for_this_nvrtc_is_told_what_to_install() -> None:
    with pytest.raises(RuntimeError, match="sm_30; install cupy-cuda12x"):
        binary_of("nms.cu", "nms_keys", (), 30)


def test_every_source_file_is_compiled() -> None:
    assert {path.name for path in Path(launching.__file__).parent.glob("*.cu")} == set(FILES)


def test_planted_mistakes_are_noticed() -> None:
    done = run_forked(ROOT / "tests" / "planted_mistakes.py")
    print(done.stdout)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [line for line in lines if line.startswith("passes as it stands")] == lines[:8] and len(lines) > 45
    assert not [line for line in lines[8:] if not line.startswith("noticed")]


@pytest.fixture(scope="module")
def sanitized() -> subprocess.CompletedProcess[str]:
    """The kernels under sanitizers, after a copy with a planted mistake in a process of its own."""
    found = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given |= {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "sanitized_kernels.py"), "plant"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | given,
    )


def test_sanitizers_find_nothing(sanitized: subprocess.CompletedProcess[str]) -> None:
    assert sanitized.returncode == 0 and sanitized.stdout.endswith("\nclean\n"), sanitized.stderr[-4000:]


def test_sanitizers_find_a_planted_read_beyond_the_map(sanitized: subprocess.CompletedProcess[str]) -> None:
    assert sanitized.stdout.startswith("planted: exit code ") and "exit code 0" not in sanitized.stdout
    assert "heap-buffer-overflow" in sanitized.stderr and "planted: clean" not in sanitized.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    program = shutil.which("compute-sanitizer")
    if program is None or not torch.cuda.is_available():
        pytest.skip(
            "needs a GPU and compute-sanitizer (CUDA toolkit); the sanitizers of g++ watched the same inputs"
            " on the CPU"
        )
    done = subprocess.run(
        [
            program,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            str(ROOT / "tests" / "sanitized_kernels.py"),
            "cuda",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )  # or one block holds several tensors
    assert done.returncode == 0 and "clean" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]


def run_in_shim(
    body: str,
    *args: np.generic | torch.Tensor,
    parameters: str = "int* out",
    threads: int = 64,
    shared: int = 0,
) -> None:
    source = (
        f'extern "C" __global__ void made_up({parameters}) {{ extern __shared__ __align__(16) unsigned char'
        f" shared_bytes[]; {body} }}"
    )
    CudaOnCpu(edit=lambda _: source)("nms.cu", "made_up", (), (1,), (threads,), args, shared)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("if (threadIdx.x < 40) __syncthreads();", "barrier that not all threads"),
        (
            "if (threadIdx.x % 32 < 9) out[threadIdx.x] = __ballot_sync(0xffffffffu, true);",
            "warp operation that not all lanes",
        ),
        ("if (threadIdx.x == 0) out[0] = __shfl_sync(1u, 5, 3);", "lane that does not take part"),
        ("while (__any_sync(0xffffffffu, true));", "warp operations without an end"),
        ("((int*)shared_bytes)[threadIdx.x] = 1;", "beyond the block's shared memory"),
    ],
)
def test_the_shim_reports_what_would_hang_or_corrupt(body: str, what: str) -> None:
    with pytest.raises(RuntimeError, match=what):
        run_in_shim(body, torch.zeros(64, dtype=torch.int32), shared=4)


def test_the_shim_is_a_warp_and_a_block() -> None:
    """Numbers by hand: lane sums, votes, and a sum over the block by way of shared memory."""
    out = torch.zeros(3, dtype=torch.int32)
    run_in_shim(
        """int sum = threadIdx.x;
                   for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
                   int* parts = (int*)shared_bytes;
                   if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
                   const unsigned votes = __ballot_sync(0xffffffffu, threadIdx.x % 32 < 3);
                   __syncthreads();
                   if (threadIdx.x == 0) { out[0] = parts[0] + parts[1]; out[1] = votes; }
                   atomicAdd(&out[2], 1);""",
        out,
        shared=8,
    )
    assert out.tolist() == [63 * 64 // 2, 0b111, 64]


def test_arguments_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(TypeError, match="wrap it as a NumPy scalar"):
        launch(
            "nms.cu",
            "nms_starts",
            {"SCALAR": "float"},
            (1,),
            (32,),
            (torch.zeros(3, dtype=torch.int32), None, 3),
        )
    for wrong in (np.int64(3), np.float32(3)):
        with pytest.raises(TypeError, match=r"declares arguments \['u8', 'u8', 'i4'\]"):
            CudaOnCpu()(
                "nms.cu",
                "nms_starts",
                ("-DSCALAR=float",),
                (1,),
                (32,),
                (torch.zeros(3, dtype=torch.int32), None, wrong),
                128,
            )


def test_arguments_are_checked_cheaply() -> None:
    """The check of a launch's arguments costs about what asking for their types does."""
    args = (torch.zeros(1), *(np.int32(number) for number in range(12)))
    kinds = (torch.Tensor, np.generic)

    def start() -> None:
        launch("nms.cu", "nms_starts", {}, (0,), (32,), args)

    def ask() -> None:
        assert all(isinstance(arg, kinds) for arg in args)

    fastest = []
    for work in (start, ask):
        took = []
        for _ in range(7):
            begun = time.process_time()
            for _ in range(500):
                work()
            took.append(time.process_time() - begun)
        fastest.append(min(took))
    assert fastest[0] < 2 * fastest[1], fastest


def test_the_kernels_refuse_cpu_tensors_and_say_how_to_get_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend 'cuda' needs CUDA tensors"):
        run_on_gpu("nms.cu", "nms_starts", (), (1,), (32,), (torch.zeros(3),), 0)
    monkeypatch.setitem(sys.modules, "cupy", None)  # Python's own way of making an import fail
    launching._cupy.cache_clear()
    with pytest.raises(RuntimeError, match="pip install cupy-cuda"):
        launching._cupy()
