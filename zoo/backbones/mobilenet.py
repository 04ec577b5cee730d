"""MobileNetV1 (Howard et al., 2017, table 1) and V2 (Sandler et al., CVPR 2018, table 2), with torch's
symmetric padding or TensorFlow's "SAME"."""

from __future__ import annotations

from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.parts.mobile_convs import Padding, conv_norm_act
from detection_zoo.zoo.records import FeatureSpec
from detection_zoo.zoo.registry import BACKBONES

# expansion, channels, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, LAST = 32, 1280
# MobileNetV1: channels and stride of each depthwise separable block, and the maps after some of them
V1_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
V1_ENDS = {3: "c2", 5: "c3", 11: "c4", 13: "c5"}
ENDS = {3: "c2", 6: "c3"}  # features whose output is a map
EXPANDED = 14  # the feature whose expanded input is the map c4, as in SSD


def divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and at most a tenth below: the authors' rounding of scaled
    widths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation; a residual if the shape is unchanged
    (section 3.3)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, expansion: int, padding: Padding
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        expand = [conv_norm_act(in_channels, wide, 1, padding=padding)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            conv_norm_act(wide, wide, 3, stride=stride, groups=wide, padding=padding),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        return features + self.conv(features) if self.residual else self.conv(features)


class MobileNetV2(Backbone):
    """MobileNetV2 without its classifier; `features` is numbered as in the public checkpoints.

    Maps: c2 and c3 are block outputs, c4 is the expanded input of the first stride-32 block (as in SSD), c5
        the last 1x1.

    Args:
        width: multiplier of every width.
        padding: of the strided convolutions: "same" adds the odd pixel at the right and bottom (TensorFlow).
    """

    def __init__(self, *, width: float, padding: Padding) -> None:
        super().__init__()
        channels = divisible_by_8(STEM * width)
        features: list[nn.Module] = [conv_norm_act(3, channels, 3, stride=2, padding=padding)]
        self.specs = {}
        stride = 2
        for expansion, base, blocks, first_stride in STAGES:
            for block in range(blocks):
                step = first_stride if block == 0 else 1
                if len(features) == EXPANDED:
                    self.specs["c4"] = FeatureSpec(channels * expansion, stride)
                out = divisible_by_8(base * width)
                features.append(
                    InvertedResidual(channels, out, stride=step, expansion=expansion, padding=padding)
                )
                channels, stride = out, stride * step
                if len(features) - 1 in ENDS:
                    self.specs[ENDS[len(features) - 1]] = FeatureSpec(channels, stride)
        last = divisible_by_8(LAST * max(1.0, width))
        self.features = nn.ModuleList([*features, conv_norm_act(channels, last, 1, padding=padding)])
        self.specs["c5"] = FeatureSpec(last, stride)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps, features = {}, images
        for index, block in enumerate(self.features):
            if index == EXPANDED:
                maps["c4"] = block.conv[0](features)
                features = block.conv[1:](maps["c4"])
            else:
                features = block(features)
            if index in ENDS:
                maps[ENDS[index]] = features
        maps["c5"] = features
        return maps


class MobileNetV1(Backbone):
    """MobileNetV1 without its classifier: a 3x3 convolution and 13 blocks of a depthwise 3x3 and a 1x1
    convolution, each with norm and ReLU6.

    Args:
        padding: of the strided convolutions: "same" adds the odd pixel at the right and bottom (TensorFlow).
    """

    def __init__(self, *, padding: Padding) -> None:
        super().__init__()
        channels, stride = STEM, 2
        self.features = nn.ModuleList([conv_norm_act(3, channels, 3, stride=2, padding=padding)])
        self.specs = {}
        for index, (out, step) in enumerate(V1_BLOCKS, 1):
            self.features.append(
                nn.Sequential(
                    conv_norm_act(channels, channels, 3, stride=step, groups=channels, padding=padding),
                    conv_norm_act(channels, out, 1, padding=padding),
                )
            )
            channels, stride = out, stride * step
            if index in V1_ENDS:
                self.specs[V1_ENDS[index]] = FeatureSpec(channels, stride)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps, features = {}, images
        for index, block in enumerate(self.features):
            features = block(features)
            if index in V1_ENDS:
                maps[V1_ENDS[index]] = features
        return maps


@BACKBONES.register("mobilenet_v1")
def mobilenet_v1(*, padding: Padding = "symmetric") -> MobileNetV1:
    """MobileNetV1 of full width; checkpoints of TensorFlow need padding="same"."""
    return MobileNetV1(padding=padding)


@BACKBONES.register("mobilenet_v2")
def mobilenet_v2(*, width: float = 1.0, padding: Padding = "symmetric") -> MobileNetV2:
    """MobileNetV2 of a width multiplier; checkpoints of TensorFlow need padding="same"."""
    return MobileNetV2(width=width, padding=padding)
