"""`bench.py detect`: a row's model over pictures and videos, its detections drawn, printed and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detection_zoo.benchmarks.run.drawing import as_records, detect_pixels, draw
from detection_zoo.benchmarks.run.inputs import Input, VideoFile
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.saving import Form, Saved, category_ids_of
from detection_zoo.benchmarks.run.subject import Subject, build_subject, identify_weights
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.manifest import ModelEntry
from detection_zoo.zoo.trained_row import row_of_checkpoint


def check_detect(entry: ModelEntry, inputs: list[Input], out: Path) -> None:
    """Whether a row can detect in these and write there.

    Raises:
        DatasetError: the row is a classifier, a drawn picture would replace its original, or a video or
            camera cannot be opened.
    """
    if entry.detector is None:
        raise DatasetError(f"row {entry.name} is a classifier; detect needs a detector")
    for one in inputs:
        if isinstance(one.source, Path) and (out / one.drawn).resolve() == one.source.resolve():
            raise DatasetError(f"{one}: the drawn file would replace it; give another folder with --out")
        one.length()


def detect_files(
    entry: ModelEntry,
    inputs: list[Input],
    out: Path,
    *,
    weights: str,
    device: str,
    min_score: float,
    checkpoint_format: str | None = None,
    save: Form | None = None,
    frames: int | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """Detect in pictures and videos and write the drawn ones.

    Args:
        entry: a detector's row.
        inputs: see `inputs_of`.
        out: folder of what is written; made where it is missing.
        weights: see `identify_weights`.
        device: "cpu" or "cuda".
        min_score: 0..1, of detections that are drawn, returned and saved.
        checkpoint_format: of a file, where it is not the row's own.
        save: write the detections in this form too.
        frames: the first N frames of each video or camera; None: all, of a camera until Ctrl-C.

    Returns:
        For each picture and frame the path of its original and of what was drawn, the weights and the
        detections, best first; and whether Ctrl-C ended it. What was done until then is written.

    Raises:
        DatasetError: a file cannot be read.
    """
    identity, argument = identify_weights(entry, weights)
    entry = row_of_checkpoint(entry, argument)
    subject = build_subject(entry, argument, device, checkpoint_format)
    out.mkdir(parents=True, exist_ok=True)
    names = subject.model.class_names
    saved = Saved(save, out, names, category_ids_of(entry), subject.inclusive) if save else None
    records: list[dict[str, Any]] = []
    lengths = [_length(one, frames) for one in inputs]
    total = None if None in lengths else sum(length or 0 for length in lengths)
    interrupted = False
    with progress(f"{entry.name}: detect", total) as tick:
        try:
            for one in inputs:
                for record in _detect(subject, one, out / one.drawn, min_score, frames, saved):
                    records.append(record | {"weights": identity.kind})
                    tick()
        except KeyboardInterrupt:
            interrupted = True
    if saved is not None:
        saved.write()
    return records, interrupted


def _length(one: Input, frames: int | None) -> int | None:
    count, _ = one.length()
    if not one.is_video or frames is None:
        return count
    return frames if count is None else min(count, frames)


def _detect(
    subject: Subject, one: Input, target: Path, min_score: float, frames: int | None, saved: Saved | None
) -> Any:
    """The record of each frame, drawn into the target as it comes."""
    from PIL import Image

    names = subject.model.class_names
    video = VideoFile(target, one.length()[1]) if one.is_video else None
    try:
        for number, pixels in enumerate(one.frames()):
            if video is not None and number == frames:
                break
            found = detect_pixels(subject, pixels)
            drawn = draw(pixels, found, names, min_score)
            if video is not None:
                video.write(drawn)
            else:
                Image.fromarray(drawn).save(target)
            if saved is not None:
                order = found.scores.argsort(descending=True, stable=True)
                kept = found.select(order[found.scores[order] >= min_score])
                saved.add(str(one), number if one.is_video else None, pixels.shape[:2], kept)
            record = {"image": str(one), "drawn": str(target)}
            if one.is_video:
                record["frame"] = number
            yield record | {"detections": as_records(found, names, min_score)}
    finally:
        if video is not None:
            video.close()


def text_of_files(records: list[dict[str, Any]]) -> str:
    """Pictures and detections as lines, of a video the number of frames and of objects by class; says where
    the weights are untrained."""
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
        counts: dict[str, int] = {}
        for name in (d["class"] for frame in frames for d in frame["detections"]):
            counts[name] = counts.get(name, 0) + 1
        lines.append(f"{drawn}{_untrained(frames[0])}: {len(frames)} frames")
        by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"  {count} {name}" for name, count in by_count]
    return "\n".join(lines)


def _untrained(record: dict[str, Any]) -> str:
    kind = record["weights"]
    return f" ({kind} weights, never trained)" if kind in ("random", "stand-in") else ""
