"""Intervals hold the truth as often as they say, and verdicts are seldom wrong: the short form of
`bench.py self-check --statistics`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import app
from detection_zoo.benchmarks.compare.coverage import NOISES, epoch_coverage, latency_coverage, verdict_share
from detection_zoo.benchmarks.compare.paired import blocks_needed, proportions_interval, ratio_of_blocks

RUNS = 400
LEAST = 0.93 - 3 * math.sqrt(0.93 * 0.07 / RUNS)  # what chance leaves of .93 in so many runs


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("processes", "passes"), [(3, 4), (1, 12)])
def test_the_interval_of_run_covers(noise: str, processes: int, passes: int) -> None:
    found = latency_coverage(np.random.default_rng(1), noise, processes, passes, RUNS)
    assert found.share >= LEAST and found.width < 0.08, found


@pytest.mark.parametrize(
    ("noise", "least"),
    [("independent", 0.93), ("AR .5", 0.93), ("AR .9", 0.91), ("heavy-tailed", 0.93), ("busy phases", 0.8)],
)
def test_the_interval_of_epoch_time_covers(noise: str, least: float) -> None:
    found = epoch_coverage(np.random.default_rng(3), noise, 200, RUNS)
    assert found.share >= least - 3 * math.sqrt(least * (1 - least) / RUNS), found


@pytest.mark.parametrize("noise", ["independent", "AR .5", "AR .9", "heavy-tailed"])
def test_fifty_steps_have_a_wider_interval_that_covers(noise: str) -> None:
    """Phases of a busy machine are longer than these steps; its telemetry takes the interval away."""
    assert epoch_coverage(np.random.default_rng(4), noise, 50, RUNS).share >= LEAST


@pytest.mark.parametrize("noise", NOISES)
def test_verdicts_of_compare_are_seldom_wrong_and_mostly_found(noise: str) -> None:
    draw = np.random.default_rng(2)
    assert verdict_share(draw, noise, 1.0, 60) <= 0.01 * 60
    assert verdict_share(draw, noise, 1.03, 30) >= 0.7


def test_tangos_interval_of_paired_proportions() -> None:
    # no image differs: z^2 / (n + z^2) to both sides
    edge = 1.959964**2 / (10 + 1.959964**2)
    assert proportions_interval(0, 0, 10) == (pytest.approx(-edge, abs=1e-4), pytest.approx(edge, abs=1e-4))
    # of many images it is Wald's: Agresti's approval ratings, 1600 people, 150 against 86
    low, high = proportions_interval(150, 86, 1600)
    wald = 1.959964 * math.sqrt(150 + 86 - (150 - 86) ** 2 / 1600) / 1600
    assert (low, high) == (pytest.approx(0.04 - wald, abs=5e-4), pytest.approx(0.04 + wald, abs=5e-4))
    assert proportions_interval(5, 0, 20)[0] == pytest.approx(-proportions_interval(0, 5, 20)[1], abs=1e-9)


def test_how_many_blocks_a_verdict_needs() -> None:
    shifts = [0.02, -0.02] * 4
    needed = blocks_needed(shifts, 0.015, 0.95)
    assert 8 < needed < 20
    enough = ratio_of_blocks(shifts * 3, 0.95)
    assert enough.high < 1.015 and blocks_needed([0.1], 0.015, 0.95) is None
    assert blocks_needed([0.0149, 0.0149, 0.05, -0.02], 0.015, 0.95, 50) is None


def test_the_command_prints_the_table() -> None:
    done = CliRunner().invoke(app, ["self-check", "--statistics", "--runs", "20"])
    assert done.exit_code == 0 and "busy phases" in done.stdout and "half width" in done.stdout
    wrong = CliRunner().invoke(app, ["self-check"])
    assert wrong.exit_code == 2 and "--statistics" in wrong.output
