"""RoIAlign from one feature map or from all levels of a pyramid at once (He et al. 2017, section 3; Lin et
al. 2017, equation 1).

Along each axis a RoI is divided into P bins with g sample points each; a point interpolates linearly between
two cells, so an output is a sum of g * g * 4 weighted cells, divided by g * g. The three sampling rules
differ only in the positions of the points: "legacy" (start = edge * scale, sides at least 1 cell), "aligned"
(the same minus half a cell, without a minimum side) and "points" (`roi_align_points`). Coordinates and sums
are float32, or float64 for float64 maps.

Invalid rows: a negative image index (an absent row) gives zeros; an index beyond the batch, or a coordinate
    that is not finite, gives NaN. Neither passes a gradient. With sampling_ratio 0, a bin has ceil(side / P)
    points, at most the side of the map + 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detection_zoo.kernels.backend import BACKENDS, backend_for, cpu_form
from detection_zoo.kernels.operator import operator
from detection_zoo.kernels.roi_align_cuda import cuda_backward, cuda_forward
from detection_zoo.kernels.roi_align_reference import reference_backward, reference_forward
from detection_zoo.kernels.roi_levels import ALIGNED, LEGACY, POINTS, LevelRule, Sampling, assign_levels


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 0,
    aligned: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """Average bilinear samples over the bins of each RoI (He et al. 2017, section 3).

    Args:
        features: (N, C, H, W) float32, float64, float16 or bfloat16; NCHW or channels-last, not copied on a
            GPU.
        rois: (R, 5) floating, (image index, x1, y1, x2, y2) in image pixels.
        output_size: (PH, PW), or one number for both.
        spatial_scale: map cells per pixel, e.g. 1/16.
        sampling_ratio: points per bin and axis; 0 for ceil(side / P).
        aligned: True: shift by half a cell; False: the original version without shift, with sides of at least
            one cell.
    Returns:
        (R, C, PH, PW) of the features' type and memory format.
    Raises:
        ValueError: wrong shapes, types or devices.

    Examples:
        >>> features = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> roi_align(features, torch.tensor([[0, 0.0, 0, 32, 32]]), 2, spatial_scale=1 / 4, aligned=True)
        tensor([[[[13.5000, 17.5000],
                  [45.5000, 49.5000]]]])
    """
    return multilevel_roi_align(
        [features], rois, output_size, [spatial_scale], sampling_ratio, aligned, backend=backend
    )


def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int | tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = False,
    *,
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
    min_level: int = 2,
    level_offset: float = 0.0,
    level_eps: float = 1e-6,
    channels_last: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Pool each RoI from the pyramid level given by its size (Lin et al. 2017, equation 1); all levels and
    images in one launch.

    Args:
        features: L maps (N, C, H_l, W_l) of the same type, finest first.
        rois, output_size, sampling_ratio, aligned: as in `roi_align`.
        scales: L numbers, map cells per pixel of each level.
        canonical_scale, canonical_level, min_level, level_offset, level_eps: as in `LevelRule`.
        channels_last: memory format of the result; None for that of features[0].
    Returns:
        (R, C, PH, PW).
    Raises:
        ValueError: wrong shapes, types or devices.

    Examples:
        >>> features = [torch.ones(1, 256, 64, 64), torch.ones(1, 256, 32, 32)]
        >>> rois = torch.tensor([[0, 10.0, 10, 90, 90], [0, 0, 0, 250, 250]])
        >>> multilevel_roi_align(features, rois, 7, [1 / 4, 1 / 8], sampling_ratio=2).shape
        torch.Size([2, 256, 7, 7])
    """
    levels = LevelRule(canonical_scale, canonical_level, min_level, level_offset, level_eps)
    sampling = Sampling(scales, sampling_ratio, ALIGNED if aligned else LEGACY, levels)
    return _pool(features, rois, output_size, sampling, channels_last, backend)


def roi_align_points(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    *,
    backend: str | None = None,
) -> Tensor:
    """RoIAlign of DetNet_pytorch: P x P single bilinear samples from the RoI's start to its end + 1 cell.

    Point k of an axis lies at start + k * (end - start + 1) / (P - 1), edges times scale, no half-cell shift;
    points outside [0, size) are 0; beyond the last cell the line through the last two is extended
    (torchvision clamps there); end - start + 1 is at least 0.

    Args, returns, raises: as in `roi_align`; P must be at least 2.
    """
    sampling = Sampling([spatial_scale], 1, POINTS, LevelRule())
    return _pool([features], rois, output_size, sampling, None, backend)


