"""Comparisons: the statistics against textbooks and drawn cases, and real models side by side with one slowed
down and one broken."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from records import make_small_shapes

from detection_zoo.benchmarks.compare.judging import judge_pairs
from detection_zoo.benchmarks.compare.match import compare
from detection_zoo.benchmarks.compare.options import CompareOptions, Entrant, entrants_of
from detection_zoo.benchmarks.compare.paired import (
    Ratio,
    block_shift,
    confidence_of_each,
    hodges_lehmann,
    judge_ratio,
    planned_looks,
    ratio_of_blocks,
)
from detection_zoo.benchmarks.compare.record import Comparison, Pair
from detection_zoo.benchmarks.compare.text import comparison_text
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.benchmarks.store import read_record, write_record
from detection_zoo.zoo.errors import ManifestError

ROW = "mask_rcnn_vovnet27_tiny_fpn.demo"


def test_hodges_lehmann_by_hand() -> None:
    # of 1, 2, 9 the means of pairs are 1, 1.5, 5, 2, 5.5, 9: their median is 3.5
    assert hodges_lehmann([9, 1, 2]) == 3.5
    assert hodges_lehmann([1.0] * 9 + [500.0, 900.0]) == 1.0  # two wild values of eleven do not move it
    assert block_shift([10, 20, 30], [11, 22, 33]) == pytest.approx(math.log(1.1))


def test_the_interval_over_blocks_is_students() -> None:
    # mean 3 and s = sqrt(2.5) of 1..5, t(0.975, 4) = 2.776 in every table: half width 1.963; here in
    # hundredths, of logs
    found = ratio_of_blocks([0.01, 0.02, 0.03, 0.04, 0.05])
    assert (found.value, found.low, found.high) == tuple(
        pytest.approx(math.exp(v), abs=1e-5) for v in (0.03, 0.03 - 0.01963, 0.03 + 0.01963)
    )
    assert found.blocks == 5 and ratio_of_blocks([0.01]) is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.995, 1.005, "SAME"),
        (0.98, 1.001, "UNDECIDED"),
        (1.011, 1.05, "SLOWER"),
        (1.005, 1.05, "UNDECIDED"),
        (0.9, 0.985, "FASTER"),
        (0.9, 1.1, "UNDECIDED"),
        (1.002, 1.008, "SAME"),  # a difference is sure, and too small to be of interest
    ],
)
def test_verdicts_of_intervals(low: float, high: float, verdict: str) -> None:
    assert judge_ratio(Ratio((low + high) / 2, low, high, 0.95, 8), 0.01) == verdict
    assert judge_ratio(None, 0.01) == "UNDECIDED"


def test_looks_are_planned_and_paid_for() -> None:
    assert planned_looks(32) == (6, 9, 14, 21, 32) and planned_looks(6) == (6,) and planned_looks(3) == (3,)
    assert confidence_of_each(5, 2) == pytest.approx(1 - 0.05 / 10)


def drawn_verdict(draw: random.Random, truth: float, smallest: float = 0.015) -> str:
    """What a comparison would say of blocks with 1 % of noise each, looking as often as it does."""
    looks, shifts = planned_looks(32), []
    for blocks in range(1, 33):
        shifts.append(math.log(truth) + draw.gauss(0, 0.01))
        if blocks in looks:
            verdict = judge_ratio(ratio_of_blocks(shifts, confidence_of_each(len(looks), 1)), smallest)
            if verdict != "UNDECIDED":
                return verdict
    return "UNDECIDED"


@pytest.mark.parametrize(
    ("truth", "verdict", "least"), [(1.0, "SAME", 0.95), (1.03, "SLOWER", 0.95), (1 / 1.03, "FASTER", 0.95)]
)
def test_drawn_comparisons_come_out_right(truth: float, verdict: str, least: float) -> None:
    draw = random.Random(4)
    assert sum(drawn_verdict(draw, truth) == verdict for _ in range(300)) >= least * 300


def test_a_difference_on_the_edge_is_seldom_called_wrongly() -> None:
    draw = random.Random(5)
    wrong = sum(drawn_verdict(draw, 1.015) in ("SLOWER", "FASTER") for _ in range(300))
    assert wrong <= 0.05 * 300, (
        "the truth is exactly the smallest difference of interest, so SLOWER is wrong at most once in twenty"
    )


def test_memory_has_words_of_its_own_and_zeros_are_told() -> None:
    samples = {
        "a": {"inference_memory_resident_mib": [[100.0]] * 4, "model_ms": [[0.0, 1.0]] * 4},
        "b": {"inference_memory_resident_mib": [[120.0]] * 4, "model_ms": [[1.0, 1.0]] * 4},
    }
    memory, clock = judge_pairs(samples, "a", ["b"], 0.015, 0.95, "x")
    assert memory.verdict == "HIGHER" and memory.value == pytest.approx(1.2) and memory.unit == "MiB"
    assert clock.verdict == "UNDECIDED" and clock.value is None and "too short for the clock" in clock.note


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A real model, the same with extra work, and one whose weights cannot be loaded. One block of six that
    other work disturbs does not hide a factor of two; one of three did."""
    folder = tmp_path_factory.mktemp("compare")
    broken = folder / "broken.pth"
    broken.write_bytes(b"not a checkpoint")
    entrants = [
        Entrant("plain", ROW),
        Entrant("slowed", ROW, extra_units=5000),
        Entrant("broken", ROW, str(broken)),
    ]
    options = CompareOptions(
        smallest=0.05, blocks=6, rounds=2, warm_up=1, accuracy=True, files=folder / "detections"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTION_ZOO_HOME", str(make_small_shapes(folder / "home")))
        return compare(entrants, BenchmarkSpec(images=2), "shapes", options)


def test_the_slowed_model_is_slower_and_the_broken_one_is_out(found: Comparison) -> None:
    (deciding,) = (pair for pair in found.pairs if pair.decides)
    assert (deciding.metric, deciding.other, deciding.verdict) == (
        "model_cpu_ms",
        "slowed",
        "SLOWER",
    ) and deciding.interval[0] > 1.05
    assert {side.label: side.status for side in found.sides} == {
        "plain": "finished",
        "slowed": "finished",
        "broken": "failed",
    }
    assert next(side for side in found.sides if side.label == "broken").reason and found.status == "failed"


def test_what_a_path_was_compared_with_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(make_small_shapes(tmp_path / "home")))
    row = "faster_rcnn_resnet14_slim_fpn.demo"
    entrants = [Entrant("one", row), Entrant("other", row)]
    options = CompareOptions(smallest=0.05, blocks=2, rounds=2, warm_up=1, files=tmp_path / "detections")
    found = compare(entrants, BenchmarkSpec(images=2, path="fast"), "shapes", options)
    for label in ("one", "other"):
        assert [note for note in found.footnotes if note.startswith(f"{label}: fast path: 2 images compared")]


