"""The machine and the software a measurement is made with."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.measure.telemetry import Gpu
from detection_zoo.benchmarks.spec import Environment, hardware

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "pycocotools",
    "hotcoco",
    "timm",
)
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")  # distributions of one library


def usable_cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collect_environment(device: str) -> Environment:
    """Describe this process: hardware, drivers, libraries, the project's commit.

    Args:
        device: "cpu" or "cuda", what the measurement runs on.
    """
    import psutil
    import torch

    unknown: dict[str, str] = {}
    gpu = _gpu(unknown) if device == "cuda" else {}
    commit, dirty = _commit(unknown)
    return Environment(
        device_name=device_name(device),
        cpu=cpu_name(),
        cpu_cores=usable_cores(),
        memory_mib=psutil.virtual_memory().total // 2**20,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=installed_packages(),
        cuda=torch.version.cuda if device == "cuda" else None,
        cudnn=str(torch.backends.cudnn.version()) if device == "cuda" else None,
        threads=torch.get_num_threads(),
        allocator=os.environ.get("GLIBC_TUNABLES"),
        commit=commit,
        dirty=dirty,
        unknown=unknown,
        **gpu,
    )


def choose_device(wanted: str) -> str:
    """The device, cpu or cuda, that "cpu", "cuda" or "auto" means; raises RuntimeError for a GPU that is not
    there."""
    if wanted == "cpu":
        return wanted
    if _driver_has_gpu():
        import torch

        if torch.cuda.is_available():
            return "cuda"
    if wanted == "cuda":
        raise RuntimeError(
            "torch sees no CUDA GPU; run with --device cpu, or install a torch built for this driver"
        )
    return "cpu"


def _driver_has_gpu() -> bool:
    """Whether NVIDIA's driver shows a GPU: a question that needs no import of torch, which takes seconds."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def present_hardware(device: str) -> str:
    """What a run made now would name as its hardware."""
    import torch

    return hardware(device_name(device), torch.get_num_threads(), device)


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if device == "cpu":
        return cpu_name()
    try:
        return Gpu().name
    except RuntimeError:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


@cache
def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _gpu(unknown: dict[str, str]) -> dict[str, Any]:
    try:
        gpu = Gpu()
    except RuntimeError as error:
        unknown["gpu"] = str(error)
        return {}
    return {
        "gpu_count": gpu.count,
        "gpu_driver": gpu.driver,
        "gpu_memory_mib": gpu.memory_mib(),
        "gpu_clocks_mhz": gpu.clocks_mhz(),
    }


def installed_packages() -> dict[str, str]:
    """Versions of the libraries that measurements depend on; those that are not installed are left out."""
    found = {}
    for distribution, name in {
        **{name: name for name in PACKAGES},
        **{name: "cupy" for name in CUPY},
    }.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit(unknown: dict[str, str]) -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether tracked files differ from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        state = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        unknown["commit"] = f"git failed: {error}"
        return None, None
    if head.returncode or state.returncode:
        unknown["commit"] = (
            (head.stderr or state.stderr).strip().splitlines()[0]
            if head.stderr or state.stderr
            else "git failed"
        )
        return None, None
    return head.stdout.strip(), bool(state.stdout.strip())
