"""CPU load during a measurement: other processes, other virtual machines of the host, quotas, clock.
Does not import torch."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

PERIOD_S = 0.5  # seconds between readings; a reading takes about 1 ms of CPU time
SHORTEST_S = 0.1  # seconds; the system counts CPU time in 1/100 s
BUSY = 0.9  # fraction of the CPU cores in use above which processes wait for each other
OFTEN = 0.1  # fraction of the readings
STOLEN = 0.02  # fraction of the CPU time taken by other virtual machines of the host
CLOCK_SPREAD = 0.05
_QUOTA = Path("/sys/fs/cgroup/cpu.stat")


class LoadReader:
    """Returns one reading per call, over the time since the previous call."""

    def __init__(self) -> None:
        import psutil

        self.psutil, self.process = psutil, psutil.Process()
        self._last = self._counters()

    def __call__(self) -> dict[str, float]:
        """Return the cores used by this project, by others and by the host, the clock if reported,
        and quota throttling; empty if called again too soon."""
        if time.perf_counter() - self._last["time"] < SHORTEST_S:
            return {}
        now, before = self._counters(), self._last
        self._last = now
        passed = now["time"] - before["time"]
        own = sum(max(used - before["own"].get(pid, used), 0.0) for pid, used in now["own"].items()) / passed
        busy = (now["busy"] - before["busy"]) / passed
        clock = self.psutil.cpu_freq()
        found = {
            "own_cpus": own,
            "other_cpus": max(busy - own, 0.0),
            "stolen_cpus": (now["steal"] - before["steal"]) / passed,
            "quota_cuts": now["cuts"] - before["cuts"],
        }
        return found | ({"cpu_clock_mhz": clock.current} if clock and clock.current else {})

    def _counters(self) -> dict[str, Any]:
        times = self.psutil.cpu_times()
        busy = (
            times.user
            + times.system
            + getattr(times, "nice", 0.0)
            + getattr(times, "irq", 0.0)
            + getattr(times, "softirq", 0.0)
        )
        return {
            "time": time.perf_counter(),
            "busy": busy,
            "steal": getattr(times, "steal", 0.0),
            "own": self._own(),
            "cuts": _quota_cuts(),
        }

    def _own(self) -> dict[int, float]:
        """CPU seconds of this process and its children."""
        found = {}
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                used = process.cpu_times()
            except (self.psutil.NoSuchProcess, self.psutil.AccessDenied):
                continue  # it has just ended
            found[process.pid] = used.user + used.system
        return found


def _quota_cuts() -> float:
    """Return how often the container's CPU quota has throttled its processes; 0 without a quota."""
    try:
        lines = _QUOTA.read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("nr_throttled")), 0.0)


def judge_load(samples: dict[str, list[float]], processors: int | None = None) -> tuple[str, str]:
    """Return the verdict on readings (clean, throttled, shared, unstable or unknown) and the reason.

    Args:
        samples: readings of `LoadReader`, a list per quantity.
        processors: number of cores; None: all cores of the machine.
    """
    processors = processors or os.cpu_count() or 1
    others = samples.get("other_cpus", [])
    if not others:
        return "unknown", "the work ended before two CPU readings were taken"
    cuts = sum(samples.get("quota_cuts", []))
    if cuts:
        return "throttled", f"a CPU quota throttled the processes {cuts:.0f} times"
    stolen = sum(samples["stolen_cpus"]) / len(others)
    if stolen > STOLEN * processors:
        return "shared", f"other virtual machines of the host used {stolen:.2f} of {processors} CPU cores"
    crowded = crowded_readings(samples, processors)
    if sum(crowded) > OFTEN * len(others):
        return (
            "shared",
            (
                f"in {sum(crowded)} of {len(others)} readings all {processors} CPU cores were in use, up to"
                f" {max(others):.1f} of them by other processes"
            ),
        )
    clocks = samples.get("cpu_clock_mhz", [])
    if clocks and max(clocks) - min(clocks) > CLOCK_SPREAD * max(clocks):
        return "unstable", f"the CPU clock varied from {min(clocks):.0f} to {max(clocks):.0f} MHz"
    return "clean", ""


def crowded_readings(samples: dict[str, list[float]], processors: int | None = None) -> list[bool]:
    """For every reading, return whether other processes used cores while no core was free."""
    processors = processors or os.cpu_count() or 1
    pairs = zip(samples.get("other_cpus", []), samples.get("own_cpus", []), strict=True)
    return [other > 1 - BUSY and other + own > BUSY * processors for other, own in pairs]
