"""Describe the machine and the software of a measurement."""

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
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")  # all three packages provide CuPy


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collect_environment(device: str) -> Environment:
    """Describe this process: hardware, drivers, libraries, the project's commit.

    Args:
        device: device of the measurement, "cpu" or "cuda".
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
    """Resolve "cpu", "cuda" or "auto" to cpu or cuda; raises RuntimeError if a requested GPU is
    missing."""
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
    """Return whether NVIDIA's driver lists a GPU; avoids importing torch, which takes seconds."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def present_hardware(device: str) -> str:
    """Return the hardware name that a run on this machine would record."""
    import torch

    return hardware(device_name(device), torch.get_num_threads(), device)


def device_name(device: str) -> str:
    """Return the name of the GPU or CPU."""
    if device == "cpu":
        return cpu_name()
    try:
        return Gpu().name
    except RuntimeError:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


@cache
def cpu_name() -> str:
    """Return the CPU model name reported by the operating system."""
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
    """Return the versions of the libraries that affect measurements; packages that are not installed are
    omitted."""
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
    """Return the git commit, and whether tracked files have uncommitted changes."""
    try:
        return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.TimeoutExpired) as error:
        unknown["commit"] = f"git failed: {error}"
        return None, None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(done.stderr.strip().partition("\n")[0])
    return done.stdout.strip()
