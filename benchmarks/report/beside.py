"""What lies beside the records, for the page: AP by class of stored detections, drawn pictures. No torch."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path

from detection_zoo.benchmarks.spec import Run

DETECTIONS, ACCURACY = "detections", "accuracy"  # folder beside the runs; name of the file in a run's record
PICTURES, SUFFIXES = "pictures", (".jpg", ".jpeg", ".png")  # folder beside the runs, with one folder a row
MOST_PICTURES, SIDE = 8, 640  # of a row; longest side in pixels


def class_accuracies(store: Path, runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """AP of each class in percent, the best first, by the id of the run; of runs whose detections are there.

    Args:
        store: folder of runs. runs: its records.
    """
    found = {}
    for run in runs:
        stored = run.files.get(ACCURACY)
        path = store.parent / DETECTIONS / stored.name if stored else None
        if path is None or not path.is_file():
            continue
        try:
            per_class = json.loads(path.read_bytes())["per_class"]
            pairs = [
                (name, float(next(iter(values.values())))) for name, values in per_class.items() if values
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a damaged file costs the page this list; `bench.py evaluate` makes it again
        found[run.id] = dict(sorted(pairs, key=lambda pair: -pair[1]))
    return found


def row_pictures(store: Path, rows: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Pictures of a row's detections as (name, data address), those that `bench.py detect` wrote to
    pictures/ROW beside the runs.

    Args:
        store: folder of runs. rows: names.
    """
    found = {}
    for row in rows:
        folder = store.parent / PICTURES / row
        if folder.is_dir():
            files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
            found[row] = [(path.stem, _address(path)) for path in files[:MOST_PICTURES]]
    return found


def _address(path: Path) -> str:
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
