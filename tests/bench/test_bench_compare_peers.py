"""bench.py compare sets ours beside torchvision's Faster R-CNN and beside the same detector on a timm
backbone; classifiers are compared by top-1."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from forked import run_forked
from records import make_small_shapes

from detection_zoo.benchmarks.compare.judging import accuracy_pair
from detection_zoo.benchmarks.compare.match import compare
from detection_zoo.benchmarks.compare.options import CompareOptions, Entrant
from detection_zoo.benchmarks.compare.record import Comparison
from detection_zoo.benchmarks.compare.sides import unlike_rows
from detection_zoo.benchmarks.evaluation.ap_intervals import paired_difference
from detection_zoo.benchmarks.evaluation.classification import ImageHits, read_hits, write_classes
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.benchmarks.store import read_record
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.manifest_files import load_manifests

OURS, PEER, TIMM = (
    "mask_rcnn_resnet14_slim_fpn.demo",
    "faster_rcnn_resnet50_fpn_slim.torchvision",
    "mask_rcnn_resnet10t_fpn_slim.timm",
)
PHASES = {
    "model_ms",
    "model_cpu_ms",
    "forward_ms",
    "forward_cpu_ms",
    "postprocess_ms",
    "postprocess_cpu_ms",
    "end_to_end_ms",
    "end_to_end_cpu_ms",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, str]:
    """The stored comparison of the three, made through the command line, and what was printed."""
    pytest.importorskip("timm", reason="timm is an extra: pip install -e .[timm]")
    folder = tmp_path_factory.mktemp("peers")
    home = {"DETECTION_ZOO_HOME": str(make_small_shapes(folder / "home"))}
    command = [
        "bench.py",
        "compare",
        OURS,
        PEER,
        TIMM,
        "--weights",
        "random",
        "--data",
        "shapes",
        "--device",
        "cpu",
        "--images",
        "2",
        "--timed-images",
        "1",
        "--blocks",
        "2",
        "--rounds",
        "2",
        "--store",
        str(folder / "comparisons"),
    ]
    done = run_forked(*command, environment=home, forks=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "comparisons").glob("*.json")
    return read_record(path, Comparison), done.stdout


def test_all_three_ran_to_the_end(told: tuple[Comparison, str]) -> None:
    found, _ = told
    assert [(side.row, side.status, side.reason) for side in found.sides] == [
        (row, "finished", None) for row in (OURS, PEER, TIMM)
    ]
    assert found.status == "finished"
    assert all(
        side.weights.kind == "random" and side.data.made_up and side.environment.packages["torch"]
        for side in found.sides
    )
    assert all(
        [len(block) for block in side.samples[name]] == [2, 2] for side in found.sides for name in PHASES
    )


def test_each_peer_has_a_ratio_with_an_interval_and_a_verdict_that_follows_from_it(
    told: tuple[Comparison, str],
) -> None:
    found, _ = told
    for other in (PEER, TIMM):
        pairs = {pair.metric: pair for pair in found.pairs if pair.other == other}
        assert (
            pairs["model_cpu_ms"].decides
            and len([name for name in pairs.keys() - PHASES if name.endswith("_mib")])
            == len(pairs) - len(PHASES)
            == 1
        )
        for name, pair in pairs.items():
            assert (
                pair.reference == OURS
                and pair.blocks == 2
                and (pair.interval is None) == (pair.value is None)
            )
            if pair.interval is None:
                assert pair.verdict == "UNDECIDED" and "too short for the clock" in pair.note
                continue
            low, high = pair.interval
            slower, faster = ("HIGHER", "LOWER") if name.endswith("_mib") else ("SLOWER", "FASTER")
            inside = 1 / 1.015 <= low and high <= 1.015
            assert low <= pair.value <= high
            assert pair.verdict == (
                slower if low > 1.015 else faster if high < 1 / 1.015 else "SAME" if inside else "UNDECIDED"
            )


def test_the_deciding_ratio_is_that_of_the_raw_samples(told: tuple[Comparison, str]) -> None:
    found, _ = told
    ours, peer, _ = (side.samples["model_cpu_ms"] for side in found.sides)
    # the Hodges-Lehmann estimate of two values is their mean
    shifts = [
        sum(math.log(b / a) for a, b in zip(*blocks, strict=True)) / 2
        for blocks in zip(ours, peer, strict=True)
    ]
    pair = next(pair for pair in found.pairs if pair.other == PEER and pair.decides)
    assert pair.value == pytest.approx(math.exp(sum(shifts) / 2))


def test_what_a_reader_must_know_is_said(told: tuple[Comparison, str]) -> None:
    found, printed = told
    notes = " ".join(found.footnotes)
    for said in (
        f"untrained weights: {OURS}, {PEER}, {TIMM}",
        "the images of shapes:val are synthetic",
        "the rows differ in the detector",
        f"{PEER}: in the model, so timed in 'forward'",
        f"{TIMM}: shorter side 192 (at most 288) before the model",
    ):
        assert said in notes, said
    shown = " ".join(printed.lower().split())
    assert shown.count("random, untrained") == 3 and "are synthetic" in shown
    assert "the rows differ in the detector" in shown and "the rows differ in the resize" in shown
    assert "1 thread per operator" in found.protocol and "fresh processes in each block" in found.protocol


def test_rows_of_one_kind_need_no_note() -> None:
    entries = load_manifests()
    assert unlike_rows([entries.entry(OURS), entries.entry("mask_rcnn_vovnet27_tiny_fpn.demo")]) == []
    classifiers = [
        entries.entry(name) for name in ("resnet50_msra_imagenet.registry", "resnet18_imagenet.registry")
    ]
    assert not [note for note in unlike_rows(classifiers) if "detector" in note]


def test_voc_is_refused_before_anything_runs() -> None:
    with pytest.raises(DatasetError, match="leave out --ap"):
        compare(
            [Entrant("a", OURS), Entrant("b", TIMM)],
            BenchmarkSpec(),
            "voc:nowhere:2007:test",
            CompareOptions(accuracy=True),
        )


def test_a_peer_row_goes_through_the_runner(tmp_path: Path) -> None:
    """Every metric; what a row without a schedule cannot have is absent with its reason."""
    home = {"DETECTION_ZOO_HOME": str(make_small_shapes(tmp_path / "home"))}
    command = [
        "bench.py",
        "run",
        PEER,
        "--weights",
        "random",
        "--data",
        "shapes",
        "--device",
        "cpu",
        "--images",
        "2",
        "--timed-images",
        "1",
        "--budget-s",
        "0.2",
        "--warm-up-s",
        "0.1",
        "--processes",
        "1",
        "--store",
        str(tmp_path / "runs"),
        "--in-process",
        "--json",
    ]
    done = run_forked(*command, environment=home, forks=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(path.read_text())["run"]
    assert (
        record["status"] == "finished"
        and {"model_ms", "forward_ms", "postprocess_ms", "end_to_end_ms", "box_ap"}
        <= record["measurements"].keys()
    )
    assert all(
        "has no training schedule" in record["absent"][name]
        for name in ("epoch_time_s", "train_memory_resident_mib")
    )


class Pictures:
    """A dataset of classes, as far as answers need one."""

    name, classes = "pictures", ("a", "b", "c")

    def __init__(self, right: list[int]) -> None:
        self.right = right

    def __len__(self) -> int:
        return len(self.right)

    def image_id(self, index: int) -> str:
        return f"picture-{index}"

    def target(self, index: int):
        from types import SimpleNamespace

        return SimpleNamespace(labels=np.array([self.right[index]]))


def test_the_best_classes_are_kept_and_read_again(tmp_path: Path) -> None:
    data = Pictures([0, 1, 5, 2])
    scores = np.array(
        [[9, 1, 1, 1, 1, 1], [2, 2, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0], [0, 0, 3, 0, 0, 9]], float
    )  # right: 1st, 2nd (a tie), 6th, 2nd
    files = write_classes(scores, data, tmp_path / "detections" / "run")
    path = tmp_path / "detections" / files["classes"].name
    assert read_hits(path, data, 1).right.tolist() == [True, False, False, False]
    assert read_hits(path, data, 2).right.tolist() == [True, True, False, True] and read_hits(
        path, data, 5
    ).right.tolist() == [True, True, False, True]
    with pytest.raises(DatasetError, match="not those of pictures"):
        read_hits(path, Pictures([0, 1, 5]), 1)


def test_top1_of_two_models_is_told_from_noise_as_by_the_formula() -> None:
    """The difference of paired shares has the standard error sqrt((b + c - (b - c)^2 / n) / n^2), b and c the
    images that one alone gets right."""
    both, first, second, none = 120, 45, 15, 20
    base = ImageHits(np.repeat([True, True, False, False], [both, first, second, none]))
    own = ImageHits(np.repeat([True, False, True, False], [both, first, second, none]))
    found = paired_difference(base, own, draws=4000)
    n = both + first + second + none
    error = math.sqrt((first + second - (first - second) ** 2 / n) / n**2)
    assert found.value == pytest.approx((second - first) / n)
    assert (found.low, found.high) == (
        pytest.approx(found.value - 1.96 * error, abs=0.006),
        pytest.approx(found.value + 1.96 * error, abs=0.006),
    )
    pair = accuracy_pair("top1", base, own, "a", "b", 0.5, 0.95)
    assert (
        pair.verdict == "LOWER"
        and pair.values == (82.5, 67.5)
        and pair.value == pytest.approx(-15.0)
        and "not due to the choice of images" in pair.note
    )
    same = accuracy_pair("top1", base, base, "a", "b", 0.5, 0.95)
    # 200 equal answers: Tango's interval reaches 1.9 points, beyond half a point
    assert (
        same.verdict == "UNDECIDED" and same.value == 0 and "may be due to the choice of images" in same.note
    )


def test_the_interval_of_a_top1_difference_covers_the_truth_in_90_of_100_draws() -> None:
    """Of two classifiers that are right on 80 % and 74 % of all images, not independently: the truth is -6
    points."""
    draw, hits = np.random.default_rng(7), 0
    for number in range(100):
        hard = draw.random(200)
        same = np.where(
            draw.random(200) < 0.7, hard, draw.random(200)
        )  # the other finds seven of ten images as hard
        found = paired_difference(ImageHits(hard < 0.8), ImageHits(same < 0.74), draws=300, seed=number)
        hits += found.low <= -0.06 <= found.high
    assert hits >= 90


def test_classifiers_are_compared_by_top1_through_worker_processes(tmp_path: Path, data_folder: Path) -> None:
    options = CompareOptions(blocks=2, rounds=2, warm_up=1, accuracy=True, files=tmp_path / "detections")
    found = compare(
        [Entrant("18", "resnet18_imagenet.registry"), Entrant("again", "resnet18_imagenet.registry")],
        BenchmarkSpec(images=3, timed_images=1),
        f"imagenet:{data_folder / 'imagenet_mini'}",
        options,
    )
    pairs = {pair.metric: pair for pair in found.pairs}
    assert (
        found.status == "finished"
        and (pairs["top1"].value, pairs["top1"].verdict, pairs["top1"].blocks) == (0.0, "UNDECIDED", 3)
        and "top5" in pairs
    )
