"""The wide table: every line of every source, quantities in one unit, what may be compared, the Pareto
front."""

from __future__ import annotations

import itertools
import random

import pytest
from made_up_records import made_up_runs
from records import PHOTOS, RANDOM, measured, run_of

from detection_zoo.benchmarks.report.figure_data import pareto_front
from detection_zoo.benchmarks.report.wide import Overview, WideLine, overview, wide_records
from detection_zoo.benchmarks.spec import metric
from detection_zoo.zoo.manifest_files import load_manifests

V39 = "faster_rcnn_vovnet39_fpn_2x.vovnet"


def lines_of(row: str, view: Overview) -> list[WideLine]:
    return [line for line in view.lines if line.entry.name == row]


def test_every_row_has_a_line_that_says_whether_it_was_measured() -> None:
    view = overview(load_manifests(), [])
    assert {
        line.entry.name for line in view.lines if line.kind == "not measured"
    } == load_manifests().entries.keys()
    assert all(line.reason for line in view.lines if line.kind == "not measured")


@pytest.mark.parametrize(
    ("row", "quantity", "value"),
    [
        (V39, "time_ms", 78.0),  # the VoVNet README: 78 ms
        (V39, "memory_gib", 3.9),  # 3.9 GB
        (V39, "box_ap", 39.8),
        ("rpn_resnet50_c4_1x.detectron", "memory_gib", 4.3),  # Detectron's MODEL_ZOO: R-50-C4 RPN, 4.3 GB
    ],
)
def test_published_numbers_come_into_one_unit(row: str, quantity: str, value: float) -> None:
    line = next(line for line in lines_of(row, overview(load_manifests(), [])) if line.kind == "published")
    point = line.point(metric(quantity))
    assert point is not None and point.value == pytest.approx(value) and point.interval is None


def test_seconds_frames_and_errors_are_converted() -> None:
    view = overview(load_manifests(), [])
    found = {
        (name, line.metrics()[name].value, line.point(metric(quantity)).value)
        for line in view.lines
        if line.kind == "published"
        for name, quantity in (("inference_time_s", "time_ms"), ("fps", "time_ms"), ("top1_error", "top1"))
        if name in line.metrics() and not line.metrics().keys() & {"inference_time_ms", "top1"}
    }
    expected = {
        "inference_time_s": lambda s: s * 1000,
        "fps": lambda fps: 1000 / fps,
        "top1_error": lambda error: 100 - error,
    }
    assert {name for name, _, _ in found} == set(expected)
    assert all(value == pytest.approx(expected[name](raw)) for name, raw, value in found)


def test_measured_numbers_keep_their_interval_in_the_new_unit() -> None:
    run = run_of(
        V39,
        {
            "model_ms": measured(80.0, "ms", interval=(79.0, 82.0)),
            "train_memory_allocated_mib": measured(2048.0, "MiB"),
        },
    )
    line = next(line for line in lines_of(V39, overview(load_manifests(), [run])) if line.kind == "measured")
    assert (
        line.point(metric("time_ms")) == (80.0, (79.0, 82.0))
        and line.point(metric("memory_gib")).value == 2.0
    )
    assert line.point(metric("box_ap")) is None and "not measured with these weights" in line.why_not(
        metric("box_ap")
    )


def test_published_and_measured_are_never_of_one_setting() -> None:
    view = overview(load_manifests(), made_up_runs(200))
    by_kind = {
        kind: {line.setting for line in view.lines if line.kind == kind} for kind in ("published", "measured")
    }
    assert by_kind["published"] and by_kind["measured"] and not by_kind["published"] & by_kind["measured"]
    hardware = {line.setting: line.line.hardware for line in view.lines if line.kind == "published"}
    assert all(
        hardware[line.setting] == line.line.hardware for line in view.lines if line.kind == "published"
    )


def test_made_up_weights_and_data_are_flagged_and_not_trusted() -> None:
    shapes = PHOTOS.model_copy(update={"name": "shapes:val", "made_up": True})
    for change, flag in ({"weights": RANDOM}, "random weights"), ({"data": shapes}, "made-up data"):
        run = run_of(V39, {"box_ap": measured(0.1, "%")}, **change)
        line = next(
            line for line in lines_of(V39, overview(load_manifests(), [run])) if line.kind == "measured"
        )
        assert flag in line.flags and not line.trusted


def test_records_of_unknown_rows_are_reported() -> None:
    view = overview(load_manifests(), [run_of("nobody.knows", {"box_ap": measured(1.0, "%")})])
    assert any("nobody.knows" in problem for problem in view.problems)


def test_wide_records_hold_every_metric_with_interval_and_n() -> None:
    run = run_of(
        V39, {"model_ms": measured(80.0, "ms", interval=(79.0, 82.0), n=7)}, absent={"box_ap": "no images"}
    )
    record = next(
        one
        for one in wide_records(overview(load_manifests(), [run]))
        if one["row"] == V39 and one["kind"] == "measured"
    )
    assert (record["model_ms"], record["model_ms_low"], record["model_ms_high"], record["model_ms_n"]) == (
        80.0,
        79.0,
        82.0,
        7,
    )
    assert record["reason"] == "box_ap: no images" and run.id in record["from"]


def test_front_of_a_hand_worked_case() -> None:
    # ms, AP: the third costs more than the second and finds less; the fifth ties with the fourth
    assert pareto_front([(10, 30), (20, 38), (25, 36), (40, 41), (40, 41), (50, 41)]) == [0, 1, 3, 4]
    assert pareto_front([]) == []


@pytest.mark.parametrize("better", list(itertools.product(("higher", "lower"), repeat=2)))
def test_front_is_what_nobody_beats(better: tuple) -> None:
    draw = random.Random(7)
    for _ in range(50):
        points = [(draw.randint(0, 12), draw.randint(0, 12)) for _ in range(draw.randint(0, 30))]
        sign = [1 if way == "higher" else -1 for way in better]

        def beats(a: tuple, b: tuple, sign: list = sign) -> bool:
            return a != b and all(s * x >= s * y for s, x, y in zip(sign, a, b, strict=True))

        unbeaten = [
            place for place, point in enumerate(points) if not any(beats(other, point) for other in points)
        ]
        assert sorted(pareto_front(points, better)) == unbeaten
