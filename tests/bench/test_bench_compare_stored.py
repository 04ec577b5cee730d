"""Comparing stored records: refused, footnoted, or set beside each other by a reference row."""

from __future__ import annotations

import random
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from forked import run_forked
from records import MACHINE, PHOTOS, TRAINED, measured, run_of

from detection_zoo.benchmarks.compare.stored import (
    NotComparable,
    chosen_runs,
    compare_stored,
    differences,
    relative_speeds,
)
from detection_zoo.benchmarks.compare.text import relative_text, stored_text
from detection_zoo.benchmarks.spec import BenchmarkSpec, Run, Telemetry
from detection_zoo.benchmarks.store import write_record
from detection_zoo.zoo.errors import UnknownName

A, B = "faster_rcnn_vovnet39_fpn_2x.vovnet", "faster_rcnn_resnet50_fpn_2x.vovnet"


def timed(row: str, ms: float, seed: int = 0, **more) -> Run:
    draw = random.Random(seed)
    samples = [ms * draw.lognormvariate(0, 0.01) for _ in range(200)]
    samples.sort(key=lambda _: draw.random())
    value = sorted(samples)[100]
    return run_of(
        row,
        {
            "model_ms": measured(
                value,
                "ms",
                samples=samples,
                n=200,
                statistic="median",
                covers="forward + post-processing; batch 1, an image",
            )
        },
        **more,
    )


SPEC = BenchmarkSpec()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"environment": MACHINE.model_copy(update={"device_name": "Slate 2"})},
            "hardware: Abacus 9, 1 thread and Slate 2, 1 thread",
        ),
        (
            {"environment": MACHINE.model_copy(update={"threads": 8})},
            "hardware: Abacus 9, 1 thread and Abacus 9, 8 threads",
        ),
        ({"spec": SPEC.model_copy(update={"dtype": "float16"})}, "precision: float32 and float16"),
        ({"spec": SPEC.model_copy(update={"tf32": True})}, "TensorFloat-32: False and True"),
        ({"spec": SPEC.model_copy(update={"batch_size": 8})}, "batch: 1 and 8"),
        (
            {"data": PHOTOS.model_copy(update={"digest": "e" * 64})},
            "images: coco:val2017 dddddddddddd and coco:val2017 eeeeeeeeeeee",
        ),
        (
            {"spec": SPEC.model_copy(update={"timed_images": 50})},
            "image list: 100 timed of 5000 and 50 timed of 5000",
        ),
        ({"spec": SPEC.model_copy(update={"protocol": "detnet"})}, "protocol: zoo and detnet"),
    ],
)
def test_what_was_measured_differently_is_refused(change: dict, said: str) -> None:
    reference, other = timed(A, 50.0), timed(B, 40.0, **change)
    with pytest.raises(NotComparable, match=said):
        compare_stored([A, B], [reference, other])
    (pair,) = compare_stored([A, B], [reference, other], anyway=True)
    assert said in pair.footnotes and pair.ratio == pytest.approx(0.8, rel=0.02)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"environment": MACHINE.model_copy(update={"packages": {"torch": "2.12.1"}})},
            "version of torch: 2.11.0 and 2.12.1",
        ),
        (
            {"environment": MACHINE.model_copy(update={"commit": "f" * 40})},
            f"commit: {MACHINE.commit} and {'f' * 40}",
        ),
        (
            {"weights": TRAINED.model_copy(update={"kind": "random", "digest": "seed:0"})},
            "kind of weights: published and random",
        ),
        (
            {"telemetry": {"inference": Telemetry(verdict="throttled")}},
            "state of the machine: not watched and throttled",
        ),
    ],
)
def test_circumstances_are_footnotes(change: dict, said: str) -> None:
    (pair,) = compare_stored([A, B], [timed(A, 50.0), timed(B, 50.0, seed=1, **change)])
    assert said in pair.footnotes and pair.low is None and "one run each" in pair.footnotes[0]


def test_runs_alike_differ_in_nothing() -> None:
    assert differences(timed(A, 50.0), timed(B, 40.0)) == []


