"""Stored comparisons and timings of operators in the report: tables, CSV, README's blocks and the page, from
the records alone."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from browser import Browser, Page
from made_up_records import made_up_timings
from records import MACHINE, PHOTOS, RANDOM, TRAINED, measured, run_of

from detection_zoo.benchmarks.compare.record import Comparison, Pair, Side, stored_comparisons
from detection_zoo.benchmarks.report.comparisons import comparison_data, comparison_table
from detection_zoo.benchmarks.report.generate import (
    document_text,
    generate,
    make_report,
    stale_report,
    stored_overview,
)
from detection_zoo.benchmarks.report.html_page import html_page
from detection_zoo.benchmarks.report.kernel_cases import kernel_table, stored_timings
from detection_zoo.benchmarks.report.tables import stored_tables, tables_of
from detection_zoo.benchmarks.report.wide import Overview, overview
from detection_zoo.benchmarks.spec import BenchmarkSpec, Telemetry, metric
from detection_zoo.benchmarks.store import write_record
from detection_zoo.benchmarks.tabular import render
from detection_zoo.zoo.manifest_files import load_manifests

V39, V57, R50 = (f"faster_rcnn_{backbone}_fpn_2x.vovnet" for backbone in ("vovnet39", "vovnet57", "resnet50"))


def pair(
    name: str,
    other: str,
    values: tuple[float, float],
    verdict: str,
    interval: tuple[float, float] | None = None,
    **more: object,
) -> Pair:
    kind = "difference" if metric(name).unit == "%" else "ratio"
    value = values[1] - values[0] if kind == "difference" else values[1] / values[0] if values[0] else None
    return Pair(
        **{
            "metric": name,
            "other": other,
            "reference": V39,
            "values": values,
            "unit": metric(name).unit,
            "kind": kind,
            "value": value,
            "interval": interval,
            "smallest": 0.5 if kind == "difference" else 0.015,
            "verdict": verdict,
            **more,
        }
    )


def made_up(started: str = "2030-01-02T03:04:05+00:00", **more: object) -> Comparison:
    """A comparison that nobody made: one model slower and better, one that failed."""
    side = {"status": "finished", "weights": TRAINED, "data": PHOTOS, "environment": MACHINE}
    pairs = [
        pair("forward_cpu_ms", V57, (90.0, 99.0), "SLOWER", (1.08, 1.12)),
        pair("model_ms", V57, (101.0, 111.5), "UNDECIDED", (0.9, 1.3)),
        pair(
            "model_cpu_ms",
            V57,
            (100.0, 110.0),
            "SLOWER",
            (1.09, 1.11),
            decides=True,
            covers="forward + post-processing, processor time",
        ),
        pair("inference_memory_resident_mib", V57, (500.0, 400.0), "LOWER", (0.79, 0.81)),
        pair("box_ap", V57, (39.8, 40.8), "HIGHER", (0.6, 1.4)),
        pair(
            "postprocess_cpu_ms",
            V57,
            (0.0, 0.1),
            "UNDECIDED",
            note="too short for the clock: some samples are zero",
        ),
    ]
    return Comparison(
        **{
            "id": f"{started[:4]}-comparison",
            "started": started,
            "duration_s": 60.0,
            "status": "failed",
            "ended": "the deciding verdicts were reached after 6 blocks",
            "spec": BenchmarkSpec(),
            "threads": 1,
            "clock": "processor",
            "protocol": "6 blocks of 12 rounds",
            "seed": 0,
            "image_list": "e" * 64,
            "pairs": pairs,
            "sides": [
                Side(label=V39, row=V39, **side),
                Side(label=V57, row=V57, **side),
                Side(
                    label=R50,
                    row=R50,
                    **{**side, "status": "failed", "weights": RANDOM},
                    reason="out of memory: made up by a test",
                ),
            ],
            "telemetry": Telemetry(verdict="shared", note="2 processes of others"),
            "footnotes": [f"untrained weights: {R50}"],
            **more,
        }
    )


@pytest.fixture(scope="module")
def view() -> Overview:
    view = overview(load_manifests(), [])
    view.comparisons, view.kernels = [made_up()], [made_up_timings()]
    return view


def test_a_model_a_line_with_verdict_ratio_interval_and_values_of_both() -> None:
    table = comparison_table(made_up())
    assert table.title == f"{V39} and {V57}, {R50}"
    assert table.headers == [
        "Model",
        "Weights",
        "Model time, processor (ms)",
        "Box AP (%)",
        "Forward, processor (ms)",
        "Inference mem, resident (MiB)",
        "Post-processing, processor (ms)",
    ], "what decided, then accuracy; times by the clock that decides alone"
    reference, slower, failed = (dict(zip(table.headers, row, strict=True)) for row in table.rows)
    assert (
        reference["Model"] == V39
        and reference["Weights"] == "published aaaaaaaaaaaa"
        and reference["Model time, processor (ms)"] == "100.0"
    )
    assert slower["Model time, processor (ms)"] == "SLOWER 1.100 x (1.090 to 1.110), 110.0"
    assert slower["Box AP (%)"] == "HIGHER +1.00 points (+0.60 to +1.40), 40.8"
    assert (
        slower["Post-processing, processor (ms)"].startswith("UNDECIDED[") and failed["Weights"] == "random"
    )
    assert failed["Box AP (%)"].startswith("-[") and "the model failed" in " ".join(table.notes)


def test_protocol_machine_date_and_footnotes_stand_below() -> None:
    text = render([comparison_table(made_up())], "markdown")
    for said in (
        "Abacus 9",
        "1 thread per operator",
        "processor time decides",
        "2030-01-02T03:04:05+00:00",
        "torch 2.11.0",
        "commit 0123456789",
        "float32, batch 1",
        "coco:val2017, 100 of 5000 images timed",
        "record 2030-comparison",
        "6 blocks of 12 rounds",
        "smallest difference of interest 1.5%",
        "the machine was shared: 2 processes of others",
        f"{R50} failed: out of memory",
        f"untrained weights: {R50}",
        "too short for the clock",
    ):
        assert said.lower() in text.lower(), said
    assert "published:" not in text, "numbers of sources never stand in a comparison"


def test_csv_and_json_hold_every_pair_with_every_digit(view: Overview) -> None:
    files = generate(view, {"csv", "json", "md", "latex"}).files
    rows, records = (
        list(csv.DictReader(io.StringIO(files["tables/comparisons.csv"].decode()))),
        json.loads(files["tables/comparisons.json"]),
    )
    assert (
        len(rows) == len(records) == len(made_up().pairs)
        and {"tables/comparisons.tex", "tables/kernels.tex"} <= files.keys()
    )
    for row, record, one in zip(rows, records, made_up().pairs, strict=True):
        assert (row["metric"], row["model"], row["verdict"], row["decides"]) == (
            one.metric,
            one.other,
            one.verdict,
            str(one.decides),
        )
        assert (
            (float(row["reference_value"]), float(row["value"]))
            == one.values
            == (record["reference_value"], record["value"])
        )
        assert (record["low"], record["high"]) == (one.interval or (None, None)) and record[
            "of_reference"
        ] == one.value
    assert {row["clock"] for row in rows} == {"processor"} and {row["device"] for row in rows} == {"Abacus 9"}


def test_tones_are_in_the_models_favour_or_not() -> None:
    data = comparison_data(made_up())
    tones = {head: cell["tone"] for head, cell in zip(data["heads"], data["rows"][1]["cells"], strict=True)}
    assert tones == {
        "Model time, processor (ms)": "bad",
        "Forward, processor (ms)": "bad",
        "Box AP (%)": "good",
        "Post-processing, processor (ms)": "open",
        "Inference mem, resident (MiB)": "good",
    }


def test_the_newest_of_a_setting_is_shown_and_broken_files_are_told(tmp_path: Path) -> None:
    store, tmp_path = tmp_path / "runs", tmp_path / "comparisons"
    for started in ("2031-01-01T00:00:00+00:00", "2030-01-01T00:00:00+00:00"):
        write_record(tmp_path, made_up(started))
    other = made_up("2029-01-01T00:00:00+00:00", threads=2)
    write_record(tmp_path, other)
    strange = made_up(
        "2028-01-01T00:00:00+00:00", pairs=[made_up().pairs[0].model_copy(update={"metric": "quickness"})]
    )
    write_record(tmp_path, strange)
    (tmp_path / "cut.json").write_text("{")
    found, problems = stored_comparisons(store)
    assert {one.started[:4] for one in found} == {"2031", "2029"}
    assert (
        len(problems) == 2
        and any("cut.json" in text for text in problems)
        and any("quickness" in text for text in problems)
    )
    assert stored_comparisons(tmp_path / "runs") == ([], [])


def test_bench_table_prints_what_the_file_holds(tmp_path: Path, view: Overview) -> None:
    write_record(tmp_path / "comparisons", made_up())
    tables, problems = tables_of("comparisons", tmp_path / "runs")
    assert (
        problems == []
        and render(tables, "markdown").encode() == generate(view, {"md"}).files["tables/comparisons.md"]
    )
    assert tables_of("kernels", tmp_path / "runs") == ([], [])


def test_operators_have_a_table_with_ratio_interval_and_agreement() -> None:
    timings = made_up_timings()
    table = kernel_table(timings)
    first, case = dict(zip(table.headers, table.rows[0], strict=True)), timings.cases[0]
    assert first["Work"] == case.name and first["Peer"].startswith("484 us (") and first["Agrees"] == "yes"
    assert (
        first["Times as fast"]
        == f"{484 / case.ours.value:.2f}x ({case.ratio_interval[0]:.2f}-{case.ratio_interval[1]:.2f})"
    )
    assert table.rows[-1][2:5] == ["-", "-", "NO"] and "made up" in table.title
    assert any("ended 2030-01-01" in text and "Abacus 9" in text for text in table.notes)
    on_cpu = kernel_table(timings.model_copy(update={"backend": "cpu"}))
    assert any("on a CPU" in text for text in on_cpu.notes) and not any(
        "on a CPU" in text for text in table.notes
    )


def test_timings_that_bench_kernels_stores_are_read_and_keep_every_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from detection_zoo.benchmarks.measure import kernel_speed

    answer = torch.tensor([1])
    case = kernel_speed.Case("nothing much", lambda: answer, lambda: answer, lambda: answer, 0.0)
    monkeypatch.setattr(kernel_speed, "nms_cases", lambda device, on_gpu: [case])
    for others in ("soft_nms_cases", "pooling_cases"):
        monkeypatch.setattr(kernel_speed, others, lambda *given: [])
    monkeypatch.setattr(kernel_speed, "TIMED_US", 0.0)  # seven calls, however short they are
    assert kernel_speed.report("cpu", store=tmp_path / "kernels", probe_s=0) == 0
    (found,), problems = stored_timings(tmp_path / "runs")
    (one,) = found.cases
    assert problems == [] and found.backend == "cpu" and found.peer.startswith("torchvision ")
    assert (one.name, one.correct, one.note) == (case.name, True, "backend cpu")
    for time in (one.ours, one.peer):
        assert (
            time.n == len(time.samples) == 7
            and time.value == sorted(time.samples)[3]
            and time.interval == (min(time.samples), max(time.samples))
        )
    assert one.ours.covers == ("processor" if torch.get_num_threads() == 1 else "wall") + " time of one call"


def test_stale_tables_of_comparisons_and_readme_blocks_are_found_and_mended(
    own_results: tuple[Path, Path, Path],
) -> None:
    folder, readme, store = own_results
    readme.write_text("<!-- table: comparisons -->\n<!-- end -->\n<!-- table: kernels -->\n<!-- end -->\n")
    write_record(store, run_of(V39, {"model_ms": measured(20.0, "ms")}))
    assert document_text(stored_overview(store), readme) == readme.read_text(), (
        "nothing is stored, nothing is shown"
    )
    write_record(folder / "comparisons", made_up())
    made = {"tables/comparisons.md"}
    assert {f"results/{name} is missing" for name in made} | {"README.md has stale blocks"} <= set(
        stale_report(folder.parent)[0]
    )
    make_report(store, folder, {"md", "csv", "html"})
    assert stale_report(folder.parent)[0] == []
    assert (
        f"### {V39} and {V57}, {R50}" in readme.read_text()
        and (folder / "tables" / "comparisons.md").read_text() in readme.read_text()
    )
    write_record(folder / "comparisons", made_up("2031-01-01T00:00:00+00:00"))
    assert {f"results/{name} is stale" for name in made} | {"README.md has stale blocks"} == set(
        stale_report(folder.parent)[0]
    )


def test_names_of_stored_tables_are_no_sources_or_layouts() -> None:
    from detection_zoo.benchmarks.report.layouts import load_layouts

    taken = {*load_layouts(), *(entry.source for entry in load_manifests().entries.values())}
    assert not stored_tables(overview(load_manifests(), [])).keys() & taken


def test_names_that_may_break_are_read_whole(chromium: Browser, tmp_path: Path, view: Overview) -> None:
    (tmp_path / "page.html").write_text(html_page(view), encoding="utf-8")
    page = Page(chromium).open((tmp_path / "page.html").as_uri())
    assert page.run("document.querySelector('#comparisons h3').textContent") == f"{V39} and {V57}, {R50}"
    page.call("Page.close")


@pytest.mark.parametrize(
    "how", [{}, {"dark": True}, {"phone": True, "width": 390, "height": 800}], ids=["light", "dark", "phone"]
)
def test_the_page_shows_verdicts_and_what_to_know(
    chromium: Browser, tmp_path: Path, view: Overview, how: dict[str, object]
) -> None:
    (tmp_path / "page.html").write_text(html_page(view), encoding="utf-8")
    page = Page(chromium, **how).open((tmp_path / "page.html").as_uri())
    rows = page.run(
        "[...document.querySelectorAll('#comparisons tbody tr')].map(row => [...row.children].map(cell =>"
        " cell.innerText))"
    )
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    assert len(rows) == 3 and "reference" in rows[0][0] and V57 in rows[1][0]
    assert "SLOWER 110.0 1.100 x (1.090 to 1.110)" in rows[1][1] and rows[2][1].endswith("–")
    head = page.run("getComputedStyle(document.querySelector('#comparisons tbody td'), '::before').content")
    assert ("Model time" in head) == bool(how.get("phone")), "on a phone a cell carries its column's title"
    assert "[object" not in page.run("document.body.innerText"), "what is text is written as text"
    assert "Abacus 9" in page.run("document.getElementById('kernels').innerText")
    page.click("#comparisons summary")
    assert "out of memory: made up by a test" in page.run(
        "document.querySelector('#comparisons details').innerText"
    )
    assert page.run("document.documentElement.scrollWidth <= innerWidth") and page.complaints() == []
    page.call("Page.close")


def test_the_page_has_no_empty_chapter(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html_page(overview(load_manifests(), [])), encoding="utf-8")
    page = Page(chromium).open((tmp_path / "page.html").as_uri())
    assert page.run("document.getElementById('comparisons').hidden") is True
    page.call("Page.close")
