"""What NVML sees while something runs: clocks, power, temperature, throttling, other processes, this process's memory."""
from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .spec import Telemetry

PERIOD_S = 0.05
CLOCK_SPREAD = 0.05  # SM clock: (highest - lowest) / highest above this is unstable
# Reasons that slow a busy GPU (nvml.h, nvmlClocksEventReasons); idle, application clocks and sync boost are no faults.
SLOWING = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal, software", 0x40: "thermal, hardware", 0x80: "power brake"}


class Gpu:
    """One GPU as NVML shows it; raises RuntimeError with the reason where NVML or the GPU is not there."""

    def __init__(self, index: int | None = None) -> None:
        try:
            import pynvml
        except ImportError:
            raise RuntimeError("nvidia-ml-py is not installed") from None
        self.nvml = pynvml
        try:
            pynvml.nvmlInit()
            visible = _first_visible() if index is None else index
            self.handle = (pynvml.nvmlDeviceGetHandleByIndex(visible) if isinstance(visible, int) else pynvml.nvmlDeviceGetHandleByUUID(visible))
        except pynvml.NVMLError as error:
            raise RuntimeError(f"NVML gives no GPU: {error}") from None

    def ask(self, name: str, *arguments: Any) -> Any:
        """A property by NVML's own name (nvmlDeviceGet...), or None where this GPU does not tell it."""
        try:
            return getattr(self.nvml, f"nvmlDeviceGet{name}")(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None

    @property
    def name(self) -> str:
        """Marketing name of the GPU."""
        name = self.ask("Name")
        return name.decode() if isinstance(name, bytes) else str(name)

    @property
    def driver(self) -> str:
        """Version of the driver."""
        version = self.nvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else version

    @property
    def count(self) -> int:
        """GPUs of this machine."""
        return self.nvml.nvmlDeviceGetCount()

    def clocks_mhz(self) -> dict[str, int]:
        """Present and highest clocks."""
        kinds = {"graphics": self.nvml.NVML_CLOCK_GRAPHICS, "sm": self.nvml.NVML_CLOCK_SM, "memory": self.nvml.NVML_CLOCK_MEM}
        found = {f"{kind}{suffix}": self.ask(question, number) for kind, number in kinds.items()
                 for suffix, question in (("", "ClockInfo"), ("_max", "MaxClockInfo"))}
        return {name: value for name, value in found.items() if value is not None}

    def memory_mib(self) -> int | None:
        """All memory of the GPU."""
        info = self.ask("MemoryInfo")
        return None if info is None else info.total // 2**20

    def sample(self) -> dict[str, float]:
        """One reading; what the GPU does not tell is left out."""
        processes = self.ask("ComputeRunningProcesses")
        own = [p for p in processes or [] if p.pid == os.getpid()]
        readings = {
            "sm_clock_mhz": self.ask("ClockInfo", self.nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self.ask("ClockInfo", self.nvml.NVML_CLOCK_MEM),
            "power_w": None if (power := self.ask("PowerUsage")) is None else power / 1000,
            "temperature_c": self.ask("Temperature", self.nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": self.ask("CurrentClocksThrottleReasons"),
            "other_processes": None if processes is None else len(processes) - len(own),
            "process_memory_mib": own[0].usedGpuMemory / 2**20 if own and own[0].usedGpuMemory else None,
        }
        return {name: float(value) for name, value in readings.items() if value is not None}


def _first_visible() -> int | str:
    """The GPU that torch calls cuda:0: its number, or its UUID where CUDA_VISIBLE_DEVICES names it so."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    return int(first) if first.isdigit() else first


class Watch:
    """Readings of one GPU, taken in a thread; `result` is complete after the `watching` block."""

    def __init__(self) -> None:
        self.result = Telemetry(absent="not watched")


@contextmanager
def watching(device: str, read: Callable[[], dict[str, float]] | None = None, period_s: float = PERIOD_S) -> Iterator[Watch]:
    """Sample the GPU until the block ends.

    Args:
        device: "cuda", or "cpu", where there is nothing to read.
        read: takes one reading; default: NVML's.
        period_s: seconds between readings.
    """
    watch = Watch()
    if read is None:
        try:
            if device == "cpu":
                raise RuntimeError("the run was on the CPU; NVML watches GPUs only")
            read = Gpu().sample
        except RuntimeError as error:
            watch.result = Telemetry(absent=str(error))
            yield watch
            return
    samples: dict[str, list[float]] = {}
    done, start, faults = threading.Event(), time.perf_counter(), []

    def sample() -> None:
        while True:
            try:
                reading = read()
            except Exception as error:  # a reading that fails ends the watch and is told; it must not end the measurement
                faults.append(f"reading stopped: {type(error).__name__}: {error}")
                return
            for name, value in {"time_s": time.perf_counter() - start, **reading}.items():
                samples.setdefault(name, []).append(value)
            if done.wait(period_s):
                return

    thread = threading.Thread(target=sample, name="telemetry", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()
        verdict, note = judge(samples)
        watch.result = Telemetry(verdict=verdict, period_s=period_s, samples=samples, note="; ".join(part for part in (note, *faults) if part))


def judge(samples: dict[str, list[float]]) -> tuple[Any, str]:
    """The verdict on some readings (clean, throttled, shared, unstable or unknown) and why."""
    if any(count > 0 for count in samples.get("other_processes", [])):
        return "shared", f"up to {max(samples['other_processes']):.0f} other processes were on the GPU"
    slowed = [int(reasons) for reasons in samples.get("throttle_reasons", []) if int(reasons) & sum(SLOWING)]
    if slowed:
        names = [name for bit, name in SLOWING.items() if any(reasons & bit for reasons in slowed)]
        return "throttled", f"{len(slowed)} of {len(samples['throttle_reasons'])} readings: {', '.join(names)}"
    clocks = samples.get("sm_clock_mhz", [])
    if not clocks:
        return "unknown", "the GPU tells no clocks"
    busy = clocks[len(clocks) // 5:]  # the first readings see the clock rise
    if max(busy) - min(busy) > CLOCK_SPREAD * max(busy):
        return "unstable", f"the SM clock went from {min(busy):.0f} to {max(busy):.0f} MHz"
    return "clean", ""
