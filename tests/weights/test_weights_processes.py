"""Several processes and sudden deaths: one download for ten askers, and a killed one is finished by the
next."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from hostile_server import BODY, HostileServer, hostile_server

KILLS = int(os.environ.get("DETECTION_ZOO_TEST_KILLS", "50"))
TESTS = Path(__file__).resolve().parents[1]


class Worker:
    """A process of fetch_worker.py."""

    def __init__(self) -> None:
        imports = ("requests", "filelock", "detection_zoo.zoo.weights.fetch.one")
        self.process = Forked(TESTS / "fetch_worker.py", imports=imports, stdin=subprocess.PIPE, stderr=None)

    def send(self, **order: Any) -> None:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        return json.loads(self.process.stdout.readline())

    def run(self, **order: Any) -> dict[str, Any]:
        self.send(**order)
        return self.receive()

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with hostile_server() as state:
        yield state


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


def test_ten_processes_one_download(server: HostileServer, tmp_path: Path) -> None:
    server.files["large.pth"] = large = (BODY * 547)[: 200 << 20]
    sha256 = hashlib.sha256(large).hexdigest()
    workers = [Worker() for _ in range(10)]
    try:
        for worker in workers:
            worker.send(url=server.url("files", "large.pth"), sha256=sha256, home=str(tmp_path))
        answers = [worker.receive() for worker in workers]
    finally:
        for worker in workers:
            worker.stop()
        del server.files["large.pth"]
    assert [answer.get("sha256") for answer in answers] == [sha256] * 10, answers
    assert sum(answer["downloaded"] for answer in answers) == 1
    assert len([seen for seen in server.seen if seen.path.endswith("large.pth")]) == 1
    assert hashlib.sha256((tmp_path / "sha256" / sha256).read_bytes()).hexdigest() == sha256
    assert max(answer["peak_kib"] for answer in answers) < 100 * 1024


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "unpinned"])
def test_killed_at_random_points(pinned: bool, server: HostileServer, worker: Worker, tmp_path: Path) -> None:
    server.files["medium.pth"] = medium = BODY * 12
    sha256 = hashlib.sha256(medium).hexdigest()
    server.seen.clear()
    order = {"url": server.url("files", "medium.pth"), "home": str(tmp_path)} | (
        {"sha256": sha256} if pinned else {}
    )
    events = worker.run(**order, die_at_event=-1)["events"]
    stored, part_states = tmp_path / "sha256" / sha256, set()
    choice = random.Random(KILLS)
    killed = 0
    while killed < KILLS // 2:
        stored.unlink()
        where = (
            {"die_at_byte": choice.randrange(1, len(medium))}
            if killed % 2
            else {"die_at_event": choice.randrange(1, events + 1)}
        )
        killed += worker.run(**order, **where)["killed"]
        assert not stored.exists() or hashlib.sha256(stored.read_bytes()).hexdigest() == sha256
        part_states.add(sum(path.stat().st_size for path in (tmp_path / "parts").glob("*.part")) > 0)
        answer = worker.run(**order)
        assert answer.get("sha256") == sha256, (where, answer)
        assert hashlib.sha256(stored.read_bytes()).hexdigest() == sha256
        assert not list((tmp_path / "parts").glob("*.part"))
    assert part_states == {True, False}
    resumed = [seen for seen in server.seen if "Range" in seen.headers]
    assert len(resumed) >= KILLS // 8  # deaths inside the body were continued, not started over
