"""Work on several items in parallel, stopped quickly by Ctrl-C even if one of them is blocked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

GRACE_S = 1.5  # for work to end after `stop` is set
POLL_S = 0.2


def run_side_by_side(
    work: Callable[[Any], None], items: Sequence[Hashable], jobs: int, stop: threading.Event
) -> bool:
    """Call `work` with every item, several in parallel.

    Args:
        work: raises nothing; it ends soon after `stop` is set. If it does not (a look-up of a host name), its
            daemon thread is abandoned.
        items: what to work on.
        jobs: how many in parallel.
        stop: set by Ctrl-C.

    Returns:
        Whether Ctrl-C ended it.
    """
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for item in items:
        todo.put(item)

    def worker() -> None:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            with suppress(KeyboardInterrupt):  # how work ends once `stop` is set
                work(item)

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(max(1, min(jobs, len(items))))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(POLL_S)
        return False
    except KeyboardInterrupt:
        stop.set()
        for thread in threads:
            thread.join(GRACE_S / len(threads))
        return True
