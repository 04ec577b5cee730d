"""RoI heads: pooling, trunks, the box predictor and its losses (Fast R-CNN, Girshick 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection_zoo.kernels.roi_align import multilevel_roi_align, multilevel_roi_align_averaged
from detection_zoo.kernels.roi_crop import affine_grid, roi_crop
from detection_zoo.kernels.roi_levels import LevelRule, assign_levels
from detection_zoo.kernels.roi_pool import roi_pool
from detection_zoo.zoo.conventions import PoolingConventions
from detection_zoo.zoo.parts.fixed_size import fixed_size, present_rows, rows_of
from detection_zoo.zoo.parts.losses import smooth_l1_sum
from detection_zoo.zoo.parts.norm import ConvNorm, make_norm
from detection_zoo.zoo.parts.proposals import Size
from detection_zoo.zoo.parts.targets import SampledBoxes
from detection_zoo.zoo.records import FeatureSpec


def with_image_index(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (R_i, 4) of each image as RoIs (R, 5): image index, x1, y1, x2, y2.

    In lists of fixed size the index of an absent row is -1.
    """

    def index(image: int, own: Tensor) -> Tensor:
        if fixed_size(own):
            return torch.where(present_rows(own), image, -1)[:, None].to(own.dtype)
        return own.new_full((len(own), 1), image)

    return torch.cat([torch.cat([index(i, each), each], dim=1) for i, each in enumerate(boxes)])


class RoiAlignPooler(nn.Module):
    """RoIAlign, or an earlier operator, on the pyramid level for a RoI's size (FPN, Lin et al.
    2017, equation 1).

    Args:
        specs: the levels RoIs are pooled from, finest first, by name; the finest counts as level 2.
        rule: size, method, points and levels. "roi_align_averaged": the mean of four neighbouring points;
            "roi_pool": the maximum of whole cells; "roi_crop": points of a grid, then the maximum of 2 x 2 of
            them (its source fixes one cell to 16 pixels on every level).
    """

    def __init__(self, specs: Mapping[str, FeatureSpec], rule: PoolingConventions) -> None:
        super().__init__()
        self.rule, self.levels = rule, list(specs)
        self.channels_last: bool | None = None  # memory format of the output; None for that of the maps
        self.scales = [1.0 / spec.stride for spec in specs.values()]
        self.level_rule = LevelRule(
            rule.canonical_scale, rule.canonical_level, 2, rule.level_offset, rule.level_eps
        )

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[Size] | None = None
    ) -> Tensor:
        """Pooled features (R, C, PH, PW) of boxes (R_i, 4) of each image, image after image; sizes (height,
        width) of each image are needed if the rule's scale is "height"."""
        rule, levels = self.rule, [features[name] for name in self.levels]
        scales = self.scales
        if rule.scale == "height":
            if sizes is None:
                raise ValueError("pooling with scale 'height' needs the sizes of the images")
            scales = [level.shape[2] / float(sizes[0][0]) for level in levels]
        if not self.pools_fixed:
            return self._by_level(levels, scales, boxes)
        if rule.method == "roi_align_averaged":
            rois = with_image_index(boxes)
            return multilevel_roi_align_averaged(levels, rois, rule.size, scales, self.level_rule)
        return multilevel_roi_align(
            levels,
            with_image_index(boxes),
            rule.size,
            scales,
            rule.sampling_ratio,
            rule.aligned,
            channels_last=self.channels_last,
            canonical_scale=rule.canonical_scale,
            canonical_level=rule.canonical_level,
            min_level=self.level_rule.min_level,
            level_offset=rule.level_offset,
            level_eps=rule.level_eps,
        )

    @property
    def pools_fixed(self) -> bool:
        """Whether all levels are pooled in one call, without data-dependent sizes."""
        return self.rule.method in ("roi_align", "roi_align_averaged")

    def _by_level(self, levels: Sequence[Tensor], scales: Sequence[float], boxes: Sequence[Tensor]) -> Tensor:
        rois, level_of, size = with_image_index(boxes), self.level_indices(boxes), self.rule.size
        pooled = levels[0].new_zeros(len(rois), levels[0].shape[1], size, size)
        for index, (level, scale) in enumerate(zip(levels, scales, strict=True)):
            rows = torch.nonzero(level_of == index).squeeze(1)
            if not len(rows):
                continue
            if self.rule.method == "roi_crop":
                grid = affine_grid(rois[rows], tuple(level.shape[-2:]), 2 * size)
                part = F.max_pool2d(roi_crop(level, grid, rois[rows, 0].long()), 2, 2)
            else:
                part = roi_pool(level, rois[rows], size, scale)
            pooled = pooled.index_copy(0, rows, part)
        return pooled

    def level_indices(self, boxes: Sequence[Tensor]) -> Tensor:
        """Level (R,) int64 that each box is pooled from, 0 the finest."""
        return assign_levels(with_image_index(boxes), self.level_rule, len(self.levels)) - 2


def linear(in_width: int, out_width: int, norm: str = "none") -> nn.Module:
    """A fully connected layer, or one without bias with GroupNorm after it; Caffe2's "Xavier" weights."""
    layer = nn.Linear(in_width, out_width, bias=norm == "none")
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if norm == "none":
        nn.init.zeros_(layer.bias)
        return layer
    return nn.Sequential(layer, make_norm(norm, out_width))


