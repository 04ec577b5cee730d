"""Clocks, repetition, memory and telemetry against cases whose answer is known."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from detection_zoo.benchmarks.environment import choose_device, collect_environment, cpu_name
from detection_zoo.benchmarks.measure.inference import batches_that_fit
from detection_zoo.benchmarks.measure.memory import peak_memory
from detection_zoo.benchmarks.measure.telemetry import judge, share_of, watching
from detection_zoo.benchmarks.measure.timing import PhaseClock, time_passes, warm_up
from detection_zoo.benchmarks.run import progress as progress_module
from detection_zoo.benchmarks.run.isolation import run_isolated
from detection_zoo.benchmarks.run.progress import clock, progress
from detection_zoo.benchmarks.spec import STORED_READINGS, Telemetry

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_phases_hold_what_ran_inside_them() -> None:
    clock = PhaseClock(CPU)
    for _ in range(2):
        with clock.phase("wait", images=2):
            threading.Event().wait(0.02)
        with clock.phase("nothing"):
            pass
    assert (
        all(ms >= 10.0 for ms in clock.samples_ms["wait"]) and len(clock.samples_ms["nothing"]) == 2
    )  # 20 ms for two images
    assert clock.sums_ms(["wait", "nothing"]) == [
        a + b for a, b in zip(*clock.samples_ms.values(), strict=True)
    ]


def test_warm_up_goes_on_until_times_no_longer_trend() -> None:
    """A slow-down of 30 % that decays over 100 turns has hardly anything left when it is called warm."""
    for size in (1, 10, 40):
        turns: list[float] = []

        def turn(turns: list[float] = turns) -> float:
            turns.append(1 + 0.3 * math.exp(-len(turns) / 100))
            return turns[-1]

        found = warm_up([turn] * size, budget_s=60, least_s=0.0)
        assert found.warm and turns[-1] < 1.035 and len(turns) == found.passes * size, size


def test_warm_up_covers_every_batch_and_its_least_time_and_ends_at_its_budget() -> None:
    growing = iter(range(1, 10**6))
    seen: list[int] = []
    found = warm_up([lambda n=n: seen.append(n) or float(next(growing)) for n in range(3)], budget_s=1e-9)
    assert not found.warm and seen == [0, 1, 2] and "still changing" in str(found)
    assert warm_up([lambda: 1.0], budget_s=60, least_s=0.05).seconds >= 0.05


def test_passes_are_whole_and_enough_whatever_the_budget() -> None:
    times = itertools.count()
    work = [lambda: float(next(times) % 2)] * 3
    passes, precise = time_passes(work, least_passes=6, least_s=10, precision=0.01, budget_s=1e-9)
    assert not precise and [len(made) for made in passes] == [3] * 6


def test_timing_ends_when_passes_agree_but_not_before_its_least_time() -> None:
    start = time.perf_counter()
    passes, precise = time_passes([lambda: 1.0] * 4, least_passes=6, least_s=0.1, precision=0.01, budget_s=60)
    assert precise and len(passes) >= 6 and time.perf_counter() - start >= 0.1


def test_images_are_fewer_where_the_passes_would_not_fit_into_the_budget() -> None:
    batches = [[n] for n in range(100)]
    assert batches_that_fit(batches, 0.1, 10.0) == batches
    assert batches_that_fit(batches, 1.0, 5.0) == [[0], [20], [40], [60], [80]]
    assert batches_that_fit(batches, 60.0, 5.0) == [[0]]


def test_on_a_gpu_events_stand_beside_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is played by a counter of its own milliseconds; a `gpu` test has a real one."""
    device_ms = itertools.count(0, 7)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(device_ms)

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    clock = PhaseClock(torch.device("cuda"))
    for name in ("forward", "postprocess"):
        with clock.phase(name, 2):
            pass
    assert clock.sums_ms(["forward", "postprocess"], "event") == [7.0] and not clock.cpu_ms
    assert len(clock.sums_ms(["forward"])) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_of_a_device_lie_within_the_wall_time() -> None:
    clock = PhaseClock(torch.device("cuda"))
    product = torch.ones(2048, 2048, device="cuda")
    for _ in range(3):
        with clock.phase("forward"):
            product @ product
    assert all(
        0 < event <= wall
        for event, wall in zip(clock.event_ms["forward"], clock.samples_ms["forward"], strict=True)
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark can be reset on Linux only")
def test_peak_memory_is_that_of_the_block() -> None:
    """In a process of its own: one in which other tests ran may hold freed memory that the block is laid
    into."""
    seen: list[dict[str, Any]] = []
    outcome = run_isolated(hold_a_block, (), seen.append)
    assert outcome.status == "finished", outcome.reason
    grown = seen[1]["mib"]["resident"] - seen[0]["mib"]["resident"]
    assert 55 <= grown <= 95, f"{grown} MiB for a block of 64 MiB"
    assert "allocated" in seen[1]["absent"] and "high-water mark" in seen[1]["how"]["resident"]


def hold_a_block(report: Callable[[Any], None]) -> None:
    with peak_memory(CPU) as empty:
        pass
    before = torch.ones(100 * 2**18)  # 100 MiB
    del before
    with peak_memory(CPU) as peak:
        block = torch.ones(64 * 2**18)  # 64 MiB
        del block
    report(vars(empty))
    report(vars(peak))


def test_telemetry_without_a_gpu_says_so() -> None:
    with watching("cpu") as watch:
        pass
    assert "CPU" in watch.result.absent and watch.result.verdict == "unknown"


def test_telemetry_samples_until_the_block_ends() -> None:
    seen = threading.Event()
    readings = iter(range(10**6))

    def read() -> dict[str, float]:
        number = next(readings)
        if number == 5:
            seen.set()
        return {"sm_clock_mhz": 1500.0, "other_processes": 0.0, "throttle_reasons": 0.0}

    with watching("cuda", read, period_s=0.001) as watch:
        assert seen.wait(30)
    assert watch.result.verdict == "clean" and len(watch.result.samples["sm_clock_mhz"]) >= 6
    assert watch.result.samples["time_s"] == sorted(watch.result.samples["time_s"])


def test_long_telemetry_is_stored_thinned() -> None:
    """A record holds evenly spaced readings, with the first and the last, and says how many there were."""
    samples = {"time_s": [place / 10 for place in range(1000)], "power_w": [float(n) for n in range(1000)]}
    kept = Telemetry(verdict="shared", samples=samples).thinned()
    times = kept.samples["time_s"]
    assert (kept.readings, len(times), times[0], times[-1]) == (1000, STORED_READINGS, 0.0, 99.9)
    assert kept.samples["power_w"] == [10 * moment for moment in times] and kept.verdict == "shared"
    short = Telemetry(samples={"time_s": [0.0, 0.1]})
    assert short.thinned() == short and short.readings is None


def test_a_reading_that_fails_is_told_and_stops_nothing() -> None:
    def read() -> dict[str, float]:
        raise OSError("the GPU fell off the bus")

    with watching("cuda", read) as watch:
        pass
    assert "fell off the bus" in watch.result.note and watch.result.verdict == "unknown"


NOBODY, NOBODY_ELSE = 2**22 + 1, 2**22 + 2  # Linux numbers no process so high


@pytest.mark.parametrize(
    ("listed", "held_mib", "others"),
    [
        ({os.getpid(): 500.0}, 500.0, 0),
        ({os.getpid(): 500.0, os.getppid(): 30.0}, 500.0, 1),
        ({os.getpid(): 0.0}, None, 0),  # NVML names the process, not what it holds
        ({os.getppid(): 30.0}, None, 1),  # ours is not on the GPU yet
        ({NOBODY: 500.0}, 500.0, 0),  # a container: the host's number of the only process
        ({NOBODY: 500.0, NOBODY_ELSE: 30.0}, None, 1),  # one of them is ours
    ],
)
def test_own_and_other_processes_of_a_gpu(
    listed: dict[int, float], held_mib: float | None, others: int
) -> None:
    assert share_of(listed) == (held_mib, others)


def test_a_process_that_was_started_here_is_ours() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert share_of({child.pid: 300.0, os.getpid(): 200.0, os.getppid(): 10.0}) == (500.0, 1)
        child.stdin.close()


@pytest.mark.parametrize(
    ("samples", "verdict", "said"),
    [
        ({"sm_clock_mhz": [1980.0] * 10, "throttle_reasons": [0.0] * 10}, "clean", ""),
        ({"sm_clock_mhz": [1980.0] * 10, "throttle_reasons": [1.0] * 10}, "clean", ""),  # idle is no fault
        (
            {"sm_clock_mhz": [1980.0] * 4, "throttle_reasons": [0.0, 0.0, 64.0, 0.0]},
            "throttled",
            "1 of 4 readings: thermal, hardware",
        ),
        ({"sm_clock_mhz": [1980.0] * 4, "other_processes": [0.0, 1.0]}, "shared", "up to 1 other"),
        ({"sm_clock_mhz": [300.0, 1980.0, 1980.0, 1980.0, 1980.0]}, "clean", ""),  # it rose at the start
        ({"sm_clock_mhz": [1980.0, 1980.0, 1980.0, 1980.0, 1600.0]}, "unstable", "1600 to 1980"),
        ({}, "unknown", "no clocks"),
    ],
)
def test_verdicts(samples: dict[str, list[float]], verdict: str, said: str) -> None:
    found = judge(samples)
    assert found[0] == verdict and said in found[1]


def test_the_environment_names_machine_software_and_commit() -> None:
    found = collect_environment("cpu")
    assert (
        found.packages["torch"] == torch.__version__.split("+")[0]
        and found.device_name == cpu_name()
        and found.threads == torch.get_num_threads()
    )
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert found.commit == (head.stdout.strip() if head.returncode == 0 else None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(RuntimeError, match="--device cpu"):
        choose_device("cuda")


def test_bars_and_clocks_appear_after_two_seconds_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tqdm, "monitor", None)
    with progress("short", 3) as tick, clock("short too"):
        tick()
        assert tqdm.monitor is None  # its thread's start would lose Ctrl-C
    assert capsys.readouterr().err.strip() == ""
    monkeypatch.setattr("detection_zoo.benchmarks.run.progress.QUIET_S", 0)
    monkeypatch.setattr("detection_zoo.benchmarks.run.progress.TICK_S", 0.001)
    with progress("long", 3) as tick:
        tick()
    shown = threading.Event()
    with clock("longer"):
        shown.wait(0.2)
    told = capsys.readouterr()
    assert "long" in told.err and "longer: 00:00" in told.err and not told.out


def test_a_message_clears_the_bar_that_is_shown(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(progress_module, "QUIET_S", 0)
    with progress("work", 3) as tick:
        tick()
        capsys.readouterr()
        progress_module.make_way()
        assert capsys.readouterr().err.strip("\r ") == ""
    progress_module.make_way()
    assert capsys.readouterr().err.strip("\r\n ") == ""
    monkeypatch.setattr(progress_module, "QUIET_S", 1000)
    with progress("work", 3):
        progress_module.make_way()
    assert capsys.readouterr().err == ""
