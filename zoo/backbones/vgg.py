"""VGG-16 (Simonyan and Zisserman, ICLR 2015, table 1, D) and the reduced form used by SSD (Liu et
al., ECCV 2016, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from detection_zoo.zoo.backbones.base import Backbone
from detection_zoo.zoo.records import FeatureSpec
from detection_zoo.zoo.registry import BACKBONES

WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and 3x3 convolutions of each stride


def _convolutions(
    ceil_pool: int | None, widths: tuple[tuple[int, int], ...] = WIDTHS, *, norm: bool = False
) -> list[nn.Module]:
    """conv1_1 to conv5_3 with their ReLUs and the pools between; the pool after block `ceil_pool` (from 0)
    rounds up. norm: batch normalisation after every convolution."""
    layers: list[nn.Module] = []
    channels = 3
    for block, (width, convolutions) in enumerate(widths):
        for _ in range(convolutions):
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers.append(nn.ReLU(inplace=True))
            channels = width
        if block < len(widths) - 1:
            layers.append(nn.MaxPool2d(2, ceil_mode=block == ceil_pool))
    return layers


class VGG(Backbone):
    """A plain sequence `features`, numbered as in the public checkpoints, with maps from some of its layers.

    Args:
        layers: the sequence.
        maps: name of a map -> index of the layer that outputs it.
        specs: name of a map -> its shape.
    """

    def __init__(self, layers: list[nn.Module], maps: dict[str, int], specs: dict[str, FeatureSpec]) -> None:
        super().__init__()
        self.features = nn.ModuleList(layers)
        self.maps = maps
        self.specs = specs

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps, features = {}, images
        names = {index: name for name, index in self.maps.items()}
        for index, layer in enumerate(self.features):
            features = layer(features)
            if index in names:
                maps[names[index]] = features
        return maps


@BACKBONES.register("vgg16")
def vgg16() -> VGG:
    """The 13 convolutions; maps are conv3_3 (c2), conv4_3 (c3) and conv5_3 (c4, stride 16), after their
    ReLUs."""
    return VGG(
        _convolutions(None),
        {"c2": 15, "c3": 22, "c4": 29},
        {"c2": FeatureSpec(256, 4), "c3": FeatureSpec(512, 8), "c4": FeatureSpec(512, 16)},
    )


@BACKBONES.register("vgg16_reduced")
def vgg16_reduced() -> VGG:
    """VGG-16 whose fc6 and fc7 are a dilated 3x3 and a 1x1 convolution; maps are conv4_3 (as c3) and fc7 (as
    c4), after their ReLUs."""
    layers = [
        *_convolutions(ceil_pool=2),
        nn.MaxPool2d(3, 1, 1),
        nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
        nn.ReLU(inplace=True),
        nn.Conv2d(1024, 1024, 1),
        nn.ReLU(inplace=True),
    ]
    return VGG(layers, {"c3": 22, "c4": 34}, {"c3": FeatureSpec(512, 8), "c4": FeatureSpec(1024, 16)})


@BACKBONES.register("vgg11_slim")
def vgg11_slim() -> VGG:
    """VGG-11 (table 1, A) with batch normalisation at a quarter of its width, for training on a CPU; maps
    are the last of stride 8 (c3) and of stride 16 (c4)."""
    layers = _convolutions(None, ((16, 1), (32, 1), (64, 2), (128, 2), (128, 2)), norm=True)
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    maps = {"c3": pools[3] - 1, "c4": len(layers) - 1}
    return VGG(layers, maps, {"c3": FeatureSpec(128, 8), "c4": FeatureSpec(128, 16)})
