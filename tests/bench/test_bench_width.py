"""A terminal of 100 columns: no line of any command is longer, on stdout and on stderr."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import ROOT, run_forked
from in_process import call
from records import make_small_shapes

OWN_PROCESSES = ("run", "compare", "fit")  # commands that start others; the rest is called in this process
ROW, OTHER = "faster_rcnn_resnet14_slim_fpn.demo", "faster_rcnn_vovnet27_tiny_fpn.demo"
CPU = ("--device", "cpu")
FEW = ("--images", "3", "--timed-images", "3", *CPU)
RUN = ("--data", "shapes", "--metrics", "inference,ap,memory", "--processes", "1")
COMPARE = ("compare", ROW, f"{ROW}@random", "--data", "shapes", "--ap", "--blocks", "2", "--rounds", "2")
SMALL = ("--batch", "2", "--set", "image.size=64", "--set", "image.max_size=96", "--threads", "1")
COMMANDS = {
    "list": ("list",),
    "list of some": ("list", "vovnet", "--weights", "available", "--sort", "box_ap"),
    "show": ("show", ROW),
    "show a source's row": ("show", "mask_rcnn_vovnet39_fpn_2x.vovnet"),
    "table": ("table",),
    "table of measured rows": ("table", "demo", "--measured"),
    "table of a source": ("table", "detectron"),
    "pick": ("pick", "--min-ap", "30"),
    "pick by time": ("pick", "--max-ms", "10000", "--all"),
    "compare": (*COMPARE, *FEW),
    "compare-records": ("compare-records", ROW, OTHER),
    "reproduce": ("reproduce", "vovnet", "--dry-run"),
    "explain": ("explain", ROW, "--images", "2", "--suspects", "channel order", *CPU),
    "fit": ("fit", ROW, "--gb", "2", "--only", "batch", "--max-batch", "1", *CPU),
    "detect": ("detect", ROW, "{picture}", "--out", "drawn", *CPU),
    "train": ("train", ROW, "--out", "trained", "--images", "4", "--iterations", "1", *SMALL, *CPU),
    "train, dry run": ("train", ROW, "--out", "dry", "--images", "4", "--dry-run", *SMALL, *CPU),
    "a wrong call": ("run", "faster_rcnn_resnet14_slim_fpm.demo", "--data", "coco:nowhere"),
    "help": ("run", "--help"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_shapes(tmp_path_factory.mktemp("home"))


def lines_of(folder: Path, home: Path, arguments: tuple[str, ...]) -> list[str]:
    """Every line that a command prints in a terminal of 100 columns."""
    environment = {"COLUMNS": "100", "DETECTION_ZOO_HOME": str(home)}
    words = [text.format(picture=next(home.rglob("val/*.jpg"))) for text in arguments]
    if words[0] in OWN_PROCESSES:
        done = run_forked(ROOT / "bench.py", *words, folder=folder, environment=environment, forks=True)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for name, value in environment.items():
                patch.setenv(name, value)
            code, out, err = call(*words)
    assert "Traceback" not in err and code in (0, 1, 2), err
    assert (out + err).strip()
    return (out + err).splitlines()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, home: Path) -> tuple[Path, list[str]]:
    """A folder with records of two rows, and what `run` printed."""
    folder = tmp_path_factory.mktemp("work")
    options = (*RUN, *FEW, "--budget-s", "0.2", "--warm-up-s", "0.1")
    lines_of(folder, home, ("run", OTHER, *options, "--in-process"))
    printed = lines_of(folder, home, ("run", ROW, OTHER, *options))
    assert "1 measured, 0 failed, 1 already measured" in printed
    return folder, printed


def test_run_fits(measured: tuple[Path, list[str]]) -> None:
    assert [line for line in measured[1] if len(line) > 100] == []


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name.replace(" ", "_"))
def test_no_line_is_longer(measured: tuple[Path, list[str]], home: Path, name: str) -> None:
    printed = lines_of(measured[0], home, COMMANDS[name])
    assert [line for line in printed if len(line) > 100] == []
