"""Necks: from a backbone's feature maps to the levels of the heads; a single level, the feature pyramid
(Lin et al. 2017) and DetNet's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detection_zoo.zoo.parts.norm import ConvNorm
from detection_zoo.zoo.parts.upsampling import plus_upsampled
from detection_zoo.zoo.records import FeatureSpec
from detection_zoo.zoo.registry import NECKS


class Neck(nn.Module):
    """Maps by name to levels by name. `specs` describes the levels, finest first; `roi_levels` names those
    that RoIs are pooled from."""

    specs: dict[str, FeatureSpec]
    roi_levels: tuple[str, ...]


@NECKS.register("single")
class SingleLevel(Neck):
    """One map of the backbone as it is (C4 detectors).

    Args:
        specs: of the backbone.
        level: name of the map; default: the last.
    """

    def __init__(self, specs: Mapping[str, FeatureSpec], *, level: str | None = None) -> None:
        super().__init__()
        self.level = list(specs)[-1] if level is None else level
        if self.level not in specs:
            raise ValueError(f"the backbone has no map {level!r}; it has {', '.join(specs)}")
        self.specs, self.roi_levels = {self.level: specs[self.level]}, (self.level,)

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The one map."""
        return {self.level: maps[self.level]}


@NECKS.register("fpn")
class FeaturePyramid(Neck):
    """Top-down pyramid: 1x1 laterals, nearest upsampling and sum, 3x3 outputs; c2..c5 become p2..p5 (Lin et
    al. 2017, section 3).

    Args:
        specs: of the backbone.
        channels: of every level.
        levels: the backbone's maps to use; default: all of stride 4 and more (8 and more with
            "p6p7").
        extra: levels on top: "max_pool" (p6, every second cell of p5), "p6p7" (stride-2 convolutions,
            RetinaNet's), "none".
        extra_from: what "p6p7" starts from, "c" for the backbone's last map or "p" for the pyramid's.
        norm: "none" (convolutions with bias) or a kind of make_norm; there is no activation.
        only: the one level that heads read (Detectron's "P2 only"); none: they read all.
    """

    def __init__(
        self,
        specs: Mapping[str, FeatureSpec],
        *,
        channels: int = 256,
        levels: Sequence[str] | None = None,
        extra: str = "max_pool",
        extra_from: str = "c",
        norm: str = "none",
        only: str | None = None,
    ) -> None:
        super().__init__()
        if extra not in ("max_pool", "p6p7", "none") or extra_from not in ("c", "p"):
            raise ValueError(
                f"extra must be max_pool, p6p7 or none and extra_from c or p, not {extra!r} and"
                f" {extra_from!r}"
            )
        finest = 8 if extra == "p6p7" else 4
        self.levels = (
            [name for name, spec in specs.items() if spec.stride >= finest]
            if levels is None
            else list(levels)
        )
        if not self.levels or any(name not in specs for name in self.levels):
            raise ValueError(
                f"pyramid levels {self.levels} must be maps of the backbone, which has {', '.join(specs)}"
            )
        self.kind, self.extra_from = extra, extra_from
        self.lateral = nn.ModuleDict(
            {
                name: ConvNorm(specs[name].channels, channels, 1, norm=norm, activation="none")
                for name in self.levels
            }
        )
        self.output = nn.ModuleDict(
            {name: ConvNorm(channels, channels, 3, norm=norm, activation="none") for name in self.levels}
        )
        self.specs = {
            self._level_name(name): FeatureSpec(channels, specs[name].stride) for name in self.levels
        }
        self.roi_levels = tuple(self.specs)
        number, stride = len(self.levels) + 2, specs[self.levels[-1]].stride
        if self.levels[-1].startswith("c") and self.levels[-1][1:].isdigit():
            number = int(self.levels[-1][1:]) + 1
        if extra == "max_pool":
            self.specs[f"p{number}"] = FeatureSpec(channels, stride * 2)
        self.extra = nn.ModuleDict()
        if extra == "p6p7":
            first = specs[self.levels[-1]].channels if extra_from == "c" else channels
            for step, name in enumerate((f"p{number}", f"p{number + 1}")):
                self.extra[name] = nn.Conv2d(first if step == 0 else channels, channels, 3, 2, 1)
                self.specs[name] = FeatureSpec(channels, stride * 2 ** (step + 1))
        self.every, self.only = tuple(self.specs), only
        if only is not None:
            if only not in self.roi_levels:
                raise ValueError(f"the pyramid has no level {only!r}; it has {', '.join(self.roi_levels)}")
            self.specs, self.roi_levels = {only: self.specs[only]}, (only,)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    @staticmethod
    def _level_name(name: str) -> str:
        return "p" + name.removeprefix("c")

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Levels (N, channels, H / stride, W / stride) by name, finest first."""
        merged, out = None, {}
        for name in reversed(self.levels):
            lateral = self.lateral[name](maps[name])
            if merged is not None:
                lateral = plus_upsampled(lateral, merged)
            merged = lateral
            out[self._level_name(name)] = self.output[name](merged)
        if self.only is not None:
            return {self.only: out[self.only]}
        levels = {name: out[name] for name in self.roi_levels}
        last = levels[self.roi_levels[-1]]
        if self.kind == "max_pool":
            levels[self.every[-1]] = F.max_pool2d(last, 1, 2)
        x = maps[self.levels[-1]] if self.extra_from == "c" else last
        for step, (name, convolution) in enumerate(self.extra.items()):
            x = levels[name] = convolution(x if step == 0 else F.relu(x))
        return levels


@NECKS.register("smoothed_fpn")
class SmoothedPyramid(Neck):
    """Top-down pyramid in which only upsampled sums are smoothed, and the smoothed map is passed further
    down (in Lin et al. 2017 the unsmoothed one is).

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
        self.roi_levels = tuple(self.specs)[:4]
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
                upper = F.interpolate(upper, size=addend.shape[-2:], mode="bilinear", align_corners=True)
            levels.append(smooth(upper + addend))
        levels = levels[::-1]
        if self.extra == "max_pool":
            levels.append(F.max_pool2d(levels[-1], 1, 2))
        return dict(zip(self.specs, levels, strict=True))
