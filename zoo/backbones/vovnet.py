"""VoVNet (Lee et al. 2019): one-shot aggregation: a module's five convolutions are concatenated once, at its
end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.parts.norm import ConvNorm
from detection_zoo.zoo.records import FeatureSpec
from detection_zoo.zoo.registry import BACKBONES

STAGES = ("c2", "c3", "c4", "c5")
# channels per stage: of its convolutions, of its output (table 1)
WIDTHS = ((128, 256), (160, 512), (192, 768), (224, 1024))
SLIM_WIDTHS = ((64, 128), (80, 256), (96, 384), (112, 512))


class AggregationModule(nn.Module):
    """Five 3x3 convolutions in a row; the input and their results, in that order, are concatenated and
    reduced by a 1x1 (figure 1b).

    Args:
        in_channels, inner, out_channels: of the module, of its convolutions, of its output.
        shortcut: add the input to the output, after the activation.
        norm: a kind of zoo.parts.norm.make_norm.
    """

    def __init__(
        self, in_channels: int, inner: int, out_channels: int, *, shortcut: bool, norm: str, convs: int = 5
    ) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.layers = nn.ModuleList(
            ConvNorm(in_channels if i == 0 else inner, inner, 3, norm=norm) for i in range(convs)
        )
        self.concat = ConvNorm(in_channels + convs * inner, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        results = [x]
        for layer in self.layers:
            results.append(layer(results[-1]))
        out = self.concat(torch.cat(results, dim=1))
        return out + x if self.shortcut else out


class VoVNet(Backbone):
    """VoVNet body: a stem of three convolutions and four stages.

    Args:
        modules: number of aggregation modules in stages c2 to c5.
        widths: of each stage, the channels of its convolutions and of its output.
        norm: a kind of zoo.parts.norm.make_norm.
        freeze_at: number of frozen stages: 0 none, 1 the stem, 2 the stem and c2, ...
        stem_channels: of the three convolutions of the stem.
    """

    def __init__(
        self,
        modules: Sequence[int],
        widths: Sequence[tuple[int, int]] = WIDTHS,
        *,
        norm: str = "frozen",
        freeze_at: int = 0,
        stem_channels: tuple[int, int, int] = (64, 64, 128),
    ) -> None:
        super().__init__()
        first, second, third = stem_channels
        self.stem = nn.Sequential(
            ConvNorm(3, first, 3, stride=2, norm=norm),
            ConvNorm(first, second, 3, norm=norm),
            ConvNorm(second, third, 3, stride=2, norm=norm),
        )
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)  # no padding: side n becomes ceil((n - 3) / 2) + 1
        self.specs, channels = {}, third
        for index, (name, count, (inner, out)) in enumerate(zip(STAGES, modules, widths, strict=True)):
            self.add_module(
                name,
                nn.Sequential(
                    *(
                        AggregationModule(channels if i == 0 else out, inner, out, shortcut=i > 0, norm=norm)
                        for i in range(count)
                    )
                ),
            )
            self.specs[name] = FeatureSpec(out, 4 * 2**index)
            channels = out
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        for part in ("stem", *STAGES)[:freeze_at]:
            getattr(self, part).requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps c2 (N, C, H / 4, W / 4) to c5 (N, C, H / 32, W / 32)."""
        x = self.stem(images)
        maps = {}
        for name in STAGES:
            x = maps[name] = getattr(self, name)(x if name == "c2" else self.pool(x))
        return maps


@BACKBONES.register("vovnet27_slim")
def vovnet27_slim(**arguments) -> VoVNet:
    """VoVNet-27-slim; arguments as in VoVNet."""
    return VoVNet((1, 1, 1, 1), SLIM_WIDTHS, **arguments)


@BACKBONES.register("vovnet39")
def vovnet39(**arguments) -> VoVNet:
    """VoVNet-39; arguments as in VoVNet."""
    return VoVNet((1, 1, 2, 2), **arguments)


@BACKBONES.register("vovnet57")
def vovnet57(**arguments) -> VoVNet:
    """VoVNet-57; arguments as in VoVNet."""
    return VoVNet((1, 1, 4, 3), **arguments)


@BACKBONES.register("vovnet69")
def vovnet69(**arguments) -> VoVNet:
    """VoVNet-69, which has no published weights; arguments as in VoVNet."""
    return VoVNet((1, 1, 6, 3), **arguments)


@BACKBONES.register("vovnet27_tiny")
def vovnet27_tiny(*, norm: str = "group", **arguments) -> VoVNet:
    """VoVNet-27-slim at a quarter of its width, for demonstrations on a CPU; arguments as in VoVNet."""
    return VoVNet(
        (1, 1, 1, 1),
        ((16, 64), (20, 128), (24, 192), (28, 256)),
        norm=norm,
        stem_channels=(16, 16, 32),
        **arguments,
    )
