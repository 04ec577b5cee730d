"""bench.py from outside: what it prints where, its exit codes, how fast it starts and what it does not
import."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from forked import LIGHT, run_forked
from records import measured, run_of

from detection_zoo.benchmarks.store import write_record
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.plain import without_secrets

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str, columns: str = "") -> subprocess.CompletedProcess[str]:
    return run_forked("bench.py", *arguments, imports=LIGHT, environment={"COLUMNS": columns})


def imported_by(*arguments: str) -> set[str]:
    """Top-level modules in sys.modules after a command has run where only bench.py's imports were there."""
    code = (
        "import sys, runpy, atexit; sys.argv = ['bench.py', *sys.argv[1:]]\natexit.register(lambda:"
        " print('MODULES', *{name.split('.')[0] for name in sys.modules},"
        " file=sys.stderr))\nrunpy.run_path('bench.py', run_name='__main__')"
    )
    done = run_forked("-c", code, *arguments, imports=LIGHT)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("MODULES")[2].split())


@pytest.mark.parametrize(
    "command",
    [("list",), ("show", "faster_rcnn_resnet50_fpn_2x.vovnet"), ("table", "vovnet"), ("--help",)],
    ids=lambda c: c[0],
)
def test_light_commands_import_neither_torch_nor_pandas(command: tuple[str, ...]) -> None:
    imported = imported_by(*command)
    assert "detection_zoo" in imported or command == ("--help",)
    assert not imported & {"torch", "torchvision", "pandas", "scipy", "cupy", "matplotlib"}


def test_a_cold_list_takes_less_than_six_tenths_of_a_second() -> None:
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = subprocess.run([sys.executable, "bench.py", "list"], cwd=ROOT, capture_output=True)
        assert started.returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # processor time: it waits for nothing else, and other processes of a busy machine do not count
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.6, seconds


def test_list_prints_rows_and_says_how_many() -> None:
    done = bench("list", "vovnet", "--json")
    rows = json.loads(done.stdout)
    assert {"faster_rcnn_vovnet39_fpn_2x.vovnet", "mask_rcnn_vovnet57_fpn_2x.vovnet"} <= {
        row["name"] for row in rows
    }
    assert done.stderr.strip() == f"{len(rows)} rows"
    lines = {line.split()[0]: line for line in bench("list", "vovnet").stdout.splitlines()}
    assert lines["faster_rcnn_vovnet39_fpn_2x.vovnet"].endswith("fetchable") and lines[
        "densenet161_imagenet.vovnet"
    ].endswith("numbers only")


def test_show_prints_everything_of_a_row() -> None:
    text = bench("show", "mask_rcnn_vovnet57_fpn_2x.vovnet").stdout
    assert (
        "WRONG LINK, never fetched" in text
        and "Mask AP: 37.5 %" in text
        and "image.channel_order = bgr" in text
    )
    entry = load_manifests().entry("mask_rcnn_vovnet57_fpn_2x.vovnet")
    assert json.loads(bench("show", entry.name, "--json").stdout) == entry.model_dump(
        mode="json", exclude_none=True
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ("show", "faster_rcnn_vovnet93_fpn_2x.vovnet"),
            2,
            "did you mean 'faster_rcnn_vovnet39_fpn_2x.vovnet'",
        ),
        (("table", "vovnt"), 2, "did you mean 'vovnet'"),
        (("list", "no_such_row"), 1, "0 rows"),
        (("shwo", "x"), 2, "Did you mean 'show'"),
        (("list", "--jsn"), 2, "--json"),
        (("show",), 2, "Missing argument"),
        (("table", "vovnet", "--store", "no/such/store"), 2, "does not exist"),
        (("pick", "--max-ms", "9", "--store", "README.md"), 2, "is a file"),
        (("run", "demo", "--store", "README.md"), 2, "is a file"),
        (
            ("table", "vovnet", "--out", "no/such/folder/table.md"),
            1,
            "error: no/such/folder/table.md: no such file or directory",
        ),
        (("evaluate", "tests", "--data", "shapes"), 1, "error: 'tests': is a directory"),
    ],
)
def test_mistakes_get_one_answer_and_no_traceback(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = bench(*arguments)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr


LONG = "mask_rcnn_vovnet57_fpn_2x.vovnet"


@pytest.mark.parametrize("columns", ["60", "100"])
@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("list", "--licence", "permissive", "--sort", "box_ap"),
        ("show", LONG),
        ("show", "keypoint_rcnn_resnet50_fpn_1x.detectron"),
        ("table", "detectron"),
        ("table", "registry", "--store", "results/runs"),
        ("table", "comparisons", "--store", "results/runs"),
        ("table", "kernels", "--store", "results/runs"),
        ("pick", "--max-ms", "90", "--min-ap", "38"),
        ("pick", "--all", "--metric", "person_ap"),
        ("list", "no_such_row"),
        ("show", "no_such_row"),
        ("list", "--source", "vovnt"),
    ],
    ids=" ".join,
)
def test_no_line_is_longer_than_the_terminal(command: tuple[str, ...], columns: str) -> None:
    done = bench(*command, columns=columns)
    assert [line for line in (done.stdout + done.stderr).splitlines() if len(line) > int(columns)] == []
    assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr


