"""Statistics against published tables and hand-worked cases."""

from __future__ import annotations

import random
from statistics import median

import pytest

from detection_zoo.benchmarks.statistics import (
    block_means,
    drift,
    is_warm,
    mean_interval,
    median_interval,
    median_interval_ranks,
    of_processes,
    passes_interval,
    percentile,
    precise_enough,
    proportion_interval,
    steps_interval,
    summarise,
    timed_measurement,
)

# Ranks of the 95 % distribution-free interval of the median: the sign-test table printed in textbooks (n:
# lower rank, upper rank).
SIGN_TEST_TABLE = {
    5: None,
    6: (1, 6),
    8: (1, 8),
    9: (2, 8),
    10: (2, 9),
    12: (3, 10),
    15: (4, 12),
    20: (6, 15),
    25: (8, 18),
    30: (10, 21),
    50: (18, 33),
    100: (40, 61),
}


@pytest.mark.parametrize(("n", "ranks"), SIGN_TEST_TABLE.items())
def test_median_ranks_are_those_of_the_sign_test(n: int, ranks: tuple[int, int] | None) -> None:
    assert median_interval_ranks(n) == ranks


def test_many_samples_do_not_overflow() -> None:
    low, high = median_interval_ranks(5000)
    assert abs(low - (2500 - 0.98 * 5000**0.5)) < 2 and high == 5001 - low  # the normal approximation


def test_median_interval_covers_the_true_median() -> None:
    draw = random.Random(1)
    hits = 0
    for _ in range(400):
        low, high = median_interval([draw.lognormvariate(0, 1) for _ in range(40)])
        hits += low <= 1.0 <= high  # the median of that distribution is 1
    assert hits >= 0.93 * 400


def test_percentiles_are_linear_between_neighbours() -> None:
    assert [percentile([15, 20, 35, 40, 50], p) for p in (0, 40, 50, 100)] == [15, 29, 35, 50]
    with pytest.raises(ValueError, match="at least one sample"):
        percentile([], 50)


def test_a_step_time_that_grows_is_seen_and_widens_the_interval() -> None:
    steady = [1.0 + 0.01 * (place % 5) for place in range(120)]
    growing = [value * (1 + 0.1 * place / 119) for place, value in enumerate(steady)]
    change, level = drift([block_means(growing)])
    assert change == pytest.approx(0.087, abs=0.005) and not level  # of block means: 11 of 12 blocks apart
    assert drift([block_means(steady)])[1]
    low, high = steps_interval(growing)
    assert (high - low) / 2 > 0.03 and (lambda a, b: (b - a) / 2 < 0.01)(*steps_interval(steady))
    assert block_means([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert steps_interval(steady[:49]) is None and steps_interval(steady[:50]) is not None


def test_mean_interval_is_students() -> None:
    # mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776: half width 2.776 * sqrt(2.5 / 5)
    low, high = mean_interval([1, 2, 3, 4, 5])
    assert (low, high) == (pytest.approx(3 - 1.9629, abs=1e-3), pytest.approx(3 + 1.9629, abs=1e-3))
    assert mean_interval([1.0]) is None


def test_precision_needs_enough_passes_and_a_narrow_interval() -> None:
    assert not precise_enough([1.0] * 5, 0.01)
    assert precise_enough([1.0] * 6, 0.01)
    assert not precise_enough([0.9, 0.95, 1.0, 1.0, 1.05, 1.1], 0.01)
    assert precise_enough([0.99, 1.01, 1.0, 1.0, 0.99, 1.01], 0.05)


def test_three_processes_are_the_unit_of_an_interval() -> None:
    # means 10, 11, 12: mean 11, s = 1, t(0.975, 2) = 4.3027: half width 4.3027 / sqrt(3)
    low, high = passes_interval([[9.0, 11.0], [11.0, 11.0], [12.0, 12.0]])
    assert (low, high) == (pytest.approx(11 - 2.4841, abs=1e-3), pytest.approx(11 + 2.4841, abs=1e-3))
    assert passes_interval([[1.0, 2.0], [1.0]]) is None


def test_correlated_passes_count_for_less() -> None:
    alternating, in_runs = [1.0, 1.1] * 6, [1.0] * 6 + [1.1] * 6
    narrow, wide = passes_interval([alternating]), passes_interval([in_runs])
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert passes_interval([[2.0] * 6]) == (2.0, 2.0)


def test_drift_is_found_and_noise_is_not() -> None:
    assert drift([[1.0, 1.02, 1.04, 1.06], [1.0, 1.02, 1.04, 1.06]]) == (
        pytest.approx(0.058, abs=2e-3),
        False,
    )
    change, steady = drift([[1.0, 1.01, 0.99, 1.0], [1.01, 0.99, 1.01, 1.0]])
    assert steady and abs(change) < 0.01
    assert drift([[1.0], [1.1]]) == (0.0, True)


def test_samples_of_several_processes_are_joined() -> None:
    one = timed_measurement([[1.0, 3.0, 1.0, 3.0]], [2], "forward", "note", True)
    other = timed_measurement([[2.0, 4.0, 2.0, 4.0]], [2], "forward", "note", False)
    joined = of_processes([{"model_ms": one}, {"model_ms": other}, {"model_ms": one}])["model_ms"]
    assert joined.passes == [2, 2, 2] and joined.n == 12 and joined.value == pytest.approx(7 / 3)
    assert joined.steady is False and joined.interval[0] < joined.value < joined.interval[1]
    assert joined.remarks == "6 passes in 3 processes; not steady: +0.0% from first to last pass; note"


def test_wilsons_interval_of_a_proportion() -> None:
    assert proportion_interval(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert proportion_interval(200, 200)[1] == 1.0 and proportion_interval(0, 10)[0] == pytest.approx(
        0, abs=1e-12
    )


def test_warm_up_ends_when_three_windows_agree() -> None:
    falling = [100, 60, 40, 30, 25, 22]
    assert not is_warm(falling) and not is_warm([10.0] * 8)
    assert is_warm([*falling, 20.1, 20.0, 20.2, 20.0, 20.1, 20.0, 20.1, 20.0, 20.1])
    assert is_warm([10, 10, 10, 10, 99, 10.1, 10, 10, 10])  # one hiccup does not count


def test_summary_keeps_every_sample_in_order() -> None:
    samples = [3.0, 1.0, 2.0, 10.0, 2.5, 2.0]
    found = summarise(samples, "ms", covers="forward")
    assert found.samples == samples and found.n == 6 and found.value == median(samples) == 2.25
    assert (
        found.interval == (1.0, 10.0)
        and found.percentiles["p5"] == pytest.approx(1.25)
        and found.percentiles["p95"] == pytest.approx(8.25)
    )
