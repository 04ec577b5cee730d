"""The training step beside torchvision's."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from detection_zoo.bench import app


def test_both_sides_make_steps_and_the_ratios_are_those_of_the_medians() -> None:
    words = ["train-step", "--height", "128", "--width", "128", "--steps", "1", "--warm-up", "0"]
    done = CliRunner().invoke(app, [*words, "--blocks", "1", "--json"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    found = json.loads(done.stdout)
    ours, theirs = (found["runs"][side][0] for side in ("ours", "theirs"))
    assert found["speed"] == theirs["seconds"][0] / ours["seconds"][0] > 0
    assert found["memory"] == ours["peak_mib"] / theirs["peak_mib"] > 0
    assert "torchvision" in theirs["model"] and "x as fast as torchvision" in done.stderr
