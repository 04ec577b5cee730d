"""A server that answers as none should, to `get` of three files of which one is its: the other two arrive and
are pinned, exit 1, no traceback, within 40 s; Ctrl-C ends any within 2 s.

The full run: DETECTION_ZOO_TEST_MODES=all python -m pytest tests/weights/test_weights_modes.py -s
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from forked import LIGHT, Forked, run_forked
from hostile_modes import ARRIVES, MODES, SHA256, hostile_modes, manifest_folder

SLOW_KINDS = ("slow", "endless_body", "endless_trailers", "continue", "retry_after_8", "silence")
# these need their 8 to 25 seconds, and run where DETECTION_ZOO_TEST_MODES=all
SLOW = {name for name in MODES if name.startswith(SLOW_KINDS)}
ALL = os.environ.get("DETECTION_ZOO_TEST_MODES") == "all"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with hostile_modes() as port:
        yield port


def manifests(folder: Path, port: int, modes: list[str], extra: str = "") -> Path:
    """A folder with one row for each mode, each with a file of its own."""
    urls = [f"http://localhost:{port}/{mode}/file{i}.pkl" for i, mode in enumerate(modes)]
    return manifest_folder(folder, urls, extra)


def start(folder: Path, home: Path, *arguments: str) -> Forked:
    command = ["download_weights.py", *arguments, "--home", str(home), "--manifests", str(folder)]
    return Forked(*command, environment={"no_proxy": "localhost"}, imports=LIGHT)


def check(mode: str, port: int, folder: Path) -> str:
    """One mode; returns a line of figures."""
    began = time.monotonic()
    process = start(
        manifests(folder, port, ["good", mode, "good"]), folder / "home", "get", "--all", "--json"
    )
    out, err = process.communicate(timeout=100)
    passed_s = time.monotonic() - began
    by_row = {o["row"]: o for o in json.loads(out)}
    assert "Traceback" not in out + err and "unexpected" not in err, (mode, err[-2000:])
    assert passed_s < 40, (mode, passed_s, err[-500:])
    assert {by_row[row]["status"] for row in ("r0.demo", "r2.demo")} == {"fetched"}, (mode, out)
    status = by_row["r1.demo"]["status"]
    assert (status, process.returncode) in (
        (("failed", 1), ("fetched", 0)) if mode in (*ARRIVES, "length_twice") else [("failed", 1)]
    )
    pinned = [json.loads(line) for line in (folder / "home" / "pins.jsonl").read_text().splitlines()]
    assert {p["row"]: p["sha256"] for p in pinned if p["row"] != "r1.demo"} == {
        "r0.demo": SHA256,
        "r2.demo": SHA256,
    }
    assert len(pinned) == 2 + (status == "fetched")
    for path in (folder / "home" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert not set("\x1b\x07\r") & set(out + err)
    assert process.peak_mib < 300
    return f"{mode}: {status} in {passed_s:.1f} s, {process.peak_mib:.0f} MiB"


QUICK = sorted(set(MODES) - SLOW - {"good"})[:: 1 if ALL else 6]


@pytest.fixture(scope="module")
def checks(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """What became of each mode; four go on side by side, since they mostly wait."""
    folder = tmp_path_factory.mktemp("modes")
    with ThreadPoolExecutor(4) as pool:
        yield {mode: pool.submit(check, mode, port, folder / mode) for mode in QUICK}


@pytest.mark.parametrize("mode", QUICK)
def test_one_hostile_file_of_three(mode: str, checks: dict[str, Future[str]]) -> None:
    print(checks[mode].result())


@pytest.mark.skipif(not ALL, reason="takes minutes; DETECTION_ZOO_TEST_MODES=all")
def test_slow_modes_side_by_side(port: int, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        for line in pool.map(lambda mode: check(mode, port, tmp_path / mode), sorted(SLOW)):
            print(line)


@pytest.mark.parametrize(
    "mode", sorted(set(MODES) - {"good"}) if ALL else ["slow_header", "slow_body", "reset"]
)
def test_one_interrupt_ends_it(mode: str, port: int, tmp_path: Path) -> None:
    process = start(manifests(tmp_path / "m", port, [mode, mode]), tmp_path / "home", "get", "--all")
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    deadline = time.monotonic() + 20
    while "from localhost" not in "".join(lines) and time.monotonic() < deadline:
        reader.join(0.05)
    reader.join(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=10)
    assert time.monotonic() - began < 2
    reader.join(2)
    assert "Traceback" not in "".join(lines)
    if mode in SLOW:
        assert code == 130 and "2 stopped" in lines[-1]
    else:  # it may have ended before
        assert code in (0, 1, 130)


def test_audit_goes_on_after_a_hostile_link(port: int, tmp_path: Path) -> None:
    modes = ["length_superscript", "location_half_ipv6", "retry_superscript", "short_404", "good"]
    folder = manifests(tmp_path / "m", port, modes)
    process = start(folder, tmp_path / "home", "list")
    process.communicate()
    command = ("download_weights.py", "audit", "--results", str(tmp_path / "audits"))
    done = run_forked(*command, "--manifests", str(folder), imports=LIGHT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    record = json.loads(next((tmp_path / "audits").glob("*.json")).read_text())
    assert [link["status"] for link in record["links"]] == ["ok", "error", "error", "dead", "ok"]


def test_a_published_md5_that_never_comes_stops_nothing(port: int, tmp_path: Path) -> None:
    extra = f'md5_url = "http://localhost:{port}/hangs_up/x.md5"'
    process = start(manifests(tmp_path / "m", port, ["good"], extra), tmp_path / "home", "get", "--all")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "published MD5 could not be fetched" in err and "Traceback" not in err
