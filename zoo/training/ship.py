"""Turn a finished training run into weights shipped with the project: `python -m
detection_zoo.zoo.training.ship RUN_FOLDER` writes the file and the log and prints the lines of the manifest.

Matrices and kernels are stored as float16, vectors (norms, biases) unchanged.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, load_manifests
from detection_zoo.zoo.weights.read import read_arrays

FOLDER = "weights"  # relative to the manifests
LOG_FOLDER = MANIFEST_FOLDER.parent / "results" / "training"
LOG_ROWS = 60
METRICS = ("box_ap", "mask_ap", "keypoint_ap", "person_ap")


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, those of two and more dimensions (N, M, ...) as float16."""
    return {
        name: (value.half() if value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for name, value in state.items()
    }


def write_weights(checkpoint: Path, target: Path) -> str:
    """Write the model of a checkpoint as safetensors; returns the SHA-256 of the file."""
    from safetensors.torch import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(halved(read_arrays(checkpoint)), target)
    target.chmod(0o644)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def write_log(metrics: Path, target: Path) -> tuple[int, float]:
    """A short copy of a run's metrics.csv: means over equal intervals of updates.

    Returns:
        The number of updates, and their duration in hours.
    """
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = list({int(row["iteration"]): row for row in rows}.values())  # a resumed run repeats some
    names = [name for name in rows[0] if name == "lr" or name.startswith("loss")]
    stretch = max(1, len(rows) // LOG_ROWS)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["iteration", *names])
        for start in range(0, len(rows), stretch):
            part = rows[start : start + stretch]
            means = [sum(float(row[name] or "nan") for row in part) / len(part) for name in names]
            writer.writerow([part[-1]["iteration"], *(f"{value:.5g}" for value in means)])
    return len(rows), sum(float(row["seconds"]) for row in rows) / 3600


def accuracy(entry: ModelEntry, weights: Path, images: int | None) -> dict[str, float]:
    """AP of a weight file in float32 on the validation split of `shapes`, or on its first images."""
    import detection_zoo as dz

    model = dz.load(entry.name, weights=str(weights), device="cpu")
    found = dz.evaluate(model, "shapes", images=images)
    return {name: round(value, 2) for name, value in found.items() if name in METRICS}


def ship(run: Path, images: tuple[int | None, ...] = (100, None), whole: int = 500) -> dict[str, Any]:
    """Write weights and log of a run folder; returns the fields `weights` and `training` of its row."""
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    entry = load_manifests().entry(recipe["request"]["row"])
    stem = entry.name.removesuffix(f".{entry.source}")
    target = MANIFEST_FOLDER / FOLDER / f"{stem}.safetensors"
    sha256 = write_weights(run / "last.pth", target)
    updates, hours = write_log(run / "metrics.csv", LOG_FOLDER / f"{stem}.csv")
    expected: dict[str, dict[str, float]] = {}
    for count in images:
        for metric, value in accuracy(entry, target, count).items():
            expected.setdefault(metric, {})[str(count or whole)] = value
    return {
        "weights": {
            "urls": [f"file:{FOLDER}/{target.name}"],
            "sha256": sha256,
            "bytes": target.stat().st_size,
            "format": "zoo",
            "holds": "detector",
        },
        "training": {
            "seed": recipe["settings"]["seed"],
            "updates": updates,
            "hours": round(hours, 2),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "log": f"{stem}.csv",
            "expected": expected,
        },
    }


def main() -> None:
    """Print the result of `ship` for each run folder of the command line as JSON."""
    torch.set_num_threads(1)
    for run in sys.argv[1:]:
        print(json.dumps(ship(Path(run))), flush=True)


if __name__ == "__main__":
    main()
