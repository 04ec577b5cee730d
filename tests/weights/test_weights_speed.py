"""Throughput beside curl and sha256sum on the same file in one run, hashing on the fly: python -m pytest
tests/test_weights_speed.py -s"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE_MIB = int(os.environ.get("DETECTION_ZOO_TEST_SPEED_MIB", "100"))
ROUNDS = int(os.environ.get("DETECTION_ZOO_TEST_SPEED_ROUNDS", "2"))
FETCH = """
import sys, time
from pathlib import Path
import filelock, requests
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.weights.fetch.cache import WeightCache
from detection_zoo.zoo.weights.fetch.one import fetch_weights
spec = WeightSpec(urls=[sys.argv[1]], sha256=sys.argv[2], format="torch", holds="imagenet")
start_s = time.perf_counter()
fetch_weights(spec, "row", WeightCache(Path(sys.argv[3])))
print(time.perf_counter() - start_s)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Python's own file server, in a process of its own."""
    (tmp_path / "served").mkdir()
    command = [
        sys.executable,
        "-u",
        "-m",
        "http.server",
        "0",
        "--bind",
        "127.0.0.1",
        "--directory",
        str(tmp_path / "served"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    port = re.search(r"port (\d+)", process.stdout.readline())[1]
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("sha256sum")), reason="curl and sha256sum are the yardstick"
)
def test_throughput(server: str, tmp_path: Path) -> None:
    content = hashlib.shake_256(b"zoo").digest(1 << 20) * FILE_MIB
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "served" / "weights.bin").write_bytes(content)
    ours_s, theirs_s = [], []
    for number in range(ROUNDS):
        home, target = tmp_path / f"home{number}", tmp_path / "curl.bin"
        fetched = subprocess.run(
            [sys.executable, "-c", FETCH, f"{server}/weights.bin", sha256, str(home)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        ours_s.append(float(fetched.stdout))
        shutil.rmtree(home)
        start_s = time.perf_counter()
        subprocess.run(["curl", "--silent", "--fail", "-o", str(target), f"{server}/weights.bin"], check=True)
        subprocess.run(["sha256sum", str(target)], check=True, stdout=subprocess.DEVNULL)
        theirs_s.append(time.perf_counter() - start_s)
        target.unlink()
    ratio = min(theirs_s) / min(ours_s)
    print(
        f"\n{FILE_MIB} MiB: ours {FILE_MIB / min(ours_s):.0f} MiB/s, curl + sha256sum"
        f" {FILE_MIB / min(theirs_s):.0f} MiB/s, ratio {ratio:.2f}"
    )
    assert ratio >= 0.7
