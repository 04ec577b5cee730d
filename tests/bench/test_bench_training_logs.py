"""Curves of trainings that lie beside the records."""

from __future__ import annotations

import json
from pathlib import Path

from detection_zoo.benchmarks.folders import RUNS
from detection_zoo.benchmarks.report.training_logs import MOST_POINTS, training_logs
from detection_zoo.benchmarks.store import PROJECT_RESULTS
from detection_zoo.zoo.manifest_files import load_manifests

ROW = "faster_rcnn_vovnet39_fpn_2x.vovnet"


def _run(folder: Path, row: str, updates: int) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"request": {"row": row}}))
    lines = [f"{number},0.1,{number / 2},2\n" for number in range(1, updates + 1)]
    lines.append(
        f"{updates},0.1,7,2\n"
    )  # of a training that was resumed: it takes the place of the one before
    (folder / "metrics.csv").write_text("iteration,lr,loss,images\n" + "".join(lines))
    (folder / "evaluations.csv").write_text("iteration,epoch,box_ap\n2,0.5,10.5\n4,1.0,20.25\n")


def test_the_logs_of_shipped_weights_are_found_with_the_project_s_records() -> None:
    entries = load_manifests().entries
    found = training_logs([PROJECT_RESULTS / RUNS], entries)
    shipped = {name for name, entry in entries.items() if entry.training}
    assert shipped and shipped == set(found)
    for (log,) in found.values():
        assert 50 <= len(log.updates) == len(log.losses) == len(log.rates) <= MOST_POINTS
        assert log.updates == sorted(log.updates) and log.losses[-1] < log.losses[0]


def test_folders_of_trainings_are_read_and_long_ones_thinned(tmp_path: Path) -> None:
    for name, row, updates in (("long", ROW, 600), ("short", ROW, 4), ("other", "no.row", 4)):
        _run(tmp_path / "training" / name, row, updates)
    (tmp_path / "training" / "damaged").mkdir()
    (tmp_path / "training" / "damaged" / "recipe.json").write_text("{")
    _run(tmp_path / "training" / "cut", ROW, 4)
    (tmp_path / "training" / "cut" / "metrics.csv").write_text("iteration,lr,loss\n1,0.1,x\n")
    found = training_logs([tmp_path / "runs"], load_manifests().entries)
    assert list(found) == [ROW]
    long, short = found[ROW]
    assert len(long.updates) == MOST_POINTS and long.updates[-1] == 600 and long.losses[0] == 2.75
    assert (short.updates, short.losses, short.rates) == ([1, 2, 3, 4], [0.5, 1.0, 1.5, 7.0], [0.1] * 4)
    assert (short.metric, short.evaluated, short.accuracy) == ("box_ap", (2, 4), (10.5, 20.25))
