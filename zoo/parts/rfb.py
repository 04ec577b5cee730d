"""Receptive Field Block layers behind a backbone (Liu et al., "Receptive Field Block Net", ECCV 2018, section
3, figures 4 and 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detection_zoo.zoo.parts.ssd_pyramid import check_size

Kernel = int | tuple[int, int]


class BasicConv(nn.Sequential):
    """Convolution without bias, batch norm of momentum 0.01, optional ReLU: children `conv`, `norm`. Padding
    keeps the size at stride 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Kernel,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        relu: bool = True,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = tuple(side // 2 * dilation for side in sides)
        self.add_module(
            "conv",
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride,
                same if padding is None else padding,
                dilation,
                bias=False,
            ),
        )
        self.add_module("norm", nn.BatchNorm2d(out_channels, momentum=0.01))
        if relu:
            self.add_module("relu", nn.ReLU(inplace=True))


class ReceptiveFieldBlock(nn.Module):
    """Branches of increasing receptive field, joined by `linear` and added to `shortcut`, with a ReLU after
    the sum only.

    Args:
        branches: modules over the same input.
        in_channels, joined_channels, out_channels: of the input, of the concatenated branches, of the output.
        stride: of the block; already applied in the branches.
    """

    def __init__(
        self,
        branches: list[nn.Sequential],
        in_channels: int,
        joined_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.linear = BasicConv(joined_channels, out_channels, 1, relu=False)
        self.shortcut = BasicConv(in_channels, out_channels, 1, stride=stride, relu=False)

    def forward(self, features: Tensor) -> Tensor:
        joined = torch.cat([branch(features) for branch in self.branches], dim=1)
        return (self.linear(joined) + self.shortcut(features)).relu_()


def rfb_a(in_channels: int, out_channels: int) -> ReceptiveFieldBlock:
    """RFB-a, for the finest map: four branches with asymmetric kernels."""
    inter = in_channels // 4
    narrow, middle = inter // 2, inter // 4 * 3
    branches = [
        nn.Sequential(BasicConv(in_channels, inter, 1), BasicConv(inter, inter, 3, relu=False)),
        nn.Sequential(
            BasicConv(in_channels, inter, 1),
            BasicConv(inter, inter, (3, 1)),
            BasicConv(inter, inter, 3, dilation=3, relu=False),
        ),
        nn.Sequential(
            BasicConv(in_channels, inter, 1),
            BasicConv(inter, inter, (1, 3)),
            BasicConv(inter, inter, 3, dilation=3, relu=False),
        ),
        nn.Sequential(
            BasicConv(in_channels, narrow, 1),
            BasicConv(narrow, middle, (1, 3)),
            BasicConv(middle, inter, (3, 1)),
            BasicConv(inter, inter, 3, dilation=5, relu=False),
        ),
    ]
    return ReceptiveFieldBlock(branches, in_channels, 4 * inter, out_channels)


def rfb(in_channels: int, out_channels: int, *, stride: int = 1, visual: int = 2) -> ReceptiveFieldBlock:
    """RFB of two branches; their dilations are visual + 1 and 2 * visual + 1."""
    inter = in_channels // 8
    wide, middle = 2 * inter, inter // 2 * 3
    branches = [
        nn.Sequential(
            BasicConv(in_channels, inter, 1),
            BasicConv(inter, wide, 3, stride=stride),
            BasicConv(wide, wide, 3, dilation=visual + 1, relu=False),
        ),
        nn.Sequential(
            BasicConv(in_channels, inter, 1),
            BasicConv(inter, middle, 3),
            BasicConv(middle, wide, 3, stride=stride),
            BasicConv(wide, wide, 3, dilation=2 * visual + 1, relu=False),
        ),
    ]
    return ReceptiveFieldBlock(branches, in_channels, 2 * wide, out_channels, stride=stride)


def _extras(in_channels: int, size: int) -> tuple[list[nn.Module], list[int], list[int]]:
    """Extra layers, the indices of those that output a map, and the channels of those maps."""
    blocks: list[nn.Module] = [rfb(in_channels, 1024), rfb(1024, 512, stride=2), rfb(512, 256, stride=2)]
    if size == 512:
        blocks += [
            rfb(256, 256, stride=2, visual=1),
            rfb(256, 256, stride=2, visual=1),
            BasicConv(256, 128, 1),
            BasicConv(128, 256, 4, padding=1),
        ]
        return blocks, [0, 1, 2, 3, 4, 6], [1024, 512, 256, 256, 256, 256]
    blocks += [
        BasicConv(256, 128, 1),
        BasicConv(128, 256, 3, padding=0),
        BasicConv(256, 128, 1),
        BasicConv(128, 256, 3, padding=0),
    ]
    return blocks, [0, 1, 2, 4, 6], [1024, 512, 256, 256, 256]


class RFBPyramid(nn.Module):
    """Maps for the heads: the finer backbone map after RFB-a, then extra layers on the coarser one, which is
    not itself an output.

    Args:
        fine_channels, coarse_channels: of the two backbone maps.
        size: side of the input in pixels, 300 or 512.
    """

    def __init__(self, fine_channels: int, coarse_channels: int, *, size: int) -> None:
        super().__init__()
        check_size(size, (300, 512))
        self.norm = rfb_a(fine_channels, 512)
        extras, self.taken, channels = _extras(coarse_channels, size)
        self.extras = nn.ModuleList(extras)
        self.channels = [512, *channels]

    def forward(self, fine: Tensor, coarse: Tensor) -> list[Tensor]:
        maps, features = [self.norm(fine)], coarse
        for index, extra in enumerate(self.extras):
            features = extra(features)
            if index in self.taken:
                maps.append(features)
        return maps
