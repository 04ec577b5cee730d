"""Progress on stderr: a bar for work with countable steps, otherwise the elapsed time. Nothing is shown in
the first two seconds.

If stderr is not a terminal, a bar is updated only every few seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

QUIET_S = 2
TICK_S = 0.5
LOG_S = 5.0
BEAT_S = 0.5  # seconds between heartbeats
_LOCK = threading.RLock()
_BARS: list[Any] = []
_LISTENERS: list[Callable[[], None]] = []


def _bar(title: str, **options: Any) -> Any:
    """A tqdm bar with a lock of this process: tqdm's default is a system semaphore, which a
    killed process leaks with a warning. Ctrl-C while tqdm's thread starts would be lost."""
    from tqdm import tqdm

    tqdm.set_lock(_LOCK)
    kind = type("Bar", (tqdm,), {"monitor_interval": 0})  # no thread: it only adapts miniters
    every_s = 0.1 if sys.stderr.isatty() else LOG_S
    return kind(desc=title, delay=QUIET_S, leave=False, miniters=1, mininterval=every_s, **options)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a bar (a count if the total is unknown); the block receives a function that advances it by one,
    which is also a heartbeat."""

    def tick() -> None:
        bar.update(1)
        beat()

    with _bar(title, total=total, dynamic_ncols=True) as bar, _shown(bar):
        yield tick


def beat() -> None:
    """Report progress to every enclosing `heartbeats` block."""
    for listener in _LISTENERS:
        listener()


@contextmanager
def heartbeats(send: Callable[[], None]) -> Iterator[None]:
    """Call `send` after steps of this block, at most once every BEAT_S seconds."""
    last = time.monotonic()

    def listener() -> None:
        nonlocal last
        if time.monotonic() - last >= BEAT_S:
            last = time.monotonic()
            send()

    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


@contextmanager
def clock(title: str) -> Iterator[None]:
    """Show the elapsed time of a block, updated twice per second by a thread."""
    with _bar(title, bar_format="{desc}: {elapsed}") as bar, _shown(bar):
        with ticking(lambda: bar.update(1), TICK_S, "clock"):
            yield


@contextmanager
def _shown(bar: Any) -> Iterator[None]:
    _BARS.append(bar)
    try:
        yield
    finally:
        _BARS.remove(bar)


def make_way() -> None:
    """Clear the progress bars for a message; their next update draws them again."""
    for bar in _BARS:
        if not bar.disable and bar.last_print_t > bar.start_t:  # only if it is already visible
            bar.clear()


@contextmanager
def ticking(call: Callable[[], Any], period_s: float, name: str) -> Iterator[None]:
    """Call a function every `period_s` seconds in a named thread until the block ends."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(period_s):
            call()

    thread = threading.Thread(target=tick, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
