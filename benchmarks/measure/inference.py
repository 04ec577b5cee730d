"""Inference time by phase: decode, resize, copy, forward, post-processing, copy back; with real images and
the row's pre-processing."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from detection_zoo.benchmarks.measure.finite import check_finite, watched
from detection_zoo.benchmarks.measure.memory import peak_memory
from detection_zoo.benchmarks.measure.timing import PhaseClock, time_passes, warm_up
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.subject import Subject, autocast
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement
from detection_zoo.benchmarks.statistics import timed_measurement
from detection_zoo.zoo.data.loading import pad_batch
from detection_zoo.zoo.data.transforms import Preprocess, PreprocessedImage

COVERS = {
    "decode": "reading and decoding the image file",
    "resize": "resizing, normalising and padding",
    "copy": "host to device",
    "forward": "network up to the raw outputs",
    "postprocess": (
        "score filtering, NMS, mask and keypoint heads on the kept boxes, mask pasting,"
        " boxes to original pixels"
    ),
    "result_copy": "device to host",
}
MODEL = ("forward", "postprocess")
MEMORY_TURNS = 3
LEAST_S = 10.0  # minimum timing, seconds, over all processes


@dataclass
class Turns:
    """Runs batches through every phase."""

    subject: Subject
    spec: BenchmarkSpec
    clock: PhaseClock

    def __call__(self, indices: list[int]) -> float:
        """Run a batch; return its model time per image in milliseconds."""
        return self.network(*self.load(indices), len(indices))

    def load(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the phases before the network; return images (N, 3, H, W), sizes (N, 2) and original sizes (N,
        2) on the device."""
        dataset, device = self.subject.dataset, self.subject.device
        phase, count = self.clock.phase, len(indices)
        with phase("decode", count):
            pixels = [dataset.load_image(index) for index in indices]
        with phase("resize", count):
            items = [self.subject.preprocess(image) for image in pixels]
            images, sizes, original_sizes = collate(items, self.subject.preprocess)
        with phase("copy", count):
            return images.to(device), sizes, original_sizes

    def network(
        self, images: torch.Tensor, sizes: torch.Tensor, original_sizes: torch.Tensor, count: int
    ) -> float:
        """Run the network and later phases on images (N, 3, H, W) on the device with sizes (N, 2) on the
        host; return the model time per image in milliseconds."""
        phase = self.clock.phase
        with torch.inference_mode(), autocast(self.spec):
            with phase("forward", count):
                raw = self.subject.forward(images, sizes)
            with phase("postprocess", count):
                found = (
                    raw.float().softmax(dim=1)
                    if self.subject.is_classifier
                    else self.subject.model.postprocess(raw, sizes, original_sizes)
                )
        with phase("result_copy", count):
            host = to_host(found)
        check_finite(raw, "the network", boxes=False)
        check_finite(host, "the model")
        return self.clock.sums_ms(MODEL)[-1]


