"""Logs of a training run: a progress line, and one line of metrics.csv for every update."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch

from detection_zoo.zoo.training.loop import StepRecord


class MetricsFile:
    """A CSV file with one line per update or evaluation; a resumed run appends to it.

    The first column, `iteration`, counts updates made. Floats are written with full precision.

    Args:
        path: created with the first line.
        start: updates made; later lines of an earlier process are removed.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self._file, self._columns = path, None, []
        if path.is_file():
            if start:
                self._keep(start)
            else:
                path.unlink()

    def _keep(self, start: int) -> None:
        with self.path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        if not lines:
            return
        whole = [line for line in lines[1:] if len(line) == len(lines[0]) and int(line[0]) <= start]
        part = self.path.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([lines[0], *whole])
        os.replace(part, self.path)
        self._columns = lines[0]

    def write(self, values: Mapping[str, float | int | str]) -> None:
        """Add a line; the first one defines the columns."""
        if self._file is None:
            new = not self._columns
            self._file = self.path.open("a", newline="", encoding="utf-8", buffering=1)
            if new:
                self._columns = list(values)
                csv.writer(self._file).writerow(self._columns)
        csv.writer(self._file).writerow(
            repr(value) if isinstance(value := values.get(name, ""), float) else value
            for name in self._columns
        )

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def update_line(
    record: StepRecord, epoch: float, seconds: float, data_seconds: float
) -> dict[str, float | int]:
    """The columns of metrics.csv: learning rate, images, seconds of the update and of waiting for its data,
    skipped (1 if the update was skipped), loss (the sum), then each loss term."""
    return {
        "iteration": record.iteration + 1,
        "epoch": round(epoch, 4),
        "lr": record.learning_rate,
        "images": record.images,
        "seconds": round(seconds, 4),
        "data_seconds": round(data_seconds, 4),
        "skipped": int(record.skipped),
        "loss": record.total_loss,
        **record.losses,
    }


class ProgressLine:
    """One line every `every` updates: losses (means since the last line), learning rate, images/s, share of
    time waiting for data, memory, time left. On a terminal it is overwritten.

    Args:
        total: updates of the whole run; start: updates made; every: updates per line.
        device: whose memory is shown.
    """

    def __init__(
        self, total: int, start: int, every: int, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self.total, self.start, self.every, self.device, self.say = total, start, every, device, say
        self.in_place = sys.stderr.isatty()
        self._begin, self._seconds_all = time.perf_counter(), 0.0
        self._clear()

    def _clear(self) -> None:
        self._count, self._images, self._seconds, self._data = 0, 0, 0.0, 0.0
        self._sums: dict[str, float] = {}

    def add(self, record: StepRecord, epoch: float, seconds: float, data_seconds: float) -> None:
        """Count an update, and print if a line is due."""
        self._count += 1
        self._images += record.images
        self._seconds += seconds
        self._data += data_seconds
        self._seconds_all += seconds
        for name, value in record.losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        made = record.iteration + 1
        if made % self.every == 0 or made == self.total:
            text = self._text(record, made, epoch)
            if self.in_place:
                sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if made == self.total else ""))
                sys.stderr.flush()
            else:
                self.say(text)
            self._clear()

    def _text(self, record: StepRecord, made: int, epoch: float) -> str:
        means = {name: value / self._count for name, value in self._sums.items()}
        terms = ", ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in means.items())
        left = self._seconds_all / (made - self.start) * (self.total - made)
        return (
            f"update {made}/{self.total}, epoch {epoch:.2f}: loss {sum(means.values()):.4g} ({terms}),"
            f" lr {record.learning_rate:.3g}, {self._images / max(self._seconds, 1e-9):.3g} images/s,"
            f" {self._data / max(self._seconds, 1e-9):.0%} waiting for data, {peak_mib(self.device):.0f} MiB,"
            f" left {timedelta(seconds=round(left))}"
        )


def peak_mib(device: torch.device) -> float:
    """Highest memory of this process so far, MiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
