"""The code that measures, on a simulated GPU: each measurement runs, in float32 and in half types, and
`detect_all` finds what it finds on a CPU.

What is simulated holds CPU memory, so times and bytes mean nothing here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_capture import TapeCapture
from simulated_gpu import Log, simulated_gpu
from slim_families import ROWS, row_of
from torch import Tensor

from detection_zoo.benchmarks import environment
from detection_zoo.benchmarks.measure.detection import detect_all
from detection_zoo.benchmarks.measure.inference import measure_inference, measure_inference_memory
from detection_zoo.benchmarks.measure.phases import measure_phases
from detection_zoo.benchmarks.measure.throughput import measure_throughput
from detection_zoo.benchmarks.measure.training import measure_training
from detection_zoo.benchmarks.run.runner import run_row
from detection_zoo.benchmarks.run.subject import (
    Sources,
    Subject,
    identify_weights,
    open_data,
    prepare,
    take_path,
)
from detection_zoo.benchmarks.spec import BenchmarkSpec, Run
from detection_zoo.zoo import cuda_capture, fast
from detection_zoo.zoo.detectors.faster_rcnn import FasterRcnn
from detection_zoo.zoo.fast import TOLERANCES, found_again
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.records import Detections

IMAGES = 2


class Event:
    """In place of torch.cuda.Event: the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at_s = 0.0

    def record(self) -> None:
        """Note the time."""
        self.at_s = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from here to the end."""
        return (end.at_s - self.at_s) * 1e3


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """A simulated GPU, whose clock is the host's, whose allocator counts nothing and whose autocast is the
    CPU's; inference mode is `no_grad`, since wrapped parameters have no version in it."""
    none = lambda *_: 0  # noqa: E731
    names = ("reset_peak_memory_stats", "max_memory_allocated", "max_memory_reserved", "memory_reserved")
    for name in (*names, "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, none)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    health = "_accelerator_graph_capture_health_check"  # asks the driver for the current stream
    monkeypatch.setattr(torch.optim.Optimizer, health, lambda optimizer: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda one, *_: one)
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, *given, **more: autocast("cpu", *given, **more))
    mode = lambda wanted=True: torch.no_grad() if wanted else nullcontext()  # noqa: E731
    monkeypatch.setattr(torch, "inference_mode", mode)
    for family, row in ROWS.items():
        monkeypatch.setitem(load_manifests().entries, row, row_of(family))
    for name in ("map_error", "compare_detections"):
        monkeypatch.setattr(fast, name, torch.no_grad()(getattr(fast, name).__wrapped__))
    with simulated_gpu() as log:
        yield log


def specification(dtype: str, device: str) -> BenchmarkSpec:
    return BenchmarkSpec(
        device=device,
        dtype=dtype,
        images=IMAGES,
        timed_images=IMAGES,
        warm_up_budget_s=0.05,
        time_budget_s=0.05,
        processes=3,  # a process makes 2 passes then, 12 where it is alone
        train_steps=2,
        train_warm_up_steps=1,
        train_images_per_step=2,
        workers=0,
    )


def subject_on(spec: BenchmarkSpec, family: str = "faster_rcnn") -> Subject:
    entry = row_of(family)
    return prepare(entry, spec, open_data(entry, "shapes", IMAGES), "published")


def values(found: Any) -> dict[str, float]:
    """The numbers of what a measuring function returns."""
    measured = found[0] if isinstance(found, tuple) else found
    return {name: one.value for name, one in measured.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_measurement(gpu: Log, dtype: str) -> None:
    """Times and peaks by their names, the GPU's and not the CPU's; kernels of the project ran."""
    spec = specification(dtype, "cuda")
    subject = subject_on(spec)
    assert next(subject.model.parameters()).is_cuda
    times = values(measure_inference(subject, spec))
    assert {"model_ms", "model_event_ms", "end_to_end_ms"} <= times.keys() and "model_cpu_ms" not in times
    assert any(name.startswith("roi_align") for name in gpu.kernels), "no kernel ran"
    peaks = values(measure_inference_memory(subject, spec))
    assert {"inference_memory_allocated_mib", "inference_memory_reserved_mib"} <= peaks.keys()
    assert {"backbone_ms", "rpn_ms", "heads_ms"} <= values(measure_phases(subject, spec, 0.05)).keys()
    assert "throughput_batch_1_images_per_s" in values(measure_throughput(subject, spec))
    trained = values(measure_training(subject, subject.dataset, "shapes", spec))
    assert {"train_step_ms", "epoch_time_s", "train_memory_allocated_mib"} <= trained.keys()


@cache
def detections_on_cpu(family: str) -> list[Detections]:
    """What `detect_all` gives for a family in float32."""
    plain = specification("float32", "cpu")
    return [one for _, one in detect_all(subject_on(plain, family), plain)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ROWS)
def test_detections_of_a_data_set(gpu: Log, family: str, dtype: str) -> None:
    """`detect_all` gives every image's detections on the host: in float32 the CPU's, in half types as many of
    them again as is asked of a fast model."""
    spec, expected = specification(dtype, "cuda"), detections_on_cpu(family)
    found = [one for _, one in detect_all(subject_on(spec, family), spec)]
    assert len(found) == len(expected) == IMAGES
    bound = TOLERANCES[getattr(torch, dtype)]
    again = torch.cat([found_again(*pair, bound) for pair in zip(expected, found, strict=True)])
    assert len(again) and again.float().mean() >= bound.share
    for one, other in zip(found, expected, strict=True):
        assert type(one.boxes) is Tensor and one.scores.dtype == torch.float32
        if dtype == "float32":
            assert torch.equal(one.labels, other.labels)
            torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
def test_the_fast_path_replays_and_its_record_says_so(
    gpu: Log, family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """AP and times of recorded work: AP is that of the eager path; the notes say what was compared, recorded
    and replayed."""
    monkeypatch.setattr(cuda_capture, "CudaCapture", TapeCapture)
    collect = environment.collect_environment
    monkeypatch.setattr(environment, "collect_environment", lambda device: collect("cpu"))
    found: dict[str, Run] = {}
    entry = load_manifests().entry(ROWS[family])
    for path in ("eager", "fast"):
        spec = specification("float32", "cuda").model_copy(
            update={"path": path, "groups": ("inference", "ap")}
        )
        given = Sources("shapes", "published"), identify_weights(entry, "published")
        found[path] = run_row(ROWS[family], spec, *given, tmp_path, isolate=False)
        assert found[path].status == "finished", found[path].traceback
    assert not found["eager"].notes
    compared, recorded = found["fast"].notes
    assert compared.startswith("fast path: 2 images compared with eager: maps differ by")
    assert re.match(r"CUDA graphs: \d captured of network and choice .* replayed one, 0 evicted", recorded)
    ap = [run.measurements["box_ap"].value for run in found.values()]
    assert ap[0] == pytest.approx(ap[1], abs=0.01) and ap[0] > 10
    assert "model_event_ms" in found["fast"].measurements


def test_a_rule_that_needs_any_size_is_not_recorded(gpu: Log) -> None:
    """Soft-NMS: the fast path runs without graphs, and the notes say why."""
    spec = specification("float32", "cuda").model_copy(update={"path": "fast", "soft_nms": "linear"})
    subject = subject_on(spec)
    notes = take_path(subject, spec)
    assert notes[1:] == ["no CUDA graphs: soft-NMS works on the candidates that there are"]
    assert list(detect_all(subject, spec)) and isinstance(subject.model, FasterRcnn)
