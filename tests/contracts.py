"""What every backbone and every detector must do, as functions that tests apply to whatever is registered."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch.overrides import TorchFunctionMode

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.build import RANDOM_FILLS, shapes_only
from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.records import Detections, FeatureSpec, Target
from detection_zoo.zoo.registry import BACKBONES

Rules = TypeVar("Rules")
_BACKBONES: dict[str, Backbone] = {}


class QuickFills(TorchFunctionMode):
    """Weights that are drawn at random inside this block are the same numbers again and again, divided by
    the root of a weight's inputs: drawing those of large backbones takes most of their tests' time."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = torch.randn(1 << 16, generator=torch.Generator().manual_seed(2))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in RANDOM_FILLS:
            return func(*args, **kwargs)
        tensor = args[0] if args else kwargs["tensor"]
        scaled = self.drawn * (len(tensor) / tensor.numel()) ** 0.5
        with torch.no_grad():
            for part in tensor.view(-1).split(len(scaled)):
                part.copy_(scaled[: len(part)])
        return tensor


@contextmanager
def shared_backbones() -> Iterator[None]:
    """Modules built inside this block are on the meta device, and a registered backbone is built once for
    each set of arguments: hundreds of detectors have the same few."""
    builders = BACKBONES._builders
    originals = dict(builders)
    builders.update({name: _built_once(name, builder) for name, builder in originals.items()})
    try:
        with shapes_only():
            yield
    finally:
        builders.update(originals)


def _built_once(name: str, builder: Callable[..., Backbone]) -> Callable[..., Backbone]:
    @functools.wraps(builder)
    def build(**arguments: object) -> Backbone:
        key = f"{name} {sorted(arguments.items())}"
        if key not in _BACKBONES:
            _BACKBONES[key] = builder(**arguments)
        return _BACKBONES[key]

    return build


def need_package(row: str) -> None:
    """Skip a test that builds a row of Detectron2 where that is not installed: it is in no package registry,
    and its rows run through its own code."""
    if row.endswith(".detectron2"):
        pytest.importorskip(
            "detectron2", reason="Detectron2 is not installed; its rows run through its own code"
        )


def changed(rules: Rules, **sections: dict[str, object]) -> Rules:
    """A detector's rules with some fields of their sections changed."""
    new = {name: getattr(rules, name).model_copy(update=values) for name, values in sections.items()}
    return dataclasses.replace(rules, **new)


def check_backbone(backbone: Backbone, side: int = 64, device: str = "meta") -> None:
    """Maps come by name, in the order and with the channels and strides that `specs` says; strides do not
    fall."""
    check_maps(backbone(torch.zeros(2, 3, side, side, device=device)), backbone.specs, side)


def check_maps(maps: dict[str, torch.Tensor], specs: dict[str, FeatureSpec], side: int) -> None:
    """The maps of two images are as `specs` of their backbone says."""
    assert list(maps) == list(specs), f"{list(maps)} are not the names of specs, {list(specs)}"
    strides = [spec.stride for spec in specs.values()]
    assert strides == sorted(strides)
    for name, spec in specs.items():
        images, channels, height, width = maps[name].shape
        assert (images, channels) == (2, spec.channels), name
        assert abs(height - side / spec.stride) <= 1 and abs(width - side / spec.stride) <= 1, (
            f"{name}: {height} x {width} for stride {spec.stride}"
        )


def images_and_targets(
    sizes: list[tuple[int, int]], *, polygons: bool, keypoints: bool, classes: int, divisor: int = 32
) -> tuple[torch.Tensor, torch.Tensor, list[Target]]:
    """A padded batch, true sizes, and two objects an image, with polygons and keypoints where wanted."""
    generator = torch.Generator().manual_seed(4)
    height, width = (-(-max(size[axis] for size in sizes) // divisor) * divisor for axis in (0, 1))
    images = torch.zeros(len(sizes), 3, height, width)
    targets = []
    for i, (h, w) in enumerate(sizes):
        images[i, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        boxes = torch.tensor([[4.0, 6.0, w * 0.6, h * 0.7], [w * 0.3, h * 0.2, w - 4.0, h - 3.0]])
        corners = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()]
        places = boxes[:, None, :2] + (boxes[:, None, 2:] - boxes[:, None, :2]) * torch.rand(
            2, 17, 2, generator=generator
        )
        points = torch.cat([places, torch.full((2, 17, 1), 2.0)], dim=2)
        labels, crowd = torch.tensor([0, classes - 1]), torch.zeros(2, dtype=torch.bool)
        targets.append(
            Target(boxes, labels, corners if polygons else None, points if keypoints else None, crowd)
        )
    return images, torch.tensor(sizes), targets


def check_detections(
    found: list[Detections], sizes: list[tuple[int, int]], classes: int, *, offset: float = 0.0
) -> None:
    """One entry an image; rows go together; boxes lie in the image, and no side is negative; labels are
    0..K-1. offset: added to x2 - x1 for a width."""
    assert len(found) == len(sizes)
    for each, (height, width) in zip(found, sizes, strict=True):
        rows = len(each.scores)
        assert (
            each.boxes.shape == (rows, 4)
            and each.labels.shape == (rows,)
            and each.labels.dtype == torch.int64
        )
        assert ((each.scores >= 0) & (each.scores <= 1)).all() and (
            (each.labels >= 0) & (each.labels < classes)
        ).all()
        assert torch.isfinite(each.boxes).all() and (each.boxes >= -1.01).all()
        assert (each.boxes[:, 0::2] <= width + 0.01).all() and (each.boxes[:, 1::2] <= height + 0.01).all()
        sides = each.boxes[:, 2:] - each.boxes[:, :2] + offset
        assert (sides >= -0.01).all(), f"a box has a negative side: {each.boxes[(sides < 0).any(dim=1)][0]}"
        for name in ("masks", "keypoints"):
            if (value := getattr(each, name)) is not None:
                assert len(value) == rows, name


def check_detector(
    model: Detector,
    sizes: list[tuple[int, int]],
    *,
    polygons: bool = False,
    keypoints: bool = False,
    divisor: int = 32,
) -> None:
    """Losses are finite scalars that reach every trained weight (of a backbone whose maps are not all read,
    some); detections keep their contract in input and original pixels."""
    images, true, targets = images_and_targets(
        sizes, polygons=polygons, keypoints=keypoints, classes=model.num_classes, divisor=divisor
    )
    model.train()
    losses = model(images, true, targets)
    assert losses and all(value.ndim == 0 and torch.isfinite(value) for value in losses.values()), losses
    torch.stack(list(losses.values())).sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    silent = [name for name, parameter in trained.items() if parameter.grad is None]
    if not hasattr(model, "neck") and any(
        name.startswith("backbone.") for name in set(trained) - set(silent)
    ):
        silent = [name for name in silent if not name.startswith("backbone.")]
    assert not silent, f"no gradient reaches {silent[:5]}"
    model.eval()
    assert type(model).predict is Detector.predict  # benchmarks measure its two parts, as is done here
    with torch.no_grad():
        offset = getattr(getattr(model, "coder", None), "offset", 0.0)
        raw = model.raw(images, true)
        check_detections(model.postprocess(raw, true), sizes, model.num_classes, offset=offset)
        doubled = [(2 * h, 2 * w) for h, w in sizes]
        found = model.postprocess(raw, true, torch.tensor(doubled))
    check_detections(found, doubled, model.num_classes, offset=2 * offset)
    for each, (height, width) in zip(found, doubled, strict=True):
        assert each.masks is None or (
            each.masks.shape[1:] == (height, width) and each.masks.dtype == torch.bool
        )
