"""HarDNet: harmonic dense connections (Chao et al., "HarDNet: A Low Memory Traffic Network", ICCV 2019,
section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.records import FeatureSpec
from detection_zoo.zoo.registry import BACKBONES

Activation = Literal["relu", "relu6"]
Form = Literal["classifier", "detector"]
Bridge = Literal["none", "inside", "behind"]
ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6}


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, activation: children `conv`, `norm`, `relu`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, activation: Activation
    ) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False))
        self.add_module("norm", nn.BatchNorm2d(out_channels))
        self.add_module("relu", ACTIVATIONS[activation](inplace=True))


class DepthwiseConv(nn.Sequential):
    """3x3 depthwise convolution and batch norm, no activation: children `dwconv`, `norm`."""

    def __init__(self, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.add_module("dwconv", nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False))
        self.add_module("norm", nn.BatchNorm2d(channels))


class SeparableLayer(nn.Sequential):
    """A layer of a depthwise-separable dense block: 1x1 `layer1`, then depthwise `layer2`."""

    def __init__(self, in_channels: int, out_channels: int, *, activation: Activation) -> None:
        super().__init__()
        self.add_module("layer1", ConvNormAct(in_channels, out_channels, 1, activation=activation))
        self.add_module("layer2", DepthwiseConv(out_channels))


def harmonic_links(layer: int) -> list[int]:
    """Input layers of a layer of a dense block, nearest first: layer - 2^i if 2^i divides layer
    (section 3.1).

    Args:
        layer: counted from 1; 0 is the block's input.
    """
    return [layer - 2**i for i in range(layer.bit_length()) if layer % 2**i == 0]


def layer_width(layer: int, growth: int, multiplier: float) -> int:
    """Output channels of a layer: growth, times multiplier for every link beyond the first, rounded to an
    even number (section 3.2)."""
    width = float(growth)
    for _ in harmonic_links(layer)[1:]:
        width *= multiplier
    return 2 * (int(width + 1) // 2)


class HarmonicBlock(nn.Module):
    """A dense block with harmonic links; its output is every odd-numbered layer and the last one, ascending,
    without the input.

    Args:
        in_channels: channels of the input.
        growth, multiplier: k and m of the paper.
        num_layers: a power of two.
        separable: 1x1 and depthwise convolutions instead of 3x3.
        activation: "relu" or "relu6".
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        multiplier: float,
        num_layers: int,
        *,
        separable: bool,
        activation: Activation,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [
            layer_width(layer, growth, multiplier) for layer in range(1, num_layers + 1)
        ]
        self.links = [harmonic_links(layer) for layer in range(1, num_layers + 1)]
        self.kept = [layer for layer in range(1, num_layers + 1) if layer % 2 == 1 or layer == num_layers]
        self.out_channels = sum(widths[layer] for layer in self.kept)
        self.layers = nn.ModuleList(
            (
                SeparableLayer(read, widths[layer], activation=activation)
                if separable
                else ConvNormAct(read, widths[layer], 3, activation=activation)
            )
            for layer, links in enumerate(self.links, start=1)
            for read in [sum(widths[link] for link in links)]
        )

    def forward(self, features: Tensor) -> Tensor:
        outputs = [features]
        for layer, links in zip(self.layers, self.links, strict=True):
            outputs.append(
                layer(
                    torch.cat([outputs[link] for link in links], dim=1)
                    if len(links) > 1
                    else outputs[links[0]]
                )
            )
        return torch.cat([outputs[layer] for layer in self.kept], dim=1)


def _dilated_bridge(channels: int, activation: Activation) -> nn.Sequential:
    """HarDNet68's bridge to SSD: 3x3 pooling, a dilated 3x3 convolution (indices 1 and 2 hold weights), a 1x1
    block."""
    return nn.Sequential(
        nn.MaxPool2d(3, 1, 1),
        nn.Conv2d(channels, channels, 3, padding=4, dilation=4, bias=False),
        nn.BatchNorm2d(channels),
        ACTIVATIONS[activation](inplace=True),
        ConvNormAct(channels, channels, 1, activation=activation),
    )


def _widening_bridge(channels: int, activation: Activation) -> nn.Sequential:
    """HarDNet85's bridge to SSD: 3x3 pooling, a 3x3 block to 4/3 of the channels (not dilated), a 1x1 block
    back."""
    wide = channels * 4 // 3
    return nn.Sequential(
        nn.MaxPool2d(3, 1, 1),
        ConvNormAct(channels, wide, 3, activation=activation),
        ConvNormAct(wide, channels, 1, activation=activation),
    )


@dataclass(frozen=True)
class Dense:
    """One dense block and its 1x1 transition, as in the paper's table 1.

    growth, layers, out_channels; downsample: followed by a 2x2 pooling; dropout: rate between block and
    transition, or none.
    """

    growth: int
    layers: int
    out_channels: int
    downsample: bool
    dropout: float | None = None


@dataclass(frozen=True)
class Design:
    """Widths of one HarDNet: stem, dense blocks (the last one for the classifier only), multiplier,
    dropout before the classifier."""

    stem: tuple[int, int]
    blocks: tuple[Dense, ...]
    separable: bool = False
    multiplier: float = 1.7
    dropout: float = 0.1


