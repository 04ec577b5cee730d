"""Wrong calls: one line, exit 2, at once, and nothing is written; Ctrl-C while Python still imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import LIGHT, run_forked

from detection_zoo.benchmarks.run.arguments import checked_rows
from detection_zoo.benchmarks.run.subject import Sources
from detection_zoo.zoo.errors import ManifestError

ROOT = Path(__file__).resolve().parents[2]
DEMO, CLASSIFIER = "mask_rcnn_vovnet27_tiny_fpn.demo", "vovnet57_imagenet.vovnet"
UNTRAINED = ("--weights", "random")
WRONG = {
    "row": (("run", "mask_rcnn_vovnet27_tiny_fpm.demo", *UNTRAINED), "did you mean 'mask_rcnn_vovnet27"),
    "row of compare": (("compare", DEMO, "no_such_row", *UNTRAINED), "no row is named 'no_such_row'"),
    "row of show": (("show", "no_such_row"), "no row is named 'no_such_row'"),
    "source": (("reproduce", "vovnt"), "did you mean 'vovnet'"),
    "one row to compare": (("compare", DEMO, *UNTRAINED), "two rows"),
    "no weights": (("run", "faster_rcnn_resnet101_fpn_voc07.detnet"), "--weights random"),
    "weights file": (("run", DEMO, "--weights", "no/such.pth"), "no/such.pth: no such file"),
    "data": (("run", DEMO, *UNTRAINED, "--data", "cocoo:x"), "unknown kind of dataset"),
    "weights of nobody": (("run", DEMO, "--weights", "~nobody-of-this-name/a.pth"), "no such file"),
    "data of nobody": (("run", DEMO, *UNTRAINED, "--data", "coco:~nobody-of-this-name/x"), "no such"),
    "row of fit": (("fit", "no_such_row", "--gb", "1"), "no row is named"),
    "missing file": (("run", DEMO, *UNTRAINED, "--data", "coco:no/such/folder"), "no such folder"),
    "wrong classes": (("run", DEMO, *UNTRAINED, "--data", "coco:{coco}"), "class 'teapot' is unknown"),
    "another task": (("run", CLASSIFIER, *UNTRAINED, "--data", "shapes"), "row of another task"),
    "metric": (("run", DEMO, *UNTRAINED, "--metrics", "app"), "did you mean 'ap'"),
    "protocol": (("run", DEMO, *UNTRAINED, "--protocol", "zo"), "did you mean 'zoo'"),
    "device": (("run", DEMO, *UNTRAINED, "--device", "gpu"), "'gpu' is not one of"),
    "no GPU": (("run", DEMO, *UNTRAINED, "--device", "cuda"), "sees no CUDA GPU"),
    "picture": (("detect", DEMO, "no/such.jpg", "--out", "drawn", *UNTRAINED), "no/such.jpg: no such file"),
    "no pictures": (("detect", CLASSIFIER, "{coco}", "--out", "drawn", *UNTRAINED), "no image or video"),
    "camera": (("detect", DEMO, "97", "--out", "drawn", *UNTRAINED), "camera 97: OpenCV cannot open it"),
    "row of explain": (("explain", "no_such_row"), "no row is named"),
    "row of train": (("train", "no_such_row", "--out", "runs"), "no row is named"),
    "record": (("compare-records", "no_such_row", DEMO), "no measured run of 'no_such_row'"),
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of one image whose only class no row has."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    (folder / "val2017").mkdir()
    image = {"id": 1, "file_name": "1.jpg", "width": 8, "height": 8}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "teapot"}]}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("call", WRONG, ids=lambda name: name.replace(" ", "_"))
def test_a_wrong_call_ends_at_once_with_one_line_and_no_record(call: str, tmp_path: Path, coco: Path) -> None:
    arguments, said = WRONG[call]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DETECTION_ZOO_HOME": str(tmp_path / "home")}
    words = (text.format(coco=coco) for text in arguments)
    done = run_forked(ROOT / "bench.py", *words, folder=tmp_path, environment=hidden, imports=LIGHT)
    assert done.returncode == 2 and said in done.stderr and not done.stdout, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.cpu_s < 1  # at most 0.3; importing torch alone takes 1.3
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_without_a_network_a_row_whose_weights_are_not_here_is_one_line(tmp_path: Path) -> None:
    """Every address is tried, again and again; the processor is idle meanwhile."""
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    command = (ROOT / "bench.py", "run", "mask_rcnn_vovnet39_fpn_2x.vovnet")
    environment = {**nowhere, "DETECTION_ZOO_HOME": str(tmp_path / "home")}
    done = run_forked(*command, folder=tmp_path, environment=environment, imports=LIGHT)
    lines = [line.strip() for line in done.stderr.splitlines()]
    said = [line for line in lines if line and not line.startswith("checking rows")]  # the clock
    assert done.returncode == 2 and not done.stdout and len(said) == 1, done.stderr
    assert "no address provided MRCN-V-39-FPN-2x.pth: https://" in said[0] and "connection refused" in said[0]
    assert done.cpu_s < 1  # 0.3
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


@pytest.mark.usefixtures("drawn_shapes")
def test_a_row_that_cannot_be_measured_is_left_out_of_a_pattern() -> None:
    said: list[str] = []
    with pytest.raises(ManifestError, match="has published numbers only"):
        checked_rows(["densenet161_imagenet.vovnet"], Sources("shapes", "random"), None, said.append)
    rows = checked_rows(
        [DEMO, "*_tiny_fpn.demo", "densenet161*"], Sources("shapes", "random"), 2, said.append
    )
    assert DEMO in [row.name for row in rows] and any("densenet161" in line for line in said)


@pytest.mark.parametrize(
    "module", ["detection_zoo.zoo.entry", "typer", "pydantic.main", "detection_zoo.benchmarks.commands.app"]
)
def test_ctrl_c_while_python_imports_is_one_line_and_130(module: str, tmp_path: Path) -> None:
    """At once, and without an exception: compiled code of pydantic would drop it or turn it into another."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "bench.py"), "run", DEMO, *UNTRAINED]
    home = {"DETECTION_ZOO_HOME": str(tmp_path / "home")}  # shapes are drawn before a run: takes seconds
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **home},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.split("|")[-1].strip() == module:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 130 and not out and len(said) == 1, err
    assert said[0].startswith("stopped by Ctrl-C"), err


