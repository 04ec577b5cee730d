"""CUDA graphs of a model, one for each shape of input: which are kept (LRU), and models that replay them.

A `Capture` records: `cuda_capture.CudaCapture` on a GPU. Everything else here is independent of CUDA.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.parts.fixed_size import FixedDetections, counts_of
from detection_zoo.zoo.parts.frames import frames_of_rows, rows_of_frames
from detection_zoo.zoo.records import Detections, tensors_in

MOST_GRAPHS = 32  # shapes of batches that are kept
MOST_BYTES = 2 * 2**30  # of inputs and outputs of all that are kept
SHOWN = 6  # shapes that a note names
Result = TypeVar("Result")
Replay = Callable[[], None]


class CaptureError(RuntimeError):
    """Work that cannot be recorded; without a recording it runs."""


class Capture(Protocol):
    """What records work on a device."""

    def __call__(self, work: Callable[[], Result]) -> tuple[Result, Replay]:
        """Run work once, record it, and replay it.

        Args:
            work: reads tensors whose memory stays where it is, and waits for no result of the device.

        Returns:
            What the recorded work returned, and what fills the same memory again from what the work reads.

        Raises:
            CaptureError: the work runs, but cannot be recorded.
        """
        ...


class Recordings:
    """Recordings by shape, the latest used last, and a count of what they were used for.

    At most `most` are kept, with `most_bytes` of inputs and outputs in all; the latest is kept in any case.
    What replays need in between is shared, so that a GPU holds it once, for the largest. After the first that
    fails nothing more is recorded, and none is kept.
    """

    def __init__(self, most: int = MOST_GRAPHS, most_bytes: int = MOST_BYTES) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.kept: OrderedDict[Hashable, Any] = OrderedDict()
        self.hits = self.misses = self.evictions = self.without = 0
        self.failure: str | None = None
        self.shapes: list[str] = []

    def get(self, key: tuple[int, ...], record: Callable[[], Any]) -> Any:
        """The recording of a key, made by `record` where there is none; None where nothing can be. Its
        `held_bytes` are those of the memory that it holds as long as it is kept."""
        if self.failure is None and key in self.kept:
            self.hits += 1
            self.kept.move_to_end(key)
        elif self.failure is None:
            self._add(key, record)
        if self.failure is not None:
            self.without += 1
            return None
        return self.kept[key]

    def _add(self, key: tuple[int, ...], record: Callable[[], Any]) -> None:
        name = "x".join(map(str, key))
        try:
            self.kept[key] = record()
        except CaptureError as error:
            self.failure = f"{name} failed: {error}"
            self.kept.clear()
            return
        self.misses += 1
        self.shapes += [name] if name not in self.shapes else []
        while len(self.kept) > 1 and (len(self.kept) > self.most or self.held_bytes > self.most_bytes):
            self.kept.popitem(last=False)
            self.evictions += 1

    @property
    def held_bytes(self) -> int:
        """Of all that are kept."""
        return sum(one.held_bytes for one in self.kept.values())

    def note(self, what: str) -> str:
        """What was recorded and how often it was used, for a record; `what`: the work."""
        names = ", ".join(self.shapes[:SHOWN]) + (" ..." if len(self.shapes) > SHOWN else "")
        used = f"{self.misses} captured of {what}, {self.hits} further batches replayed one"
        if self.failure is not None:
            before = f"; before that, {used}" if self.misses else ""
            return f"no CUDA graphs: capture of {self.failure}; {self.without} batches ran without{before}"
        kept = f"{len(self.kept)} of at most {self.most} kept, {self.held_bytes / 2**20:.0f} MiB held"
        return f"CUDA graphs: {used}, {self.evictions} evicted, {kept}; batches {names}"


class _Recorded:
    """The recorded work of one shape of batches of a detector."""

    def __init__(self, model: Detector, capture: Capture, images: Tensor, sizes: Tensor) -> None:
        self.images = images.clone()
        self.rows = _to(images.device, rows_of_frames(model.frames(sizes)))
        limits = sizes if model.reads_sizes else self.rows[:, :2]
        self.raw, self.network = capture(lambda: model.raw(self.images, limits))

        def choose() -> FixedDetections:
            chosen = model.fixed_detections(self.raw, frames_of_rows(self.rows))
            return replace(chosen, counts=counts_of(chosen))

        self.chosen, self.choose = capture(choose)
        every = tensors_in([self.images, self.rows, self.raw, self.chosen])
        self.held_bytes = sum(one.numel() * one.element_size() for one in every)


@dataclass
class GraphRaw:
    """Raw outputs of a detector; recorded: what computed them, in memory that the next batch overwrites.
    batch: its number."""

    raw: Any
    recorded: Any
    batch: int


class GraphDetector(nn.Module):
    """A detector whose network and choice of detections are recorded for each shape of batch (N, H, W);
    interface as `Detector`.

    Args:
        model: one whose `needs_any_size` is None. It is no module of this one: what is replayed calls none.
        capture: records. recordings: keeps.
    """

    def __init__(self, model: Detector, capture: Capture, recordings: Recordings | None = None) -> None:
        super().__init__()
        self.__dict__["plain"] = model
        self.capture, self.recordings = capture, recordings or Recordings()
        self._batch = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """As the detector's."""
        return self.plain.class_names

    @property
    def note(self) -> str:
        """What was recorded, for a record."""
        return self.recordings.note("network and choice of detections")

    def raw(self, images: Tensor, sizes: Tensor) -> GraphRaw:
        """What the network computes of images (N, 3, H, W) of sizes (N, 2); used up by `postprocess` before
        the next batch."""
        self._batch += 1
        with torch.inference_mode():
            key = (images.shape[0], *images.shape[2:])
            if self.plain.reads_sizes:
                key += tuple(sizes.flatten().tolist())
            recorded = self.recordings.get(key, lambda: _Recorded(self.plain, self.capture, images, sizes))
            if recorded is None:
                return GraphRaw(self.plain.raw(images, sizes), None, self._batch)
            recorded.images.copy_(images)
            recorded.rows.copy_(_to(images.device, rows_of_frames(self.plain.frames(sizes))))
            recorded.network()
            return GraphRaw(recorded.raw, recorded, self._batch)

    def postprocess(
        self, raw: GraphRaw, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Detections of each image, in memory of their own."""
        with torch.inference_mode():
            if raw.recorded is None:
                return self.plain.postprocess(raw.raw, sizes, original_sizes)
            if raw.batch != self._batch:
                raise RuntimeError(
                    "these raw outputs were overwritten by a later batch; post-process each first"
                )
            where = self.plain.frames(sizes, original_sizes)
            raw.recorded.rows.copy_(_to(raw.recorded.rows.device, rows_of_frames(where)))
            raw.recorded.choose()
            chosen = raw.recorded.chosen
            own = replace(chosen, found=[each.clone() for each in chosen.found])
            return self.plain.finish_fixed(own, raw.raw, where)

    def predict(
        self, images: Tensor, sizes: Tensor, original_sizes: Tensor | None = None
    ) -> list[Detections]:
        """Detections of images (N, 3, H, W)."""
        return self.postprocess(self.raw(images, sizes), sizes, original_sizes)


class GraphClassifier(nn.Module):
    """A classifier whose network is recorded for each shape of batch; arguments as in GraphDetector."""

    def __init__(self, model: nn.Module, capture: Capture, recordings: Recordings | None = None) -> None:
        super().__init__()
        self.__dict__["plain"] = model
        self.capture, self.recordings = capture, recordings or Recordings()

    @property
    def note(self) -> str:
        """What was recorded, for a record."""
        return self.recordings.note("the network")

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) to logits (N, K), in memory of their own."""
        with torch.inference_mode():
            key = (images.shape[0], *images.shape[2:])
            recorded = self.recordings.get(key, lambda: _Logits(self.plain, self.capture, images))
            if recorded is None:
                return self.plain(images)
            recorded.images.copy_(images)
            recorded.network()
            return recorded.logits.clone()


class _Logits:
    """The recorded work of one shape of batches of a classifier."""

    def __init__(self, model: nn.Module, capture: Capture, images: Tensor) -> None:
        self.images = images.clone()
        self.logits, self.network = capture(lambda: model(self.images))
        self.held_bytes = sum(one.numel() * one.element_size() for one in (self.images, self.logits))


def _to(device: torch.device, rows: Tensor) -> Tensor:
    """Copy a few numbers to a device without a wait: the driver copies pageable memory to a staging buffer
    first."""
    return rows.to(device, non_blocking=True)