def collate(
    items: Sequence[PreprocessedImage], preprocess: Preprocess
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images (N, 3, H, W) padded to the largest, sizes (N, 2) and original sizes (N, 2)."""
    images = pad_batch([item.tensor for item in items], preprocess.size_divisor)
    return (
        images,
        torch.tensor([item.size for item in items]),
        torch.tensor([item.original_size for item in items]),
    )


def to_host(found: Any) -> Any:
    """Return class scores (N, K), or the detections of each image, on the CPU."""
    if isinstance(found, torch.Tensor):
        return found.cpu()
    return [
        type(one)(
            **{
                name: value.cpu() if isinstance(value, torch.Tensor) else value
                for name, value in vars(one).items()
            }
        )
        for one in found
    ]


def timed_batches(images: int, spec: BenchmarkSpec) -> list[list[int]]:
    """Return the indices of the timed images: evenly spaced, full batches only (one smaller batch if there
    are too few images)."""
    count = min(images, spec.timed_images)
    chosen = [place * images // count for place in range(count)]
    size = min(spec.batch_size, count)
    return [chosen[start : start + size] for start in range(0, count - size + 1, size)]


def measure_inference(
    subject: Subject, spec: BenchmarkSpec, batches: list[list[int]] | None = None
) -> dict[str, Measurement]:
    """Time every phase in complete passes over the images, within one process's share of the budget.

    Args:
        subject: model in any mode; left in evaluation mode.
        spec: batch size, images, budgets, precision, processes.
        batches: indices of the images; None: as many as allow enough passes within the budget.

    Returns:
        decode_ms, resize_ms, copy_ms, forward_ms, postprocess_ms, result_copy_ms, model_ms (forward +
        post-processing), end_to_end_ms; all per image.
    """
    subject.model.eval()
    every = batches or timed_batches(len(subject.dataset), spec)
    share_s = spec.time_budget_s / spec.processes
    warming = Turns(subject, spec, PhaseClock(subject.device))
    with watched(subject.model):  # once per part: a NaN may be filtered out before the outputs
        warming(every[0])
    now = time.process_time if subject.device.type == "cpu" else time.perf_counter
    start = now()  # CPU time: the choice of timed images must not depend on other load
    warming(every[0])
    batch_s = now() - start
    chosen = batches or batches_that_fit(every, batch_s, share_s / spec.least_passes)
    subject.timed = chosen

    def after(found_ms: float) -> float:
        tick()
        return found_ms

    def work(turns: Turns) -> list[Callable[[], float]]:
        return [lambda batch=batch: after(turns(batch)) for batch in chosen]

    with progress(f"{subject.entry.name}: warming up", None) as tick:
        warmed = warm_up(work(warming), spec.warm_up_budget_s)
    timed = Turns(subject, spec, PhaseClock(subject.device))
    with progress(f"{subject.entry.name}: timing", None) as tick:
        passes, _ = time_passes(
            work(timed),
            least_passes=spec.least_passes,
            least_s=LEAST_S / spec.processes,
            precision=spec.precision,
            budget_s=share_s,
        )
    note = f"{warmed}; {images_digest(subject, chosen)}"
    return _measurements(timed.clock, len(passes), warmed.warm, note, spec)


def batches_that_fit(batches: list[Any], batch_s: float, pass_s: float) -> list[Any]:
    """Return evenly spaced batches, at least one, such that a pass takes at most `pass_s`
    seconds. `batch_s`: seconds per batch."""
    count = min(len(batches), max(1, int(pass_s / max(batch_s, 1e-9))))
    return [batches[place * len(batches) // count] for place in range(count)]


def measure_inference_memory(
    subject: Subject, spec: BenchmarkSpec
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Measure peak inference memory on a few of the timed batches (the largest after padding, and evenly
    spaced ones) after one warm-up iteration, without timing.

    Args:
        subject: model in any mode; left in evaluation mode.
        spec: batch size, images, precision.

    Returns:
        inference_memory_*_mib; metrics without a value, with the reason.
    """
    subject.model.eval()
    every = timed_batches(len(subject.dataset), spec)
    count = min(MEMORY_TURNS, len(every))
    turns = Turns(subject, spec, PhaseClock(subject.device))
    turns(every[0])
    shapes = [padded_shape(subject, batch) for batch in every]
    largest = max(range(len(every)), key=lambda place: math.prod(shapes[place]))
    spread = [place * len(every) // count for place in range(count)]
    chosen = [largest, *(place for place in spread if place != largest)][:count]
    with progress(f"{subject.entry.name}: memory", count) as tick, peak_memory(subject.device) as peak:
        for place in chosen:
            turns(every[place])
            tick()
    shape = " x ".join(map(str, shapes[largest]))
    what = (
        f"file to results on the host, {count} of the {len(every)} timed batches, including the largest"
        f" after padding ({shape}), after one warm-up iteration; batch {spec.batch_size}, {spec.dtype}"
    )
    return peak.measurements("inference", what), peak.reasons("inference")


def padded_shape(subject: Subject, batch: Sequence[int]) -> tuple[int, int, int]:
    """Return the number of images, height and width in pixels of a padded batch, from the image sizes
    only."""
    plans = [subject.preprocess.resize.plan(*subject.dataset.image_size(index)) for index in batch]
    sizes = [plan.crop[2:] if plan.crop else (plan.height, plan.width) for plan in plans]
    step = subject.preprocess.size_divisor
    height, width = (-(-max(size[axis] for size in sizes) // step) * step for axis in (0, 1))
    return len(batch), height, width


def images_digest(subject: Subject, batches: list[list[int]]) -> str:
    """Return a short identifier of the list of timed images."""
    ids = [str(subject.dataset.image_id(index)) for batch in batches for index in batch]
    return (
        f"{len(ids)} of {subject.dataset.name}, list"
        f" {hashlib.sha256(' '.join(ids).encode()).hexdigest()[:12]}"
    )


def _measurements(
    clock: PhaseClock, passes: int, warm: bool, note: str, spec: BenchmarkSpec
) -> dict[str, Measurement]:
    batch = f"batch {spec.batch_size}, per image"

    def found(samples: list[float], covers: str, note: str = "") -> Measurement:
        return timed_measurement([samples], [passes], f"{covers}; {batch}", note, warm)

    values = {
        f"{name}_ms": found(samples, COVERS[name]).model_copy(update={"drift": None, "steady": None})
        for name, samples in clock.samples_ms.items()
    }
    model = found(clock.sums_ms(MODEL), "forward + post-processing", note)
    values["model_ms"] = model.model_copy(update={"times_s": clock.starts_s})
    if clock.cpu_ms:
        covers = (
            "forward + post-processing, CPU time of all threads: excludes waiting for a core"
            " that other processes use"
        )
        values["model_cpu_ms"] = found(clock.sums_ms(MODEL, "cpu"), covers)
    if clock.event_ms:
        covers = "forward + post-processing, device time by CUDA events"
        values["model_event_ms"] = found(clock.sums_ms(MODEL, "event"), covers)
    values["end_to_end_ms"] = found(
        clock.sums_ms(list(COVERS)), "from the image file to results on the host, phases run sequentially"
    )
    return values
