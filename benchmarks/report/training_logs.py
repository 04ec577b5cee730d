"""Losses, rates and accuracy of trainings, for the page: the logs of shipped weights, and folders of runs. No
torch."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from detection_zoo.zoo.manifest import ModelEntry

TRAINING = "training"  # folder beside the runs: logs NAME.csv, and folders that `bench.py train --out` wrote
METRICS, EVALUATIONS, RECIPE = "metrics.csv", "evaluations.csv", "recipe.json"  # of such a folder
MOST_POINTS = 60  # of a curve


@dataclass(frozen=True)
class TrainingLog:
    """Curves of one training.

    name: of its log or folder. updates: at which the means over equal stretches end. losses, rates: those
    means. metric, evaluated, accuracy: name of the accuracy, updates after which it was measured, percent.
    """

    name: str
    updates: list[int]
    losses: list[float]
    rates: list[float]
    metric: str = ""
    evaluated: tuple[int, ...] = ()
    accuracy: tuple[float, ...] = ()


def training_logs(stores: Iterable[Path], entries: Mapping[str, ModelEntry]) -> dict[str, list[TrainingLog]]:
    """Trainings by row: the log that its manifest names, then every folder of a training of it, where those
    lie in training/ beside the runs. A file that cannot be read is left out.

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
                continue  # no recipe of a training
            if row in entries:
                _add(found, row, recipe.parent.name, recipe.parent / METRICS)
    return found


def _add(found: dict[str, list[TrainingLog]], row: str, name: str, path: Path) -> None:
    try:
        lines, evaluations = _lines(path), _lines(path.with_name(EVALUATIONS))
        log = _log(name, lines, evaluations if path.name == METRICS else [])
    except (OSError, ValueError, KeyError, TypeError):
        return  # a damaged log costs the page these curves
    if log.updates:
        found.setdefault(row, []).append(log)


def _lines(path: Path) -> list[dict[str, str]]:
    """Lines of a CSV file by column; none without the file. Of lines for one update the last counts."""
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