def test_wide_output_has_whole_lines() -> None:
    url = load_manifests().entry(LONG).weights[0].urls[0]
    assert url in bench("show", LONG, "--wide", columns="40").stdout
    assert url in bench("table", "vovnet", "--wide", columns="40").stdout
    assert len(bench("list", "--wide", columns="40").stdout.splitlines()) == len(load_manifests().entries) + 2


def test_list_filters_and_sorts() -> None:
    def names(*arguments: str) -> list[dict]:
        return json.loads(bench("list", *arguments, "--json").stdout)

    assert {row["name"].rpartition(".")[2] for row in names("--source", "hardnet")} == {"hardnet"}
    assert all("retinanet" in row["detector"] for row in names("--detector", "retinanet"))
    assert {row["weights"] for row in names("--weights", "numbers only")} == {"numbers only"}
    assert {row["weights"] for row in names("--weights", "available")} <= {"here", "fetchable"}
    free = names("--licence", "permissive")
    assert free and not [row for row in free if "not stated" in row["licence"]]
    best = [row["published"] for row in names("--source", "vovnet", "--sort", "box_ap")]
    values = [float(text.rpartition(" ")[2]) for text in best if text.startswith("Box AP")]
    assert values == sorted(values, reverse=True) and best[0] == "Box AP 42.0"
    assert "did you mean 'vovnet'" in bench("list", "--source", "vovnt").stderr
    assert "did you mean 'box_ap'" in bench("list", "--sort", "box_pa").stderr


def test_version_and_completion() -> None:
    assert bench("--version").stdout.startswith("detection-zoo")
    complete = {"_BENCH.PY_COMPLETE": "complete_bash", "COMP_WORDS": "bench.py show ssdl", "COMP_CWORD": "2"}
    done = run_forked("bench.py", imports=LIGHT, environment=complete)
    assert done.stdout.split() == [name for name in load_manifests().entries if name.startswith("ssdl")]


def test_secrets_and_escape_sequences_are_not_printed() -> None:
    code = (
        "from detection_zoo.benchmarks.commands.app import say, emit\n"
        "say('from https://anna:pw@host/x?a=1&token=abc123&X-Amz-Signature=ff0 \\x1b[31mred')\n"
        "emit({}, False, 'row \\x1b]0;title\\x07')"
    )
    done = run_forked("-c", code, imports=LIGHT)
    assert done.returncode == 0, done.stderr
    assert "https://***@host/x?a=1&token=***&X-Amz-Signature=***" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout
    assert without_secrets("https://user@host/") == "https://***@host/"
    assert without_secrets("see https://host/a?id=3 and me@host") == "see https://host/a?id=3 and me@host"


def test_table_prints_records_of_a_store(tmp_path: Path) -> None:
    row = "faster_rcnn_vovnet39_fpn_2x.vovnet"
    write_record(tmp_path, run_of(row, {"model_ms": measured(12.34, "ms")}))
    done = bench("table", "vovnet", "--store", str(tmp_path), "--out", str(tmp_path / "table.md"))
    printed = bench("table", "vovnet", "--store", str(tmp_path), "--format", "markdown").stdout
    assert done.returncode == 0 and (tmp_path / "table.md").read_text() == printed
    line = next(line for line in printed.splitlines() if "measured [" in line)
    assert line.split("|")[5].strip() == "12" and "V-39" in line
    records = json.loads(bench("table", "vovnet", "--store", str(tmp_path), "--json").stdout)
    assert [
        r["values"]["model_ms"]["value"] for r in records if r["row"] == row and "model_ms" in r["values"]
    ] == [12.34]


def test_table_reports_broken_records_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    done = bench("table", "vovnet", "--store", str(tmp_path))
    assert (
        done.returncode == 0
        and "x.json: truncated, or not a record" in done.stderr
        and "published" in done.stdout
    )
