"""Images a second of growing batches: of a model whose speed at every batch is known, and of real ones."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_up_models import ROW, FindsNothing, real_subject, subject_of
from records import measured
from torch import Tensor

from detection_zoo.benchmarks.measure.throughput import LARGEST, Ladder, measure_throughput, prepared_images
from detection_zoo.benchmarks.run.groups import measure
from detection_zoo.benchmarks.run.isolation import out_of_memory
from detection_zoo.benchmarks.run.runner import Draft
from detection_zoo.benchmarks.run.subject import Sources
from detection_zoo.benchmarks.spec import METRIC_GROUPS, BenchmarkSpec, metric

SPEC = BenchmarkSpec(groups=("throughput",), warm_up_budget_s=0.01, precision=0.9)
BEST = "throughput_images_per_s"
pytestmark = pytest.mark.usefixtures("drawn_shapes")


class Paced(FindsNothing):
    """A batch takes a time that depends on its size alone; beyond a size there is no memory for it."""

    def __init__(self, batch_s: Callable[[int], float] = lambda size: 0.0, most: int = 1000) -> None:
        super().__init__()
        self.batch_s, self.most, self.batches = batch_s, most, list[int]()

    def raw(self, images: Tensor, sizes: Tensor) -> Tensor:
        self.batches.append(len(images))
        if len(images) > self.most:
            torch.empty(2**60)  # what no machine has: the allocator's own error
        threading.Event().wait(self.batch_s(len(images)))
        return images


def far_faster(size: int) -> float:
    """Seconds of a batch: by far more images a second in a larger one, so that no noise of a machine hides
    it."""
    return 0.1 / size**2


def test_batches_double_until_there_are_no_more_images() -> None:
    model = Paced(far_faster)
    found = measure_throughput(subject_of(model), SPEC)  # 6 images: 4 of them for batches of 1, 2 and 4
    assert set(model.batches) == {1, 2, 4}
    assert set(found) == {BEST, *(f"throughput_batch_{size}_images_per_s" for size in (1, 2, 4))}
    for size in (1, 2, 4):
        one = found[f"throughput_batch_{size}_images_per_s"]
        assert max(one.samples) <= 1.02 * size / far_faster(size) and one.n == len(one.samples) >= 6, (
            "never more than its time allows"
        )
        assert one.unit == "images/s" and f"batch {size}:" in one.covers
    assert found[BEST].samples == found["throughput_batch_4_images_per_s"].samples
    assert (
        "there are 4 images" in found[BEST].note
        and "batch 4:" in found[BEST].covers
        and "best of batches 1: " in found[BEST].note
    )


def test_a_batch_that_is_no_faster_ends_the_ladder() -> None:
    model = Paced(lambda size: 0.02 * size**3)
    found = measure_throughput(subject_of(model), SPEC)
    assert (
        set(model.batches) == {1, 2}
        and "doubling the batch was not 3% faster" in found[BEST].note
        and "batch 1:" in found[BEST].covers
    )


def test_memory_that_runs_out_ends_the_ladder_and_is_no_failure() -> None:
    model = Paced(most=1)
    found = measure_throughput(subject_of(model), SPEC)
    assert (
        model.batches[-1] == 2
        and "a batch of 2 does not fit in memory" in found[BEST].note
        and "throughput_batch_1_images_per_s" in found
    )
    with pytest.raises(RuntimeError, match="allocate"):
        measure_throughput(subject_of(Paced(most=0)), SPEC)


def test_a_fault_of_the_model_is_not_taken_for_a_lack_of_memory() -> None:
    class Broken(Paced):
        def raw(self, images: Tensor, sizes: Tensor) -> Tensor:
            return super().raw(images, sizes) * math.nan if len(images) == 2 else super().raw(images, sizes)

    with pytest.raises(FloatingPointError, match="not finite"):
        measure_throughput(subject_of(Broken()), SPEC)
    assert (
        out_of_memory(MemoryError())
        and out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
        and not out_of_memory(RuntimeError("no"))
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),  # CuPy's CUDADriverError is one
        RuntimeError("cudaErrorMemoryAllocation: out of memory"),  # CuPy's CUDARuntimeError
    ],
    ids=["torch", "accelerator", "driver", "runtime"],
)
def test_a_gpu_without_memory_is_recognised(error: RuntimeError) -> None:
    assert out_of_memory(error)


def test_another_error_of_a_gpu_is_no_lack_of_memory() -> None:
    assert not out_of_memory(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize(
    ("rates", "images", "budget_s", "said"),
    [
        ({}, 1, 1e-9, ""),  # one image is always tried
        ({1: 10.0}, 8, 60.0, ""),
        ({1: 10.0, 2: 10.3}, 8, 60.0, ""),
        ({1: 10.0, 2: 10.2}, 8, 60.0, "not 3% faster"),
        ({1: 10.0, 2: 5.0}, 8, 60.0, "not 3% faster"),
        ({1: 10.0, 2: 9.0, 4: 10.1}, 8, 60.0, "not 3% faster"),  # than the best before
        ({1: 10.0, 2: 20.0}, 3, 60.0, "there are 3 images"),
        ({1: 10.0}, 8, 0.3, "longer than the time budget of 0.3 s"),
        ({1: 10.0}, 8, 0.5, ""),
    ],
)
def test_where_the_ladder_ends(rates: dict[int, float], images: int, budget_s: float, said: str) -> None:
    why = Ladder({size: measured(rate, "images/s") for size, rate in rates.items()}).why_no_more(
        2 * max(rates, default=0) or 1, images, budget_s
    )
    assert bool(why) == bool(said) and said in why


@pytest.mark.parametrize(("images", "expected"), [(None, 4), (3, 2), (1, 1)])
def test_every_batch_has_the_same_images(images: int | None, expected: int) -> None:
    assert len(prepared_images(subject_of(Paced(), images), SPEC)) == expected


def test_the_best_batch_may_be_an_earlier_one() -> None:
    ladder = Ladder(
        {size: measured(value, "images/s") for size, value in ((1, 10.0), (2, 12.0), (4, 11.0))}, "of this"
    )
    found = ladder.measurements()
    assert (
        ladder.best == 2
        and found[BEST].value == 12.0
        and "1: 10, 2: 12, 4: 11; stopped because of this" in found[BEST].note
    )


def test_every_batch_has_a_metric() -> None:
    size = 1
    while size <= LARGEST:
        one = metric(f"throughput_batch_{size}_images_per_s")
        assert (one.unit, one.better) == (metric(BEST).unit, metric(BEST).better) == ("images/s", "higher")
        size *= 2


def test_throughput_is_measured_when_asked_for_and_only_then(tmp_path: Path) -> None:
    assert "throughput" in METRIC_GROUPS and not any(
        "throughput" in BenchmarkSpec().for_task(task).groups for task in ("detection", "classification")
    )
    draft, quick = Draft(ROW, SPEC), SPEC.model_copy(update={"time_budget_s": 0.6})
    subject = real_subject()
    subject.sources, subject.folder = Sources("shapes"), tmp_path
    for found in measure(subject, quick):
        draft.add(found)
    assert set(draft.fields["measurements"]) >= {BEST, "throughput_batch_1_images_per_s"} and set(
        draft.fields["telemetry"]
    ) == {"throughput"}
