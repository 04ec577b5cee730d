"""The kernels' benchmark: what a row holds, that a wrong answer fails it, the limits and whose turn it is.
Its times are not tested."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detection_zoo.benchmarks.measure import kernel_speed
from detection_zoo.benchmarks.measure.kernel_cases import (
    IOU_FLOPS,
    Case,
    _least_flops,
    clustered_proposals,
    nms_cases,
    soft_nms_cases,
)
from detection_zoo.benchmarks.measure.kernel_speed import _enough, _in_turns, _measure, report, timings_of
from detection_zoo.benchmarks.measure.limits import LEAST_CALLS, measure_limits
from detection_zoo.benchmarks.report.kernel_cases import (
    DeviceLimits,
    kernel_table,
    read_timings,
    write_timings,
)
from detection_zoo.benchmarks.statistics import summarise

LIMITS = DeviceLimits(copy_gb_s=10.0, matrix_gflop_s=100.0)


def test_a_wrong_answer_fails_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Case("right", lambda: torch.tensor([1, 2]), lambda: torch.tensor([1, 2]), lambda: None, 0.0)
    wrong = Case("wrong", lambda: torch.tensor([1, 2]), lambda: torch.tensor([2, 1]), lambda: None, 0.0)
    monkeypatch.setattr(kernel_speed, "pooling_cases", lambda device, on_gpu: [])
    monkeypatch.setattr(kernel_speed, "soft_nms_cases", lambda device: [])
    for cases, status, word in (([right], 0, "  yes  "), ([right, wrong], 1, "  NO  ")):
        monkeypatch.setattr(kernel_speed, "nms_cases", lambda device, on_gpu, cases=cases: cases)
        assert report("cpu", probe_s=0) == status and word in capsys.readouterr().out


def test_close_answers_agree_within_the_tolerance() -> None:
    for offset, agrees in ((1e-6, True), (1e-2, False)):
        case = Case(
            "near", lambda: torch.ones(4), lambda offset=offset: torch.ones(4) + offset, lambda: None, 1e-4
        )
        assert _measure(case, "cpu", LIMITS, 5).correct is agrees


def test_forms_that_wait_are_timed_apart_on_a_gpu() -> None:
    """The padded and presorted forms by the device's time, the others by wall time; both are right here."""
    cases = {case.name: case for case in nms_cases("cpu", on_gpu=True)}
    for name, by_wall in (
        ("NMS, 1,000 boxes", True),
        ("padded NMS, 1,000 boxes", False),
        ("presorted NMS, RPN of 8 images (40 groups of 1,000)", False),
        ("batched NMS, RPN of 8 images (40 groups of 1,000)", True),
    ):
        assert cases[name].by_wall is by_wall
    for name in ("padded NMS, 2,000 boxes", "presorted NMS, RPN of 1 image (5 groups of 1,000)"):
        assert kernel_speed._agree(cases[name].ours(), cases[name].answer(), 0.0)
    assert kernel_speed._covers("cuda", False) != kernel_speed._covers("cuda", True)


def test_the_table_names_what_ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for cases in ("nms_cases", "soft_nms_cases", "pooling_cases"):
        monkeypatch.setattr(kernel_speed, cases, lambda *given: [])
    assert report("cpu", width=100, probe_s=0) == 0
    text = capsys.readouterr().out
    assert (
        text.startswith("Operators compared with torchvision ")
        and torch.__version__.partition("+")[0] in text
    )
    assert max(map(len, text.splitlines())) <= 100


def test_spread_is_median_and_fifths() -> None:
    found = summarise([6.0, 1.0, 2.0, 3.0, 4.0, 5.0], "us", covers="")
    assert (found.value, found.percentiles["p20"], found.percentiles["p80"]) == (3.5, 2.0, 5.0)


