"""Tables: every published number, measured ones beside them and never mixed, ratios, dashes with reasons,
what was made up."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from records import MACHINE, PHOTOS, RANDOM, measured, run_of

from detection_zoo.benchmarks.report.layouts import Layout, layouts_of, load_layouts, read_layouts
from detection_zoo.benchmarks.report.lines import measured_lines, published_lines
from detection_zoo.benchmarks.report.table import build_table
from detection_zoo.benchmarks.report.tables import tables_of
from detection_zoo.benchmarks.spec import Run
from detection_zoo.benchmarks.store import write_record
from detection_zoo.benchmarks.tabular import Link, Table, render
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import Manifests
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, SHARED_FILES, load_manifests, read_manifests

SOURCE = """
[[model]]
name = "faster_r50.test"
title = "FRCN-R-50"
backbone = { name = "resnet50" }
detector = { name = "faster_rcnn" }
classes = 80
dataset = "shapes"
table = { Backbone = "R-50-FPN" }
[[model.weights]]
urls = ["https://example.org/r50.pth"]
format = "any"
holds = "detector"
[[model.published]]
source = "README.md"
hardware = "8 x Abacus"
values = { train_memory_gb = 3.6, inference_time_ms = 78, box_ap = 37.5, box_ap_s = 21.3 }
[[model]]
name = "faster_v39.test"
title = "FRCN-V-39"
backbone = { name = "vovnet39" }
detector = { name = "faster_rcnn" }
classes = 80
dataset = "shapes"
table = { Backbone = "V-39-FPN" }
[[model.weights]]
urls = ["https://example.org/v39.pth"]
format = "any"
holds = "detector"
wrong = "the file is another model"
[[model.published]]
source = "README.md"
hardware = "8 x Abacus"
values = { train_memory_gb = 3.9, inference_time_ms = 97, box_ap = 39.8 }
[[model.published]]
source = "README.md"
variant = "soft-NMS"
values = { box_ap = 40.1 }
[[model.published]]
source = "README.md"
hardware = "Slate 2"
values = { inference_time_ms = 120 }
[[model]]
name = "mask_r50.test"
title = "MRCN-R-50"
backbone = { name = "resnet50" }
detector = { name = "mask_rcnn" }
classes = 80
dataset = "shapes"
published_only = "the source gives no configuration"
[[model.published]]
source = "README.md"
values = { mask_ap = 34.9 }
"""
LAYOUT = """
[[table]]
name = "test_table"
title = "Test"
reference = ["faster_r50.test"]
[[table.columns]]
title = "Backbone"
text = "Backbone"
[[table.columns]]
title = "Train mem(GB)"
numbers = [{ metric = "train_memory_gb" }]
[[table.columns]]
title = "Inference time (ms)"
numbers = [{ metric = "inference_time_ms", digits = 0 }]
ratio = true
[[table.columns]]
title = "Box AP (AP/APs)"
numbers = [{ metric = "box_ap" }, { metric = "box_ap_s" }]
[[table.columns]]
title = "DOWNLOAD"
weights = true
"""


@pytest.fixture
def manifests(tmp_path: Path) -> Manifests:
    for name in SHARED_FILES:
        shutil.copy(MANIFEST_FOLDER / name, tmp_path)
    (tmp_path / "test.toml").write_text(SOURCE)
    return read_manifests(tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "test.toml").write_text(LAYOUT)
    return read_layouts(tmp_path / "tables")["test_table"]


def rows(layout: Layout, manifests: Manifests, runs: list[Run]) -> list[list[str]]:
    return build_table(layout, manifests, runs).rows


def notes_behind(cell: str, table_notes: list[str]) -> str:
    return " ".join(
        note
        for note in table_notes
        for number in [note.partition("]")[0] + "]"]
        if note.startswith("[") and number in cell
    )


def test_published_numbers_stand_as_the_source_prints_them(layout: Layout, manifests: Manifests) -> None:
    found = [row for row in rows(layout, manifests, []) if row[1].startswith("published")]
    assert [row[0] for row in found] == ["R-50-FPN", "V-39-FPN", "V-39-FPN", "V-39-FPN", "resnet50"]
    assert found[0][2:5] == ["3.6", "78 (1.00x)", "37.5/21.3"]
    assert found[1][2:5] == ["3.9", "97 (1.24x)", "39.8/-"]  # 97 / 78
    assert found[2][1].startswith("published, soft-NMS") and found[2][4] == "40.1/-"
    assert found[3][3] == "120", "another machine's time has no ratio to this machine's reference"


def test_a_row_nobody_measured_is_dashes_with_a_reason(layout: Layout, manifests: Manifests) -> None:
    table = build_table(layout, manifests, [])
    dashes = [row for row in table.rows if not row[1].startswith("published")]
    assert len(dashes) == 3 and all(cell == "-" for row in dashes for cell in row[2:])
    assert dashes[0][1] == "not run yet" and dashes[1][1].startswith("not run yet [")
    assert dashes[2][1].startswith("cannot be built [")
    reasons = [notes_behind(row[1], table.notes) for row in dashes]
    assert "another model" in reasons[1] and "no configuration" in reasons[2]
    assert [record["reason"].partition(":")[0] for record in table.records if "reason" in record] == [
        "not run yet",
        "not run yet",
        "cannot be built",
    ]


def test_a_failed_run_is_the_reason(layout: Layout, manifests: Manifests) -> None:
    failed = run_of("faster_r50.test", {}, status="failed", stage="training", reason="out of memory")
    table = build_table(layout, manifests, [failed])
    row = next(row for row in table.rows if row[0] == "R-50-FPN" and row[1].startswith("run failed"))
    assert "failed while training: out of memory" in notes_behind(row[1], table.notes)


def test_measured_numbers_come_with_interval_ratio_and_boundary(layout: Layout, manifests: Manifests) -> None:
    base = run_of(
        "faster_r50.test",
        {
            "model_ms": measured(20.0, "ms", interval=(19.0, 21.0), covers="forward + post-processing"),
            "train_memory_allocated_mib": measured(2048.0, "MiB"),
        },
    )
    other = run_of(
        "faster_v39.test",
        {"model_ms": measured(25.0, "ms"), "box_ap": measured(39.8, "%")},
        absent={"box_ap_s": "no small object in the data"},
    )
    table = build_table(layout, manifests, [base, other])
    r50, v39 = (row for row in table.rows if row[1].startswith("measured ["))
    assert r50[2].startswith("2.0") and r50[3].startswith("20 (19-21; 1.00x) [") and r50[4].startswith("-[")
    assert v39[3].startswith("25 (1.25x)") and v39[4].startswith("39.8/- [")
    assert "forward + post-processing" in notes_behind(r50[3], table.notes)
    assert "no small object" in notes_behind(v39[4], table.notes)
    assert "Abacus 9" in notes_behind(r50[1], table.notes) and base.id in notes_behind(r50[1], table.notes)
    assert r50[5] == "published " + "a" * 12


@pytest.mark.parametrize(
    "difference",
    [
        {"environment": MACHINE.model_copy(update={"device_name": "Slate 2"})},
        {"environment": MACHINE.model_copy(update={"threads": 2})},
        {"data": PHOTOS.model_copy(update={"digest": "e" * 64})},
    ],
)
def test_ratios_are_not_taken_between_settings(
    layout: Layout, manifests: Manifests, difference: dict
) -> None:
    base = run_of("faster_r50.test", {"model_ms": measured(20.0, "ms")}, **difference)
    other = run_of("faster_v39.test", {"model_ms": measured(25.0, "ms")})
    v39 = next(
        row
        for row in rows(layout, manifests, [base, other])
        if row[0] == "V-39-FPN" and row[1].startswith("measured")
    )
    assert v39[3] == "25"


def test_made_up_weights_data_and_subsets_are_said(layout: Layout, manifests: Manifests) -> None:
    data = PHOTOS.model_copy(
        update={"name": "shapes:val", "made_up": True, "images": 20, "images_of_split": 60}
    )
    run = run_of("faster_r50.test", {"box_ap": measured(0.1, "%")}, weights=RANDOM, data=data)
    table = build_table(layout, manifests, [run])
    row = next(row for row in table.rows if row[1].startswith("measured,"))
    assert (
        row[1].startswith("measured, random weights, made-up data, 20 of 60 images [") and row[5] == "random"
    )
    note = notes_behind(row[1], table.notes)
    assert "untrained: accuracy is meaningless" in note and "not comparable with published accuracy" in note


def test_newest_measurement_of_each_metric_counts_and_settings_stay_apart(manifests: Manifests) -> None:
    old = run_of(
        "faster_r50.test",
        {"model_ms": measured(30.0, "ms"), "box_ap": measured(37.0, "%")},
        started="2030-01-01T00:00:00+00:00",
    )
    new = run_of("faster_r50.test", {"model_ms": measured(20.0, "ms")}, started="2030-01-03T00:00:00+00:00")
    random = run_of("faster_r50.test", {"model_ms": measured(21.0, "ms")}, weights=RANDOM)
    lines = measured_lines(manifests.entries["faster_r50.test"], [old, new, random])
    assert [{name: m.value for name, m in line.values.items()} for line in lines] == [
        {"model_ms": 20.0, "box_ap": 37.0},
        {"model_ms": 21.0},
    ]
    assert [run.id for run in lines[0].runs] == [new.id, old.id]


def test_published_and_measured_never_mix(layout: Layout, manifests: Manifests) -> None:
    table = build_table(layout, manifests, [run_of("faster_r50.test", {"model_ms": measured(20.0, "ms")})])
    row = next(row for row in table.rows if row[1].startswith("measured ["))
    assert row[4].startswith("-["), "the published AP must not fill the measured line"
    kinds = {(record["kind"], name) for record in table.records for name in record["values"]}
    assert ("published", "box_ap") in kinds and ("measured", "box_ap") not in kinds


def test_markdown_is_one_table_with_footnotes_and_csv_reads_back(
    layout: Layout, manifests: Manifests
) -> None:
    table = build_table(layout, manifests, [])
    text = render([table], "markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert (
        text.startswith("### Test\n")
        and len(lines) == len(table.rows) + 2
        and len({line.count("|") for line in lines}) == 1
    )
    assert text == render([build_table(layout, manifests, [])], "markdown")
    assert render([table], "csv").splitlines()[0].startswith("table,Backbone,Numbers,Train mem(GB)")
    assert len(json.loads(render([table], "json"))) == len(table.rows)


def test_pipes_in_cells_do_not_break_the_table(layout: Layout, manifests: Manifests) -> None:
    table = build_table(layout, manifests, [])
    table.rows[0][0] = "a|b"
    assert "a\\|b" in render([table], "markdown")


def test_unknown_tables_answer_with_the_nearest(manifests: Manifests) -> None:
    with pytest.raises(ManifestError, match="did you mean 'vovnet"):
        layouts_of("vovnett", load_layouts(), {"vovnet"})
    assert [layout.source for layout in layouts_of("test", load_layouts(), {"test"})] == [
        "test"
    ]  # the wide one


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[table]]\nname = 'x'", "field title"),
        ("[[table]]\nname = 'x'\ntitle = 't'\ncolumns = []\nrwos = ['*']", "field rwos"),
        ("[[model]]\n", "a layout file has only [[table]]"),
        ("[[table]\n", "not valid TOML"),
    ],
)
def test_broken_layouts_say_where(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_layouts(tmp_path)
    assert said in str(caught.value) and "bad.toml" in str(caught.value)


def test_project_layouts_name_known_metrics_and_rows() -> None:
    manifests = load_manifests()
    for layout in load_layouts().values():
        for number in (number for column in layout.columns for number in column.numbers):
            names = {number.metric, *(source.metric for source in number.measured)}
            assert names <= manifests.metrics.keys(), layout.name
        assert set(layout.reference) <= manifests.entries.keys(), f"{layout.name}: unknown reference"
        assert layout.source == "wide" or layout.select(manifests.entries), f"{layout.name} lists no row"


def test_every_published_number_is_in_a_table_of_its_source() -> None:
    manifests, layouts = load_manifests(), load_layouts()
    sources = {entry.source for entry in manifests.entries.values()}
    for source in sources:
        shown: dict[str, str] = {}
        for layout in layouts_of(source, layouts, sources):
            table = build_table(layout, manifests, [])
            for cells, record in zip(table.rows, table.records, strict=True):
                text = " ".join(map(str, cells))
                shown[record["row"]] = f"{shown.get(record['row'], '')} {text}"
        hidden = {
            (entry.name, name, value)
            for entry in manifests.entries.values()
            if entry.source == source
            for line in published_lines(entry)
            for name, value in line.values.items()
            if not {repr(value), f"{value:.0f}", f"{value:.1f}"}
            & set(re.split(r"[^\d.]+", shown[entry.name]))
        }
        assert not hidden, f"published, but in no table of {source}: {sorted(hidden)}"


def test_a_source_without_a_layout_shows_what_it_publishes(tmp_path: Path) -> None:
    for name in SHARED_FILES:
        shutil.copy(MANIFEST_FOLDER / name, tmp_path)
    (tmp_path / "mine.toml").write_text(
        SOURCE.partition("[[model.published]]")[0].replace(".test", ".mine")
        + '[[model.published]]\nsource = "me"\nvalues = { box_ap = 77.7, box_ap75 = 3.25, fps = 4 }\n'
    )
    manifests = read_manifests(tmp_path)
    (layout,) = layouts_of("mine", load_layouts(), {"mine"})
    table = build_table(layout, manifests, [])
    line = dict(zip(table.headers, table.rows[0], strict=True))
    assert (line["Box AP (%)"], line["Box AP75 (%)"]) == ("77.7", "3.25")
    assert (line["Time (ms)"], line["Speed (fps)"]) == ("250.0", "4.0")


def test_tables_of_a_store_report_broken_records(tmp_path: Path) -> None:
    write_record(tmp_path, run_of("nobody.knows", {})).write_text("{")
    tables, problems = tables_of(None, tmp_path)
    assert not tables and len(problems) == 1


def test_metrics_are_given_by_known_metrics() -> None:
    metrics = load_manifests().metrics
    for name, spec in metrics.items():
        assert {source.metric for source in (*spec.measured, *spec.published)} <= metrics.keys(), name


def test_box_ap_of_keypoint_rows_is_of_persons_and_says_so() -> None:
    manifests, layouts = load_manifests(), load_layouts()
    row = "keypoint_rcnn_resnet50_fpn_1x.detectron"
    table = build_table(
        layouts["detectron_detectors"], manifests, [run_of(row, {"box_ap": measured(53.0, "%")})]
    )
    lines = [
        dict(zip(table.headers, cells, strict=True))
        for cells, record in zip(table.rows, table.records, strict=True)
        if record["row"] == row
    ]
    assert [line["box AP"].partition("[")[0].strip() for line in lines] == ["53.6", "53.0"]
    for line in lines:
        assert "AP of the person class only" in notes_behind(line["box AP"], table.notes)
    values = [record["values"] for record in table.records if record["row"] == row]
    assert all("person_ap" in one and "box_ap" not in one for one in values)


def test_a_metric_appears_everywhere_from_one_entry(tmp_path: Path) -> None:
    """In what run prints, a source's table, the wide table, the page and pick."""
    shutil.copytree(MANIFEST_FOLDER, tmp_path / "manifests")
    with (tmp_path / "manifests" / "metrics.toml").open("a") as file:
        file.write(
            '\nleaves = { title = "Leaves", unit = "per tree", better = "higher", digits = 0, overview = true,'
            " tables = true }\n"
        )
    row = "faster_rcnn_vovnet39_fpn_2x.vovnet"
    write_record(tmp_path / "results" / "runs", run_of(row, {"leaves": measured(12345.0, "per tree")}))
    code = """
import sys
from pathlib import Path
import detection_zoo.zoo.manifest_files as manifest
manifest.MANIFEST_FOLDER = Path("manifests").absolute()
from detection_zoo.benchmarks.report.generate import generate, stored_overview
from detection_zoo.benchmarks.report.listing import results
view = stored_overview()
assert "Leaves" in results(view.runs) and "12345" in results(view.runs)
files = {name: content.decode() for name, content in generate(view, {"md", "csv", "html"}).files.items()}
assert "| Leaves (per tree) |" in files["tables/vovnet.md"] and "| 12345 " in files["tables/vovnet.md"]
assert "| Leaves (per tree) |" not in files["tables/detectron.md"]
assert "| Leaves (per tree) |" in files["tables/wide.md"] and ",leaves," in files["tables/wide.csv"]
assert '"name":"leaves","title":"Leaves"' in files["report.html"]
from detection_zoo.bench import app
from typer.testing import CliRunner
done = CliRunner().invoke(app, ["pick", "--metric", "leaves", "--min-ap", "12000"])
assert done.exit_code == 0 and "Leaves" in done.stdout and "Measured here: 1" in done.stdout, done.output
"""
    root = str(MANIFEST_FOLDER.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr


def test_what_comes_from_outside_is_escaped_in_every_form() -> None:
    """Formulas in CSV, escape sequences and line breaks everywhere, tags and links in Markdown."""
    evil = "=cmd|' /C calc'!A0 \x1b]0;x\x07 <script> [a](javascript:b)\n\u202egnp.exe \ud800"
    table = Table(
        ["+h", "plain", "link"],
        [[evil, "-1.5", [Link("m", "javascript:alert(1)")]], ["@x", "-", [Link("m", "https://e.org/a b>c")]]],
        [f"[1] {evil}"],
        "t",
        evil,
        [{"=name": evil, "number": -1.5}],
    )
    texts = {form: render([table], form) for form in ("text", "markdown", "csv", "latex")}
    texts["records"] = render([dataclasses.replace(table, flat=True)], "csv")
    for form, text in texts.items():
        assert text.encode() and not [c for c in "\x1b\x07\u202e\ud800" if c in text], form
        assert all(unicodedata.category(c) != "Cc" or c == "\n" for c in text), form
    rows = list(csv.reader(io.StringIO(texts["csv"])))
    assert rows[0][1] == "'+h" and rows[1][1].startswith("'=cmd") and rows[1][2] == "-1.5"
    assert rows[2][1] == "'@x" and rows[2][2] == ""
    assert next(csv.reader(io.StringIO(texts["records"]))) == ["'=name", "number"]
    assert "\\<script>" in texts["markdown"] and "](javascript" not in texts["markdown"].replace("]\\(", "")
    assert "[t-1]: https://e.org/a%20b%3Ec" in texts["markdown"] and "[t-2]" not in texts["markdown"]
    assert json.loads(render([table], "json")) and "\x1b" not in render([table], "json")


def test_a_backslash_does_not_undo_the_escape_behind_it_nor_a_wide_sign_the_guard() -> None:
    table = Table(["\\<b>", "n"], [["\\|x", "＝1+1"], [" =1+1", "-2"]], [])
    assert render([table], "markdown").splitlines()[::2] == ["| \\\\\\<b> | n |", "| \\\\\\|x | ＝1+1 |"]
    assert [row[2] for row in csv.reader(io.StringIO(render([table], "csv")))] == ["n", "'＝1+1", "-2"]
    assert list(csv.reader(io.StringIO(render([table], "csv"))))[2][1] == "'=1+1"


@pytest.mark.parametrize("width", [20, 40, 79, 100, 200])
def test_no_line_of_text_is_wider_than_asked_for(width: int) -> None:
    draw = random.Random(width)
    letters = "abcdefg_./-"
    for columns in range(1, 12):
        words = ["".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(60)]
        cells = [
            [" ".join(draw.choices(words, k=draw.randint(0, 4))) for _ in range(columns)] for _ in range(5)
        ]
        table = Table([f"column {c}" for c in range(columns)], cells, words, "n", "t " * 90, keys=2)
        text = render([table], "text", width)
        assert max(map(len, text.splitlines())) <= width
        whole = "".join(text.split())
        assert all("".join(word.split()) in whole for word in words[:3])


def test_wide_enough_lines_are_not_wrapped() -> None:
    table = Table(["a", "b"], [["x" * 50, "y z"]])
    assert render([table], "text") == render([table], "text", 60)
    assert f"{'x' * 50}  y z\n" in render([table], "text", 60)


def test_detnet_tables_say_data_scale_and_pooling() -> None:
    table = build_table(load_layouts()["detnet_voc"], load_manifests(), [])
    lines = [dict(zip(table.headers, row, strict=True)) for row in table.rows]
    assert {(line["train/test"], line["scale"], line["RoI"]) for line in lines} == {
        ("VOC07 trainval / VOC07 test", "600", "RoIAlign"),
        ("VOC07+12 trainval / VOC07 test", "600", "RoIAlign"),
    }


def test_measured_lines_have_their_own_hardware_and_schedule() -> None:
    manifests, layouts = load_manifests(), load_layouts()
    detnet, detectron = "faster_rcnn_detnet59_fpn_voc07.detnet", "faster_rcnn_resnet50_fpn_1x.detectron"
    values = {"model_ms": measured(20.0, "ms")}
    runs = [run_of(detnet, values), run_of(detectron, values), run_of(detectron, values, weights=RANDOM)]
    for name, column, row, expected in (
        ("detnet_voc", "GPUs", detnet, {"1 GTX 1080 (Ti)", "Abacus 9, 1 thread"}),
        ("detnet_voc", "Batch Size", detnet, {"2", "-"}),
        ("detectron_detectors", "lr schd", detectron, {"1x", "-"}),
    ):
        table = build_table(layouts[name], manifests, runs)
        place = table.headers.index(column)
        cells = {
            cells[place]
            for cells, record in zip(table.rows, table.records, strict=True)
            if record["row"] == row
        }
        assert cells == expected, (name, column)


def test_sentences_of_notes_are_short(layout: Layout, manifests: Manifests) -> None:
    long = "; ".join(f"part {number} of a note that a run recorded" for number in range(6))
    run = run_of("faster_r50.test", {"model_ms": measured(20.0, "ms", covers=long)})
    text = render([build_table(layout, manifests, [run])], "markdown")
    (note,) = (line for line in text.splitlines() if "part 5" in line.lower())
    assert all(len(sentence.split()) <= 20 for sentence in note.split(". "))


def test_other_seeds_stand_below_the_row_that_comes_with_weights() -> None:
    """Mean and standard deviation of every training of the row; a single training says nothing."""
    from detection_zoo.benchmarks.report.layouts import load_layouts

    row, other = "faster_rcnn_resnet14_slim_fpn.demo", "faster_rcnn_detnet17_slim_fpn.demo"
    manifests = load_manifests()
    entry = manifests.entry(row)
    seeds = {"1": {"box_ap": 46.86}, "2": {"box_ap": 48.86}}
    training = entry.training.model_copy(
        update={"expected": {"box_ap": {"100": 45.0, "500": 47.86}}, "other_seeds": seeds}
    )
    entries = manifests.entries | {row: entry.model_copy(update={"training": training})}
    entries[other] = entries[other].model_copy(
        update={"training": entries[other].training.model_copy(update={"other_seeds": {}})}
    )
    table = build_table(
        load_layouts()["demo"],
        manifests.model_copy(update={"entries": entries}),
        [run_of(name, {"box_ap": measured(47.9, "%")}) for name in (row, other)],
    )
    text = "Box AP by seed: 47.86 (0), 46.86 (1), 48.86 (2); mean 47.86, SD 1.00"
    assert sum(text in note for note in table.notes) == 1
    assert sum("by seed" in note for note in table.notes) == 1