def test_ctrl_c_is_not_lost_where_compiled_code_drops_exceptions() -> None:
    done = run_program(
        "import os, signal\nfrom detection_zoo.zoo.entry import leave_on_interrupt\n"
        "leave_on_interrupt()\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException: pass\nprint('went on')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by Ctrl-C\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COLUMNS", "9" * 5000),
        ("COLUMNS", "\u0663\u0663"),
        ("COLUMNS", "-1"),
        ("DETECTION_ZOO_HOME", "~nobody-of-this-name/x"),
        ("DETECTION_ZOO_HOME", "/dev/null"),
    ],
)
@pytest.mark.parametrize("program", ["bench.py", "download_weights.py"])
def test_odd_variables_of_the_environment_are_no_fault(program: str, name: str, value: str) -> None:
    done = run_forked(ROOT / program, "list", "vovnet", environment={name: value}, imports=LIGHT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def run_program(code: str, redirections: str = "") -> subprocess.CompletedProcess[str]:
    command = f'exec "$0" -c "$1" {redirections}'
    arguments = ["bash", "-c", command, sys.executable, code]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("program", ["bench", "download_weights"])
def test_ctrl_c_after_the_work_changes_no_exit_code(program: str, name: str) -> None:
    code = (
        "import atexit, os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"atexit.register(lambda: os.kill(os.getpid(), signal.{name}))\n"
        f"sys.argv = ['{program}.py', 'list', '--json']; import {program}; {program}.main()"
    )
    done = run_program(code)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1, done.stderr  # the summary
    assert done.stdout.startswith("[")


def test_a_command_that_ctrl_c_ended_takes_nothing_down_object_by_object() -> None:
    code = (
        "import atexit; from detection_zoo.zoo.entry import run_command\n"
        "class Large:\n    def __del__(self):\n        print('taken down')\n"
        "large = Large(); atexit.register(print, 'cleaned up')\n"
        "def app():\n    print('said')\n    raise {}\nrun_command(app)"
    )
    done = run_program(code.format("SystemExit(130)"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "said\ncleaned up\n", "")
    done = run_program(code.format("KeyboardInterrupt"))
    assert (done.returncode, done.stdout) == (130, "said\ncleaned up\n")
    done = run_program(code.format("SystemExit(1)"))
    assert (done.returncode, done.stdout) == (1, "said\ncleaned up\ntaken down\n")


@pytest.mark.parametrize("place", ["weakref", "del", "numba", "other error", "other code", "half made"])
def test_a_ctrl_c_that_python_drops_ends_the_command_all_the_same(place: str) -> None:
    """Python raises no exception from a weakref callback or `__del__`; it prints it and goes on. Functions
    compiled by numba turn one of a function that they call into SystemError, those of matplotlib into
    ValueError, for which a command may have an exit code. An object that was not finished when Ctrl-C
    came may fail when it is deleted."""
    code = (
        "import os, signal, time, weakref\n"
        "from detection_zoo.zoo.entry import leaving_on_interrupt, run_command\n"
        "def ctrl_c(*_):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0)\n"
        "class Object:\n    pass\n"
        "def work():\n    one = Object()\n    {}\n    del one\n    time.sleep(30)\n"
        "def app():\n    with leaving_on_interrupt(False):\n        work()\n"
        "run_command(app)"
    )
    way = {"weakref": "reference = weakref.ref(one, ctrl_c)", "del": "Object.__del__ = ctrl_c"}
    way["numba"] = (
        "import pickle; from numba.core.serialize import _numba_unpickle\n"
        "    Object.__reduce__ = lambda self: (ctrl_c, ())\n"
        "    try:\n        _numba_unpickle(0, pickle.dumps(one), b'')\n"
        "    except BaseException as error:\n        raise SystemError from error"
    )
    way["other error"] = (
        "try:\n        ctrl_c()\n    except KeyboardInterrupt:\n        raise ValueError from None"
    )
    way["other code"] = way["other error"].replace("ValueError", "SystemExit(2)")
    way["half made"] = (
        "Object.__del__ = lambda self: self.unknown\n"
        "    try:\n        ctrl_c()\n    finally:\n        one = None"
    )
    began = time.monotonic()
    done = run_program(code.format(way[place]))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by Ctrl-C\n")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_at_any_line_around_the_work_is_no_traceback(name: str) -> None:
    code = (
        "import os, signal, sys; from detection_zoo.zoo import entry\n"
        "def app():\n    with entry.leaving_on_interrupt(False):\n        pass\n    sys.exit(0)\n"
        "def local(frame, *_):\n    if frame.f_lineno == line:\n"
        "        sys.settrace(None)\n        os.kill(os.getpid(), NUMBER)\n    return local\n"
        "entry.begin_command(); code = entry.run_command.__code__\n"
        "for line in sorted({line for *_, line in code.co_lines() if line})[1:]:\n"
        "    if not os.fork():\n        print(line, flush=True)\n"
        "        sys.settrace(lambda frame, *_: local if frame.f_code is code else None)\n"
        "        entry.run_command(app)\n"
        "    assert os.waitstatus_to_exitcode(os.wait()[1]) in (0, 130)"
    )
    done = run_program(code.replace("NUMBER", f"signal.{name}"))
    assert done.returncode == 0 and len(done.stdout.split()) > 5, done.stderr
    assert 0 < len(done.stderr.splitlines()) == done.stderr.count("stopped by Ctrl-C\n")


def test_a_ctrl_c_that_matplotlib_turns_into_another_error_ends_a_report(tmp_path: Path) -> None:
    """Its compiled code reads a transform by `__array__`, and makes ValueError of what that raises."""
    code = (
        "import os, signal, sys, time; from matplotlib.transforms import AffineBase\n"
        "def ctrl_c(*_):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0)\n"
        "AffineBase.__array__ = ctrl_c\n"
        f"sys.argv = ['bench.py', 'report', '--format', 'svg', '--out', {str(tmp_path)!r}]\n"
        "import bench; from detection_zoo.zoo.entry import begin_command\n"
        "begin_command(); bench.main()"
    )
    done = run_forked("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by Ctrl-C\n")
    assert not [*tmp_path.rglob("*")]


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("program", ["bench", "download_weights"])
def test_closed_streams_are_no_fault(program: str, streams: str) -> None:
    """And no file that is opened later gets their number."""
    code = (
        f"import sys, {program}; from detection_zoo.zoo.entry import open_closed_streams\n"
        "open_closed_streams(); file = open('/dev/null'); assert file.fileno() > 2\n"
        f"sys.argv = ['{program}.py', 'list']; {program}.main()"
    )
    done = run_program(code, streams)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == (streams == ">&-"), done.stderr
    assert bool(done.stdout) == (streams == "2>&-")
