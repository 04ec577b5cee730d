"""What else a processor did while something ran on it: other processes, other machines of the same host,
quotas, clock. No torch."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

PERIOD_S = 0.5  # a reading costs about a millisecond of the processor that is being measured
SHORTEST_S = 0.1  # the system counts processor time in hundredths of a second
BUSY = 0.9  # of the processors: from there on processes wait for each other
OFTEN = 0.1  # of the readings
STOLEN = 0.02  # of the processors, taken by other machines of the host
CLOCK_SPREAD = 0.05
_QUOTA = Path("/sys/fs/cgroup/cpu.stat")


class LoadReader:
    """Gives one reading a call, each over the time since the one before."""

    def __init__(self) -> None:
        import psutil

        self.psutil, self.process = psutil, psutil.Process()
        self._last = self._counters()

    def __call__(self) -> dict[str, float]:
        """Processors in use by us and by others and taken by the host, the clock if reported, and
        periods cut by a quota; empty when just asked."""
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
        """Processor seconds of this process and of those it started."""
        found = {}
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                used = process.cpu_times()
            except (self.psutil.NoSuchProcess, self.psutil.AccessDenied):
                continue  # it has just ended
            found[process.pid] = used.user + used.system
        return found


def _quota_cuts() -> float:
    """How often the container's quota has stopped its processes so far; 0 without a quota."""
    try:
        lines = _QUOTA.read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("nr_throttled")), 0.0)


def judge_load(samples: dict[str, list[float]], processors: int | None = None) -> tuple[str, str]:
    """The verdict on readings (clean, throttled, shared, unstable or unknown) and why.

    Args:
        samples: as `LoadReader` gives them, a list each.
        processors: of the machine; None: as many as there are.
    """
    processors = processors or os.cpu_count() or 1
    others = samples.get("other_cpus", [])
    if not others:
        return "unknown", "the work ended before two readings of the processor"
    cuts = sum(samples.get("quota_cuts", []))
    if cuts:
        return "throttled", f"a CPU quota throttled the processes {cuts:.0f} times"
    stolen = sum(samples["stolen_cpus"]) / len(others)
    if stolen > STOLEN * processors:
        return "shared", f"other machines of the host took {stolen:.2f} of {processors} processors"
    crowded = crowded_readings(samples, processors)
    if sum(crowded) > OFTEN * len(others):
        return (
            "shared",
            (
                f"in {sum(crowded)} of {len(others)} readings all {processors} processors were in use, up to"
                f" {max(others):.1f} of them by other processes"
            ),
        )
    clocks = samples.get("cpu_clock_mhz", [])
    if clocks and max(clocks) - min(clocks) > CLOCK_SPREAD * max(clocks):
        return "unstable", f"the processor's clock went from {min(clocks):.0f} to {max(clocks):.0f} MHz"
    return "clean", ""


def crowded_readings(samples: dict[str, list[float]], processors: int | None = None) -> list[bool]:
    """For every reading whether others used processors while none was free."""
    processors = processors or os.cpu_count() or 1
    pairs = zip(samples.get("other_cpus", []), samples.get("own_cpus", []), strict=True)
    return [other > 1 - BUSY and other + own > BUSY * processors for other, own in pairs]
