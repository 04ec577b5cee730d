"""bench.py pick: budgets, licences, measured before published and never mixed, and why others do not
qualify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from records import RANDOM, measured, run_of
from typer.testing import CliRunner

from bench import app
from detection_zoo.benchmarks.ask.pick import Candidate, Wish, choose, text_of
from detection_zoo.benchmarks.ask.select import permitted
from detection_zoo.benchmarks.report.wide import overview
from detection_zoo.benchmarks.spec import Run
from detection_zoo.benchmarks.store import write_record
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import load_manifests

SSDLITE, V39, V57 = (
    "ssdlite_mobilenetv2_300.registry",
    "faster_rcnn_vovnet39_fpn_2x.vovnet",
    "faster_rcnn_vovnet57_fpn_2x.vovnet",
)


def run(row: str, ap: float, ms: float, mib: float = 1024, **more: object) -> Run:
    values = {
        "box_ap": measured(ap, "%"),
        "model_ms": measured(ms, "ms"),
        "train_memory_allocated_mib": measured(mib, "MiB"),
    }
    return run_of(row, values, **more)


def picked(wish: Wish, *runs: Run) -> tuple[list[Candidate], dict[str, Candidate]]:
    fits, others = choose(overview(load_manifests(), list(runs)), wish)
    return fits, {one.row: one for one in others}


def test_measured_stand_first_and_published_apart() -> None:
    """V-39's README says 78 ms and 39.8, V-57's 87 ms and 40.8."""
    fits, others = picked(Wish(max_ms=80, min_score=38), run(V39, 39.5, 20.0), run(SSDLITE, 38.5, 5.0))
    assert [(one.row, one.kind) for one in fits][:2] == [(V39, "measured"), (SSDLITE, "measured")]
    assert (V39, "published") in [(one.row, one.kind) for one in fits[2:]] and all(
        one.kind == "published" for one in fits[2:]
    )
    assert fits[0].values["time_ms"] == 20.0 and fits[0].values["box_ap"] == 39.5
    assert others[V57].reasons == ("Time 87.0 ms",)
    text = text_of(fits, list(others.values()), Wish(max_ms=80, min_score=38), 5)
    first, second = (text.index("Measured here: 2 qualify"), text.index("Published by their sources"))
    assert first < second < text.index("Why others do not")


def test_a_row_is_never_made_of_both_kinds() -> None:
    """Fast as measured, accurate as published: neither line has both."""
    fits, others = picked(Wish(max_ms=30, min_score=38), run(V39, 10.0, 20.0))
    assert V39 not in [one.row for one in fits] and len(others[V39].reasons) == 1


def test_accuracy_of_made_up_weights_never_qualifies() -> None:
    _, others = picked(Wish(min_score=90), run(SSDLITE, 95.0, 5.0, weights=RANDOM))
    assert "its accuracy is meaningless: weights or images are synthetic" in others[SSDLITE].reasons
    fits, _ = picked(Wish(max_ms=10), run(SSDLITE, 95.0, 5.0, weights=RANDOM))
    assert [one.row for one in fits if one.kind == "measured"] == [SSDLITE]


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (Wish(max_gb=0.5), "Train memory 1.00 GiB"),
        (Wish(min_score=50), "Box AP 38.5 %"),
        (Wish(max_ms=4), "Time 5.0 ms"),
        (Wish(max_parameters_m=1), "no measured Parameters"),
        (Wish(licence="MIT"), "licence: Apache-2.0"),
        (Wish(hardware="H200"), "on other hardware"),
        (Wish(metric="mask_ap", min_score=10), "no measured Mask AP"),
    ],
)
def test_each_bound_has_its_reason(wish: Wish, reason: str) -> None:
    view = overview(load_manifests(), [run(SSDLITE, 38.5, 5.0)])
    view.lines = [line for line in view.lines if line.entry.name == SSDLITE and line.kind == "measured"]
    fits, others = choose(view, wish)
    assert not fits and len(others) == 1 and others[0].reasons[0].startswith(reason)


def test_licences() -> None:
    entries = load_manifests().entries
    assert (
        permitted(entries[SSDLITE], "permissive")
        and permitted(entries[SSDLITE], "Apache-2.0")
        and not permitted(entries[SSDLITE], "MIT")
    )
    assert not permitted(entries[V39], "permissive"), "its weights state no licence"
    odd = ModelEntry.model_validate({**entries[SSDLITE].model_dump(), "licence": "AGPL-3.0-only"})
    assert not permitted(odd, "permissive") and permitted(
        entries["resnet18_imagenet.registry"], "BSD-3-Clause"
    )


def test_the_command(tmp_path: Path) -> None:
    write_record(tmp_path / "runs", run(SSDLITE, 38.5, 5.0))
    ask = [
        "pick",
        "--max-ms",
        "20",
        "--max-gb",
        "4",
        "--licence",
        "permissive",
        "--min-ap",
        "38",
        "--all",
        "--store",
        str(tmp_path / "runs"),
    ]
    done = CliRunner().invoke(app, [*ask, "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert [(one["row"], one["kind"]) for one in answer["qualify"]] == [(SSDLITE, "measured")]
    assert (
        all(one["reasons"] for one in answer["others"])
        and len(answer["others"]) == len(load_manifests().entries) - 1
    )
    text = CliRunner().invoke(app, ask).stdout
    assert "Measured here: 1 qualify" in text and "Why others do not" in text
    (tmp_path / "empty").mkdir()
    none = CliRunner().invoke(app, ["pick", "--max-ms", "0.001", "--store", str(tmp_path / "empty")])
    assert none.exit_code == 1 and "Measured here: 0 qualify" in none.stdout


def test_box_ap_over_persons_is_never_mixed_with_box_ap() -> None:
    """Detectron's keypoint rows publish box APs above 50, of persons alone."""
    fits, others = picked(Wish(min_score=50, every_row=True))
    assert not [one.row for one in fits if "keypoint" in one.row]
    assert others["keypoint_rcnn_resnet50_fpn_1x.detectron"].reasons == ("no published Box AP",)
    fits, _ = picked(Wish(min_score=50, metric="person_ap"))
    assert fits and all("keypoint" in one.row for one in fits)


def test_rows_that_cannot_be_had_are_left_out_unless_asked_for() -> None:
    quoted, no_weights = "centernet_hardnet_quoted.hardnet", "densenet161_imagenet.vovnet"
    fits, others = picked(Wish(min_score=44))
    assert quoted not in {*(one.row for one in fits), *others} and no_weights not in others
    fits, others = picked(Wish(min_score=44, every_row=True))
    assert quoted in {one.row for one in fits} and no_weights in others
    untrained = run(no_weights, 1.0, 2.0)
    assert no_weights not in {one.row for one in picked(Wish(max_ms=10), untrained)[0]}, "it cannot be built"


def test_a_row_that_was_measured_can_be_had() -> None:
    from detection_zoo.benchmarks.ask.select import weights_of

    had = weights_of(load_manifests().entries.values())
    row = next(
        entry.name
        for entry in load_manifests().entries.values()
        if entry.detector and not entry.published_only and had[entry.name].state == "none"
    )
    assert row not in {one.row for one in picked(Wish(max_ms=10))[0]}
    assert picked(Wish(max_ms=10), run(row, 38.0, 5.0))[0][0].row == row
