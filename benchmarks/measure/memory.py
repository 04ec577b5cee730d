"""Peak memory of a block: torch's allocated and reserved, NVML's process figure and the context on a GPU, the
resident set on a CPU."""

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
    "peak resident set on a CPU: the whole process with interpreter, libraries, weights and images"
)
_before_resets_mib = 0.0  # the highest mark that a reset has erased
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class PeakMemory:
    """What a `peak_memory` block found: ON_GPU or ON_CPU -> MiB and how it was read, or why it is not
    there. note: the process's own peak since its start, on a CPU."""

    mib: dict[str, float] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def measurement(self, name: str, what: str) -> Measurement:
        """One of the peaks; `what` says what ran."""
        return Measurement(
            value=self.mib[name],
            unit="MiB",
            statistic="peak",
            covers=f"{self.how[name]}; {what}",
            note=self.note,
        )

    def measurements(self, use: str, what: str) -> dict[str, Measurement]:
        """Every peak by its metric; use: "inference" or "train"."""
        return {memory_metric(use, name): self.measurement(name, what) for name in self.mib}

    def reasons(self, use: str) -> dict[str, str]:
        """Metrics without value, with the reason."""
        return {memory_metric(use, name): why for name, why in self.absent.items()}


def memory_metric(use: str, name: str) -> str:
    """The metric of a peak of ON_GPU or ON_CPU; use: "inference" or "train"."""
    return f"{use}_memory_{name}_mib"


@contextmanager
def peak_memory(device: torch.device, polled: bool = True) -> Iterator[PeakMemory]:
    """Find the peak memory of a block; on a GPU what was cached before is given back first.

    Args:
        device: whose memory.
        polled: a thread reads the GPU's process figure during the block; otherwise it is read once after it,
            and nothing runs beside the block.
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
        held_mib, _ = (
            gpu and gpu.processes() or (None, 0)
        )  # before torch's figure: what torch takes meanwhile is no context
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
        "allocated": "torch's peak of allocated GPU memory",
        "reserved": "torch's peak of reserved GPU memory",
    }
    if seen:
        peak.mib["process"], peak.mib["context"] = map(max, zip(*seen, strict=True))
        peak.how["process"] = f"the process's GPU memory as NVML sees it, highest of {len(seen)} readings"
        peak.how["context"] = (
            "the process's GPU memory as NVML sees it less what torch reserves: CUDA context and libraries,"
            f" highest of {len(seen)} readings"
        )
    elif gpu is not None:
        peak.absent |= dict.fromkeys(
            ("process", "context"), "NVML does not report this process's memory (usual inside containers)"
        )


@contextmanager
def _resident_peak(peak: PeakMemory) -> Iterator[None]:
    """Linux keeps a high-water mark that can be reset; elsewhere the resident set is read again and again."""
    if _reset_high_water():
        yield
        peak.mib["resident"], peak.how["resident"] = (
            _high_water_mib(),
            f"{WHOLE_PROCESS} (Linux's high-water mark)",
        )
        peak.note = (
            f"the process's own peak since its start is {peak_since_start_mib():.0f} MiB, loading and warm-up"
            " included; this is what /usr/bin/time would print"
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
    """The highest resident set of this process since its start, in MiB, whatever was reset meanwhile."""
    return max(_before_resets_mib, _high_water_mib())


def _reset_high_water() -> bool:
    global _before_resets_mib
    try:
        _before_resets_mib = peak_since_start_mib()
        _CLEAR.write_text("5")
        return True
    except (OSError, StopIteration):  # no such file, or no such line in it
        return False


def _high_water_mib() -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
