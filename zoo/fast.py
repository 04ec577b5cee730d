"""A faster copy of a model for inference: norms folded into convolutions, maps channels-last, weights truly
in half precision, 3x3 convolutions by Winograd's filtering, compared with the original
model."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.zoo.detectors.base import Detector
from detection_zoo.zoo.parts.boxes import box_iou
from detection_zoo.zoo.parts.norm import ConvNorm, FrozenAffine, FrozenNorm
from detection_zoo.zoo.parts.winograd import LEAST_CHANNELS, use_winograd
from detection_zoo.zoo.records import Detections

FIXED_NORMS = (FrozenNorm, FrozenAffine, nn.BatchNorm2d)
KEPT_WHOLE = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)  # these need weights in float32
SCORE = 0.5  # detections of at least this score must be found again


@dataclass(frozen=True)
class Tolerance:
    """How far a fast model may be from the eager one.

    maps: relative error of a feature map, by its L2 norm. iou, score: of a detection and its counterpart of
    the same class. share: of the eager detections that must have a counterpart.
    """

    maps: float
    iou: float
    score: float
    share: float


TOLERANCES = {
    torch.float32: Tolerance(1e-4, 0.99, 1e-3, 0.99),
    torch.float16: Tolerance(0.02, 0.9, 0.02, 0.95),
    torch.bfloat16: Tolerance(0.08, 0.8, 0.05, 0.9),
}


@dataclass(frozen=True)
class FastReport:
    """Comparison of a model on another path with eager: images, the largest relative error of a map (None:
    not compared), detections of the eager model of at least SCORE, and the share of them found again."""

    images: int
    error: float | None
    detections: int
    share: float

    def __str__(self) -> str:
        found = f"no detection has a score of {SCORE} or more"
        if self.detections:
            found = f"{self.share:.1%} of {self.detections} detections found again"
        maps = "" if self.error is None else f"maps differ by {self.error:.1e}, "
        return f"{self.images} images compared with eager: {maps}{found}"


def fast_model(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of a model for inference, of the same interface.

    Norms with fixed numbers are folded into the convolutions before them, in double precision. Weights are
    `dtype` throughout; scores and boxes are computed in float32 as in the eager model. On a CPU, 3x3
    convolutions are computed by Winograd's filtering, where numba is installed.

    Args:
        model: a detector or classifier of this project, on any device; it is not changed.
        dtype: float32, bfloat16 or float16.

    Raises:
        ValueError: another dtype, or a model without a backbone of this project.
    """
    if dtype not in TOLERANCES:
        raise ValueError(f"a fast model is float32, bfloat16 or float16, not {dtype}")
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        raise ValueError(f"{type(model).__name__} has no backbone of this project; run it with --path eager")
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(fast)
    if dtype in LEAST_CHANNELS and next(fast.backbone.parameters()).is_cpu:
        use_winograd(fast, dtype)  # before weights are rounded, so that filters are rounded once
    for module in fast.modules():
        if not isinstance(module, KEPT_WHOLE):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    fast.to(memory_format=torch.channels_last)

    def enter(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].to(dtype, memory_format=torch.channels_last), *given[1:])

    fast.backbone.register_forward_pre_hook(enter)
    return fast


def fold_norms(model: nn.Module) -> int:
    """Fold norms with fixed numbers into the convolutions before them, in place; returns how many were.

    A norm is folded where it is the `norm` of a ConvNorm, or follows a convolution in a Sequential.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, ConvNorm):
            pairs = [("conv", "norm")]
        elif isinstance(module, nn.Sequential):
            pairs = list(itertools.pairwise(module._modules))
        else:
            continue
        for first, second in pairs:
            convolution, norm = getattr(module, first), getattr(module, second)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, FIXED_NORMS):
                fold(convolution, norm)
                setattr(module, second, nn.Identity())
                count += 1
    return count


def fold(convolution: nn.Conv2d, norm: nn.Module) -> None:
    """Put a norm's fixed scale and shift into a convolution's weight and bias, in place."""
    scale, shift = fixed_numbers(norm)
    weight = convolution.weight
    bias = 0 if convolution.bias is None else convolution.bias.double()
    convolution.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(weight), False)
    convolution.bias = nn.Parameter((bias * scale + shift).to(weight), False)


def fixed_numbers(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) float64 of a norm in evaluation mode."""
    weight = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    bias = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    weight, bias = weight.detach().double(), bias.detach().double()
    if isinstance(norm, FrozenAffine):
        return weight, bias
    scale = weight * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, bias - norm.running_mean.double() * scale


