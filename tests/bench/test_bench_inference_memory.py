"""Memory of inference: of every model, whether or not anybody knows its training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_models import ROW, FindsNothing, subject_of
from torch import Tensor, nn

from detection_zoo.benchmarks.measure.inference import measure_inference_memory, padded_shape
from detection_zoo.benchmarks.measure.memory import peak_memory
from detection_zoo.benchmarks.run.groups import measure
from detection_zoo.benchmarks.run.isolation import run_isolated
from detection_zoo.benchmarks.run.runner import Draft
from detection_zoo.benchmarks.run.subject import Sources, Subject
from detection_zoo.benchmarks.spec import METRIC_GROUPS, BenchmarkSpec
from detection_zoo.zoo.manifest_files import load_manifests

CLASSIFIER = "vovnet39_imagenet.vovnet"
SPEC = BenchmarkSpec(images=4, timed_images=4, groups=("memory", "epoch"))
MIB = 2**18  # float32 numbers
pytestmark = pytest.mark.usefixtures("drawn_shapes")


class Hungry(FindsNothing):
    """Finds nothing, and holds so much memory while it looks."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        self.mib, self.turns = mib, 0

    def raw(self, images: Tensor, sizes: Tensor) -> Tensor:
        self.turns += 1
        return torch.ones(self.mib * MIB)[: len(images)].clone()


class Seen(FindsNothing):
    """Finds nothing, and notes the shapes that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []

    def raw(self, images: Tensor, sizes: Tensor) -> Tensor:
        self.shapes.append((len(images), *images.shape[2:]))
        return torch.zeros(len(images))


def record_of(subject: Subject, spec: BenchmarkSpec, folder: Path) -> dict:
    draft = Draft(subject.entry.name, spec)
    subject.sources, subject.folder = Sources("shapes"), folder
    for found in measure(subject, spec):
        draft.add(found)
    return draft.fields


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark can be reset on Linux only")
def test_the_peak_holds_what_the_network_held_for_a_moment() -> None:
    peaks = {}
    for mib in (1, 1, 200):  # the first turn of all pays for what is loaded once
        found, absent = measure_inference_memory(subject_of(Hungry(mib), 4), SPEC)
        peaks[mib] = found["inference_memory_resident_mib"].value
    assert 150 <= peaks[200] - peaks[1] <= 260
    assert (
        "whole process" in found["inference_memory_resident_mib"].covers
        and "3 of the 4 timed batches" in found["inference_memory_resident_mib"].covers
    )
    assert {
        f"inference_memory_{name}_mib" for name in ("allocated", "reserved", "process", "context")
    } == set(absent)


def test_the_largest_padded_batch_is_among_those_whose_peak_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(Seen(), 6)
    sizes = [(100, 100)] * 5 + [(100, 140)]  # evenly spaced batches leave out the last
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    monkeypatch.setattr(subject.dataset, "load_image", lambda index: pixels[index])
    monkeypatch.setattr(subject.dataset, "image_size", lambda index: sizes[index])
    spec = SPEC.model_copy(update={"timed_images": 6})
    found, _ = measure_inference_memory(subject, spec)
    shapes = [padded_shape(subject, [index]) for index in range(6)]
    assert shapes[5][2] > shapes[0][2] and shapes[5] in subject.model.shapes[1:]
    assert set(subject.model.shapes) <= set(shapes)
    assert f"({' x '.join(map(str, shapes[5]))})" in found["inference_memory_resident_mib"].covers


def test_the_peak_since_the_start_outlives_the_reset_of_the_mark() -> None:
    outcome = run_isolated(hold_before_the_block, (), (seen := []).append)
    assert outcome.status == "finished", outcome.reason
    block, note = seen[0]
    since_start = float(note.split(" MiB")[0].rpartition(" ")[2])
    assert "the process's peak since its start" in note and since_start > block + 150


def hold_before_the_block(report: Callable[[object], None]) -> None:
    held = torch.ones(250 * MIB)
    del held
    with peak_memory(torch.device("cpu")) as peak:
        torch.ones(10)
    report((peak.mib["resident"], peak.measurement("resident", "nothing").note))


def test_a_few_spread_batches_are_enough() -> None:
    model = Hungry(1)
    found, _ = measure_inference_memory(subject_of(model), SPEC.model_copy(update={"timed_images": 6}))
    assert model.turns == 1 + 3 and found["inference_memory_resident_mib"].statistic == "peak"


def test_a_row_without_a_schedule_has_its_inference_memory_and_a_reason_for_training(tmp_path: Path) -> None:
    entry = load_manifests().entry(ROW).model_copy(update={"schedule": None})
    fields = record_of(subject_of(Hungry(1), entry=entry), SPEC, tmp_path)
    assert set(fields["measurements"]) == {"inference_memory_resident_mib"}
    assert all(
        "has no training schedule" in fields["absent"][name]
        for name in ("train_memory_allocated_mib", "train_memory_resident_mib", "epoch_time_s")
    )
    assert set(fields["telemetry"]) == {"memory", "training"}


def test_a_classifier_has_memory_among_its_usual_metrics(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "labels.csv").write_text("file,wnid,class_index,name\n0.png,n0,0,c")

    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(1, 2, 3))[:, None].expand(-1, 1000)

    entry = load_manifests().entry(CLASSIFIER)
    usual = BenchmarkSpec().for_task(entry.task)
    assert "memory" in usual.groups and set(usual.groups) <= set(METRIC_GROUPS)
    fields = record_of(
        subject_of(Flat(), entry=entry, data=f"imagenet:{tmp_path}"),
        usual.model_copy(update={"groups": ("memory",)}),
        tmp_path,
    )
    assert (
        set(fields["measurements"]) == {"inference_memory_resident_mib"}
        and "classifiers" in fields["absent"]["train_memory_resident_mib"]
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_context_is_told_apart() -> None:
    found, absent = measure_inference_memory(
        subject_of(Hungry(1), device="cuda"), SPEC.model_copy(update={"device": "cuda"})
    )
    mib = {name: one.value for name, one in found.items()}
    assert mib["inference_memory_allocated_mib"] <= mib["inference_memory_reserved_mib"]
    if "inference_memory_process_mib" in mib:
        assert 50 < mib["inference_memory_context_mib"] < mib["inference_memory_process_mib"]
    else:
        assert absent["inference_memory_process_mib"] == absent["inference_memory_context_mib"]