_BLOCKS_68 = (
    Dense(14, 8, 128, True),
    Dense(16, 16, 256, False),
    Dense(20, 16, 320, True),
    Dense(40, 16, 640, True),
    Dense(160, 4, 1024, False),
)
DESIGNS = {
    "39ds": Design(
        (24, 48),
        (
            Dense(16, 4, 96, True),
            Dense(20, 16, 320, True),
            Dense(64, 8, 640, True),
            Dense(160, 4, 1024, False),
        ),
        True,
        1.6,
        0.05,
    ),
    "68": Design((32, 64), _BLOCKS_68),
    "slim": Design(
        (16, 24),
        (Dense(8, 4, 48, True), Dense(10, 8, 96, True), Dense(16, 8, 160, True), Dense(40, 4, 256, False)),
    ),
    "68ds": Design((32, 64), _BLOCKS_68, separable=True, dropout=0.05),
    "85": Design(
        (48, 96),
        (
            Dense(24, 8, 192, True),
            Dense(24, 16, 256, False),
            Dense(28, 16, 320, True),
            Dense(36, 16, 480, False),
            Dense(48, 16, 720, True),
            Dense(256, 4, 1280, False, dropout=0.1),
        ),
        dropout=0.2,
    ),
}


class HarDNet(Backbone):
    """A HarDNet body: `stages` is numbered as in the authors' checkpoints (`base.N`).

    Args:
        design: its widths. form: "classifier": every block; maps are the last outputs of each stride.
            "detector": without the last pooling and block, the first pooling after a block rounds up (75 to
            38 cells), maps are `c3` and `c4`.
        activation: "relu" (the detectors) or "relu6" (the classifiers).
        bridge: "inside": the last stage (68); "behind": a separate module (85); "none".
    """

    def __init__(
        self, design: Design, *, form: Form, activation: Activation, bridge: Bridge = "none"
    ) -> None:
        super().__init__()
        self.classifier_dropout = design.dropout
        first, second = design.stem
        separable = design.separable
        self.stages = nn.ModuleList(
            [
                ConvNormAct(3, first, 3, stride=2, activation=activation),
                ConvNormAct(first, second, 1 if separable else 3, activation=activation),
                DepthwiseConv(second, stride=2) if separable else nn.MaxPool2d(3, 2, 1),
            ]
        )
        self.maps: dict[int, str] = {}  # index of a stage -> name of the map it outputs
        self.specs = {}
        channels, stride = second, 4
        blocks = design.blocks if form == "classifier" else design.blocks[:-1]
        for number, block in enumerate(blocks):
            dense = HarmonicBlock(
                channels,
                block.growth,
                design.multiplier,
                block.layers,
                separable=separable,
                activation=activation,
            )
            self.stages.append(dense)
            if block.dropout is not None:
                self.stages.append(nn.Dropout(block.dropout))
            self.stages.append(ConvNormAct(dense.out_channels, block.out_channels, 1, activation=activation))
            channels, last = block.out_channels, number == len(blocks) - 1
            if block.downsample or last:
                self._end_of_stride(channels, stride)
            if block.downsample and not last:
                self.stages.append(
                    DepthwiseConv(channels, stride=2)
                    if separable
                    else nn.MaxPool2d(2, ceil_mode=form == "detector" and stride == 4)
                )
                stride *= 2
        if bridge == "inside":
            self.stages.append(_dilated_bridge(channels, activation))
            self.maps[len(self.stages) - 1] = self.maps.pop(len(self.stages) - 2)
        self.bridge = _widening_bridge(channels, activation) if bridge == "behind" else None
        if form == "detector":
            self.specs.pop("c2")

    def _end_of_stride(self, channels: int, stride: int) -> None:
        name = f"c{stride.bit_length() - 1}"
        self.maps[len(self.stages) - 1] = name
        self.specs[name] = FeatureSpec(channels, stride)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps, features = {}, images
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if index in self.maps:
                maps[self.maps[index]] = features
        if self.bridge is not None:
            maps[list(maps)[-1]] = self.bridge(features)
        return {name: maps[name] for name in self.specs}


def _hardnet(size: str, form: Form, bridge: Bridge) -> HarDNet:
    if form == "classifier":
        return HarDNet(DESIGNS[size], form=form, activation="relu6")
    return HarDNet(DESIGNS[size], form=form, activation="relu", bridge=bridge)


@BACKBONES.register("hardnet39ds")
def hardnet39ds() -> HarDNet:
    """HarDNet-39DS, a classifier."""
    return _hardnet("39ds", "classifier", "none")


@BACKBONES.register("hardnet68ds")
def hardnet68ds() -> HarDNet:
    """HarDNet-68DS, a classifier."""
    return _hardnet("68ds", "classifier", "none")


@BACKBONES.register("hardnet68")
def hardnet68(*, form: Form = "detector") -> HarDNet:
    """HarDNet-68; the detector form has its bridge inside, for both SSD and RFB."""
    return _hardnet("68", form, "inside")


@BACKBONES.register("hardnet85")
def hardnet85(*, form: Form = "detector", bridge: bool = True) -> HarDNet:
    """HarDNet-85; the detector form of SSD has a bridge behind it, that of RFB has none."""
    return _hardnet("85", form, "behind" if bridge else "none")


@BACKBONES.register("hardnet_slim")
def hardnet_slim(*, form: Form = "detector") -> HarDNet:
    """A quarter of HarDNet-68 in width and depth, without a bridge, for training on a CPU."""
    return _hardnet("slim", form, "none")
