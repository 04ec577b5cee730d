"""Difference of rows over images and seeds of their trainings."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from forked import run_forked
from safetensors.torch import load_file, save_file

from detection_zoo.benchmarks.compare.seeds import RowSeeds, seeds_difference
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER

ROW = "faster_rcnn_resnet14_slim_fpn.demo"
OTHER = "faster_rcnn_vovnet27_tiny_fpn.demo"


@dataclass
class Drawn:
    """Answers whose score is the mean of a number for each image."""

    values: np.ndarray

    @property
    def images(self) -> int:
        return len(self.values)

    def score(self, weights: np.ndarray) -> np.ndarray:
        return weights @ self.values / weights.sum(axis=1)


def _trainings(draw: np.random.Generator, mean: float, images: np.ndarray, seeds: float) -> list[Drawn]:
    """Three trainings: images and seeds each shift the score."""
    return [
        Drawn(mean + images + draw.normal(0, seeds) + draw.normal(0, 0.05, len(images))) for _ in range(3)
    ]


@pytest.mark.parametrize("seeds", [0.0, 0.004, 0.02])
def test_interval_covers_the_difference(seeds: float) -> None:
    """Of 300 drawn pairs of rows, 95 % (at least 92 %) of the intervals hold the true difference."""
    draw, held = np.random.default_rng(3), 0
    for number in range(300):
        images, own = draw.normal(0, 0.1, (2, 120))
        found = seeds_difference(
            _trainings(draw, 0.4, images, seeds),
            _trainings(draw, 0.43, images + own, seeds),
            0.5,
            number,
            draws=200,
        )
        held += found.interval[0] <= 3.0 <= found.interval[1]
    assert held >= 276


def test_a_spread_over_seeds_alone_can_leave_it_undecided() -> None:
    """Images agree that B is higher; the trainings do not."""
    same = np.full(200, 0.5)
    steady = seeds_difference(
        [Drawn(same), Drawn(same + 0.001)], [Drawn(same + 0.02), Drawn(same + 0.021)], 0.5
    )
    spread = seeds_difference(
        [Drawn(same), Drawn(same + 0.02)], [Drawn(same + 0.02), Drawn(same + 0.04)], 0.5
    )
    assert steady.verdict == "HIGHER"
    assert spread.verdict == "UNDECIDED"
    assert spread.value == pytest.approx(2.0)
    assert spread.by_images == pytest.approx(0.0, abs=1e-9)
    assert spread.by_seeds == pytest.approx(2**0.5)  # sd 1.41 points each: (2 / 2 + 2 / 2) ** 0.5


def test_one_training_gives_no_verdict() -> None:
    """Nothing is known of the spread over seeds."""
    same = Drawn(np.full(100, 0.5))
    found = seeds_difference([same], [Drawn(same.values + 0.1), Drawn(same.values + 0.2)], 0.5)
    assert (found.interval, found.by_seeds, found.verdict) == (None, None, "UNDECIDED")
    assert RowSeeds("row", "box_ap", [50.0]).spread is None


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_forked("bench.py", "compare-seeds", *arguments, "--device", "cpu")


def test_command(tmp_path: Path) -> None:
    """Two trainings of two rows each."""
    names = []
    for row in (ROW, OTHER):
        tensors = load_file(MANIFEST_FOLDER / "weights" / f"{row.removesuffix('.demo')}.safetensors")
        shifted = tmp_path / f"{row}.safetensors"
        save_file({name: value * 1.01 for name, value in tensors.items()}, shifted)
        names += [row, f"{row}@{shifted}"]
    ended = _bench(*names, "--images", "4", "--json")
    assert ended.returncode == 0, ended.stderr
    first, second = json.loads(ended.stdout)
    assert (first["row"], first["metric"], first["difference"]) == (ROW, "box_ap", None)
    assert len(second["values"]) == 2
    assert second["difference"]["interval"][0] < second["difference"]["value"]


def test_the_same_file_twice_is_refused() -> None:
    """A training counted twice would have no spread."""
    ended = _bench(ROW, ROW, OTHER, "--images", "2")
    assert ended.returncode == 2
    assert "the same weights as" in ended.stderr
