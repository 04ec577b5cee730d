"""The feature pyramid of DetNet_pytorch's lineage: corner-aligned upsampling, smoothing where maps were
upsampled."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from detection_zoo.zoo.backbones.base import FeatureSpec
from detection_zoo.zoo.registry import NECKS


class SmoothedPyramid(nn.Module):
    """Top-down pyramid in which only upsampled sums are smoothed, and the smoothed map is what goes further
    down (Lin et al. 2017 smooths beside).

    Neighbouring maps of the same stride are summed without upsampling and without smoothing (DetNet, Li et
    al. 2018, figure 1 C). Upsampling is bilinear to the finer map's size with aligned corners.

    Args:
        specs: the backbone's maps, finest first.
        channels: of every level.
        extra: "max_pool" adds a level that is every second cell of the coarsest; "none" adds nothing.
    """

    def __init__(self, specs: dict[str, FeatureSpec], *, channels: int = 256, extra: str = "none") -> None:
        super().__init__()
        if extra not in ("none", "max_pool"):
            raise ValueError(f"extra must be 'none' or 'max_pool', not {extra!r}")
        coarse_first = list(specs.values())[::-1]
        self.names, self.extra = list(specs), extra
        self.top = nn.Conv2d(coarse_first[0].channels, channels, 1)
        self.lateral = nn.ModuleList(nn.Conv2d(spec.channels, channels, 1) for spec in coarse_first[1:])
        upsampled = [
            finer.stride != coarser.stride
            for coarser, finer in zip(coarse_first[:-1], coarse_first[1:], strict=True)
        ]
        self.smooth = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) if step else nn.Identity() for step in upsampled
        )
        self.specs = {
            f"p{name.lstrip('c')}": FeatureSpec(channels, spec.stride) for name, spec in specs.items()
        }
        if extra == "max_pool":
            coarsest = int(self.names[-1].lstrip("c"))
            self.specs[f"p{coarsest + 1}"] = FeatureSpec(channels, 2 * coarse_first[0].stride)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps (N, C, H, W) by backbone name to levels (N, channels, H, W) p2, p3 ..., finest first."""
        maps = [features[name] for name in self.names][::-1]
        levels = [self.top(maps[0])]
        for finer, lateral, smooth in zip(maps[1:], self.lateral, self.smooth, strict=True):
            addend, upper = lateral(finer), levels[-1]
            if not isinstance(smooth, nn.Identity):
                upper = functional.interpolate(
                    upper, size=addend.shape[-2:], mode="bilinear", align_corners=True
                )
            levels.append(smooth(upper + addend))
        levels = levels[::-1]
        if self.extra == "max_pool":
            levels.append(functional.max_pool2d(levels[-1], 1, 2))
        return dict(zip(self.specs, levels, strict=True))


@NECKS.register("smoothed_fpn")
def smoothed_fpn(
    specs: dict[str, FeatureSpec], *, channels: int = 256, extra: str = "none"
) -> SmoothedPyramid:
    """The pyramid of DetNet_pytorch over every map of the backbone, finest first."""
    return SmoothedPyramid(specs, channels=channels, extra=extra)
