"""ResNet, ResNeXt and VoVNet: sizes known from the papers and the sources, freezing, stride positions."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detection_zoo.zoo.backbones.resnet import ResNet, resnet50
from detection_zoo.zoo.backbones.vovnet import vovnet39
from detection_zoo.zoo.build import shapes_only
from detection_zoo.zoo.detectors.classifier import Classifier
from detection_zoo.zoo.parts.norm import FrozenAffine, FrozenNorm
from detection_zoo.zoo.registry import BACKBONES

# trained parameters of the bodies with frozen norms, in millions, as counted in the sources' own models
BODIES = {"resnet50": 23.455, "resnet101": 42.395, "vovnet39": 21.555, "vovnet57": 35.584, "vovnet69": 43.546}
# parameters of torchvision's classifiers with 1000 classes (its documentation)
CLASSIFIERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
}


@pytest.mark.parametrize(("name", "millions"), BODIES.items())
def test_bodies_have_the_sources_sizes(name: str, millions: float) -> None:
    with shapes_only():
        body = BACKBONES[name](norm="frozen", freeze_at=0)
    assert sum(p.numel() for p in body.parameters()) / 1e6 == pytest.approx(millions, abs=6e-4)


@pytest.mark.parametrize(("name", "count"), CLASSIFIERS.items())
def test_classifiers_have_torchvisions_sizes(name: str, count: int) -> None:
    with shapes_only():
        model = Classifier(BACKBONES[name](norm="batch", freeze_at=0), 1000)
    assert sum(p.numel() for p in model.parameters()) == count


def test_group_norm_vovnet_has_the_sources_size() -> None:
    with shapes_only():
        body = vovnet39(norm="group")
    assert sum(p.numel() for p in body.parameters()) / 1e6 == pytest.approx(21.575, abs=6e-4)


def test_freezing_goes_from_the_stem_upward() -> None:
    with shapes_only():
        trained = {
            at: {
                name.split(".")[0]
                for name, p in resnet50(norm="group", freeze_at=at).named_parameters()
                if p.requires_grad
            }
            for at in range(6)
        }
    assert trained == {
        0: {"stem", "c2", "c3", "c4", "c5"},
        1: {"c2", "c3", "c4", "c5"},
        2: {"c3", "c4", "c5"},
        3: {"c4", "c5"},
        4: {"c5"},
        5: set(),
    }


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("frozen", FrozenNorm), ("affine", FrozenAffine), ("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)],
)
def test_every_convolution_has_the_norm_asked_for(kind: str, layer: type[nn.Module]) -> None:
    with shapes_only():
        for body in (resnet50(norm=kind), vovnet39(norm=kind)):
            assert sum(isinstance(m, layer) for m in body.modules()) == sum(
                isinstance(m, nn.Conv2d) for m in body.modules()
            )
            assert all(m.bias is None for m in body.modules() if isinstance(m, nn.Conv2d))


def test_the_stride_of_a_stage_sits_where_it_is_said_to() -> None:
    with shapes_only():
        first, second = (resnet50(stride_in_1x1=where).c3[0] for where in (True, False))
    assert (first.conv1.conv.stride, first.conv2.conv.stride) == ((2, 2), (1, 1))
    assert (second.conv1.conv.stride, second.conv2.conv.stride) == ((1, 1), (2, 2))


def test_c4_bodies_leave_their_last_stage_to_a_head() -> None:
    with shapes_only():
        body = resnet50(last="c4")
        stage, channels = body.head_stage()
        assert list(body.specs) == ["c2", "c3", "c4"] and channels == 2048
        assert stage(torch.zeros(2, 1024, 14, 14, device="meta")).shape == (2, 2048, 7, 7)
    assert sum(p.numel() for p in body.parameters()) / 1e6 == pytest.approx(8.513, abs=6e-4)
    with pytest.raises(ValueError, match="build the backbone with last='c4'"):
        BACKBONES["resnet14_slim"]().head_stage()
    with pytest.raises(ValueError, match="VoVNet has no stage"):
        BACKBONES["vovnet27_tiny"]().head_stage()


def test_dilation_keeps_the_stride_and_caffes_stem_rounds_up() -> None:
    with shapes_only():
        dilated = ResNet((1, 1, 1, 1), dilation_c5=2, stem_channels=8, width_per_group=8)
        assert dilated.specs["c5"].stride == 16 and dilated.c5[0].conv2.conv.dilation == (2, 2)
        images = torch.zeros(1, 3, 60, 62, device="meta")  # 30 x 31 after the convolution
        assert ResNet((1, 1, 1, 1), stem_pool="ceil").stem(images).shape[2:] == (15, 15)
        assert ResNet((1, 1, 1, 1), stem_pool="padded").stem(images).shape[2:] == (15, 16)


def test_vovnet_pools_without_padding_and_rounds_up() -> None:
    with shapes_only():
        maps = vovnet39()(torch.zeros(1, 3, 100, 72, device="meta"))
    # 25 x 18 after the stem; then ceil((n - 3) / 2) + 1 for each stage
    assert [tuple(x.shape[2:]) for x in maps.values()] == [(25, 18), (12, 9), (6, 4), (3, 2)]


def test_vovnet_adds_its_input_only_from_the_second_module_of_a_stage_on() -> None:
    torch.manual_seed(0)
    body = BACKBONES["vovnet39"](norm="none")
    assert [module.shortcut for stage in (body.c2, body.c3, body.c4, body.c5) for module in stage] == [
        False,
        False,
        False,
        True,
        False,
        True,
    ]
    second, x = body.c4[1], torch.randn(1, 768, 3, 3)
    assert torch.equal(
        second(x) - x >= -1e-6, torch.ones(1, 768, 3, 3, dtype=torch.bool)
    )  # the sum comes after the ReLU
    assert (second(x) < 0).any()
    assert (
        body.c2[0].concat.conv.in_channels == 128 + 5 * 128
        and body.c5[1].concat.conv.in_channels == 1024 + 5 * 224
    )


def test_a_backbone_brings_the_norm_before_a_classifiers_linear_layer() -> None:
    """As ConvNeXt has it: pooled features, LayerNorm, linear layer."""

    class Normed(ResNet):
        def classifier_norm(self) -> nn.Module:
            return nn.LayerNorm(self.specs["c5"].channels, eps=1e-6)

    torch.manual_seed(0)
    plain = BACKBONES["resnet14_slim"](norm="batch", freeze_at=0)
    body = copy.copy(plain)
    body.__class__ = Normed
    model = Classifier(body, 5).eval()
    with torch.no_grad():
        model.norm.bias.uniform_(-1, 1)
        images = torch.randn(2, 3, 64, 64)
        pooled = plain.eval()(images)["c5"].mean(dim=(2, 3))
        expected = F.linear(
            F.layer_norm(pooled, (pooled.shape[1],), None, model.norm.bias, 1e-6), model.fc.weight
        )
        torch.testing.assert_close(model(images), expected + model.fc.bias)
    assert {"norm.weight", "norm.bias"} < model.state_dict().keys()
    assert not [name for name in Classifier(plain, 5).state_dict() if name.startswith("norm")]
