"""A process that fetches on command, and can be told to die by SIGKILL at a chosen byte or at a chosen
operation of the interpreter.

Reads one JSON order a line from stdin, runs it in a forked child, and answers with one JSON line: exit
status, peak memory, result.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import filelock  # noqa: F401 - imported before the fork, so that each child starts at once
import requests  # noqa: F401

from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.weights.fetch.cache import WeightCache
from detection_zoo.zoo.weights.fetch.one import fetch_weights
from detection_zoo.zoo.weights.fetch.request import Policy, Watch


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fetch(order: dict[str, Any]) -> dict[str, Any]:
    """Fetch as ordered; `die_at_byte` and `die_at_event` say where to be killed."""
    events = 0

    def count_event(event: str, arguments: tuple) -> None:
        nonlocal events
        events += 1
        if events == order.get("die_at_event"):
            die()

    if "die_at_event" in order:
        sys.addaudithook(count_event)

    def progress(done: int, total: int | None) -> None:
        if done >= order.get("die_at_byte", 1 << 60):
            die()

    spec = WeightSpec(urls=[order["url"]], sha256=order.get("sha256"), format="torch", holds="imagenet")
    fetched = fetch_weights(
        spec,
        "row",
        WeightCache(Path(order["home"])),
        policy=Policy(attempts=2, backoff_s=0.01),
        watch=Watch(progress=progress),
    )
    return {"sha256": fetched.sha256, "downloaded": fetched.url is not None, "events": events}


def child(order: dict[str, Any], answer: int) -> None:
    try:
        result = fetch(order)
    except Exception as error:  # the parent reports it
        result = {"error": repr(error)}
    result["peak_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.write(answer, json.dumps(result).encode())
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(json.loads(line), write)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            result = json.loads(pipe.read() or b"{}")
        _, status = os.waitpid(pid, 0)
        print(
            json.dumps(
                {"killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, **result}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
