"""Telemetry of a block: clocks, power, temperature, throttling and other processes of a GPU (NVML); on a
CPU, the load by other processes."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from detection_zoo.benchmarks.measure import cpu_load
from detection_zoo.benchmarks.measure.cpu_load import LoadReader, crowded_readings, judge_load
from detection_zoo.benchmarks.run.progress import ticking
from detection_zoo.benchmarks.spec import Telemetry

PERIOD_S = 0.05
DECIMALS = 3  # decimal places of stored readings
CLOCK_SPREAD = 0.05  # SM clock: (highest - lowest) / highest above this is unstable
# Reasons that throttle a busy GPU (nvml.h, nvmlClocksEventReasons); idle, application clocks and sync boost
# are not faults.
SLOWING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, software",
    0x40: "thermal, hardware",
    0x80: "power brake",
}


class Gpu:
    """One GPU in NVML; raises RuntimeError with the reason if NVML or the GPU is missing."""

    def __init__(self) -> None:
        import pynvml

        self.nvml = pynvml
        try:
            pynvml.nvmlInit()
            visible = _first_visible()
            self.handle = (
                pynvml.nvmlDeviceGetHandleByIndex(visible)
                if isinstance(visible, int)
                else pynvml.nvmlDeviceGetHandleByUUID(visible)
            )
        except pynvml.NVMLError as error:
            raise RuntimeError(f"NVML finds no GPU: {error}") from None

    def ask(self, name: str, *arguments: Any) -> Any:
        """Return an NVML property (nvmlDeviceGet...), or None if this GPU does not report it."""
        try:
            return getattr(self.nvml, f"nvmlDeviceGet{name}")(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None

    @property
    def name(self) -> str:
        """Marketing name of the GPU."""
        return str(self.ask("Name"))

    @property
    def driver(self) -> str:
        """Version of the driver."""
        return self.nvml.nvmlSystemGetDriverVersion()

    @property
    def count(self) -> int:
        """GPUs of this machine."""
        return self.nvml.nvmlDeviceGetCount()

    def clocks_mhz(self) -> dict[str, int]:
        """Current and maximum clocks."""
        kinds = {
            "graphics": self.nvml.NVML_CLOCK_GRAPHICS,
            "sm": self.nvml.NVML_CLOCK_SM,
            "memory": self.nvml.NVML_CLOCK_MEM,
        }
        found = {
            f"{kind}{suffix}": self.ask(question, number)
            for kind, number in kinds.items()
            for suffix, question in (("", "ClockInfo"), ("_max", "MaxClockInfo"))
        }
        return {name: value for name, value in found.items() if value is not None}

    def memory_mib(self) -> int | None:
        """Total memory of the GPU."""
        info = self.ask("MemoryInfo")
        return None if info is None else info.total // 2**20

    def processes(self) -> tuple[float | None, int] | None:
        """As `share_of`: MiB used by this project's processes and the number of other processes; None if the
        GPU does not report processes."""
        listed = self.ask("ComputeRunningProcesses")
        return (
            None
            if listed is None
            else share_of({process.pid: (process.usedGpuMemory or 0) / 2**20 for process in listed})
        )

    def sample(self) -> dict[str, float]:
        """Take one reading; values that the GPU does not report are omitted."""
        held_mib, others = self.processes() or (None, None)
        readings = {
            "sm_clock_mhz": self.ask("ClockInfo", self.nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self.ask("ClockInfo", self.nvml.NVML_CLOCK_MEM),
            "power_w": None if (power := self.ask("PowerUsage")) is None else power / 1000,
            "temperature_c": self.ask("Temperature", self.nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": self.ask("CurrentClocksThrottleReasons"),
            "other_processes": others,
            "process_memory_mib": held_mib,
        }
        return {name: float(value) for name, value in readings.items() if value is not None}


def _first_visible() -> int | str:
    """Return the GPU that torch calls cuda:0: its index, or its UUID if CUDA_VISIBLE_DEVICES uses UUIDs."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    return int(first) if first.isdigit() else first


def share_of(held_mib: dict[int, float]) -> tuple[float | None, int]:
    """Return the GPU memory of this process and its children (None if not reported), and the number of
    other processes.

    held_mib: memory by process ID, as reported by NVML. In a container these may be the host's process
    IDs,
        which are unknown here: then one of them is
    this process, and its memory is known only if it is the only one.
    """
    import psutil

    own = [number for number in held_mib if _is_ours(number)]
    strangers = [] if own else [number for number in held_mib if not psutil.pid_exists(number)]
    if len(strangers) == 1:
        own = strangers
    return sum(held_mib[number] for number in own) or None, len(held_mib) - max(len(own), bool(strangers))


