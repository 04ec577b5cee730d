"""The forward phase in parts, and numbers that are not finite: of models whose parts and faults are known."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from made_up_models import ROW, FindsNothing, real_subject, subject_of
from torch import Tensor, nn

from detection_zoo.benchmarks.measure.detection import detect_all
from detection_zoo.benchmarks.measure.finite import check_finite, watched
from detection_zoo.benchmarks.measure.inference import measure_inference
from detection_zoo.benchmarks.measure.parts import around_parts, parts_of
from detection_zoo.benchmarks.measure.phases import measure_phases
from detection_zoo.benchmarks.spec import BenchmarkSpec
from detection_zoo.zoo.build import assemble
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.manifest import Component
from detection_zoo.zoo.manifest_files import load_manifests

SPEC = BenchmarkSpec(images=2, timed_images=2, warm_up_budget_s=0.1, time_budget_s=0.1)
pytestmark = pytest.mark.usefixtures("drawn_shapes")
WAITS_S = {"backbone": 0.04, "neck": 0.01, "heads": 0.02, "forward_rest": 0.03}


class Waiting(nn.Module):
    """Waits, and adds a number."""

    def __init__(self, seconds: float, number: float = 0.0) -> None:
        super().__init__()
        self.seconds, self.number = seconds, number

    def forward(self, x: Tensor) -> Tensor:
        threading.Event().wait(self.seconds)
        return x + self.number


class Sleeper(FindsNothing):
    """Parts that take a known time; its head is a method, and calls another part."""

    parts = {"backbone": ("body",), "neck": ("block.neck",), "heads": ("head", "scale")}

    def __init__(self) -> None:
        super().__init__()
        self.body, self.block = Waiting(WAITS_S["backbone"]), nn.Module()
        self.block.neck, self.scale = Waiting(WAITS_S["neck"]), Waiting(WAITS_S["heads"] / 2)

    def head(self, x: Tensor) -> Tensor:
        threading.Event().wait(WAITS_S["heads"] / 2)
        return self.scale(x)

    def raw(self, images: Tensor, sizes: Tensor) -> Tensor:
        threading.Event().wait(WAITS_S["forward_rest"])
        return self.head(self.block.neck(self.body(images)))


def test_every_part_gets_its_own_time_and_the_rest_is_told() -> None:
    found, absent = measure_phases(subject_of(Sleeper(), 2), SPEC, 0.01)
    assert set(found) == {f"{name}_ms" for name in WAITS_S} and set(absent) == {"rpn_ms"}
    for name, wait_s in WAITS_S.items():
        one = found[f"{name}_ms"]
        assert min(one.samples) >= 1e3 * wait_s - 1, (
            f"{name} waits for {wait_s} s, once: a part inside a part counts with the outer one"
        )
        assert (
            "synchronised before and after each part" in one.covers
            and one.unit == "ms"
            and one.n == len(one.samples)
        )
    shares = [float(one.note.split("%")[0]) for one in found.values()]
    assert sum(shares) == pytest.approx(100, abs=0.3), "the parts and the rest are the whole"


def test_times_are_an_image_whatever_the_batch() -> None:
    found, _ = measure_phases(subject_of(Sleeper(), 2), SPEC.model_copy(update={"batch_size": 2}), 0.01)
    assert min(found["backbone_ms"].samples) >= 19 and "batch 2" in found["backbone_ms"].covers


def test_a_model_that_names_no_parts_says_so() -> None:
    model = Sleeper()
    model.parts = {}
    found, absent = measure_phases(subject_of(model, 2), SPEC, 0.01)
    assert not found and set(absent) == {"backbone_ms", "neck_ms", "rpn_ms", "heads_ms"}


def test_parts_are_as_they_were_afterwards() -> None:
    model, calls = Sleeper(), []
    model.body.forward = own = lambda x: x  # one that somebody has replaced before
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    with (
        pytest.raises(KeyError),
        around_parts(model, model.parts, lambda name, call: lambda *a: (calls.append(name), call(*a))[1]),
    ):
        model.raw(torch.zeros(1, 3, 8, 8), torch.tensor([[8, 8]]))
        raise KeyError
    assert calls == ["backbone", "neck", "heads", "heads"]
    assert (
        before == {name: set(vars(module)) for name, module in model.named_modules()}
        and model.body.forward is own
    )


FAMILIES = {  # a small row of each family -> the parts it must have
    ROW: {"backbone", "neck", "rpn", "heads"},
    "faster_rcnn_resnet50_fpn_slim.torchvision": {"backbone", "neck", "rpn", "heads"},
}


@pytest.mark.parametrize("row", FAMILIES)
def test_parts_of_real_models_claim_most_of_the_forward_phase(row: str) -> None:
    found, absent = measure_phases(real_subject(row), SPEC, 0.01)
    assert {name.removesuffix("_ms") for name in found} == FAMILIES[row] | {"forward_rest"} and not absent
    claimed = sum(sum(one.samples) for name, one in found.items() if name != "forward_rest_ms")
    assert all(min(one.samples) > 0 for one in found.values()) and claimed > sum(
        found["forward_rest_ms"].samples
    )


def one_row_of_each_family() -> dict[str, str]:
    """Detector's name -> a row, torchvision's each, and a classifier."""
    rows = {
        entry.detector.name if entry.detector else "classifier": name
        for name, entry in load_manifests().entries.items()
        if entry.conventions is not None and not entry.published_only
    }
    return {
        family: row for family, row in rows.items() if not family.startswith("detectron2.")
    }  # they need a package that is no dependency


@pytest.mark.parametrize("family", one_row_of_each_family())
def test_every_family_names_its_parts(family: str) -> None:
    with torch.device("meta"):
        model = assemble(load_manifests().entry(one_row_of_each_family()[family]))
    parts = parts_of(model)
    assert {"backbone"} <= set(parts) <= {"backbone", "neck", "rpn", "heads"}
    with around_parts(model, parts, lambda name, call: call):  # raises where a name leads nowhere
        assert isinstance(model, (Detector, Classifier))


def small_models() -> dict[str, Callable[[], nn.Module]]:
    """One of each family that names parts of its own, as small as they come."""

    def joint() -> Detector:
        row = load_manifests().entry("faster_rcnn_resnet101_fpn_voc07.detnet")
        small = {
            "rpn": row.conventions.rpn.model_copy(update={"channels": 16}),
            "proposals": row.conventions.proposals.model_copy(update={"post_nms": 20}),
            "pooling": row.conventions.pooling.model_copy(update={"size": 3}),
        }
        conventions = row.conventions.model_copy(update=small)
        slim = {"backbone": Component(name="resnet14_slim"), "conventions": conventions}
        return assemble(row.model_copy(update=slim))

    rows = (
        "ssdlite_mobilenetv2_300.registry",
        "retinanet_resnet50_fpn_1x.detectron",
        "rpn_resnet50_fpn_1x.detectron",
        "ssdlite320_mobilenet_v3_large_coco_v1.torchvision",
        "resnet18_imagenet.registry",
    )
    return {"joint": joint, **{row: lambda row=row: assemble(load_manifests().entry(row)) for row in rows}}


@pytest.mark.parametrize("name", small_models())
def test_the_forward_phase_calls_every_part_that_is_named(name: str) -> None:
    model, called = small_models()[name]().eval(), set()
    side = 300 if name.startswith("ssdlite_") else 64
    images, sizes = torch.rand(1, 3, side, side), torch.tensor([[side, side]])
    places = {place: (place,) for several in model.parts.values() for place in several}  # each by itself
    with (
        torch.inference_mode(),
        around_parts(model, places, lambda place, call: lambda *a: (called.add(place), call(*a))[1]),
    ):
        model.raw(images, sizes) if isinstance(model, Detector) else model(images)
    assert called == set(places)


@dataclass
class Raw:
    boxes: Tensor
    scores: Tensor


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_found_wherever_they_stand(bad: float) -> None:
    good, broken = torch.zeros(2, 3), torch.tensor([[0.0, bad]])
    check_finite(
        {
            "a": [good, (good, None, "text")],
            "raw": Raw(good, torch.zeros(0, 4)),
            "labels": torch.zeros(1, dtype=torch.int64),
        },
        "it",
    )
    for value in (
        broken,
        [good, broken],
        {"a": {"b": broken}},
        Raw(good, broken),
        Raw(broken, good),
        broken.half(),
        broken.bfloat16(),
    ):
        with pytest.raises(FloatingPointError, match="it outputs numbers that are not finite"):
            check_finite(value, "it")
    check_finite(Raw(broken, good), "it", boxes=False)


@pytest.mark.parametrize("part", ["backbone", "rpn.head.deltas", "box"])
def test_a_nan_in_any_part_ends_timing_and_accuracy(part: str) -> None:
    subject = real_subject()
    with torch.no_grad():
        next(subject.model.get_submodule(part).parameters()).view(-1)[0] = math.nan
    for measure in (lambda: measure_inference(subject, SPEC), lambda: list(detect_all(subject, SPEC))):
        with pytest.raises(
            FloatingPointError,
            match=rf"the model \({part.split('.')[0].replace('box', 'heads')}\).* not finite",
        ):
            measure()


def test_a_nan_that_comes_later_ends_the_timing_too() -> None:
    class Late(Sleeper):
        turns = 0

        def raw(self, images: Tensor, sizes: Tensor) -> Tensor:
            self.turns += 1
            return images / 0 if self.turns == 4 else images

    model = Late()
    with pytest.raises(FloatingPointError, match="the network outputs numbers that are not finite"):
        measure_inference(
            subject_of(model, 2), SPEC.model_copy(update={"time_budget_s": 60.0, "warm_up_budget_s": 1e-9})
        )
    assert model.turns == 4, "one that is watched, one to warm up, and then two that are timed"


def test_a_healthy_model_is_watched_without_a_word() -> None:
    subject = real_subject()
    with watched(subject.model):
        pass
    assert len(list(detect_all(subject, SPEC))) == 2 and "raw" not in vars(subject.model)
