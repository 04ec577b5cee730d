"""bench.py report: the same records give the same bytes in every format, stale files are found, nothing heavy
is imported before it is needed."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from forked import LIGHT, ROOT, run_forked
from made_up_records import made_up_runs, made_up_timings
from records import MACHINE, RANDOM, measured, run_of

from detection_zoo.benchmarks.compare.record import Comparison
from detection_zoo.benchmarks.report.figure_data import histories, panels, phase_bars
from detection_zoo.benchmarks.report.generate import (
    FORMATS,
    TRACKED,
    document_text,
    generate,
    make_report,
    stale_report,
    stored_overview,
    write_files,
)
from detection_zoo.benchmarks.report.kernel_cases import KernelCase, read_timings, stored_timings
from detection_zoo.benchmarks.report.tables import source_tables
from detection_zoo.benchmarks.report.wide import Overview, overview
from detection_zoo.benchmarks.spec import Run, metric
from detection_zoo.benchmarks.store import read_record, write_record
from detection_zoo.benchmarks.tabular import Link, Table, latex_text, render
from detection_zoo.zoo.manifest_files import load_manifests

V39 = "faster_rcnn_vovnet39_fpn_2x.vovnet"
ALL = set(FORMATS)


@pytest.fixture(scope="module")
def view() -> Overview:
    view = overview(load_manifests(), made_up_runs(9))
    view.kernels = [made_up_timings()]
    return view


@pytest.fixture(scope="module")
def files(view: Overview) -> dict[str, bytes]:
    return generate(view, ALL).files


def tracked(*folders: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_tracked_records_are_read() -> None:
    readers = {
        "runs": read_record,
        "comparisons": lambda path: read_record(path, Comparison),
        "kernels": read_timings,
    }
    for kind, read in readers.items():
        assert [read(path) for path in tracked(f"results/{kind}")]


def test_tracked_results_are_small() -> None:
    assert sum(path.stat().st_size for path in tracked("results") if path.is_file()) <= 1.5e6


def test_every_format_is_there(files: dict[str, bytes]) -> None:
    sources = {entry.source for entry in load_manifests().entries.values()} | {"wide"}
    assert {
        f"tables/{source}.{end}" for source in sources for end in ("md", "csv", "json", "tex")
    } <= files.keys()
    assert {
        f"figures/{name}.{end}"
        for name in ("ap_time", "ap_memory", "ap_parameters", "phases", "kernels")
        for end in ("svg", "png")
    } <= files.keys()
    assert "report.html" in files and all(files.values())


def test_the_same_records_give_the_same_bytes_in_any_order_and_process(
    view: Overview, files: dict[str, bytes], tmp_path: Path
) -> None:
    for run in view.runs[::-1]:
        write_record(tmp_path / "runs", run)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "now.json").write_text(made_up_timings().model_dump_json())
    code = (  # importing torch would fail
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'bench.py'; import bench; bench.main()"
    )
    command = [
        "-c",
        code,
        "report",
        "--store",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "out"),
        "--format",
        ",".join(FORMATS),
        "--json",
    ]
    done = run_forked(*command, imports=LIGHT)
    assert done.returncode == 0, done.stderr
    assert {Path(name) for name in json.loads(done.stdout)["files"]} == {
        tmp_path / "out" / name for name in files
    }
    assert [
        name for name, content in files.items() if (tmp_path / "out" / name).read_bytes() != content
    ] == []


def test_a_source_file_is_what_bench_table_prints(view: Overview, files: dict[str, bytes]) -> None:
    assert files["tables/vovnet.md"].decode() == render(source_tables(view, "vovnet"), "markdown")


def test_wide_csv_and_json_hold_the_same_lines(view: Overview, files: dict[str, bytes]) -> None:
    rows = list(csv.DictReader(io.StringIO(files["tables/wide.csv"].decode())))
    records = json.loads(files["tables/wide.json"])
    assert len(rows) == len(records) == len(view.lines)
    for row, record, line in zip(rows, records, view.lines, strict=True):
        assert row["row"] == record["row"] == line.entry.name and row["kind"] == line.kind
        for name, point in line.metrics().items():
            assert float(row[name]) == record[name] == point.value, "exports keep every digit"
            assert (
                point.interval is None
                or (float(row[f"{name}_low"]), float(row[f"{name}_high"])) == point.interval
            )
    assert {"measured", "published", "not measured"} == {row["kind"] for row in rows}
    assert all(row["reason"] for row in rows if row["kind"] == "not measured")
    header = files["tables/wide.csv"].decode().splitlines()[0].split(",")
    assert header[header.index("model_ms") :][:4] == [
        "model_ms",
        "model_ms_low",
        "model_ms_high",
        "model_ms_n",
    ]


def test_wide_markdown_has_every_row_of_every_source(files: dict[str, bytes]) -> None:
    text = files["tables/wide.md"].decode()
    assert not [name for name in load_manifests().entries if f"| {name} " not in text]
    assert (
        len({line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")}) == 1
    )


def test_latex_escapes_and_keeps_links_marks_and_dashes() -> None:
    table = Table(
        ["Row_name", "Box AP (%)", "DOWNLOAD"],
        [
            ["R-50", "37.5 (1.00x) [2]", [Link("model", "https://example.org/a_b%20c#d"), "[1]"]],
            ["{x}~\\^$", "-[3]", "-"],
        ],
        ["a note", "[1] 100 % #1"],
        "t",
        "Speed & cost",
    )
    text = render([table], "latex")
    assert r"\caption{Speed \& cost}" in text and r"Row\_name & Box AP (\%) & DOWNLOAD \\" in text
    assert (
        r"R-50 & 37.5 (1.00x) \textsuperscript{[2]} &"
        r" \href{https://example.org/a\_b\%20c\#d}{model}\textsuperscript{[1]} \\" in text
    )
    assert (
        r"\{x\}\textasciitilde{}\textbackslash{}\textasciicircum{}\$ & --\textsuperscript{[3]} & -- \\"
        in text
    )
    assert r"\item a note" in text and r"\item {[1]} 100 \% \#1" in text
    assert latex_text("a\nb") == "a b"


def test_latex_of_every_source_is_well_formed(files: dict[str, bytes]) -> None:
    for name in (name for name in files if name.endswith(".tex")):
        text = files[name].decode()
        plain = re.sub(r"\\[{}]", "", text)
        assert plain.count("{") == plain.count("}"), name
        for body in re.findall(
            r"\\begin\{longtable\}\{(l+)\}.*?\\midrule(.*?)\\end\{longtable\}", text, re.DOTALL
        ):
            rows = [line for line in body[1].splitlines() if line.endswith(r"\\")]
            assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} <= {len(body[0])}, name


def test_figures_are_svg_without_a_date_that_say_what_they_were_made_from(files: dict[str, bytes]) -> None:
    for name in (name for name in files if name.endswith(".svg")):
        text = files[name].decode()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert (
            re.search(r"data sha256 [0-9a-f]{64}", text)
            and "<dc:date>" not in text
            and "Matplotlib v" not in text
        ), name
    assert (
        files["figures/ap_time.png"].startswith(b"\x89PNG")
        and b"data sha256 " in files["figures/ap_time.png"]
    )


def test_figures_tell_what_is_measured_published_and_made_up(files: dict[str, bytes]) -> None:
    text = files["figures/ap_time.svg"].decode()
    assert all(
        part in text
        for part in (
            "measured: Abacus 9 (made up)",
            "published: detectron",
            "untrained or synthetic: accuracy is meaningless",
            "Pareto front",
            "Time (ms)",
        )
    )


def two_of(value: float, **more: object) -> list[Run]:
    rows = (V39, "faster_rcnn_vovnet57_fpn_2x.vovnet")
    return [
        run_of(
            row, {"model_ms": measured(value + place, "ms"), "box_ap": measured(40.0 + place, "%")}, **more
        )
        for place, row in enumerate(rows)
    ]


def test_panels_hold_one_setting_each_and_measured_ones_come_first() -> None:
    assert panels(overview(load_manifests(), two_of(20.0)), metric("time_ms"))[1] > 0, "the rest is counted"
    rows = {
        name: entry
        for name, entry in load_manifests().entries.items()
        if entry.source == "vovnet" and entry.detector
    }
    found, left_out = panels(
        overview(load_manifests().model_copy(update={"entries": rows}), two_of(20.0)), metric("time_ms")
    )
    assert [panel.kind for panel in found] == ["measured", "published"] and left_out == 0
    assert [(dot.label, dot.x.value, dot.y.value, dot.on_front) for dot in found[0].dots] == [
        ("vovnet39", 20.0, 40.0, True),
        ("vovnet57", 21.0, 41.0, True),
    ]
    # the VoVNet README's eight detectors; nothing beats Faster V-39 (78 ms, 39.8), Mask V-39 (81 ms, 41.0)
    # and Mask V-57 (90 ms, 42.0)
    assert [(dot.x.value, dot.y.value) for dot in found[1].dots if dot.on_front] == [
        (78.0, 39.8),
        (81.0, 41.0),
        (90.0, 42.0),
    ] and len(found[1].dots) == 8


def test_made_up_accuracy_is_on_no_front() -> None:
    found, _ = panels(overview(load_manifests(), two_of(20.0, weights=RANDOM)), metric("time_ms"))
    assert found[0].kind == "measured" and not any(dot.on_front or dot.trusted for dot in found[0].dots)


def test_histories_join_runs_of_one_setting_over_commits() -> None:
    def timed(day: int, value: float, **machine: object) -> Run:
        return run_of(
            V39,
            {"model_ms": measured(value, "ms")},
            started=f"2030-01-0{day}T00:00:00+00:00",
            environment=MACHINE.model_copy(update=machine),
        )

    runs = [timed(3, 18.0, commit="b" * 40, dirty=True), timed(1, 20.0, commit="a" * 40)]
    (history,), left_out = histories([*runs, timed(2, 1.0, device_name="Slate 2")])
    assert (
        history.commits == ("aaaaaaa", "bbbbbbb+")
        and [point.value for point in history.points] == [20.0, 18.0]
        and left_out == 0
    )
    assert histories(runs[:1]) == ([], 0)


def test_kernel_timings_are_the_newest_and_ratios_are_the_peers_over_ours(tmp_path: Path) -> None:
    tmp_path = tmp_path / "kernels"
    tmp_path.mkdir()
    old = made_up_timings()
    us = {"unit": "us", "n": 5}
    case = KernelCase(
        name="nms",
        ours=measured(40.0, interval=(38.0, 42.0), **us),
        peer=measured(484.0, interval=(480.0, 490.0), **us),
        correct=True,
    )
    new = old.model_copy(
        update={
            "started": "2030-02-01T00:00:00+00:00",
            "cases": [case, case.model_copy(update={"peer": measured(0.5, "ms")})],
        }
    )
    for name, timings in (("a", new), ("b", old)):
        (tmp_path / f"{name}.json").write_text(timings.model_dump_json())
    (tmp_path / "c.json").write_text("{")
    (found,), problems = stored_timings(tmp_path.parent / "runs")
    assert found == new and len(problems) == 1 and "c.json" in problems[0]
    assert found.cases[0].ratio == 12.1 and found.cases[0].ratio_interval == pytest.approx(
        (480 / 42, 490 / 38)
    )
    assert found.cases[1].ratio is None, "microseconds and milliseconds make no ratio"
    assert stored_timings(tmp_path / "runs") == ([], [])


def test_phase_bars_are_of_one_setting(view: Overview) -> None:
    title, bars, without = phase_bars(view)
    timed = [line for line in view.lines if "forward_ms" in line.metrics()]
    assert len(bars) + without == len(timed) and {line.setting_title for line in timed} >= {title}
    assert [sum(bar.phases.values()) for bar in bars] == sorted(
        (sum(bar.phases.values()) for bar in bars), reverse=True
    )
    for bar in bars:  # 35, 10, 6, 11 and 2 of 64 parts
        assert list(bar.shares.values()) == pytest.approx(
            [bar.phases["forward_ms"] * part / 64 for part in (35, 10, 6, 11, 2)]
        )
    assert phase_bars(overview(load_manifests(), [])) == ("", [], 0)


def test_stale_files_are_found_and_mended(own_results: tuple[Path, Path, Path]) -> None:
    folder, readme, store = own_results
    readme.write_text("# Title\n<!-- table: vovnet -->\n<!-- end -->\n")
    write_record(store, run_of(V39, {"model_ms": measured(20.0, "ms")}))
    make_report(store, folder, set(TRACKED))

    def found() -> list[str]:
        return stale_report(folder.parent)[0]

    assert found() == [] and readme.read_text().startswith(
        "# Title\n<!-- table: vovnet -->\n### VoVNet detectors"
    )
    whole = {name: (folder / name).read_bytes() for name in ("tables/registry.md", "tables/vovnet.md")}
    for name, content in whole.items():
        (folder / name).write_bytes(content.replace(b"e", b"E", 1))
    (folder / "tables" / "old.md").write_text("")
    said = [f"results/{name} is stale" for name in whole]
    assert found() == [*said, "results/tables/old.md is not generated any more: delete it"]
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    (folder / "tables" / "old.md").unlink()
    for run in two_of(30.0, started="2031-01-01T00:00:00+00:00"):
        write_record(store, run)
    assert {"results/tables/vovnet.md is stale", "README.md has stale blocks"} <= set(found())
    make_report(store, folder, set(TRACKED))
    assert found() == []


def test_unchanged_files_are_left_alone(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/b.md": b"text"})
    before = (tmp_path / "a" / "b.md").stat().st_ino
    write_files(tmp_path, {"a/b.md": b"text"})
    assert (tmp_path / "a" / "b.md").stat().st_ino == before


def test_unknown_blocks_of_readme_answer_with_the_nearest(view: Overview, tmp_path: Path) -> None:
    from detection_zoo.zoo.errors import ManifestError

    (tmp_path / "README.md").write_text("<!-- table: vovnett -->\n<!-- end -->\n")
    with pytest.raises(ManifestError, match="did you mean 'vovnet"):
        document_text(view, tmp_path / "README.md")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--format", "pdf"], "unknown format pdf"), (["--store", "elsewhere", "--out", "x"], "does not exist")],
)
def test_wrong_usage_is_refused(arguments: list[str], said: str) -> None:
    done = run_forked("bench.py", "report", *arguments, imports=LIGHT)
    assert done.returncode == 2 and said in " ".join(done.stderr.split())


def test_broken_records_are_told_and_stop_nothing(tmp_path: Path) -> None:
    write_record(tmp_path, run_of(V39, {"box_ap": measured(1.0, "%")})).write_text("{")
    problems = generate(stored_overview(tmp_path), {"md", "html"}).problems
    assert len(problems) == 1 and "truncated" in problems[0]


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, detection_zoo.benchmarks.report.generate; print(*{'torch', 'pandas', 'matplotlib',"
        " 'jinja2', 'scipy'} & set(sys.modules))"
    )
    done = run_forked("-c", code, imports=LIGHT)
    assert done.returncode == 0 and not done.stdout.split(), done.stderr + done.stdout


def test_without_matplotlib_tables_and_the_page_are_made(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv[0] = 'bench.py'; import bench; bench.main()"
    )
    command = ["-c", code, "report", "--store", "results/runs", "--out", str(tmp_path)]
    done = run_forked(*command, imports=LIGHT)
    assert done.returncode == 0 and "figures left out: matplotlib is not installed" in done.stderr
    assert (tmp_path / "report.html").is_file() and (tmp_path / "tables" / "vovnet.md").is_file()
    assert not (tmp_path / "figures").exists()
    none = run_forked(*command, "--format", "svg", imports=LIGHT)
    assert none.returncode == 1 and "matplotlib" in none.stderr


def test_notes_of_tables_are_short_and_figures_survive_odd_names(tmp_path: Path) -> None:
    odd = MACHINE.model_copy(update={"device_name": "Abacus \x1b[31m <9> & \x00 \ufffe"})
    runs = two_of(20.0, environment=odd)
    made = generate(overview(load_manifests(), runs), {"svg", "md"}).files
    for name in (name for name in made if name.endswith(".svg")):
        ElementTree.fromstring(made[name].decode())
    notes = [line for line in made["tables/vovnet.md"].decode().splitlines() if line.startswith("- [")]
    own = [note for note in notes if "Abacus" in note or "records" in note or "weights published" in note]
    assert len(own) == 4 and all(len(note.split()) <= 22 and "\x1b" not in note for note in own), own
