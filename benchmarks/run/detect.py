"""`bench.py detect`: run a model on images and videos; draw, print and save its detections."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.run.drawing import as_records, detect_pixels, draw
from detection_zoo.benchmarks.run.inputs import Input, VideoFile
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.saving import Form, Saved, category_ids_of
from detection_zoo.benchmarks.run.subject import (
    Subject,
    build_subject,
    identify_weights,
    path_notes,
    take_path,
)
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.trained_row import row_of_checkpoint


def check_detect(entry: ModelEntry, inputs: list[Input], out: Path) -> None:
    """Check that a row can detect in these inputs and write to this folder.

    Raises:
        DatasetError: the row is a classifier, an output would overwrite its input, or a video
            or camera cannot be opened.
    """
    if entry.detector is None:
        raise DatasetError(f"row {entry.name} is a classifier; detect needs a detector")
    for one in inputs:
        if isinstance(one.source, Path) and (out / one.drawn).resolve() == one.source.resolve():
            raise DatasetError(
                f"{one}: the output would overwrite this input; give another folder with --out"
            )
        one.length()


def detect_files(
    entry: ModelEntry,
    inputs: list[Input],
    out: Path,
    *,
    spec: BenchmarkSpec,
    weights: str,
    min_score: float,
    checkpoint_format: str | None = None,
    save: Form | None = None,
    frames: int | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """Detect in images and videos, and write them with the detections drawn.

    Args:
        entry: a detector's row.
        inputs: see `inputs_of`.
        out: output folder; created if missing.
        spec: device, path and dtype; another path than eager is compared with it on the first inputs.
        weights: see `identify_weights`.
        min_score: minimum score (0..1) of detections that are drawn, returned and saved.
        checkpoint_format: checkpoint format of a file; default: the row's.
        save: also write the detections in this format.
        frames: maximum number of frames per video or camera; None: all (a camera runs until Ctrl-C).

    Returns:
        For each image or frame: the paths of the input and output, the weights, the model's path and dtype,
        notes on its comparison with eager, and the detections sorted by descending score; and whether
        Ctrl-C stopped it. Outputs finished until then are kept.

    Raises:
        DatasetError: a file cannot be read.
        ManifestError: the model has no such path, or differs from eager by more than the tolerance.
    """
    identity, argument = identify_weights(entry, weights)
    entry = row_of_checkpoint(entry, argument)
    subject = build_subject(entry, argument, spec.device, checkpoint_format)
    out.mkdir(parents=True, exist_ok=True)
    notes = take_path(subject, spec, (pixels for one in inputs for pixels in one.frames()))
    about = {"weights": identity.kind, "path": spec.path, "dtype": spec.dtype, "notes": notes}
    names = subject.model.class_names
    saved = Saved(save, out, names, category_ids_of(entry), subject.inclusive) if save else None
    records: list[dict[str, Any]] = []
    lengths = [_length(one, frames) for one in inputs]
    total = None if None in lengths else sum(length or 0 for length in lengths)
    interrupted = False
    with progress(f"{entry.name}: detect", total) as tick:
        try:
            for one in inputs:
                for record in _detect(subject, spec, one, out / one.drawn, min_score, frames, saved):
                    records.append(record | about)
                    tick()
        except KeyboardInterrupt:
            interrupted = True
    if saved is not None:
        saved.write()
    notes += path_notes(subject)
    return records, interrupted


def _length(one: Input, frames: int | None) -> int | None:
    count, _ = one.length()
    if not one.is_video or frames is None:
        return count
    return frames if count is None else min(count, frames)


def _detect(
    subject: Subject,
    spec: BenchmarkSpec,
    one: Input,
    target: Path,
    min_score: float,
    frames: int | None,
    saved: Saved | None,
) -> Any:
    """Yield the record of each frame; each frame is drawn and written immediately."""
    from PIL import Image

    names = subject.model.class_names
    video = VideoFile(target, one.length()[1]) if one.is_video else None
    try:
        for number, pixels in enumerate(one.frames()):
            if video is not None and number == frames:
                break
            found = detect_pixels(subject, spec, pixels, min_score)
            drawn = draw(pixels, found, names, min_score)
            if video is not None:
                video.write(drawn)
            else:
                Image.fromarray(drawn).save(target)
            if saved is not None:
                saved.add(str(one), number if one.is_video else None, pixels.shape[:2], found)
            record = {"image": str(one), "drawn": str(target)}
            if one.is_video:
                record["frame"] = number
            yield record | {"detections": as_records(found, names)}
    finally:
        if video is not None:
            video.close()


def text_of_files(records: list[dict[str, Any]]) -> str:
    """Return lines with images and detections; for a video, the number of frames and of objects per
    class. Marks untrained weights."""
    lines, videos = [], {}
    for record in records:
        if "frame" in record:
            videos.setdefault(record["drawn"], []).append(record)
            continue
        lines.append(record["drawn"] + _untrained(record))
        lines += [
            f"  {d['score']:.3f} {d['class']} " + " ".join(f"{v:.1f}" for v in d["box"])
            for d in record["detections"]
        ]
    for drawn, frames in videos.items():
        counts = Counter(d["class"] for frame in frames for d in frame["detections"])
        lines.append(f"{drawn}{_untrained(frames[0])}: {len(frames)} frames")
        by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"  {count} {name}" for name, count in by_count]
    return "\n".join(lines)


def _untrained(record: dict[str, Any]) -> str:
    kind = record["weights"]
    return f" ({kind} weights, never trained)" if kind in ("random", "stand-in") else ""
