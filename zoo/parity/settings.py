"""Settings of a folder of recorded outputs: numbers that its arrays were computed with.

`zoo.parity.prose` makes the record from the folder's notes; a folder with settings.json needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError
from torch import Tensor

from detection_zoo.zoo.parity.files import ParityError

FILE = "settings.json"
Size = tuple[int, int]
Rows = tuple[int, int | None]


def normal_input(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 standard-normal array: what a network sees after its own normalisation."""
    return np.random.RandomState(seed).standard_normal(shape).astype("float32")


class Draw(BaseModel):
    """An array of `normal_input`, multiplied and shifted in float32.

    shape: sizes, or letters of sizes that follow from something else. by_level: the number of the level is
    added to the seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int
    shape: tuple[int | str, ...]
    times: float = 1.0
    shift: float = 0.0
    by_level: bool = False

    def array(self, level: int = 0, **letters: int) -> np.ndarray:
        """The float32 array of one level; letters: sizes of the letters of the shape."""
        shape = tuple(letters.get(side, side) for side in map(str, self.shape))
        try:
            shape = tuple(int(side) for side in shape)
        except ValueError:
            raise ParityError(
                f"normal_input({self.seed}, ({','.join(map(str, self.shape))})): a shape of numbers is needed"
            ) from None
        array = normal_input(self.seed + (level if self.by_level else 0), shape)
        return np.float32(self.times) * array + np.float32(self.shift)


class Note(BaseModel):
    """Settings that one note states. Sizes are in pixels; (height, width) in lists of sizes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    arrays: list[Draw] = []
    seed: int | None = None
    shape: tuple[int, ...] | None = None
    height: int | None = None
    width: int | None = None
    scale: float | None = None
    # an input batch
    padded_height: int | None = None
    padded_width: int | None = None
    true_sizes: list[Size] | None = None
    im_info: tuple[Any, ...] | None = None  # rows (height, width, scale), or one of them
    input: str | None = None
    box_numbers: list[int] | None = None
    box_images: list[int] | None = None
    # tolerances: of maps, of lists of boxes and scores, of gradients; of everything
    maps: float | None = None
    lists: float | None = None
    gradients: float | None = None
    tolerance: float | None = None
    # an image: a formula, noise around mean colours, or small random pixels that are repeated
    # factors of x, y and the channel, and two moduli
    across: int | None = None
    down: int | None = None
    channel: int | None = None
    inner: int | None = None
    outer: int | None = None
    means: tuple[float, ...] | None = None
    noise: float | None = None
    repeat: int | None = None
    # resizing: shorter side, most of the longer one
    short: int | None = None
    longest: int | None = None
    new_height: int | None = None
    new_width: int | None = None
    divisor: int | None = None
    # boxes and anchors
    grids: list[Size] | None = None
    first: int | None = None
    rows: list[Rows] | None = None
    weights: tuple[float, ...] | None = None
    classes: str | None = None
    foreground_iou: float | None = None
    background_iou: float | None = None
    low_quality: bool = False
    boxes: list[list[float]] | None = None
    box: tuple[float, ...] | None = None
    side: int | None = None
    place: int | None = None
    down_by: int | None = None
    low: int | None = None
    high: int | None = None
    count: int | None = None
    least: int | None = None
    most: int | None = None
    # proposals and detections
    training: bool = False
    pre_nms: int | None = None
    post_nms: int | None = None
    collect: int | None = None
    min_size: float | None = None
    score_threshold: float | None = None
    nms_iou: float | None = None
    sigma: float | None = None
    max_detections: int | None = None
    background_filter: float | None = None
    without_plus_one: bool = False
    vote_iou: float | None = None
    added: int | None = None
    # RoIs
    pooled: int | None = None
    sampling: int | None = None
    stride: int | None = None
    minus: float | None = None
    first_height: int | None = None
    first_width: int | None = None
    last_height: int | None = None
    last_width: int | None = None
    # losses
    beta: float | None = None
    gamma: float | None = None
    alpha: float | None = None
    share: float | None = None
    parts: int | None = None
    samples: int | None = None
    # test-time augmentation
    augment_boxes: bool = False
    augment_masks: bool = False
    augment_keypoints: bool = False
    flip: bool = False
    scales: list[int] | None = None
    max_size: int | None = None
    scale_flip: bool = False
    aspect_ratios: list[float] | None = None
    aspect_flip: bool = False
    # a training: epochs between two decays; how many updates of a run are compared
    decay_epochs: int | None = None
    run: str | None = None
    updates: int | None = None
    wrapped: bool = False  # a checkpoint's tensors are in a dict under "model"
    _where: str = PrivateAttr("a note")

    def placed(self, where: str) -> Note:
        """This note, whose errors name its file and field."""
        note = self.model_copy()
        note._where = where
        return note

    def need(self, *names: str) -> Any:
        """The value of a field, or a tuple of those of several; raises ParityError where one is missing."""
        values = tuple(getattr(self, name) for name in names)
        for name, value in zip(names, values, strict=True):
            if value is None or value == []:
                raise ParityError(f"{self._where}: does not state {name!r}")
        return values if len(values) > 1 else values[0]

    def draw(self, place: int = 0) -> Draw:
        """The array at a place; raises ParityError where there are fewer."""
        if place >= len(self.arrays):
            raise ParityError(
                f"{self._where}: does not state 'normal_input(seed, (shape))' of {place + 1} inputs"
            )
        return self.arrays[place]

    def tensor(self, kind: torch.dtype, place: int = 0, **letters: int) -> Tensor:
        """The array at a place as a tensor of that type."""
        return torch.from_numpy(self.draw(place).array(**letters)).to(kind)

    def tensors(self, kind: torch.dtype, sizes: Sequence[Size] = ()) -> list[list[Tensor]]:
        """Of each array a list: the array itself, or where its seed depends on the level, that of each level.

        Args:
            sizes: (h, w) of each level.
        """
        if not sizes and any(draw.by_level for draw in self.arrays):
            raise ParityError(f"{self._where}: the sizes of its levels are needed")
        levels = [dict(zip("hw", size, strict=True)) for size in sizes]
        return [
            [
                torch.from_numpy(draw.array(level, **letters)).to(kind)
                for level, letters in enumerate(levels if draw.by_level else [{}])
            ]
            for draw in self.arrays
        ]

    def image(self, means: Sequence[float] = ()) -> np.ndarray:
        """The image (H, W, 3) uint8 in RGB; noise is recorded blue first.

        Args:
            means: of the channels, blue first, where the note does not state them.
        """
        seed, shape = self.need("seed", "shape")
        if self.noise is None:
            small = np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
            return small.repeat(self.repeat or 1, axis=0).repeat(self.repeat or 1, axis=1)
        noise = self.noise * np.random.RandomState(seed).standard_normal(shape)
        pixels = np.clip(np.rint(np.array(self.means or means) + noise), 0, 255)
        return pixels.astype(np.uint8)[:, :, ::-1]


class Settings(BaseModel):
    """Settings of a folder: of each note by the path of its field, as in "outputs.iou.meaning"."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    notes: dict[str, Note] = {}

    @classmethod
    def read(cls, path: Path) -> Settings:
        """The settings of a settings.json; raises ParityError where it is not valid."""
        try:
            settings = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            raise ParityError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return cls(notes={key: note.placed(f"{path}: {key}") for key, note in settings.notes.items()})

    def to_json(self) -> str:
        """The text of settings.json: fields that are set."""
        return self.model_dump_json(indent=1, exclude_defaults=True) + "\n"

    def under(self, path: str) -> dict[str, Note]:
        """The notes below a field, by the rest of their path."""
        prefix = f"{path}."
        return {key.removeprefix(prefix): note for key, note in self.notes.items() if key.startswith(prefix)}
