"""Inputs of `bench.py detect`: images, folders, patterns, videos and cameras. Does not import torch."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detection_zoo.zoo.data.images import decode_image
from detection_zoo.zoo.errors import DatasetError
from detection_zoo.zoo.home import expanded

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
USUAL_FPS = 25.0  # frame rate for a camera or file that reports none
CODEC = "mp4v"  # MPEG-4, which OpenCV's wheels can write on every system


@dataclass(frozen=True)
class Input:
    """An image file, a video file, or a camera index.

    source: a path, or the camera index. stem: base name of the output files.
    """

    source: Path | int

    @property
    def is_video(self) -> bool:
        """Whether it is a video or a camera."""
        return isinstance(self.source, int) or self.source.suffix.lower() in VIDEOS

    @property
    def drawn(self) -> str:
        """Name of the output file."""
        stem = f"camera{self.source}" if isinstance(self.source, int) else self.source.stem
        return f"{stem}.mp4" if self.is_video else f"{stem}.png"

    def frames(self) -> Iterator[np.ndarray]:
        """Yield its frames (H, W, 3) uint8 RGB; an image has one.

        Raises:
            DatasetError: it cannot be read.
        """
        if not self.is_video:
            yield decode_image(self.source.read_bytes(), str(self.source))
            return
        import cv2

        capture = self._open()
        try:
            ok, frame = capture.read()
            if not ok:
                raise DatasetError(f"{self}: no frame could be read")
            while ok:
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                ok, frame = capture.read()
        finally:
            capture.release()

    def length(self) -> tuple[int | None, float]:
        """Return the number of frames (None if unknown) and the frames per second.

        Raises:
            DatasetError: it cannot be opened.
        """
        if not self.is_video:
            return 1, USUAL_FPS
        import cv2

        capture = self._open()
        count, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        return int(count) if count > 0 else None, fps if 0 < fps <= 1000 else USUAL_FPS

    def _open(self) -> Any:
        import cv2

        logging = cv2.utils.logging
        # OpenCV's codec messages are less useful than the error below
        logging.setLogLevel(logging.LOG_LEVEL_SILENT)
        capture = cv2.VideoCapture(self.source if isinstance(self.source, int) else str(self.source))
        if not capture.isOpened():
            raise DatasetError(f"{self}: OpenCV cannot open it")
        return capture

    def __str__(self) -> str:
        return f"camera {self.source}" if isinstance(self.source, int) else str(self.source)


class VideoFile:
    """A video that is written frame by frame; the first frame sets the size."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps, self._writer = path, fps, None

    def write(self, frame: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8 RGB."""
        import cv2

        if self._writer is None:
            size = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*CODEC), self.fps, size)
            if not self._writer.isOpened():
                raise DatasetError(f"{self.path}: OpenCV cannot write this video file")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file; it is playable only after this."""
        if self._writer is not None:
            self._writer.release()


def inputs_of(names: Sequence[str]) -> list[Input]:
    """Return the inputs named by the arguments, in order.

    Args:
        names: image and video files, folders of them, patterns ("shots/**/*.jpg"), camera indices ("0").

    Raises:
        DatasetError: an input is missing, or two inputs have the same output name.
    """
    found = [one for name in names for one in _inputs(name)]
    names = [one.drawn for one in found]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise DatasetError(
            f"two inputs would be written as {doubled}; run detect on each with a different --out"
        )
    return found


def _inputs(name: str) -> list[Input]:
    path = expanded(name)
    if path.is_file():
        return [Input(path)]
    if path.is_dir():
        inside = sorted(path.iterdir())
    elif name.isascii() and name.isdecimal():
        return [Input(int(name))]
    else:
        inside = sorted(Path(one) for one in glob.glob(str(path), recursive=True))
    files = [Input(one) for one in inside if one.suffix.lower() in (*PICTURES, *VIDEOS) and one.is_file()]
    if not files:
        what = "no image or video in it" if path.is_dir() else "no such file, and no file matches the pattern"
        raise DatasetError(f"{name}: {what} ({' '.join((*PICTURES, *VIDEOS))})")
    return files
