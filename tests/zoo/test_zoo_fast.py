"""The fast path: folded norms, channels-last maps, weights in half precision, and its check against eager."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contracts import check_detections
from slim_families import pictures
from torch import Tensor, nn

from detection_zoo.zoo.build import assemble, build_model, create_model
from detection_zoo.zoo.created_row import created_name, row_named
from detection_zoo.zoo.fast import (
    TOLERANCES,
    FastReport,
    compare_detections,
    fast_model,
    fold_norms,
    found_again,
    map_error,
)
from detection_zoo.zoo.parts import norm as norm_module
from detection_zoo.zoo.parts.norm import ConvNorm, FrozenAffine, FrozenNorm
from detection_zoo.zoo.parts.winograd import LEAST_CHANNELS, WinogradConv2d, use_winograd
from detection_zoo.zoo.records import Detections
from detection_zoo.zoo.registry import DETECTORS
from detection_zoo.zoo.settings import with_value

pytestmark = pytest.mark.usefixtures("kept_memory")

SIZE = (64, 96)


def compare_with_eager(
    model: nn.Module, fast: nn.Module, batches: list[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> FastReport:
    """Maps and detections of both, as `--path fast` compares them."""
    error = map_error(model, fast, [pixels for pixels, _ in batches])
    return compare_detections(model, fast, batches, dtype, error)


def model_of(backbone: str = "resnet14_slim", detector: str | None = "retinanet", **norm: str) -> nn.Module:
    """A model whose fixed norms have numbers of their own."""
    torch.manual_seed(0)
    return own_numbers(create_model(backbone, detector, 3, backbone_options=norm or None))


def own_numbers(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with random numbers in its fixed norms."""
    for module in model.modules():
        if isinstance(module, FrozenNorm | nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(module, name).data.uniform_(0.5, 1.5)
        if isinstance(module, FrozenAffine):
            module.weight.uniform_(0.5, 1.5)
    return model.eval()


def batch(size: tuple[int, int] = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, *size), torch.tensor([size] * 2)


@pytest.mark.parametrize("norm", ["frozen", "frozen_eps", "affine", "batch"])
def test_norms_with_fixed_numbers_are_folded(norm: str) -> None:
    model, (images, _) = model_of(norm=norm), batch()
    fast = fast_model(model)
    assert not [m for m in fast.modules() if isinstance(m, FrozenNorm | FrozenAffine | nn.BatchNorm2d)]
    with torch.no_grad():
        for ours, theirs in zip(model.features(images).values(), fast.features(images).values(), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
            assert theirs.is_contiguous(memory_format=torch.channels_last)
    assert (
        isinstance(model.backbone.stem.conv.norm, nn.Module) and model.backbone.c2[0].conv1.conv.bias is None
    )


def test_a_norm_of_its_own_is_left_alone() -> None:
    """Group norms have no fixed numbers, and a norm before a convolution is not the convolution's."""
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)).eval()
    assert fold_norms(layers) == 0
    assert fold_norms(ConvNorm(3, 32, 1, norm="group")) == 0


@pytest.mark.parametrize(
    ("detector", "dtype"),
    [*((name, torch.bfloat16) for name in DETECTORS), ("faster_rcnn", torch.float32), ("rpn", torch.float16)],
)
def test_every_family_has_a_fast_path(detector: str, dtype: torch.dtype) -> None:
    entry = row_named(created_name("resnet14_slim", detector, "shapes"))
    if entry.conventions.ssd is not None:  # its boxes are held to the image where its rule says so
        entry = with_value(entry, "ssd.clip", True)
    image = entry.conventions.image
    size = (image.size, image.size) if image.resize == "fixed" else SIZE
    torch.manual_seed(0)
    model, (images, sizes) = own_numbers(assemble(entry)), batch(size)
    fast = fast_model(model, dtype)
    report = compare_with_eager(model, fast, [(images, sizes)], dtype)
    assert report.images == 2 and report.error < TOLERANCES[dtype].maps
    weights = {
        p.dtype for m in fast.modules() if isinstance(m, nn.Conv2d | nn.Linear) for p in m.parameters()
    }
    assert weights == {dtype}
    with torch.inference_mode():
        found = fast.predict(images, sizes)
    assert all(each.boxes.dtype == each.scores.dtype == torch.float32 for each in found)
    offset = getattr(getattr(model, "coder", None), "offset", 0.0)
    check_detections(found, [size] * 2, entry.classes, offset=offset)