def test_proposals_lie_in_the_image_with_different_scores() -> None:
    boxes, scores = clustered_proposals(500)
    assert (
        (boxes[:, :2] <= boxes[:, 2:]).all()
        and boxes.min() >= 0
        and boxes[:, 2].max() <= 1216
        and boxes[:, 3].max() <= 800
    )
    assert len(scores.unique()) == 500


def test_limits_are_those_of_the_fastest_copy_and_product() -> None:
    calls: list[float] = []

    def clock(work: object) -> float:
        work()
        calls.append(4000.0 - 500.0 * (len(calls) % LEAST_CALLS))  # the fifth takes 2 ms
        return calls[-1]

    limits = measure_limits("cpu", clock, seconds=0)
    assert len(calls) == 2 * LEAST_CALLS
    assert limits.copy_gb_s == pytest.approx(268.435456)  # 256 MiB read and 256 MiB written in 2 ms
    assert limits.matrix_gflop_s == pytest.approx(1073.741824)  # 2 x 1,024 cubed in 2 ms


def test_every_kind_of_nms_has_a_limit() -> None:
    """1,000 boxes of which 3 and 2 of two groups are kept: 3 + 1 pairs of kept rows, and 995 removals."""
    assert _least_flops([3, 2], 1000) == IOU_FLOPS * (3 + 1 + 995)
    for case in (*nms_cases("cpu", on_gpu=True), *soft_nms_cases("cpu")):
        rows = (
            int(case.name.split(" boxes")[0].split()[-1].replace(",", "")) if "boxes" in case.name else 1000
        )
        assert case.flops > 0 and case.least_bytes > 16 * rows, case.name


def test_short_calls_are_timed_more_often() -> None:
    assert [_enough(call_us) for call_us in (0.0, 30.0, 4_000.0, 20_000.0, 1e6)] == [50, 50, 25, 7, 7]


def test_ours_and_the_peer_take_turns() -> None:
    calls: list[str] = []
    works = [lambda: calls.append("ours"), lambda: calls.append("peer")]

    def clock(work: object) -> float:
        work()
        return float(len(calls))

    times = _in_turns(works, clock, repeats=3, warm_up=1)
    assert calls == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert times == [[3.0, 6.0, 7.0], [4.0, 5.0, 8.0]]


@pytest.mark.parametrize(
    ("least_bytes", "flops", "bound", "least_us"),
    [(4000, 0, "bandwidth", 0.4), (4000, 80_000, "arithmetic", 0.8), (0, 0, None, None)],
)
def test_the_share_is_of_the_nearer_limit(
    least_bytes: int, flops: int, bound: str | None, least_us: float | None
) -> None:
    answer = torch.tensor([1])
    case = Case("case", lambda: answer, lambda: answer, lambda: answer, 0.0, least_bytes, flops)
    found = _measure(case, "cpu", LIMITS, 5)
    assert found.limit == bound
    assert found.share_of_limit == (None if least_us is None else pytest.approx(least_us / found.ours.value))


def test_the_record_holds_the_limits_and_the_table_says_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = torch.tensor([1])
    case = Case("case", lambda: answer, lambda: answer, lambda: answer, 0.0, 1000)
    monkeypatch.setattr(kernel_speed, "nms_cases", lambda device, on_gpu: [case])
    for others in ("soft_nms_cases", "pooling_cases"):
        monkeypatch.setattr(kernel_speed, others, lambda *given: [])
    rows = kernel_speed.run_kernel_benchmark("cpu", LIMITS)
    timings = read_timings(write_timings(tmp_path, timings_of(rows, "cpu", LIMITS)))
    assert timings.limits == LIMITS
    assert timings.cases[0].note.endswith(f"; {rows[0].share_of_limit:.0%} of the bandwidth limit")
    table = kernel_table(timings)
    assert any("copies 10.0 GB/s" in note and "100 GFLOP/s" in note for note in table.notes)
    older = kernel_table(timings.model_copy(update={"limits": None}))
    assert not any("Limits" in note for note in older.notes)
