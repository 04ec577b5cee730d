"""Fetch several weight files at once, with a bar for each and one for all. No torch."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from detection_zoo.zoo.errors import ZooError, in_one_line
from detection_zoo.zoo.weights.fetch.cache import WeightCache
from detection_zoo.zoo.weights.fetch.hosts import hide
from detection_zoo.zoo.weights.fetch.one import Fetched, fetch_weights, refusal_of
from detection_zoo.zoo.weights.fetch.request import Watch
from detection_zoo.zoo.weights.fetch.selection import Chosen
from detection_zoo.zoo.weights.fetch.side_by_side import run_side_by_side


@dataclass(frozen=True)
class Outcome:
    """Outcome of one file: 'fetched', 'here', 'failed', 'skipped' (a wrong link or one for a person,
    matched by a pattern) or 'stopped'."""

    chosen: Chosen
    status: str
    fetched: Fetched | None = None
    reason: str | None = None

    def values(self) -> dict[str, Any]:
        """Plain values for --json."""
        found = self.fetched
        return {
            "row": self.chosen.row,
            "file": self.chosen.filename,
            "status": self.status,
            "reason": self.reason,
            "path": str(found.path) if found else None,
            **{name: getattr(found, name, None) for name in ("sha256", "bytes", "hash_from", "url")},
        }


class Bars:
    """Progress on stderr: a bar for each running file and one for all; plain lines where stderr is no
    terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.lock = quiet, threading.Lock()
        self.terminal = sys.stderr.isatty() and not quiet
        self.total: Any = self._bar("total", leave=True) if self.terminal else None

    def _bar(self, title: str, leave: bool) -> Any:
        from tqdm import tqdm

        kind = type("Bar", (tqdm,), {"monitor_interval": 0})  # no thread: it only adapts miniters
        return kind(desc=title[:40], unit="B", unit_scale=True, miniters=1, leave=leave, file=sys.stderr)

    def say(self, text: str) -> None:
        """Print a message without breaking the bars."""
        if self.terminal:
            self.total.write(text, file=sys.stderr)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def watch(self, chosen: Chosen, stop: threading.Event) -> tuple[Watch, Any]:
        """The Watch of one download, and a function that closes its bar."""
        if not self.terminal:
            return Watch(say=self.say, stop=stop), lambda: None
        bar = self._bar(chosen.filename, leave=False)

        def progress(done: int, size: int | None) -> None:
            with self.lock:
                bar.total = size
                self.total.update(max(0, done - bar.n))
                bar.update(done - bar.n)

        return Watch(progress=progress, say=self.say, stop=stop), bar.close

    def close(self) -> None:
        """Close the total bar."""
        if self.total is not None:
            self.total.close()


def fetch_many(
    files: Iterable[Chosen],
    cache: WeightCache,
    jobs: int = 4,
    offline: bool = False,
    exact: Iterable[str] = (),
    quiet: bool = False,
) -> list[Outcome]:
    """Fetch files side by side; a failed one does not stop the others, Ctrl-C stops all and keeps the
    received bytes.

    Args:
        files: what to fetch; a file of two rows is fetched once.
        jobs: files in parallel.
        exact: row names that were given literally: a file that cannot be fetched is a failure for them,
            and skipped for others.
        quiet: no bars and no messages.
    """
    groups: dict[str, list[Chosen]] = {}
    for chosen in files:
        groups.setdefault(chosen.same_as, []).append(chosen)
    stop, bars, exact = threading.Event(), Bars(quiet), set(exact)

    outcomes: dict[str, list[Outcome]] = {}

    def work(key: str) -> None:
        outcomes[key] = _fetch_group(groups[key], cache, offline, exact, bars, stop)

    run_side_by_side(work, list(groups), jobs, stop)
    bars.close()
    return [
        outcome
        for key, group in groups.items()
        for outcome in outcomes.get(key) or [Outcome(c, "stopped", reason="not begun") for c in group]
    ]


def _fetch_group(
    group: list[Chosen], cache: WeightCache, offline: bool, exact: set[str], bars: Bars, stop: threading.Event
) -> list[Outcome]:
    first = group[0]
    if stop.is_set():
        return [Outcome(chosen, "stopped", reason="not begun") for chosen in group]
    if (reason := refusal_of(first.spec)) and not cache.find(first.spec) and first.row not in exact:
        return [Outcome(chosen, "skipped", reason=reason) for chosen in group]
    watch, close = bars.watch(first, stop)
    try:
        fetched = fetch_weights(first.spec, first.row, cache, offline=offline, watch=watch)
        return [Outcome(chosen, "fetched" if fetched.url else "here", fetched) for chosen in group]
    except ZooError as error:
        return [Outcome(chosen, "failed", reason=str(error)) for chosen in group]
    except OSError as error:
        return [Outcome(chosen, "failed", reason=f"{chosen.row}: {in_one_line(error)}") for chosen in group]
    except Exception as error:  # of this file only: the others continue
        reason = f"{first.row}: {first.filename}: unexpected {type(error).__name__}: {error}"
        return [Outcome(chosen, "failed", reason=hide(reason)) for chosen in group]
    except KeyboardInterrupt:
        return [Outcome(chosen, "stopped", reason="rerun the same command to resume") for chosen in group]
    finally:
        close()
