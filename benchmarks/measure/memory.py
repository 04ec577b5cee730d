"""Peak memory of a block: torch's allocated and reserved memory, NVML's process memory and the context on a
GPU; the resident set on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from detection_zoo.benchmarks.measure.telemetry import PERIOD_S, Gpu
from detection_zoo.benchmarks.run.progress import ticking
from detection_zoo.benchmarks.spec import Measurement

ON_GPU, ON_CPU = ("allocated", "reserved", "process", "context"), ("resident",)
WHOLE_PROCESS = (
    "peak resident set on a CPU: the whole process, including interpreter, libraries, weights and images"
)
_before_resets_mib = 0.0  # highest peak before resets
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class PeakMemory:
    """Result of a `peak_memory` block: ON_GPU or ON_CPU -> MiB and how it was read, or why it is
    missing. note: on a CPU, the process's peak since its start."""

    mib: dict[str, float] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def measurement(self, name: str, what: str) -> Measurement:
        """Return one of the peaks; `what` describes the work."""
        return Measurement(
            value=self.mib[name],
            unit="MiB",
            statistic="peak",
            covers=f"{self.how[name]}; {what}",
            note=self.note,
        )

    def measurements(self, use: str, what: str) -> dict[str, Measurement]:
        """Return every peak by its metric; use: "inference" or "train"."""
        return {memory_metric(use, name): self.measurement(name, what) for name in self.mib}

    def reasons(self, use: str) -> dict[str, str]:
        """Return metrics without a value, with the reason."""
        return {memory_metric(use, name): why for name, why in self.absent.items()}


def memory_metric(use: str, name: str) -> str:
    """Return the metric name of a peak of ON_GPU or ON_CPU; use: "inference" or "train"."""
    return f"{use}_memory_{name}_mib"


@contextmanager
def peak_memory(device: torch.device, polled: bool = True) -> Iterator[PeakMemory]:
    """Measure the peak memory of a block; on a GPU, cached memory is released first.

    Args:
        device: device whose memory is measured.
        polled: a thread reads the process's GPU memory during the block; otherwise it is read once
            after the block, and no other thread runs.
    """
    peak = PeakMemory()
    if device.type == "cuda":
        with _gpu_peak(device, peak, polled):
            yield peak
    else:
        peak.absent = dict.fromkeys(ON_GPU, "measured on a CPU, without GPU memory")
        with _resident_peak(peak):
            yield peak


@contextmanager
def _gpu_peak(device: torch.device, peak: PeakMemory, polled: bool) -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    gpu, seen = None, []
    try:
        gpu = Gpu()
    except RuntimeError as error:
        peak.absent |= dict.fromkeys(("process", "context"), str(error))

    def read() -> None:
        # read before torch's value, so that memory allocated meanwhile is not counted as context
        held_mib, _ = gpu and gpu.processes() or (None, 0)
        if held_mib:
            seen.append((held_mib, held_mib - torch.cuda.memory_reserved(device) / 2**20))

    with ticking(read, PERIOD_S / 5, "memory") if polled else nullcontext():
        yield
        torch.cuda.synchronize(device)
    read()
    peak.mib = {
        "allocated": torch.cuda.max_memory_allocated(device) / 2**20,
        "reserved": torch.cuda.max_memory_reserved(device) / 2**20,
    }
    peak.how = {
        "allocated": "peak GPU memory allocated by torch",
        "reserved": "peak GPU memory reserved by torch",
    }
    if seen:
        peak.mib["process"], peak.mib["context"] = map(max, zip(*seen, strict=True))
        peak.how["process"] = f"GPU memory of the process reported by NVML, highest of {len(seen)} readings"
        peak.how["context"] = (
            "GPU memory of the process reported by NVML minus torch's reserved memory:"
            " CUDA context and libraries,"
            f" highest of {len(seen)} readings"
        )
    elif gpu is not None:
        peak.absent |= dict.fromkeys(
            ("process", "context"), "NVML does not report this process's memory (usual inside containers)"
        )


@contextmanager
def _resident_peak(peak: PeakMemory) -> Iterator[None]:
    """On Linux, read the resettable high-water mark; elsewhere poll the resident set."""
    if _reset_high_water():
        yield
        peak.mib["resident"], peak.how["resident"] = (
            _high_water_mib(),
            f"{WHOLE_PROCESS} (Linux's high-water mark)",
        )
        peak.note = (
            f"the process's peak since its start is {peak_since_start_mib():.0f} MiB, including loading"
            " and warm-up; /usr/bin/time would report this value"
        )
        return
    import psutil

    process, seen = psutil.Process(), [0.0]
    with ticking(lambda: seen.append(process.memory_info().rss / 2**20), PERIOD_S / 5, "memory"):
        yield
        seen.append(process.memory_info().rss / 2**20)
    peak.mib["resident"], peak.how["resident"] = (
        max(seen),
        f"{WHOLE_PROCESS}, highest of {len(seen) - 1} readings",
    )


def peak_since_start_mib() -> float:
    """Return the highest resident set of this process since its start, in MiB, regardless of resets."""
    return max(_before_resets_mib, _high_water_mib())


def _reset_high_water() -> bool:
    global _before_resets_mib
    try:
        _before_resets_mib = peak_since_start_mib()
        _CLEAR.write_text("5")
        return True
    except (OSError, StopIteration):  # the file or the line does not exist
        return False


def _high_water_mib() -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
