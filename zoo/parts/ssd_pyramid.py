"""SSD's own layers behind a backbone: L2 normalisation, extra feature maps, prediction heads (Liu et al.,
ECCV 2016, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from detection_zoo.zoo.parts.mobile_convs import Padding, conv_norm_act

# kernel, stride, padding, channels of the extra convolutions; every second one outputs a map
REDUCE_AND_HALVE = ((1, 1, 0, 256), (3, 2, 1, 512), (1, 1, 0, 128), (3, 2, 1, 256))
EXTRAS = {
    160: (*((1, 1, 0, 64), (3, 2, 1, 128)) * 2, (1, 1, 0, 64), (3, 1, 0, 128)),
    300: (*REDUCE_AND_HALVE, *((1, 1, 0, 128), (3, 1, 0, 256)) * 2),
    512: (*REDUCE_AND_HALVE, *((1, 1, 0, 128), (3, 2, 1, 256)) * 2, (1, 1, 0, 128), (4, 1, 1, 256)),
}


def check_size(size: int, known: Iterable[int] = EXTRAS) -> None:
    """Raise ValueError unless extra layers are defined for inputs of `size` pixels."""
    if size not in known:
        raise ValueError(
            f"these layers are defined for inputs of {' or '.join(map(str, known))} pixels, not {size}"
        )


class L2Norm(nn.Module):
    """Scale every cell's channels to unit length, times a learned weight per channel (ParseNet, Liu et
    al. 2015).

    Args:
        channels: of the map.
        scale: initial weight.
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, features: Tensor) -> Tensor:
        # eps is added after the square root, unlike torch's normalize
        length = features.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
        return features / length * self.weight[:, None, None]


class SSDPyramid(nn.Module):
    """Maps for the heads: the finer backbone map L2-normalised, the coarser unchanged, then every second
    extra convolution.

    Args:
        fine_channels, coarse_channels: of the two backbone maps.
        size: side of the input in pixels: 160, 300 or 512.
    """

    def __init__(self, fine_channels: int, coarse_channels: int, *, size: int) -> None:
        super().__init__()
        check_size(size)
        self.norm = L2Norm(fine_channels)
        self.extras = nn.ModuleList()
        channels, self.channels = coarse_channels, [fine_channels, coarse_channels]
        for kernel, stride, padding, out in EXTRAS[size]:
            self.extras.append(nn.Conv2d(channels, out, kernel, stride, padding))
            channels = out
            if len(self.extras) % 2 == 0:
                self.channels.append(out)

    def forward(self, fine: Tensor, coarse: Tensor) -> list[Tensor]:
        maps, features = [self.norm(fine), coarse], coarse
        for index, extra in enumerate(self.extras):
            features = extra(features).relu_()
            if index % 2 == 1:
                maps.append(features)
        return maps


class SSDLitePyramid(nn.Module):
    """Maps for the heads of TensorFlow's mobile detectors: both backbone maps unchanged, then extra maps from
    a 1x1 and a 3x3 convolution of stride 2; in SSDLite the second is depthwise, followed by a 1x1
    (MobileNetV2, section 6.2).

    Args:
        fine_channels, coarse_channels: of the two backbone maps.
        padding: of the strided convolutions.
        separable: as in SSDLite.
    """

    def __init__(
        self, fine_channels: int, coarse_channels: int, *, padding: Padding, separable: bool = True
    ) -> None:
        super().__init__()
        self.channels = [fine_channels, coarse_channels, 512, 256, 256, 128]
        self.extras = nn.ModuleList()
        for before, out in pairwise(self.channels[1:]):
            half = out // 2
            layers = [conv_norm_act(before, half, 1, padding=padding)]
            if separable:
                layers.append(conv_norm_act(half, half, 3, stride=2, groups=half, padding=padding))
                layers.append(conv_norm_act(half, out, 1, padding=padding))
            else:
                layers.append(conv_norm_act(half, out, 3, stride=2, padding=padding))
            self.extras.append(nn.Sequential(*layers))

    def forward(self, fine: Tensor, coarse: Tensor) -> list[Tensor]:
        maps = [fine, coarse]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps


def _separable_head(channels: int, out: int) -> nn.Module:
    return nn.Sequential(
        conv_norm_act(channels, channels, 3, groups=channels, padding="symmetric"),
        nn.Conv2d(channels, out, 1),
    )


HEADS = {
    "plain": partial(nn.Conv2d, kernel_size=3, padding=1),
    "separable": _separable_head,
    "pointwise": partial(nn.Conv2d, kernel_size=1),
}
HeadKind = Literal["plain", "separable", "pointwise"]


class Heads(nn.ModuleList):
    """One head per map, with outputs ordered by prior.

    Args:
        channels: of each map.
        per_cell: A of each map.
        values: per prior: 4 offsets, or C classes.
        kind: one 3x3 convolution; depthwise 3x3, norm, ReLU6 and 1x1 (SSDLite); or one 1x1.
    """

    def __init__(
        self, channels: Sequence[int], per_cell: Sequence[int], values: int, *, kind: HeadKind
    ) -> None:
        super().__init__(
            HEADS[kind](width, boxes * values) for width, boxes in zip(channels, per_cell, strict=True)
        )
        self.values = values

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, P, values) from maps (N, C, H, W), ordered by map, row, column, box."""
        flat = [
            head(features).permute(0, 2, 3, 1).flatten(1) for head, features in zip(self, maps, strict=True)
        ]
        return torch.cat(flat, dim=1).reshape(len(maps[0]), -1, self.values)
