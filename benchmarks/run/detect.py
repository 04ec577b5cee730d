"""`bench.py detect`: a row's model over pictures, its detections drawn and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.run.drawing import as_records, detect_image, draw, images_of
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.subject import build_subject, identify_weights
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.manifest import load_manifests
from detection_zoo.zoo.trained_row import row_of_checkpoint


def detect_files(
    row: str,
    paths: list[Path],
    out: Path,
    *,
    weights: str,
    device: str,
    min_score: float,
    checkpoint_format: str | None = None,
) -> list[dict[str, Any]]:
    """Detect in pictures and write the drawn ones.

    Args:
        row: name of a detector's row.
        paths: pictures, or folders of them.
        out: folder for the drawn pictures, named like the originals; made where it is missing.
        weights: see `identify_weights`.
        device: "cpu" or "cuda".
        min_score: 0..1, of detections that are drawn and returned.
        checkpoint_format: of a file, where it is not the row's own.

    Returns:
        For each picture its path, the drawn one's path, the weights and the detections, best first.

    Raises:
        DatasetError: a path is no picture, two pictures have one name, or the row is a classifier.
    """
    from PIL import Image

    entry, files = load_manifests().entry(row), images_of(paths)
    if entry.detector is None:
        raise DatasetError(f"row {row} is a classifier; detect needs a detector")
    names = [path.stem for path in files]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise DatasetError(
            f"two pictures are called {doubled!r}; detect in them one after another, into folders of"
            " their own"
        )
    identity, argument = identify_weights(entry, weights)
    entry = row_of_checkpoint(entry, argument)
    subject = build_subject(entry, argument, device, checkpoint_format)
    out.mkdir(parents=True, exist_ok=True)
    told = []
    with progress(f"{row}: detect", len(files)) as tick:
        for path in files:
            pixels, found = detect_image(subject, path)
            target = out / f"{path.stem}.png"
            Image.fromarray(draw(pixels, found, subject.model.class_names, min_score)).save(target)
            told.append(
                {
                    "image": str(path),
                    "drawn": str(target),
                    "weights": identity.kind,
                    "detections": as_records(found, subject.model.class_names, min_score),
                }
            )
            tick()
    return told


def text_of_files(told: list[dict[str, Any]]) -> str:
    """Pictures and detections as lines; what random or stand-in weights find means nothing, and is said
    to."""
    lines = []
    for one in told:
        made_up = (
            f" ({one['weights']} weights: nobody trained them)"
            if one["weights"] in ("random", "stand-in")
            else ""
        )
        lines.append(f"{one['drawn']}{made_up}")
        lines += [
            f"  {d['score']:.3f} {d['class']} " + " ".join(f"{v:.1f}" for v in d["box"])
            for d in one["detections"]
        ]
    return "\n".join(lines)
