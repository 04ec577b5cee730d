"""Files next to the records, for the HTML page: AP per class of stored detections, pictures with detections.
Does not import torch."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path

from detection_zoo.benchmarks.spec import Run

DETECTIONS, ACCURACY = "detections", "accuracy"  # sibling folder of the runs; key of the file in a record
PICTURES, SUFFIXES = ("pictures", (".jpg", ".jpeg", ".png"))  # sibling of the runs, one folder per row
MOST_PICTURES, SIDE = 8, 640  # maximum per row; longer side in pixels


def class_accuracies(store: Path, runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Return run ID -> class -> AP in percent, best first, for runs with stored detections.

    Args:
        store: folder of runs. runs: the records in it.
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
            continue  # the page omits this list; `bench.py evaluate` writes the file again
        found[run.id] = dict(sorted(pairs, key=lambda pair: -pair[1]))
    return found


def row_pictures(store: Path, rows: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Return row -> pictures as (name, data URL), as `bench.py detect` wrote them to pictures/ROW next to the
    runs.

    Args:
        store: folder of runs. rows: names of rows.
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
