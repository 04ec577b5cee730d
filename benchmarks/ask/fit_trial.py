"""One trial of `bench.py fit`, in its own process: run a row at one batch and image size,
and report the peak memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from detection_zoo.benchmarks.run.isolation import Report
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.zoo.created_row import row_named
from detection_zoo.zoo.data.base import Dataset, GroundTruth
from detection_zoo.zoo.data.figures import KEYPOINT_NAMES
from detection_zoo.zoo.manifest import ModelEntry

if TYPE_CHECKING:
    from detection_zoo.benchmarks.measure.memory import PeakMemory
    from detection_zoo.benchmarks.run.subject import Subject

OBJECTS = 8  # objects per image; COCO's training images have 7.3 on average
INFERENCE_TURNS = 2
TRAINING_STEPS = 3  # in the second update, the optimizer's state is allocated from the beginning


@dataclass(frozen=True)
class Case:
    """Settings of a trial.

    weights: argument of `build_model`. batch: images. image: (width, height) of the files.
        short_side: resized shorter side instead of the
    row's, with no limit of the longer side; None: the row's rule. gpu_limit_mib: limit of the
    process's GPU memory; None: no limit.
    """

    row: str
    weights: str
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "float16", "bfloat16"]
    train: bool
    batch: int
    image: tuple[int, int]
    short_side: int | None = None
    gpu_limit_mib: float | None = None

    @property
    def entry(self) -> ModelEntry:
        """The row, with `short_side` if given."""
        row = row_named(self.row)
        if self.short_side is None or row.conventions is None:
            return row
        image = row.conventions.image.model_copy(update={"size": self.short_side, "max_size": None})
        return row.model_copy(update={"conventions": row.conventions.model_copy(update={"image": image})})


class RandomImages(Dataset):
    """Images of random pixels with objects at random positions, generated on access.

    Args:
        images: how many.
        size: (width, height) in pixels.
        classes: names by label.
        keypoints: whether each object has COCO's 17 keypoints, all visible.
    """

    layout = "coco"

    def __init__(self, images: int, size: tuple[int, int], classes: int, keypoints: bool = False) -> None:
        super().__init__()
        self._rows, self.full_size, self._size = range(images), images, size
        self.name = f"random pixels {size[0]}x{size[1]}"
        self.classes = tuple(f"class {label}" for label in range(classes))
        self.category_ids = tuple(range(1, classes + 1))
        self.keypoint_names = KEYPOINT_NAMES if keypoints else ()

    def image_id(self, index: int) -> int:
        """The index."""
        return index

    def image_path(self, index: int) -> Path:
        """A dummy path; the file does not exist."""
        return Path(f"{index}.png")

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels, the same for every image."""
        return self._size[1], self._size[0]

    def load_image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, generated from the index."""
        return np.random.default_rng(index).integers(0, 256, (self._size[1], self._size[0], 3), np.uint8)

    def target(self, index: int) -> GroundTruth:
        """OBJECTS rectangles with sides of 10 % to 50 % of the image's, generated from the index."""
        random = np.random.default_rng([index, 1])
        sides = random.uniform(0.1, 0.5, (OBJECTS, 2)) * self._size
        boxes = np.concatenate(
            [random.uniform(0, 1, (OBJECTS, 2)) * (np.array(self._size) - sides), sides], axis=1
        )
        x1, y1, x2, y2 = *boxes[:, :2].T, *(boxes[:, :2] + sides).T
        no = np.zeros(OBJECTS, bool)
        polygons = [[corners.tolist()] for corners in np.stack([x1, y1, x2, y1, x2, y2, x1, y2], axis=1)]
        points = None
        if self.keypoint_names:
            places = (
                boxes[:, None, :2]
                + random.uniform(0, 1, (OBJECTS, len(self.keypoint_names), 2)) * sides[:, None]
            )
            points = np.concatenate([places, np.full((*places.shape[:2], 1), 2.0)], axis=2).astype(np.float32)
        return GroundTruth(
            boxes,
            random.integers(0, len(self.classes), OBJECTS),
            no,
            no,
            sides.prod(axis=1),
            polygons,
            points,
        )


def run_trial(case: Case, report: Report) -> None:
    """Build the row, run it, and report peak_mib, how it was measured, the network's input size and the
    detections; raises if memory runs out."""
    import torch

    from detection_zoo.benchmarks.measure.memory import peak_memory

    device = torch.device(case.device)
    share = GpuShare(case.gpu_limit_mib) if case.device == "cuda" else None
    with peak_memory(device) as peak:
        found = _train(case) if case.train else _infer(case)
    peak_mib, how = share.peak(peak) if share else (peak.mib["resident"], peak.how["resident"])
    report({"peak_mib": peak_mib, "how": how, **found})


