"""Named timing protocols: what stands inside the clock, which statistic, and that no table mixes two of
them."""

from __future__ import annotations

import pytest
import torch

from detection_zoo.benchmarks.measure.protocols import measure_protocol
from detection_zoo.benchmarks.report.tables import tables_of
from detection_zoo.benchmarks.run.subject import Subject
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.zoo.data.datasets import open_dataset
from detection_zoo.zoo.data.transforms import Preprocess
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.errors import UnknownName
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.records import Detections, Target


class Counting(Detector):
    """Finds nothing, and keeps the shapes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.shapes: list[tuple[int, ...]] = []

    def losses(
        self, images: torch.Tensor, sizes: torch.Tensor, targets: list[Target]
    ) -> dict[str, torch.Tensor]:
        return {"loss": self.weight.sum()}

    def raw(self, images: torch.Tensor, sizes: torch.Tensor) -> int:
        self.shapes.append(tuple(images.shape))
        return len(images)

    def postprocess(
        self, raw: int, sizes: torch.Tensor, original_sizes: torch.Tensor | None = None
    ) -> list[Detections]:
        return [
            Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
            for _ in range(raw)
        ]


@pytest.fixture
def subject(drawn_shapes: None) -> Subject:
    entry = next(entry for entry in load_manifests().entries.values() if entry.source == "demo")
    return Subject(
        entry,
        Counting(),
        Preprocess.from_conventions(entry.conventions.image),
        torch.device("cpu"),
        open_dataset("shapes", images=4),
    )


def test_random_inputs_have_the_size_and_the_number_that_the_source_names(subject: Subject) -> None:
    found = measure_protocol(subject, BenchmarkSpec(protocol="hardnet_jetson"))["model_ms"]
    assert subject.model.shapes == [(1, 3, 320, 320)] * 500  # the README: 500 random images of 320 x 320
    assert (
        found.n == 500
        and found.statistic == "mean"
        and found.value == pytest.approx(sum(found.samples) / 500)
    )
    assert found.interval is None and "320 x 320" in found.covers


@pytest.mark.parametrize(("protocol", "wanted"), [("hardnet_ssd", True), ("maskrcnn_benchmark", False)])
def test_cudnn_times_its_kernels_where_the_source_lets_it(
    subject: Subject, protocol: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, raw = [], subject.model.raw

    def watched(images: torch.Tensor, sizes: torch.Tensor) -> int:
        seen.append(torch.backends.cudnn.benchmark)
        return raw(images, sizes)

    monkeypatch.setattr(subject.model, "raw", watched)
    before = torch.backends.cudnn.benchmark
    found = measure_protocol(subject, BenchmarkSpec(protocol=protocol, timed_images=2))["model_ms"]
    assert set(seen) == {wanted} and torch.backends.cudnn.benchmark == before
    assert ("cudnn.benchmark" in found.note) is wanted


def test_the_first_image_does_not_count_where_the_source_discounts_it(subject: Subject) -> None:
    found = measure_protocol(subject, BenchmarkSpec(protocol="hardnet_ssd", timed_images=4))["model_ms"]
    assert len(subject.model.shapes) == 4 and found.n == 3


def test_the_last_image_is_the_number_where_the_source_prints_that(subject: Subject) -> None:
    found = measure_protocol(subject, BenchmarkSpec(protocol="detnet", timed_images=3))["model_ms"]
    assert found.statistic == "last" and found.value == found.samples[-1]


def test_unknown_protocols_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'hardnet'"):
        load_manifests().protocol("hardnut")
    with pytest.raises(UnknownName, match="unknown timing protocol 'hardnut'"):
        tables_of("hardnet", tmp_path, "hardnut")


def test_random_inputs_name_their_size() -> None:
    for name, protocol in load_manifests().protocols.items():
        assert (protocol.input == "random") == all((protocol.height, protocol.width, protocol.turns)), name
