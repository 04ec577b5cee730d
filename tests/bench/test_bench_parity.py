"""Reference folders that hold evaluations, beside what zoo.parity compares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detection_zoo.benchmarks.run.parity import check_reference
from detection_zoo.zoo.parity.base import ParityError

RECORDED = Path(__file__).resolve().parents[1] / "reference" / "evaluation" / "voc_detnet.json"


@pytest.fixture
def voc_case(tmp_path: Path) -> Path:
    for part, content in json.loads(RECORDED.read_text()).items():
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    return tmp_path


def test_a_folder_of_voc_scores_is_compared(voc_case: Path) -> None:
    report = check_reference(voc_case)
    assert report.ok and report.count("ok") > 50, [str(line) for line in report.lines if line.verdict != "ok"]


def test_a_changed_score_is_found(voc_case: Path) -> None:
    expected = json.loads((voc_case / "expected.json").read_text())
    expected["per_class"]["aeroplane"]["ap_07"] += 1e-6
    (voc_case / "expected.json").write_text(json.dumps(expected))
    assert [line.name for line in check_reference(voc_case).lines if line.verdict == "differs"] == [
        "aeroplane (11point)/ap"
    ]


def test_a_missing_part_is_named(voc_case: Path) -> None:
    (voc_case / "detections.json").unlink()
    with pytest.raises(ParityError, match="detections.json"):
        check_reference(voc_case)