def _subject(case: Case) -> tuple[Subject, BenchmarkSpec]:
    from detection_zoo.benchmarks.run.subject import prepare

    entry = case.entry
    spec = BenchmarkSpec(
        device=case.device, dtype=case.dtype, batch_size=case.batch, train_images_per_step=case.batch
    )
    images = RandomImages(case.batch, case.image, entry.classes, entry.has_keypoints)
    return prepare(entry, spec, images, case.weights), spec


def _infer(case: Case) -> dict[str, Any]:
    """Run complete iterations, from image to results on the host."""
    import torch

    from detection_zoo.benchmarks.measure.inference import to_host
    from detection_zoo.benchmarks.run.subject import autocast
    from detection_zoo.zoo.data.loading import evaluation_loader

    subject, spec = _subject(case)
    found: Any = None
    for _ in range(INFERENCE_TURNS):
        batch = next(iter(evaluation_loader(subject.dataset, subject.preprocess, batch_size=case.batch))).to(
            subject.device
        )
        with torch.inference_mode(), autocast(spec):
            model = subject.model
            found = to_host(
                model(batch.images)
                if subject.is_classifier
                else model.predict(batch.images, batch.sizes, batch.original_sizes)
            )
    counts = [] if subject.is_classifier else [len(one) for one in found]
    return {
        "network": (batch.images.shape[3], batch.images.shape[2]),
        "detections": sum(counts) / len(counts) if counts else None,
    }


def _train(case: Case) -> dict[str, Any]:
    """Run complete training steps of the row's schedule, with the largest of several short sides."""
    import torch

    from detection_zoo.benchmarks.measure.training import batches_of, schedule_of
    from detection_zoo.zoo.training.loop import train_steps
    from detection_zoo.zoo.training.recipe import build_optimizer, training_mode

    subject, spec = _subject(case)
    schedule = schedule_of(subject)
    sides = [max(schedule.short_sides)] if schedule.short_sides and case.short_side is None else []
    schedule = schedule.model_copy(update={"short_sides": sides})
    model = training_mode(subject.model, schedule)
    seen: dict[str, Any] = {}

    def batches() -> Iterator[Any]:
        for images, sizes, targets in batches_of(subject, subject.dataset, spec, schedule):
            seen["network"] = (images.shape[3], images.shape[2])
            yield images, sizes, targets

    amp = None if case.dtype == "float32" else getattr(torch, case.dtype)
    steps = list(
        train_steps(
            model,
            batches(),
            build_optimizer(model, schedule),
            schedule,
            iterations=TRAINING_STEPS,
            iterations_per_epoch=TRAINING_STEPS,
            amp_dtype=amp,
            on_nonfinite="skip",
        )
    )
    if all(step.skipped for step in steps):
        raise FloatingPointError(
            f"no training step of {case.row} had a finite loss, so the optimizer's memory was not"
            " measured; give --weights"
        )
    return seen


class GpuShare:
    """Limits torch's allocator to the memory limit minus the CUDA context, and measures the process's peak;
    create it before anything else uses the GPU.

    If NVML does not report the process's memory (usual inside containers), the peak is torch's reserved peak
    plus the growth of the GPU's other used memory; without NVML, all used memory counts.
    """

    def __init__(self, limit_mib: float | None) -> None:
        import torch

        from detection_zoo.benchmarks.measure.telemetry import Gpu

        try:
            gpu: Gpu | None = Gpu()
        except RuntimeError:
            gpu = None
        self.gpu = gpu if gpu is not None and gpu.ask("MemoryInfo") is not None else None
        self.before = self._used_mib() if self.gpu else 0.0
        torch.zeros(1, device="cuda")  # creates the context
        total = torch.cuda.mem_get_info()[1] / 2**20
        if limit_mib is not None:
            left = limit_mib - self.beside_mib()
            if left <= 0:
                raise MemoryError(f"the CUDA context alone takes {self.beside_mib():.0f} MiB of GPU memory")
            torch.cuda.set_per_process_memory_fraction(min(1.0, left / total))

    def _used_mib(self) -> float:
        """GPU memory in use by any process."""
        import torch

        if self.gpu is not None:
            return self.gpu.ask("MemoryInfo").used / 2**20
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20

    def beside_mib(self) -> float:
        """Context and libraries: growth of used memory since the process started, minus torch's reserved
        memory."""
        import torch

        return max(0.0, self._used_mib() - self.before - torch.cuda.memory_reserved() / 2**20)

    def peak(self, peak: PeakMemory) -> tuple[float, str]:
        """The process's peak in MiB and how it was read."""
        if "process" in peak.mib:
            return peak.mib["process"], peak.how["process"]
        return (
            peak.mib["reserved"] + self.beside_mib(),
            (
                "peak GPU memory reserved by torch, plus context and libraries from the growth"
                " of used GPU memory"
            ),
        )