class MlpTrunk(nn.Module):
    """Two fully connected layers with ReLU over the flattened features (FPN, section 4.2).

    Args:
        channels, size: of the pooled features. width: of both layers. norm: "none", or "group" in place of
            the biases.
    """

    def __init__(self, channels: int, size: int, *, width: int = 1024, norm: str = "none") -> None:
        super().__init__()
        self.fc6, self.fc7, self.channels = (
            linear(channels * size * size, width, norm),
            linear(width, width, norm),
            width,
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, PH, PW) to (R, width)."""
        return F.relu(self.fc7(F.relu(self.fc6(pooled.flatten(1)), inplace=True)), inplace=True)


class ConvTrunk(nn.Module):
    """3x3 convolutions with a norm and ReLU, then one fully connected layer with ReLU (Group Normalization,
    Wu and He 2018, section 5.3).

    Args:
        channels, size: of the pooled features. convs: how many. conv_channels, width: of the convolutions, of
            the layer.
        norm: a kind of make_norm; the convolutions have a bias only without one.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        convs: int = 4,
        conv_channels: int = 256,
        width: int = 1024,
        norm: str = "group",
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                ConvNorm(channels if i == 0 else conv_channels, conv_channels, 3, norm=norm)
                for i in range(convs)
            )
        )
        self.fc6, self.channels = linear(conv_channels * size * size, width), width
        for layer in self.convs:
            nn.init.normal_(layer.conv.weight, std=0.01)
            if layer.conv.bias is not None:
                nn.init.zeros_(layer.conv.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, PH, PW) to (R, width)."""
        return F.relu(self.fc6(self.convs(pooled).flatten(1)), inplace=True)


class PooledConvTrunk(nn.Module):
    """A convolution of the size of the pooled map and a 1x1 convolution, each with ReLU, which leave one cell
    a RoI (faster-rcnn.pytorch's FPN).

    Args:
        channels, size: of the pooled features. width: of both convolutions.
    """

    def __init__(self, channels: int, size: int, *, width: int = 1024) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, width, size, size), nn.Conv2d(width, width, 1)
        self.channels = width

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, PH, PW) to (R, width)."""
        return F.relu(_whole_map(self.conv2, F.relu(_whole_map(self.conv1, pooled))[..., None, None]))


def _whole_map(conv: nn.Conv2d, pooled: Tensor) -> Tensor:
    """A convolution whose kernel has the size of its maps (R, C, PH, PW), as a product of matrices in the
    order of its weights: (R, out). On a CPU oneDNN's convolution and its gradient take four times as long,
    channels-last sixteen times."""
    last = conv.weight.is_contiguous(memory_format=torch.channels_last)
    order = (0, 2, 3, 1) if last else (0, 1, 2, 3)
    return F.linear(pooled.permute(order).flatten(1), conv.weight.permute(order).flatten(1), conv.bias)


class StageTrunk(nn.Module):
    """The backbone's last stage, applied to pooled features (He et al. 2015, appendix A); the predictor
    averages its map.

    Args:
        stage: module. channels: of its output.
    """

    def __init__(self, stage: nn.Module, channels: int) -> None:
        super().__init__()
        self.stage, self.channels = stage, channels

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, PH, PW) to a map (R, channels, PH / 2, PW / 2)."""
        return self.stage(pooled)


class BoxPredictor(nn.Module):
    """Class logits and box deltas, background first.

    Args:
        channels: of the trunk. num_classes: K.
        deltas: one set per "class", one each for background and "object", or "one" set in total.
    """

    def __init__(self, channels: int, num_classes: int, *, deltas: str = "class") -> None:
        super().__init__()
        sets = {"class": num_classes + 1, "object": 2, "one": 1}
        if deltas not in sets:
            raise ValueError(f"unknown deltas {deltas!r}; known: {', '.join(sets)}")
        self.class_logits = nn.Linear(channels, num_classes + 1)
        self.box_deltas = nn.Linear(channels, 4 * sets[deltas])
        for layer, std in ((self.class_logits, 0.01), (self.box_deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C) or a map (R, C, H, W), which is averaged, to logits (R, K + 1) and deltas (R, 4 * (K +
        1))."""
        x = x if x.ndim == 2 else F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.class_logits(x), self.box_deltas(x)


class BoxHead(nn.Module):
    """Pooler, trunk and predictor of the box branch; `trunk` is shared with a C4 mask head."""

    def __init__(self, pooler: nn.Module, trunk: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.pooler, self.trunk, self.predictor = pooler, trunk, predictor
        if isinstance(trunk, MlpTrunk):
            pooler.channels_last = False  # in the order of flattening, without a copy

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[Size] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The trunk's output for every box, class logits (R, K + 1), deltas (R, 4 * (K + 1)); arguments as in
        RoiAlignPooler."""
        hidden = self.trunk(self.pooler(features, boxes, sizes))
        return hidden, *self.predictor(hidden)


def box_losses(
    logits: Tensor, deltas: Tensor, sampled: Sequence[SampledBoxes], beta: float
) -> dict[str, Tensor]:
    """Mean cross entropy and smooth L1 of the true class's deltas over the number of all sampled boxes
    (Girshick 2015, equation 1); absent ones, of label -1, are ignored."""
    labels = torch.cat([each.labels for each in sampled])
    targets = torch.cat([each.targets for each in sampled])
    rows, count = rows_of(labels > 0), (labels >= 0).sum().clamp(min=1)
    classes, own = deltas.shape[1] // 4, labels[rows]
    column = own.clamp(min=0) if classes > 2 else torch.full_like(own, classes - 1)
    chosen = deltas.view(len(deltas), classes, 4)[rows]
    chosen = chosen.gather(1, column[:, None, None].expand(-1, 1, 4)).squeeze(1)
    box = smooth_l1_sum(chosen, targets[rows], beta, own > 0) / count
    classification = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / count
    return {"loss_class": classification, "loss_box": box}
