"""DetNet-59: a backbone for detection whose last stages keep stride 16 with dilation (Li et al. 2018,
"DetNet: A Backbone network for Object Detection")."""

from __future__ import annotations

from torch import Tensor

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.backbones.resnet import EXPANSION, Bottleneck, Stem, chained, initialise
from detection_zoo.zoo.records import FeatureSpec
from detection_zoo.zoo.registry import BACKBONES

STAGES = {
    "c2": (3, 64, 1, 1),
    "c3": (4, 128, 2, 1),
    "c4": (6, 256, 2, 1),
    "c5": (3, 256, 1, 2),
    "c6": (3, 256, 1, 2),
}  # blocks, inner, stride, dilation


class DetNet(Backbone):
    """Stem and five stages of bottlenecks; c5 and c6 stay at stride 16 with dilation 2 and 256 channels
    inside (table 1 of the paper).

    Args:
        stages: blocks, inner channels, stride and dilation of each.
        stem_channels: output channels of the stem.
        norm: a kind of zoo.parts.norm.make_norm.
        freeze_at: number of frozen stages: 0 none, 1 the stem, 2 the stem and c2, ...
    """

    def __init__(
        self,
        stages: dict[str, tuple[int, int, int, int]] = STAGES,
        *,
        stem_channels: int = 64,
        norm: str = "frozen_eps",
        freeze_at: int = 2,
    ) -> None:
        super().__init__()
        self.stem = Stem(stem_channels, norm=norm, pool="padded")
        self.specs, channels, total_stride = {}, stem_channels, 4
        for name, (blocks, inner, stride, dilation) in stages.items():
            out = inner * EXPANSION
            first = Bottleneck(
                channels,
                inner,
                out,
                stride=stride,
                dilation=dilation,
                stride_in_1x1=False,
                norm=norm,
                project=dilation > 1,
            )
            rest = [
                Bottleneck(out, inner, out, stride=1, dilation=dilation, stride_in_1x1=False, norm=norm)
                for _ in range(blocks - 1)
            ]
            self.add_module(name, chained(first, *rest))
            channels, total_stride = out, total_stride * stride
            self.specs[name] = FeatureSpec(channels, total_stride)
        initialise(self, norm)
        for part in ("stem", *STAGES)[:freeze_at]:
            getattr(self, part).requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps c2 (N, 256, H / 4, W / 4), c3 at stride 8, c4, c5 and c6 (N, 1024, H / 16, W / 16)."""
        x = self.stem(images)
        maps = {}
        for name in STAGES:
            x = maps[name] = getattr(self, name)(x)
        return maps


@BACKBONES.register("detnet59")
def detnet59(**arguments) -> DetNet:
    """DetNet-59; arguments as in DetNet."""
    return DetNet(**arguments)


@BACKBONES.register("detnet17_slim")
def detnet17_slim(*, norm: str = "batch", freeze_at: int = 0, **arguments) -> DetNet:
    """One block per stage at a quarter of DetNet-59's width, for training on a CPU; arguments as in
    DetNet."""
    stages = {
        name: (1, inner // 4, stride, dilation) for name, (_, inner, stride, dilation) in STAGES.items()
    }
    return DetNet(stages, stem_channels=16, norm=norm, freeze_at=freeze_at, **arguments)