@pytest.mark.parametrize(("of_a", "of_b"), [(2, 1), (3, 3), (5, 2)])
def test_the_interval_holds_the_ratio_whatever_differs_from_run_to_run(of_a: int, of_b: int) -> None:
    draw, hits = random.Random(1), 0
    for _ in range(400):
        runs = [
            run_of(row, {"model_ms": measured(ms * draw.lognormvariate(0, 0.04), "ms")})
            for row, ms, count in ((A, 50.0, of_a), (B, 51.5, of_b))
            for _ in range(count)
        ]
        (pair,) = compare_stored([A, B], runs)
        hits += pair.low <= 1.03 <= pair.high
    assert 0.92 <= hits / 400 <= 0.98


def test_two_records_of_one_model_differ_within_what_their_spread_allows() -> None:
    runs = [timed(A, 50.0), timed(A, 21.0, started="2030-06-01T00:00:00+00:00")]
    (pair,) = compare_stored([runs[0].id, runs[1].id], runs)
    assert pair.ratio == pytest.approx(0.42, rel=0.02) and pair.low < 1 < pair.high
    assert "verdict" not in pair.as_dict()


def test_a_row_means_its_newest_run_and_an_id_itself() -> None:
    old, new = (
        timed(A, 50.0, started="2030-01-01T00:00:00+00:00"),
        timed(A, 49.0, started="2030-02-01T00:00:00+00:00"),
    )
    failed = run_of(A, {}, started="2030-03-01T00:00:00+00:00", status="failed", reason="x")
    elsewhere = timed(A, 9.0, environment=MACHINE.model_copy(update={"threads": 8}), started="2020")
    stored = [old, new, failed, elsewhere]
    assert chosen_runs(A, stored) == (new, old) and chosen_runs(old.id, stored) == (old,)
    with pytest.raises(UnknownName, match=f"did you mean '{A}'"):
        chosen_runs(A[:-1], [old])


def test_other_hardware_is_set_beside_by_a_reference_row() -> None:
    slate = MACHINE.model_copy(update={"device_name": "Slate 2"})
    runs = [
        timed(A, 50.0),
        timed(B, 25.0),
        timed(A, 200.0, environment=slate),
        timed(B, 120.0, environment=slate),
        timed(B, 10.0, environment=MACHINE.model_copy(update={"device_name": "Lonely 1"})),
    ]
    found = {(one["row"], one["hardware"]): one["relative"] for one in relative_speeds(runs, A)}
    assert found[B, "Abacus 9, 1 thread"] == pytest.approx(0.5, rel=0.02) and found[
        B, "Slate 2, 1 thread"
    ] == pytest.approx(0.6, rel=0.02)
    assert found[A, "Slate 2, 1 thread"] == 1.0 and not any("Lonely" in hardware for _, hardware in found), (
        "without the reference there is no ratio"
    )
    with pytest.raises(NotComparable, match="no stored run"):
        relative_speeds(runs, "nothing")
    assert "0.60" in relative_text(relative_speeds(runs, A), A) and "Slate 2" in relative_text(
        relative_speeds(runs, A), A
    )


def test_the_text_carries_the_footnotes(tmp_path: Path) -> None:
    pairs = compare_stored(
        [A, B],
        [
            timed(A, 50.0),
            timed(B, 40.0, environment=MACHINE.model_copy(update={"packages": {"torch": "2.12.1"}})),
        ],
    )
    text = stored_text(pairs)
    assert (
        "FASTER" not in text
        and "0.8" in text
        and "[1]" in text
        and "version of torch: 2.11.0 and 2.12.1" in text
    )


def test_from_outside(tmp_path: Path) -> None:
    for record in (timed(A, 50.0), timed(B, 40.0, spec=SPEC.model_copy(update={"batch_size": 8}))):
        write_record(tmp_path / "runs", record)

    def bench(*more: str) -> CompletedProcess[str]:
        return run_forked("bench.py", "compare-records", A, B, "--store", str(tmp_path / "runs"), *more)

    refused, forced = bench(), bench("--anyway")
    assert (
        refused.returncode == 1 and "batch: 1 and 8" in refused.stderr and "Traceback" not in refused.stderr
    )
    assert forced.returncode == 0 and "FASTER" not in forced.stdout and "batch: 1 and 8" in forced.stdout
    relative = bench("--relative-to", A, "--json")
    assert relative.returncode == 0 and '"relative": 1.0' in relative.stdout
