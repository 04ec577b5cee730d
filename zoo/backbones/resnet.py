"""ResNet (He et al. 2015) and ResNeXt (Xie et al. 2016): residual networks with stages c2 to c5 at strides 4,
8, 16, 32."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.parts.norm import ConvNorm
from detection_zoo.zoo.records import FeatureSpec
from detection_zoo.zoo.registry import BACKBONES

EXPANSION = 4
STAGES = ("c2", "c3", "c4", "c5")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a sum at the end (He et al. 2015, figure 5); the shortcut is projected if shapes
    differ.

    Args:
        in_channels, inner, out_channels: of the block, of its 3x3, of its output.
        stride: of the first 1x1 (stride_in_1x1, as in the first MSRA models) or of the 3x3 (as in Torch's).
        groups: of the 3x3.
        dilation: of the 3x3.
        norm: a kind of zoo.parts.norm.make_norm.
        project: project the shortcut even if the shapes agree (DetNet).
    """

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        *,
        stride: int,
        groups: int = 1,
        dilation: int = 1,
        stride_in_1x1: bool,
        norm: str,
        project: bool = False,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(in_channels, inner, 1, stride=first, norm=norm)
        self.conv2 = ConvNorm(inner, inner, 3, stride=second, groups=groups, dilation=dilation, norm=norm)
        self.conv3 = ConvNorm(inner, out_channels, 1, norm=norm)
        self.shortcut: nn.Module = nn.Identity()
        self.overwrites = project or stride != 1 or in_channels != out_channels  # a sum of its own
        if self.overwrites:
            self.shortcut = ConvNorm(
                in_channels, out_channels, 1, stride=stride, norm=norm, activation="none"
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.conv3(self.conv2(self.conv1(x)), plus=self.shortcut(x), overwrite=self.overwrites)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a sum at the end (He et al. 2015, figure 5 left); arguments as in Bottleneck,
    three of them without effect."""

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        *,
        stride: int,
        groups: int,
        dilation: int,
        stride_in_1x1: bool,
        norm: str,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm)
        self.shortcut: nn.Module = nn.Identity()
        self.overwrites = stride != 1 or in_channels != out_channels
        if self.overwrites:
            self.shortcut = ConvNorm(
                in_channels, out_channels, 1, stride=stride, norm=norm, activation="none"
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.conv2(self.conv1(x), plus=self.shortcut(x), overwrite=self.overwrites)


def chained(*blocks: Bottleneck | BasicBlock) -> nn.Sequential:
    """Blocks one after another. Without a gradient, each but the first may write its output over its input,
    which is read by nothing else."""
    for block in blocks[1:]:
        block.overwrites = True
    return nn.Sequential(*blocks)


class Stem(nn.Module):
    """7x7 stride-2 convolution, norm, ReLU and a 3x3 stride-2 max pool.

    Args:
        channels: of the output.
        norm: a kind of make_norm.
        pool: "padded" (padding 1), or "ceil" (no padding, sizes rounded up, as in Caffe's models).
    """

    def __init__(self, channels: int, *, norm: str, pool: str) -> None:
        super().__init__()
        if pool not in ("padded", "ceil"):
            raise ValueError(f"stem pool must be 'padded' or 'ceil', not {pool!r}")
        self.conv = ConvNorm(3, channels, 7, stride=2, norm=norm)
        self.pool = (
            nn.MaxPool2d(3, 2, padding=1)
            if pool == "padded"
            else nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, channels, H / 4, W / 4)."""
        return self.pool(self.conv(images))


def initialise(module: nn.Module, norm: str) -> None:
    """Weights for training from scratch: uniform with the variance of the fan-in (Caffe2's Xavier) with
    frozen norms, otherwise He et al. 2015b."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            if norm in ("frozen", "frozen_eps", "affine"):
                nn.init.kaiming_uniform_(layer.weight, a=1)
            else:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class ResNet(Backbone):
    """Residual network.

    Args:
        blocks: of stages c2 to c5.
        norm: a kind of zoo.parts.norm.make_norm, for every convolution.
        freeze_at: number of frozen stages: 0 none, 1 the stem, 2 the stem and c2, ...
        stride_in_1x1: where a stage's stride is, see Bottleneck.
        last: the last stage of the body; "c4" leaves c5 to `head_stage` (C4 detectors).
        groups, width_per_group: of c2's 3x3 convolutions; 1 and 64 for ResNet, 32 and 8 for ResNeXt-32x8d.
        dilation_c5: dilation of c5's 3x3 convolutions; above 1 the stage has stride 1.
        stem_channels: also of c2's output, times four with Bottleneck.
        stem_pool: see Stem.
        block: Bottleneck or BasicBlock.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        norm: str = "frozen",
        freeze_at: int = 2,
        stride_in_1x1: bool = True,
        last: str = "c5",
        groups: int = 1,
        width_per_group: int = 64,
        dilation_c5: int = 1,
        stem_channels: int = 64,
        stem_pool: str = "padded",
        block: type[nn.Module] = Bottleneck,
    ) -> None:
        super().__init__()
        if last not in STAGES:
            raise ValueError(f"last must be one of {', '.join(STAGES)}, not {last!r}")
        self.blocks, self.norm, self.stride_in_1x1, self.groups = tuple(blocks), norm, stride_in_1x1, groups
        self.inner, self.base, self.dilation_c5, self.block = (
            groups * width_per_group,
            stem_channels,
            dilation_c5,
            block,
        )
        self.stages = STAGES[: STAGES.index(last) + 1]
        self.stem = Stem(stem_channels, norm=norm, pool=stem_pool)
        self.specs, stride = {}, 4
        for name in self.stages:
            step = self._stride(name)
            self.add_module(name, self._stage(name, step))
            stride *= step
            self.specs[name] = FeatureSpec(self._channels(name), stride)
        initialise(self, norm)
        for part in ("stem", *self.stages)[:freeze_at]:
            getattr(self, part).requires_grad_(False)

    def _channels(self, stage: str) -> int:
        return self.base * (EXPANSION if self.block is Bottleneck else 1) * 2 ** STAGES.index(stage)

    def _stride(self, stage: str) -> int:
        return 1 if stage == "c2" or (stage == "c5" and self.dilation_c5 > 1) else 2

    def _stage(self, stage: str, stride: int) -> nn.Sequential:
        index = STAGES.index(stage)
        inner, out = self.inner * 2**index, self._channels(stage)
        before = self.base if index == 0 else self._channels(STAGES[index - 1])
        dilation = self.dilation_c5 if stage == "c5" else 1
        return chained(
            *(
                self.block(
                    before if i == 0 else out,
                    inner,
                    out,
                    stride=stride if i == 0 else 1,
                    groups=self.groups,
                    dilation=dilation,
                    stride_in_1x1=self.stride_in_1x1,
                    norm=self.norm,
                )
                for i in range(self.blocks[index])
            )
        )

    def head_stage(self, stride: int = 2) -> tuple[nn.Module, int]:
        """A new stage like the one after the body's last, for pooled features; returns it with its output
        channels."""
        if self.stages[-1] == "c5":
            raise ValueError(
                "the body ends with c5, so no stage is left for a head: build the backbone with last='c4'"
            )
        following = STAGES[len(self.stages)]
        stage = self._stage(following, stride)
        initialise(stage, self.norm)
        return stage, self._channels(following)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps c2 (N, 256, H / 4, W / 4) to c5 (N, 2048, H / 32, W / 32), up to `last`."""
        x = self.stem(images)
        maps = {}
        for name in self.stages:
            x = maps[name] = getattr(self, name)(x)
        return maps


@BACKBONES.register("resnet18")
def resnet18(**arguments) -> ResNet:
    """ResNet-18; arguments as in ResNet."""
    return ResNet((2, 2, 2, 2), block=BasicBlock, **arguments)


@BACKBONES.register("resnet34")
def resnet34(**arguments) -> ResNet:
    """ResNet-34; arguments as in ResNet."""
    return ResNet((3, 4, 6, 3), block=BasicBlock, **arguments)


@BACKBONES.register("resnet50")
def resnet50(**arguments) -> ResNet:
    """ResNet-50; arguments as in ResNet."""
    return ResNet((3, 4, 6, 3), **arguments)


@BACKBONES.register("resnet101")
def resnet101(**arguments) -> ResNet:
    """ResNet-101; arguments as in ResNet."""
    return ResNet((3, 4, 23, 3), **arguments)


@BACKBONES.register("resnet152")
def resnet152(**arguments) -> ResNet:
    """ResNet-152; arguments as in ResNet."""
    return ResNet((3, 8, 36, 3), **arguments)


@BACKBONES.register("resnext101_32x8d")
def resnext101_32x8d(*, stride_in_1x1: bool = False, **arguments) -> ResNet:
    """ResNeXt-101 with 32 groups of 8 channels; arguments as in ResNet."""
    return ResNet((3, 4, 23, 3), groups=32, width_per_group=8, stride_in_1x1=stride_in_1x1, **arguments)


@BACKBONES.register("resnext101_64x4d")
def resnext101_64x4d(*, stride_in_1x1: bool = False, **arguments) -> ResNet:
    """ResNeXt-101 with 64 groups of 4 channels; arguments as in ResNet."""
    return ResNet((3, 4, 23, 3), groups=64, width_per_group=4, stride_in_1x1=stride_in_1x1, **arguments)


@BACKBONES.register("resnext152_32x8d")
def resnext152_32x8d(*, stride_in_1x1: bool = False, **arguments) -> ResNet:
    """ResNeXt-152 with 32 groups of 8 channels; arguments as in ResNet."""
    return ResNet((3, 8, 36, 3), groups=32, width_per_group=8, stride_in_1x1=stride_in_1x1, **arguments)


@BACKBONES.register("resnet14_slim")
def resnet14_slim(*, norm: str = "group", freeze_at: int = 0, **arguments) -> ResNet:
    """One block per stage at a quarter of ResNet-50's width, for demonstrations on a CPU; arguments as in
    ResNet."""
    return ResNet(
        (1, 1, 1, 1), stem_channels=16, width_per_group=16, norm=norm, freeze_at=freeze_at, **arguments
    )