def test_ssd_keeps_its_priors_in_float32() -> None:
    model = own_numbers(build_model("ssd160_hardnet_slim.demo", "random"))
    images, sizes = batch((160, 160))
    assert fast_model(model, torch.bfloat16).priors.dtype == torch.float32
    fast = fast_model(model, torch.float32)
    assert compare_with_eager(model, fast, [(images, sizes)], torch.float32).error < 1e-4


def test_a_classifier_has_a_fast_path() -> None:
    model, (images, sizes) = model_of(detector=None), batch()
    fast = fast_model(model, torch.bfloat16)
    assert compare_with_eager(model, fast, [(images, sizes)], torch.bfloat16).detections == 0
    assert fast(images).shape == (2, 3)


def test_a_copy_that_leaves_the_tolerance_is_refused() -> None:
    model, (images, sizes) = model_of(), batch()
    fast = fast_model(model)
    fast.backbone.c3[0].conv1.conv.weight.mul_(-2)
    with pytest.raises(
        ValueError, match=r"fast path in float32 exceeds its tolerance: 2 images .*--path eager"
    ):
        compare_with_eager(model, fast, [(images, sizes)], torch.float32)
    fast.backbone.c3[0].conv1.conv.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="maps differ by nan"):
        compare_with_eager(model, fast, [(images, sizes)], torch.float32)
    with pytest.raises(ValueError, match="not torch.float64"):
        fast_model(model, torch.float64)


def test_a_refusal_names_the_first_detection_that_is_lost() -> None:
    """A trained model whose copy has one class fewer: the message says which image, class, score and box."""
    model = build_model("faster_rcnn_resnet14_slim_fpn.demo", "published")
    pixels, sizes = pictures(2), torch.tensor([[160, 160]] * 2)
    with torch.inference_mode():
        own = [found.select(found.scores >= 0.5) for found in model.predict(pixels, sizes)]
    first = own[0].select(slice(1))
    fast = fast_model(model)
    fast.box.predictor.class_logits.bias[1 + int(first.labels)] -= 100.0
    with pytest.raises(ValueError, match="The first one lost is, in image 0, ") as refused:
        compare_with_eager(model, fast, [(pixels, sizes)], torch.float32)
    corners = ", ".join(f"{value:.1f}" for value in first.boxes[0].tolist())
    name = model.class_names[int(first.labels)]
    assert f"{name} {float(first.scores):.3f} ({corners}); the other path has no detection of" in str(
        refused.value
    )
    fast.box.predictor.class_logits.bias[1 + int(first.labels)] += 99.0
    with pytest.raises(ValueError, match=rf"the other path has {name} 0\.\d+ \(.*\), IoU 1\.000"):
        compare_with_eager(model, fast, [(pixels, sizes)], torch.float32)


def test_detections_are_found_again_by_class_place_and_score() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 5, 5]])
    eager = Detections(boxes, torch.tensor([0.9, 0.8, 0.1]), torch.tensor([0, 1, 2]))
    bound = TOLERANCES[torch.bfloat16]
    assert found_again(eager, eager, bound).tolist() == [True, True]  # the third is below the least score
    other = Detections(boxes, torch.tensor([0.9, 0.6, 0.1]), torch.tensor([1, 1, 2]))
    assert found_again(eager, other, bound).tolist() == [False, False]


def test_convolutions_of_the_copy_are_computed_by_winograds_filtering() -> None:
    """Those of 3x3, stride 1 and enough channels; where the input is of another kind, as nn.Conv2d does."""
    model = model_of()
    fast = fast_model(model)
    replaced = [m for m in fast.modules() if isinstance(m, WinogradConv2d)]
    assert replaced and not [m for m in model.modules() if isinstance(m, WinogradConv2d)]
    assert all(m.stride == (1, 1) and m.kernel_size == (3, 3) and m.in_channels >= 16 for m in replaced)
    assert not any(name.endswith("filters") for name in fast.state_dict())
    half = [m for m in fast_model(model, torch.bfloat16).modules() if isinstance(m, WinogradConv2d)]
    assert 0 < len(half) < len(replaced) and all(min(m.in_channels, m.out_channels) >= 128 for m in half)
    assert all(m.filters.dtype == torch.bfloat16 for m in half)
    assert not [m for m in fast_model(model, torch.float16).modules() if isinstance(m, WinogradConv2d)]


