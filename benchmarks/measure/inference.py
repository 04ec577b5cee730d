"""Inference time by phase: decode, resize, copy, forward, post-processing, copy back; real images, the row's
own pre-processing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from detection_zoo.benchmarks.measure.finite import check_finite, watched
from detection_zoo.benchmarks.measure.memory import peak_memory
from detection_zoo.benchmarks.measure.timing import PhaseClock, Repetition, repeat, warm_up
from detection_zoo.benchmarks.run.progress import progress
from detection_zoo.benchmarks.run.subject import Subject, autocast
from detection_zoo.benchmarks.spec import BenchmarkSpec, Measurement
from detection_zoo.benchmarks.statistics import summarise
from detection_zoo.zoo.data.loading import pad_batch
from detection_zoo.zoo.data.transforms import Preprocess, PreprocessedImage

COVERS = {
    "decode": "reading and decoding the image file",
    "resize": "resizing, normalising and padding",
    "copy": "host to device",
    "forward": "the network up to raw outputs",
    "postprocess": (
        "selection, NMS, mask and keypoint heads on what was selected, masks pasted, boxes in original pixels"
    ),
    "result_copy": "device to host",
}
MODEL = ("forward", "postprocess")
MEMORY_TURNS = 3


@dataclass
class Turns:
    """One batch after another through every phase."""

    subject: Subject
    spec: BenchmarkSpec
    clock: PhaseClock

    def __call__(self, indices: list[int]) -> float:
        """Run a batch and return its model time an image, in milliseconds."""
        return self.network(*self.load(indices), len(indices))

    def load(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The phases up to the network: images (N, 3, H, W), sizes (N, 2) and original sizes (N, 2) on the
        device."""
        dataset, device, phase, count = (
            self.subject.dataset,
            self.subject.device,
            self.clock.phase,
            len(indices),
        )
        with phase("decode", count):
            pixels = [dataset.load_image(index) for index in indices]
        with phase("resize", count):
            items = [self.subject.preprocess(image) for image in pixels]
            images, sizes, original_sizes = collate(items, self.subject.preprocess)
        with phase("copy", count):
            return images.to(device), sizes.to(device), original_sizes.to(device)

    def network(
        self, images: torch.Tensor, sizes: torch.Tensor, original_sizes: torch.Tensor, count: int
    ) -> float:
        """The phases from the network on, of images (N, 3, H, W) with sizes (N, 2) on the device; returns the
        model time an image, in milliseconds."""
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
    """Images (N, 3, H, W) padded to the largest, sizes (N, 2) and original sizes (N, 2)."""
    images = pad_batch([item.tensor for item in items], preprocess.size_divisor)
    return (
        images,
        torch.tensor([item.size for item in items]),
        torch.tensor([item.original_size for item in items]),
    )


def to_host(found: Any) -> Any:
    """Class scores (N, K), or the detections of each image, on the CPU."""
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
    """Indices of the images that are timed: evenly spaced, whole batches only (one smaller batch where there
    are too few images)."""
    count = min(images, spec.timed_images)
    chosen = [place * images // count for place in range(count)]
    size = min(spec.batch_size, count)
    return [chosen[start : start + size] for start in range(0, count - size + 1, size)]


def measure_inference(
    subject: Subject, spec: BenchmarkSpec, heartbeat: Callable[[], None] = lambda: None
) -> dict[str, Measurement]:
    """Time every phase until the median model time is known well enough.

    Args:
        subject: model in any mode; left in evaluation mode.
        spec: batch size, images, budgets, precision.
        heartbeat: called after every batch.

    Returns:
        decode_ms, resize_ms, copy_ms, forward_ms, postprocess_ms, result_copy_ms, model_ms (forward +
        post-processing), end_to_end_ms: an image.
    """
    subject.model.eval()
    batches = timed_batches(len(subject.dataset), spec)
    warming = Turns(subject, spec, PhaseClock(subject.device))
    with progress(f"{subject.entry.name}: warm up", None) as tick:

        def warm_turn() -> float:
            heartbeat()
            tick()
            return warming(batches[0])

        with watched(subject.model):  # once, part by part: a NaN may be sorted out on its way to the outputs
            warming(batches[0])
        turns, warm = warm_up(warm_turn, spec.warm_up_budget_s)
    timed = Turns(subject, spec, PhaseClock(subject.device))
    with progress(f"{subject.entry.name}: time", len(batches)) as tick:

        def after() -> None:
            heartbeat()
            tick()

        work = [lambda batch=batch: timed(batch) and None for batch in batches]
        passes, precise = repeat(
            work,
            lambda: timed.clock.sums_ms(MODEL),
            precision=spec.precision,
            budget_s=spec.time_budget_s,
            tick=after,
        )
    how = Repetition(turns, warm, passes, precise).note(spec.precision, spec.time_budget_s)
    return _measurements(timed.clock, f"{how}; images {images_digest(subject, batches)}", spec)


def measure_inference_memory(
    subject: Subject, spec: BenchmarkSpec, heartbeat: Callable[[], None] = lambda: None
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Peak memory of inference over a few of the timed batches, evenly spaced, after a warm turn; nothing is
    timed.

    Args:
        subject: model in any mode; left in evaluation mode.
        spec: batch size, images, precision.
        heartbeat: called after every batch.

    Returns:
        inference_memory_*_mib; metrics without value, with the reason.
    """
    subject.model.eval()
    every = timed_batches(len(subject.dataset), spec)
    count = min(MEMORY_TURNS, len(every))
    turns = Turns(subject, spec, PhaseClock(subject.device))
    turns(every[0])
    with progress(f"{subject.entry.name}: memory", count) as tick, peak_memory(subject.device) as peak:
        for place in range(count):
            turns(every[place * len(every) // count])
            heartbeat()
            tick()
    what = (
        f"file to results on the host, {count} of the {len(every)} timed batches after a warm turn; batch"
        f" {spec.batch_size}, {spec.dtype}"
    )
    return peak.measurements("inference", what), peak.reasons("inference")


def images_digest(subject: Subject, batches: list[list[int]]) -> str:
    """A short name for the list of timed images."""
    ids = [str(subject.dataset.image_id(index)) for batch in batches for index in batch]
    return (
        f"{len(ids)} of {subject.dataset.name}, list"
        f" {hashlib.sha256(' '.join(ids).encode()).hexdigest()[:12]}"
    )


def _measurements(clock: PhaseClock, note: str, spec: BenchmarkSpec) -> dict[str, Measurement]:
    batch = f"batch {spec.batch_size}, an image"
    found = {
        f"{name}_ms": summarise(samples, "ms", covers=f"{COVERS[name]}; {batch}")
        for name, samples in clock.samples_ms.items()
    }
    model = summarise(clock.sums_ms(MODEL), "ms", covers=f"forward + post-processing; {batch}", note=note)
    found["model_ms"] = model.model_copy(update={"times_s": clock.starts_s})
    if clock.cpu_ms:
        covers = (
            "forward + post-processing, processor time of all threads: waiting for a processor that others"
            f" use is left out; {batch}"
        )
        found["model_cpu_ms"] = summarise(clock.sums_ms(MODEL, cpu=True), "ms", covers=covers)
    found["end_to_end_ms"] = summarise(
        clock.sums_ms(list(COVERS)),
        "ms",
        covers=f"file to results on the host, phases one after another; {batch}",
    )
    return found