def roi_align_averaged(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    *,
    backend: str | None = None,
) -> Tensor:
    """RoIAlignAvg of DetNet_pytorch: (P + 1) x (P + 1) points, then the mean of each 2 x 2 neighbourhood,
    stride 1.

    Args, returns, raises: as in `roi_align`.
    """
    return multilevel_roi_align_averaged(
        [features], rois, output_size, [spatial_scale], LevelRule(), backend=backend
    )


def multilevel_roi_align_averaged(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int | tuple[int, int],
    scales: Sequence[float],
    levels: LevelRule,
    *,
    backend: str | None = None,
) -> Tensor:
    """`roi_align_averaged` of each RoI (R, C, PH, PW), from the pyramid level given by the rule; other
    arguments and errors as in `multilevel_roi_align`."""
    height, width = output_pair(output_size)
    sampling = Sampling(scales, 1, POINTS, levels)
    points = _pool(features, rois, (height + 1, width + 1), sampling, None, backend)
    return torch.nn.functional.avg_pool2d(points, 2, 1)


def output_pair(output_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (PH, PW) from one number for both, or from two numbers."""
    return (output_size, output_size) if isinstance(output_size, int) else (output_size[0], output_size[1])


def _pool(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int | tuple[int, int],
    sampling: Sampling,
    channels_last: bool | None,
    backend: str | None,
) -> Tensor:
    size, (scales, ratio, rule, levels) = output_pair(output_size), sampling
    check_pooling(features, rois, size, least=2 if rule == POINTS else 1)
    if len(features) != len(scales) or ratio < 0:
        raise ValueError(
            f"{len(features)} feature maps, {len(scales)} scales, sampling ratio {ratio}; give one"
            " scale for each map and a ratio of at least 0"
        )
    chosen = backend_for(features[0], backend, operator="RoIAlign", known=BACKENDS)
    if chosen == "torchvision":
        return _torchvision_roi_align(features, rois, size, sampling)
    if channels_last is None:
        channels_last = is_channels_last(features[0])
    return _roi_align_op(
        list(features),
        rois.detach(),
        list(size),
        [float(s) for s in scales],
        ratio,
        rule,
        levels.numbers(),
        channels_last,
        chosen,
    )


def empty_map(shape: tuple[int, ...], like: Tensor, channels_last: bool) -> Tensor:
    """Return an uninitialised (N, C, H, W) tensor with the type and device of `like`, in NCHW or
    channels-last order."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def is_channels_last(features: Tensor) -> bool:
    """Whether an (N, C, H, W) map is channels-last and not also NCHW-contiguous."""
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


def check_pooling(features: Sequence[Tensor], rois: Tensor, size: tuple[int, int], least: int = 1) -> None:
    """Raise ValueError unless maps (N, C, H_l, W_l), rois (R, 5) and the output size are valid and match;
    least: of its sides."""
    if not features:
        raise ValueError("no feature maps; give at least one")
    first = features[0]
    for level, each in enumerate(features):
        if (
            each.ndim != 4
            or each.shape[:2] != first.shape[:2]
            or each.dtype != first.dtype
            or not each.is_floating_point()
        ):
            raise ValueError(
                f"features[{level}] must be floating (N, C, H, W) like features[0] ({first.dtype}"
                f" {tuple(first.shape)}), got {each.dtype} {tuple(each.shape)}"
            )
    if rois.ndim != 2 or rois.shape[1] != 5 or not rois.is_floating_point():
        raise ValueError(
            f"rois must be floating (R, 5): image index, x1, y1, x2, y2; got {rois.dtype} {tuple(rois.shape)}"
        )
    if any(each.device != rois.device for each in features):
        raise ValueError(
            f"rois are on {rois.device}, features on {[str(each.device) for each in features]}; move them"
            " together"
        )
    if min(size) < least:
        raise ValueError(f"output size {size}: sides must be at least {least}")


def _torchvision_roi_align(
    features: Sequence[Tensor], rois: Tensor, size: tuple[int, int], sampling: Sampling
) -> Tensor:
    import torchvision

    scales, ratio, rule, levels = sampling
    if rule == POINTS:
        raise ValueError("torchvision cannot place points as DetNet_pytorch does; use another backend")
    rois = rois.to(features[0].dtype)
    if len(features) == 1:
        return torchvision.ops.roi_align(features[0], rois, size, scales[0], ratio, rule == ALIGNED)
    level_of = assign_levels(rois, levels, len(features)) - levels.min_level
    pooled = features[0].new_zeros(len(rois), features[0].shape[1], *size)
    for level, (each, scale) in enumerate(zip(features, scales, strict=True)):
        rows = (level_of == level).nonzero().squeeze(1)
        part = torchvision.ops.roi_align(each, rois[rows], size, scale, ratio, rule == ALIGNED)
        pooled = pooled.index_copy(0, rows, part)
    return pooled


@operator("roi_align", gradient=True)
def _roi_align_op(
    features: list[Tensor],
    rois: Tensor,
    output_size: list[int],
    scales: list[float],
    sampling_ratio: int,
    rule: int,
    levels: list[float],
    channels_last: bool,
    backend: str,
) -> Tensor:
    sampling = Sampling(scales, sampling_ratio, rule, LevelRule.of(levels))
    if backend == "reference":
        return reference_forward(features, rois, output_size, sampling, channels_last)
    pooled = empty_map((rois.shape[0], features[0].shape[1], *output_size), features[0], channels_last)
    forward = cuda_forward if backend == "cuda" else cpu_form("roi_align").cpu_forward
    return forward(features, rois, pooled, sampling)


@torch.library.register_fake(_roi_align_op)
def _(features, rois, output_size, scales, sampling_ratio, rule, levels, channels_last, backend):
    return empty_map((rois.shape[0], features[0].shape[1], *output_size), features[0], channels_last)


@operator("roi_align_backward", gradient=True)
def _roi_align_backward_op(
    grad: Tensor,
    rois: Tensor,
    shapes: list[int],
    channels_last_maps: list[int],
    scales: list[float],
    sampling_ratio: int,
    rule: int,
    levels: list[float],
    backend: str,
    deterministic: bool,
) -> list[Tensor]:
    maps = _empty_maps(grad, shapes, channels_last_maps)
    sampling = Sampling(scales, sampling_ratio, rule, LevelRule.of(levels))
    if backend == "cuda":
        return cuda_backward(grad, maps, rois, sampling, deterministic)
    backward = cpu_form("roi_align").cpu_backward if backend == "cpu" else reference_backward
    return backward(grad, maps, rois, sampling)


@torch.library.register_fake(_roi_align_backward_op)
def _(grad, rois, shapes, channels_last_maps, scales, sampling_ratio, rule, levels, backend, deterministic):
    return _empty_maps(grad, shapes, channels_last_maps)


def _empty_maps(grad: Tensor, shapes: list[int], channels_last_maps: list[int]) -> list[Tensor]:
    """Uninitialised gradients, one per level; shapes contains N, H_0, W_0, H_1, W_1 ..."""
    return [
        empty_map((shapes[0], grad.shape[1], height, width), grad, bool(last))
        for height, width, last in zip(shapes[1::2], shapes[2::2], channels_last_maps, strict=True)
    ]


def _setup(ctx, inputs, output) -> None:
    features, rois, _, *ctx.sampling, _, ctx.backend = inputs
    ctx.save_for_backward(rois)
    ctx.shapes = [features[0].shape[0], *(side for each in features for side in each.shape[2:])]
    ctx.channels_last_maps = [int(is_channels_last(each)) for each in features]


def _backward(ctx, grad: Tensor):
    grads = _roi_align_backward_op(
        grad,
        ctx.saved_tensors[0],
        ctx.shapes,
        ctx.channels_last_maps,
        *ctx.sampling,
        ctx.backend,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grads, *[None] * 8


torch.library.register_autograd(_roi_align_op, _backward, setup_context=_setup)


def _setup_double(ctx, inputs, output) -> None:
    grad, rois, _, _, *ctx.sampling, ctx.backend, _ = inputs
    ctx.save_for_backward(rois)
    ctx.output_size, ctx.channels_last = list(grad.shape[2:]), is_channels_last(grad)


def _double_backward(ctx, grads_of_maps: list[Tensor]):
    """The backward pass is linear in the upstream gradient; its transpose is the forward pass."""
    (rois,) = ctx.saved_tensors
    pooled = _roi_align_op(
        grads_of_maps, rois, ctx.output_size, *ctx.sampling, ctx.channels_last, ctx.backend
    )
    return pooled, *[None] * 9


torch.library.register_autograd(_roi_align_backward_op, _double_backward, setup_context=_setup_double)
