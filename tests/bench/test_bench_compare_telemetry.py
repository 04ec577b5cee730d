"""Telemetry on a CPU and what it says of samples: cases whose answer is known."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from statistics import fmean

import pytest
import torch

from detection_zoo.benchmarks.measure.cpu_load import LoadReader, judge_load
from detection_zoo.benchmarks.measure.finite import check_finite
from detection_zoo.benchmarks.measure.telemetry import Watch, marked, watching
from detection_zoo.benchmarks.run.groups import with_telemetry
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement, Telemetry
from detection_zoo.zoo.records import Detections


def load(other: list[float], own: float = 1.0, **more: list[float]) -> dict[str, list[float]]:
    count = len(other)
    return {
        "time_s": [float(n) for n in range(count)],
        "other_cpus": other,
        "own_cpus": [own] * count,
        "stolen_cpus": [0.0] * count,
        **more,
    }


@pytest.mark.parametrize(
    ("samples", "verdict", "said"),
    [
        (load([0.05] * 10), "clean", ""),
        (load([0.5] * 10), "clean", ""),  # half a processor was free
        (load([0.05] * 8 + [1.0] * 2), "shared", "in 2 of 10 readings all 2 CPU cores"),
        (load([0.0] * 4, stolen_cpus=[0.0, 0.5, 0.0, 0.0]), "shared", "0.12 of 2 CPU cores"),
        (load([0.0] * 4, quota_cuts=[0.0, 3.0, 0.0, 1.0]), "throttled", "4 times"),
        (load([0.0] * 4, cpu_clock_mhz=[3000.0, 3000.0, 2000.0, 3000.0]), "unstable", "2000 to 3000 MHz"),
        ({}, "unknown", "before two CPU readings"),
    ],
)
def test_verdicts_on_a_processor(samples: dict[str, list[float]], verdict: str, said: str) -> None:
    found = judge_load(samples, processors=2)
    assert found[0] == verdict and said in found[1]


def test_own_work_is_told_from_that_of_others() -> None:
    """A busy child of ours counts as ours, a busy process that is not ours as another's; on a full machine
    only the first can be told apart surely."""
    busy = "import time; end = time.process_time() + 1.0\nwhile time.process_time() < end: pass"
    read = LoadReader()
    child = subprocess.Popen([sys.executable, "-c", busy])
    end = time.process_time() + 0.4
    while time.process_time() < end:
        pass
    found = read()
    child.kill()
    child.wait()
    assert found["own_cpus"] > 0.1 and found["other_cpus"] >= 0


def test_a_run_on_the_cpu_has_readings_and_says_that_nvml_has_none() -> None:
    with watching("cpu", period_s=0.2) as watch:
        end = time.perf_counter() + 0.9
        while time.perf_counter() < end:
            pass
    found = watch.result
    assert (
        "CPU" in found.absent
        and found.verdict in ("clean", "shared", "throttled", "unstable")
        and len(found.samples["own_cpus"]) >= 3
    )
    assert fmean(found.samples["own_cpus"]) > 0.1


def test_samples_next_to_a_suspect_reading_are_marked_and_kept() -> None:
    telemetry = Telemetry(
        verdict="throttled",
        samples={"time_s": [0.0, 1.0, 2.0, 3.0], "throttle_reasons": [0.0, 0.0, 64.0, 1.0]},
    )
    assert marked([0.1, 0.9, 1.5, 2.0, 2.5], telemetry) == [
        2,
        3,
    ]  # 1.5 and 2.0 end at the reading at 2 s; idle (1) is no fault
    assert marked([0.1], Telemetry(absent="no NVML")) == []


def test_energy_is_power_times_the_time_of_an_image() -> None:
    watch = Watch()
    watch.result = Telemetry(
        verdict="clean", samples={"time_s": [0.0, 1.0, 2.0, 9.0], "power_w": [50.0, 200.0, 400.0, 60.0]}
    )
    timed = Measurement(
        value=20.0, unit="ms", samples=[20.0, 20.0], n=2, times_s=[watch.start_s + 0.9, watch.start_s + 2.1]
    )
    found = with_telemetry(
        {"model_ms": timed, "end_to_end_ms": Measurement(value=50.0, unit="ms")}, watch, BenchmarkSpec()
    )
    assert found["energy_j_per_image"].value == pytest.approx(300 * 0.05)  # (200 + 400) / 2 watts for 50 ms
    assert found["model_ms"].times_s == pytest.approx([0.9, 2.1]) and found["model_ms"].samples == [
        20.0,
        20.0,
    ]


@pytest.mark.parametrize("verdict", ["clean", "shared"])
def test_epoch_time_of_a_busy_machine_has_no_interval(verdict: str) -> None:
    """Its steps tell nothing of phases longer than they took."""
    watch = Watch()
    watch.result = Telemetry(verdict=verdict, samples={"time_s": [0.0]})
    epoch = Measurement(value=80.0, unit="s", interval=(78.0, 82.0), note="60 steps measured")
    found = with_telemetry({"epoch_time_s": epoch}, watch, BenchmarkSpec()).get("epoch_time_s", epoch)
    assert (found.interval is None, "no interval" in found.note) == (verdict == "shared",) * 2


@pytest.mark.parametrize("field", ["boxes", "scores"])
def test_results_that_are_not_finite_are_refused(field: str) -> None:
    good = Detections(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    check_finite([good], "the model")
    getattr(good, field).view(-1)[0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        check_finite([good], "the model")
    with pytest.raises(FloatingPointError, match="not finite"):
        check_finite(torch.tensor([[1.0, math.inf]]), "the model")