def test_a_winograd_convolution_takes_any_input() -> None:
    plain = nn.Conv2d(16, 24, 3, padding=1).requires_grad_(False)
    layer = WinogradConv2d(plain)
    for maps in (torch.randn(2, 16, 20, 17), torch.randn(1, 16, 3, 40)):
        torch.testing.assert_close(layer(maps), plain(maps), rtol=1e-4, atol=1e-5)
    given = torch.randn(1, 16, 8, 8, requires_grad=True)
    layer(given).sum().backward()
    expected = torch.autograd.grad(plain(given).sum(), given)[0]
    torch.testing.assert_close(given.grad, expected)
    assert torch.equal(layer.double()(given.detach().double()), plain.double()(given.detach().double()))


def test_blocks_overwrite_nothing_that_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the image, nor a stage's output, nor the input that a stage's first block adds as it is.
    Winograd's filtering, which never overwrites, computes none of them."""
    monkeypatch.delitem(LEAST_CHANNELS, torch.float32)
    body = fast_model(create_model("resnet18", "rpn", 3).eval()).backbone
    image = torch.randn(1, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    kept = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, out: kept.update({name: (given[0], given[0].clone(), out, out.clone())})

    stages = [name for name, _ in body.named_children()]
    for name in stages:
        getattr(body, name).register_forward_hook(keep(name))
    with torch.inference_mode():
        maps = body(image)
    assert len(kept) == len(stages) >= 5
    for name, (given, given_then, out, out_then) in kept.items():
        assert torch.equal(out, out_then) and (name == "stem" or torch.equal(given, given_then)), name
    assert all(torch.equal(maps[name], kept[name][3]) for name in maps if name in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("summed", [True, False])
def test_sum_and_relu_are_fused_into_a_convolution(
    dtype: torch.dtype, summed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where norms are folded and maps channels-last; equal to convolution, sum and ReLU by themselves."""
    block = nn.Sequential(ConvNorm(16, 32, 1, norm="frozen"))
    draw = torch.Generator().manual_seed(0)
    maps, plus = torch.randn(2, 16, 9, 11, generator=draw), torch.randn(2, 32, 9, 11, generator=draw)
    plus = plus if summed else None
    eager = block[0].eval()(maps, plus=plus)
    plain = block[0].norm(block[0].conv(maps))
    assert torch.equal(eager, (plain + plus if summed else plain).relu())
    fold_norms(block)
    layer = block[0].to(dtype, memory_format=torch.channels_last)
    maps = maps.to(dtype, memory_format=torch.channels_last)
    plus = plus.to(dtype, memory_format=torch.channels_last) if summed else None
    calls = []
    fused = norm_module._conv_and_relu
    monkeypatch.setattr(norm_module, "_conv_and_relu", lambda *a: calls.append(1) or fused(*a))
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    expected_calls = int(norm_module._has_onednn(dtype))
    with torch.inference_mode():
        found = layer(maps, plus=plus)
        torch.testing.assert_close(found.float(), eager, rtol=bound, atol=bound)
        assert len(calls) == expected_calls and found.is_contiguous(memory_format=torch.channels_last)
        layer(maps.contiguous(), plus=plus)
        if summed:
            given = plus.clone(memory_format=torch.preserve_format)
            again = layer(maps, plus=given, overwrite=True)
            expected_calls *= 2
            assert torch.equal(again, found)
            assert (again.data_ptr() == given.data_ptr()) == (expected_calls > 0)
    layer.requires_grad_(True)(maps, plus=plus).sum().backward()
    assert len(calls) == expected_calls and layer.conv.weight.grad is not None


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Conv2d(16, 16, 1),
    ],
)
def test_other_convolutions_are_left_alone(other: nn.Conv2d) -> None:
    assert use_winograd(nn.Sequential(other, nn.ReLU())) == 0
    assert use_winograd(nn.Sequential(other, nn.Conv2d(16, 16, 3, padding=1))) == 1