def _is_ours(number: int) -> bool:
    """Return whether a process is this one or a child; called only for the few processes on a GPU, because
    listing all processes takes milliseconds."""
    import psutil

    try:
        return number == os.getpid() or any(
            parent.pid == os.getpid() for parent in psutil.Process(number).parents()
        )
    except psutil.Error:
        return False


class Watch:
    """Readings of one device, taken in a thread; `result` is complete after the `watching` block. start_s:
    value of time.perf_counter at time_s = 0."""

    def __init__(self) -> None:
        self.result = Telemetry(absent="not watched")
        self.start_s = time.perf_counter()


@contextmanager
def watching(
    device: str, read: Callable[[], dict[str, float]] | None = None, period_s: float | None = None
) -> Iterator[Watch]:
    """Sample the device until the block ends.

    Args:
        device: "cuda"; or "cpu", for which CPU load is read and `absent` says why
            there is no NVML data.
        read: takes one reading; default: NVML, or CPU load.
        period_s: seconds between readings.
    """
    watch, verdict_of, absent = Watch(), judge, None
    if read is None and device == "cpu":
        read, verdict_of, period_s = LoadReader(), judge_load, period_s or cpu_load.PERIOD_S
        absent = "the run was on the CPU, NVML reports GPUs only; readings and verdict are of the CPU load"
    elif read is None:
        try:
            read = Gpu().sample
        except RuntimeError as error:
            watch.result = Telemetry(absent=str(error))
            yield watch
            return
    period_s = period_s or PERIOD_S
    samples: dict[str, list[float]] = {}
    faults: list[str] = []

    def sample() -> None:
        try:
            reading = {} if faults else read()
        except Exception as error:  # stops telemetry and is noted; it must not stop the measurement
            faults.append(f"telemetry stopped: {type(error).__name__}: {error}")
            return
        for name, value in (
            {"time_s": time.perf_counter() - watch.start_s, **reading} if reading else {}
        ).items():
            samples.setdefault(name, []).append(round(value, DECIMALS))

    try:
        with ticking(sample, period_s, "telemetry"):
            yield watch
    finally:
        sample()
        verdict, note = verdict_of(samples)
        watch.result = Telemetry(
            absent=absent,
            verdict=verdict,
            period_s=period_s,
            samples=samples,
            note="; ".join(part for part in (note, *faults) if part),
        )


def suspect_readings(samples: dict[str, list[float]]) -> list[bool]:
    """For every reading, return whether the device was throttled or shared."""
    count = len(samples.get("time_s", []))
    slowed = [int(reasons) & sum(SLOWING) != 0 for reasons in samples.get("throttle_reasons", [])]
    others = [number > 0 for number in samples.get("other_processes", [])]
    held = [cuts > 0 for cuts in samples.get("quota_cuts", [])]
    crowded = crowded_readings(samples)
    return [
        any(column[place] for column in (slowed, others, held, crowded) if place < len(column))
        for place in range(count)
    ]


def marked(times_s: list[float], telemetry: Telemetry) -> list[int]:
    """Return the indices of samples taken next to a suspect reading; they are not removed.

    times_s: start time of each sample, on the clock of the readings.
    """
    readings = telemetry.samples.get("time_s", [])
    bad = suspect_readings(telemetry.samples)
    nearest = (
        [min(bisect_left(readings, moment), len(readings) - 1) for moment in times_s] if readings else []
    )
    return [place for place, reading in enumerate(nearest) if bad[reading]]


def judge(samples: dict[str, list[float]]) -> tuple[Any, str]:
    """Return the verdict on readings (clean, throttled, shared, unstable or unknown) and the reason."""
    if any(count > 0 for count in samples.get("other_processes", [])):
        return "shared", f"up to {max(samples['other_processes']):.0f} other processes were on the GPU"
    slowed = [int(reasons) for reasons in samples.get("throttle_reasons", []) if int(reasons) & sum(SLOWING)]
    if slowed:
        names = [name for bit, name in SLOWING.items() if any(reasons & bit for reasons in slowed)]
        return (
            "throttled",
            f"{len(slowed)} of {len(samples['throttle_reasons'])} readings: {', '.join(names)}",
        )
    clocks = samples.get("sm_clock_mhz", [])
    if not clocks:
        return "unknown", "the GPU reports no clocks"
    busy = clocks[len(clocks) // 5 :]  # the clock rises during the first readings
    if max(busy) - min(busy) > CLOCK_SPREAD * max(busy):
        return "unstable", f"the SM clock varied from {min(busy):.0f} to {max(busy):.0f} MHz"
    return "clean", ""