def test_what_is_alike_comes_out_alike(found: Comparison) -> None:
    ap = next(pair for pair in found.pairs if pair.metric == "box_ap")
    assert (
        (ap.value, ap.verdict, ap.kind) == (0.0, "UNDECIDED", "difference")
        and "no verdict from fewer than 50 images" in ap.note
        and "may be due to the choice of images" in ap.note
        and ap.blocks == 2
    )
    post = next(pair for pair in found.pairs if pair.metric == "postprocess_cpu_ms")
    assert post.verdict != "SLOWER", "the extra work is in the forward phase"


def test_every_raw_sample_is_kept_in_order(found: Comparison) -> None:
    assert len(found.orders) == 6 and all(len(block) == 2 for block in found.orders)
    for block in found.orders:
        assert all(second == first[::-1] for first, second in zip(block[::2], block[1::2], strict=True)), (
            "nobody is first more often"
        )
    for side in found.sides[:2]:
        counts = [
            [len(block) for block in side.samples[name]]
            for name in ("model_ms", "inference_memory_resident_mib")
        ]
        assert counts == [[2] * 6, [1] * 6]
    plain = found.sides[0].samples
    assert all(
        cpu <= 1.1 * wall + 1
        for a, b in zip(plain["model_cpu_ms"], plain["model_ms"], strict=True)
        for cpu, wall in zip(a, b, strict=True)
    )


def test_a_comparison_is_stored_whole_and_read_again(found: Comparison, tmp_path: Path) -> None:
    path = write_record(tmp_path, found)
    assert read_record(path, Comparison) == found
    with pytest.raises(FileExistsError):
        write_record(tmp_path, found)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="truncated"):
        read_record(path, Comparison)


def test_the_text_says_what_a_reader_must_know(found: Comparison) -> None:
    text = comparison_text(found)
    for said in (
        "reference: plain",
        "SLOWER",
        "CPU time",
        "fresh processes in each block",
        "smallest difference of interest 5.0%",
        "random, untrained",
        "injected extra work",
        "broken failed",
        "paired bootstrap over 2 images",
        "the machine was",
    ):
        assert said.lower() in text.lower(), said
    assert (
        json.loads(found.model_dump_json())["image_list"] == found.image_list and len(found.image_list) == 64
    )


def test_rows_may_be_named_twice_and_with_weights() -> None:
    assert entrants_of([ROW, ROW, f"{ROW}@published"], "random") == [
        Entrant(ROW, ROW, "random"),
        Entrant(f"{ROW} (2)", ROW, "random"),
        Entrant(f"{ROW}@published", ROW, "published"),
    ]
    with pytest.raises(ManifestError, match="did you mean"):
        entrants_of([ROW, ROW[:-1]], "random")


def test_pairs_are_strict_records() -> None:
    with pytest.raises(ValueError, match="verdict"):
        Pair(
            metric="model_ms",
            other="a",
            reference="b",
            values=(1.0, 1.0),
            unit="ms",
            kind="ratio",
            value=1.0,
            smallest=0.01,
            verdict="QUICK",
        )
