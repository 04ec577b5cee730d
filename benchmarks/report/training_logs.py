"""Loss, learning rate and accuracy curves of training runs, for the HTML page: from the logs of the weights
of this project, and from output folders of `bench.py train`. Does not import torch."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from detection_zoo.zoo.manifest import ModelEntry

TRAINING = "training"  # sibling folder of the runs: logs NAME.csv, output folders of `bench.py train`
METRICS, EVALUATIONS, RECIPE = "metrics.csv", "evaluations.csv", "recipe.json"  # files of such a folder
MOST_POINTS = 60  # maximum per curve


@dataclass(frozen=True)
class TrainingLog:
    """Curves of one training run.

    name: name of its log or folder. updates: last update of each of equally long parts. losses, rates: means
    over these parts. metric, evaluated, accuracy: accuracy metric, updates of its evaluations, percent.
    """

    name: str
    updates: list[int]
    losses: list[float]
    rates: list[float]
    metric: str = ""
    evaluated: tuple[int, ...] = ()
    accuracy: tuple[float, ...] = ()


def training_logs(stores: Iterable[Path], entries: Mapping[str, ModelEntry]) -> dict[str, list[TrainingLog]]:
    """Return training runs by row: the log named in the manifest, then output folders, from training/ next to
    the runs. Unreadable files are omitted.

    Args:
        stores: folders of runs. entries: rows by name.
    """
    found: dict[str, list[TrainingLog]] = {}
    for folder in (store.parent / TRAINING for store in stores):
        for entry in entries.values():
            path = folder / entry.training.log if entry.training else None
            if path is not None and path.is_file():
                _add(found, entry.name, path.stem, path)
        for recipe in sorted(folder.glob(f"*/{RECIPE}")):
            try:
                row = json.loads(recipe.read_bytes())["request"]["row"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not a recipe of a training run
            if row in entries:
                _add(found, row, recipe.parent.name, recipe.parent / METRICS)
    return found


def _add(found: dict[str, list[TrainingLog]], row: str, name: str, path: Path) -> None:
    try:
        lines, evaluations = _lines(path), _lines(path.with_name(EVALUATIONS))
        log = _log(name, lines, evaluations if path.name == METRICS else [])
    except (OSError, ValueError, KeyError, TypeError):
        return  # the page omits the curves of a damaged log
    if log.updates:
        found.setdefault(row, []).append(log)


def _lines(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file, the last one for each update; empty if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list({int(line["iteration"]): line for line in csv.DictReader(file)}.values())


def _log(name: str, lines: list[dict[str, str]], evaluations: list[dict[str, str]]) -> TrainingLog:
    count = min(MOST_POINTS, len(lines))
    edges = [place * len(lines) // count for place in range(count + 1)] if count else []
    parts = [lines[start:end] for start, end in pairwise(edges)]
    kept = [part for part in parts if math.isfinite(_mean(part, "loss") + _mean(part, "lr"))]
    metric = next((key for key in (evaluations or [{}])[0] if key not in ("iteration", "epoch")), "")
    return TrainingLog(
        name,
        [int(part[-1]["iteration"]) for part in kept],
        [_mean(part, "loss") for part in kept],
        [_mean(part, "lr") for part in kept],
        metric,
        tuple(int(line["iteration"]) for line in evaluations),
        tuple(float(line[metric]) for line in evaluations),
    )


def _mean(lines: Iterable[Mapping[str, str]], column: str) -> float:
    values = [float(line[column] or "nan") for line in lines]
    return sum(values) / len(values)