@torch.inference_mode()
def map_error(eager: nn.Module, fast: nn.Module, images: Iterable[Tensor]) -> float:
    """The largest relative error of a map of the backbone, by its L2 norm, over batches (N, 3, H, W); NaN
    where one is NaN."""
    error = 0.0
    for pixels in images:
        for ours, theirs in zip(eager.backbone(pixels).values(), fast.backbone(pixels).values(), strict=True):
            distance = (ours.float() - theirs.float()).norm() / ours.float().norm().clamp(min=1e-12)
            error = error if float(distance) <= error else float(distance)  # NaN is kept
    return error


@torch.inference_mode()
def compare_detections(
    eager: nn.Module,
    other: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    error: float | None = None,
    path: str = "fast",
    bound: Tolerance | None = None,
) -> FastReport:
    """Compare the detections of some images, where `eager` is a detector.

    Args:
        eager, other: a detector, and what computes the same by another path.
        batches: images (N, 3, H, W) with sizes (N, 2). dtype: of the other path.
        error: of its maps; None if maps are not compared. path: its name, for the message. bound: how far
            they may be; None: as TOLERANCES has it for the type.

    Raises:
        ValueError: they differ by more.
    """
    bound, pairs, images = bound or TOLERANCES[dtype], [], sum(len(pixels) for pixels, _ in batches)
    far = error is not None and not error <= bound.maps
    seen = isinstance(eager, Detector) and (error is None or math.isfinite(error))
    for pixels, sizes in batches if seen else ():
        pairs += zip(eager.predict(pixels, sizes), other.predict(pixels, sizes), strict=True)
    marks = [found_again(*pair, bound).cpu() for pair in pairs]
    found = torch.cat(marks) if marks else torch.zeros(0)
    share = float(found.float().mean()) if len(found) else 1.0
    report = FastReport(images, error, len(found), share)
    if far or share < bound.share:
        kind, lost = str(dtype).removeprefix("torch."), first_lost(pairs, marks, eager)
        raise ValueError(
            f"the {path} path in {kind} exceeds its tolerance: {report}; allowed are {bound.maps:g}, and"
            f" {bound.share:.0%} found again at IoU {bound.iou} and score within {bound.score}{lost}. Use"
            " float32, or --path eager"
        )
    return report


def first_lost(
    pairs: Sequence[tuple[Detections, Detections]], marks: Sequence[Tensor], eager: nn.Module
) -> str:
    """The first detection that is not found again and the nearest one of the other path, as the end of a
    message; empty where there is none.

    Args:
        pairs: detections of each image, by the eager model and by the other. marks: (R,) bool of each, as
            `found_again` gives them.
        eager: for the class names.
    """
    for image, ((own, other), found) in enumerate(zip(pairs, marks, strict=True)):
        if found.all():
            continue
        lost = own.select(own.scores >= SCORE).select(~found.to(own.scores.device)).select(slice(1))
        same = other.select(other.labels == lost.labels)
        near = "no detection of that class"
        if len(same):
            overlap = box_iou(lost.boxes, same.boxes)[0]
            at = int(overlap.argmax())
            near = f"{_described(same.select(slice(at, at + 1)), eager)}, IoU {float(overlap[at]):.3f}"
        return (
            f". The first one lost is, in image {image}, {_described(lost, eager)}; the other path has {near}"
        )
    return ""


def _described(one: Detections, model: nn.Module) -> str:
    """Class, score and box of a single detection."""
    label, names = int(one.labels), getattr(model, "class_names", ())
    name = names[label] if label < len(names) else f"class {label}"
    corners = ", ".join(f"{value:.1f}" for value in one.boxes[0].tolist())
    return f"{name} {float(one.scores):.3f} ({corners})"


def found_again(eager: Detections, fast: Detections, bound: Tolerance, least: float = SCORE) -> Tensor:
    """Mark (R,) bool the eager detections of at least that score that the fast model has too."""
    own = eager.select(eager.scores >= least)
    close = (
        (box_iou(own.boxes, fast.boxes) >= bound.iou)
        & (own.labels[:, None] == fast.labels)
        & ((own.scores[:, None] - fast.scores).abs() <= bound.score)
    )
    return close.any(dim=1)
