"""The training step beside torchvision's."""

from __future__ import annotations

import json
import multiprocessing

import pytest
from typer.testing import CliRunner

from detection_zoo.bench import app
from detection_zoo.benchmarks.train.beside import ROW, Batch, Steps, measure, summary


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_both_sides_make_steps_in_half_precision(side: str) -> None:
    found = measure(side, "bfloat16", ROW, Batch(1, 64, 64), warm_up=0, steps=1)
    assert found.precision == "bfloat16" and len(found.seconds) == 1 and found.rois > 128


def test_both_sides_make_steps_and_the_ratios_are_those_of_the_medians(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In two processes; forked here, since starting Python twice takes as long as the steps."""
    forked, kinds = multiprocessing.get_context("fork"), []
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: kinds.append(kind) or forked)
    words = ["train-step", "--height", "128", "--width", "128", "--steps", "1", "--warm-up", "0"]
    done = CliRunner().invoke(app, [*words, "--blocks", "1", "--json"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    found = json.loads(done.stdout)
    assert kinds == ["spawn"]
    ours, theirs = (found["runs"][side][0] for side in ("ours", "theirs"))
    assert found["speed"] == theirs["seconds"][0] / ours["seconds"][0] > 0
    assert found["memory"] == ours["peak_mib"] / theirs["peak_mib"] > 0
    assert "torchvision" in theirs["model"] and "x as fast as torchvision" in done.stderr
    assert ours["rois"] == theirs["rois"] > 128  # equal work for the box heads


def test_another_precision_stands_beside_float32_and_beside_its_like() -> None:
    batch = Batch(1, 128, 128)
    times = {"ours": 2.0, "theirs": 3.0, "ours bfloat16": 1.0, "theirs bfloat16": 2.5}
    found = {
        name: [Steps(name, name.rpartition(" ")[2], [time_s], 512, 100 * time_s)]
        for name, time_s in times.items()
    }
    values, table = summary(found, batch)
    assert values["speed"] == 1.5 and values["memory"] == 200 / 300
    assert [row[4:6] for row in table.rows] == [
        ["1.50x", "1.50x"],
        ["1.00x", "1.00x"],
        ["3.00x", "2.50x"],
        ["1.20x", "1.00x"],
    ]
