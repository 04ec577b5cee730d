"""Progress on stderr: a bar for work that counts its steps, a clock for work that cannot. Nothing appears in the first two seconds."""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_S = 2
TICK_S = 0.5


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar (a count where the total is not known); the block gets a function that moves it by one."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, delay=QUIET_S, leave=False, dynamic_ncols=True) as bar:
        yield lambda: bar.update(1) and None


@contextmanager
def clock(title: str) -> Iterator[None]:
    """The time that a block has been running, told twice a second by a thread."""
    from tqdm import tqdm

    done = threading.Event()
    with tqdm(desc=title, delay=QUIET_S, leave=False, bar_format="{desc}: {elapsed}") as bar:
        def tell() -> None:
            while not done.wait(TICK_S):
                bar.update(1)

        thread = threading.Thread(target=tell, name="clock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
