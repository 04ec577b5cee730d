"""Pins are written into manifests of either layout, and nothing else changes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, SHARED_FILES, read_manifests
from detection_zoo.zoo.weights.fetch.pin import pin
from detection_zoo.zoo.weights.fetch.selection import Chosen

ROWS = """
mirrors = ["https://one.example/"]
[defaults]
classes = 5
dataset = "shapes"
backbone = { name = "resnet50" }
weights = { format = "detectron_pkl", holds = "imagenet" }

[[model]]
name = "inline.mine"
title = "a ] and } in a title"
weights = [{ path = "a.pkl", note = "a } brace" }, { path = "b.pkl" },
  { path = "c.pkl", bytes = 7 }]

[[model]]
name = "table.mine"
title = "T"
[[model.weights]]
urls = ["https://one.example/d.pkl"] # kept
"""
DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("row", "place"), [("inline.mine", 0), ("inline.mine", 1), ("inline.mine", 2), ("table.mine", 0)]
)
def test_a_pin_changes_one_file_alone(tmp_path: Path, row: str, place: int) -> None:
    for name in SHARED_FILES:
        (tmp_path / name).write_text((MANIFEST_FOLDER / name).read_text())
    (tmp_path / "mine.toml").write_text(ROWS.replace("classes = 5", "classes = 8"))
    entry = read_manifests(tmp_path).entry(row)
    before = (tmp_path / "mine.toml").read_text()
    pin(Chosen(entry, entry.weights[place]), DIGEST, 7, tmp_path)
    after = (tmp_path / "mine.toml").read_text()
    again = read_manifests(tmp_path)
    assert again.entry(row).weights[place].sha256 == DIGEST and again.entry(row).weights[place].bytes == 7
    assert sum(spec.sha256 is not None for e in again.entries.values() for spec in e.weights) == 1
    assert (
        len(after) - len(before) < 120 and tomllib.loads(after)["model"][0]["title"] == "a ] and } in a title"
    )
