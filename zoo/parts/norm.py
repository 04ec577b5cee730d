"""Normalisation layers by name, and convolution with norm, used by all networks."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from detection_zoo.kernels.backend import is_traced
from detection_zoo.zoo.parts.boxes import widened

NORM_KINDS = ("frozen", "frozen_eps", "affine", "group", "batch", "none")


class FrozenNorm(nn.Module):
    """Batch normalisation with fixed statistics and fixed affine numbers, all buffers: x * scale + shift
    (Detectron's family).

    Args:
        channels: C of the input (N, C, H, W).
        eps: added to the variance; 0 in maskrcnn-benchmark.
    """

    def __init__(self, channels: int, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift (N, C, H, W) per channel, in the type of the input."""
        return scaled(x, *self.scale_and_shift())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Factor and summand of the input, each (C,), at least float32."""
        scale = widened(self.weight) * (widened(self.running_var) + self.eps).rsqrt()
        return scale, widened(self.bias) - widened(self.running_mean) * scale


class FrozenAffine(nn.Module):
    """A fixed scale and shift per channel without statistics, both buffers: used in Caffe2 models instead of
    batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift (N, C, H, W) per channel, in the type of the input."""
        return scaled(x, *self.scale_and_shift())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Factor and summand of the input, each (C,), at least float32."""
        return widened(self.weight), widened(self.bias)


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Maps (N, C, H, W) times a scale (C,) plus a shift (C,), in the type of the maps: under autocast, half
    maps stay half."""
    return (x * scale.to(x.dtype).view(1, -1, 1, 1)).add_(shift.to(x.dtype).view(1, -1, 1, 1))


def make_norm(kind: str, channels: int, *, eps: float | None = None, groups: int = 32) -> nn.Module:
    """A norm layer by name.

    Args:
        kind: "frozen" (fixed statistics, no eps), "frozen_eps" (the same with eps), "affine" (fixed scale and
            shift), "group" (GroupNorm, Wu and He 2018), "batch" (trained BatchNorm), "none".
        channels: C.
        eps: default 1e-5 for kinds with eps.
        groups: of GroupNorm; fewer if they do not divide the channels.
    """
    eps = 1e-5 if eps is None else eps
    if kind == "frozen":
        return FrozenNorm(channels)
    if kind == "frozen_eps":
        return FrozenNorm(channels, eps)
    if kind == "affine":
        return FrozenAffine(channels)
    if kind == "group":
        while channels % groups:
            groups //= 2
        return nn.GroupNorm(groups, channels, eps=eps)
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=eps)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"unknown norm {kind!r}; known: {', '.join(NORM_KINDS)}")


class ConvNorm(nn.Module):
    """Convolution, norm, activation; children `conv` and `norm` (norm is an identity for "none").

    Args:
        in_channels, out_channels, kernel, stride, dilation, groups: of the convolution; its padding keeps the
            size.
        norm: a kind of `make_norm`; the convolution has a bias only without a norm.
        activation: "relu" or "none".
        padding: default: keeps the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: str = "none",
        activation: str = "relu",
        padding: int | None = None,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2 if padding is None else padding
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=norm == "none"
        )
        self.norm = make_norm(norm, out_channels)
        self.activation = nn.ReLU(inplace=True) if activation == "relu" else nn.Identity()

    def forward(self, x: Tensor, plus: Tensor | None = None, *, overwrite: bool = False) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H', W'); `plus`, of the answer's shape, is added before the
        activation. Its memory may take the answer where `overwrite` is true."""
        fixed = isinstance(self.norm, FrozenNorm | FrozenAffine) and not self.conv.weight.requires_grad
        if self._is_fused(x, plus):
            return _conv_and_relu(self.conv, x, plus, overwrite)
        y = self.folded(x) if self.training and fixed else self.norm(self.conv(x))
        return self.activation(y if plus is None else y + plus)

    def _is_fused(self, x: Tensor, plus: Tensor | None) -> bool:
        """Whether oneDNN computes convolution, sum and ReLU in one pass: inference on a CPU with a folded
        norm, channels-last."""
        return (
            isinstance(self.norm, nn.Identity)
            and isinstance(self.activation, nn.ReLU)
            and type(self.conv) is nn.Conv2d
            and x.is_cpu
            and x.dtype == self.conv.weight.dtype
            and (plus is None or plus.dtype == x.dtype)
            and not torch.is_grad_enabled()
            and not is_traced(x)
            and x.is_contiguous(memory_format=torch.channels_last)
            and not x.is_contiguous()
            and _has_onednn(x.dtype)
        )

    def folded(self, x: Tensor) -> Tensor:
        """Convolution and fixed norm as one convolution, for frozen stages: (N, C, H, W) to
        (N, out_channels, H', W'). For trained weights the copies would take more memory than is saved."""
        scale, shift = self.norm.scale_and_shift()
        weight = self.conv.weight
        scaled_weight = (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype)
        return self.conv._conv_forward(x, scaled_weight, shift.to(weight.dtype))


@functools.cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether this CPU computes convolutions of that type with oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _conv_and_relu(conv: nn.Conv2d, x: Tensor, plus: Tensor | None, overwrite: bool) -> Tensor:
    """relu(conv(x) + plus), rounded once; into the memory of plus where `overwrite` is true."""
    geometry = [*conv.padding], [*conv.stride], [*conv.dilation], conv.groups
    given = conv.weight, conv.bias, *geometry
    if plus is None:
        return torch.ops.mkldnn._convolution_pointwise(x, *given, "relu", [], "")
    if overwrite:
        return torch.ops.mkldnn._convolution_pointwise_.binary(plus, x, *given, "add", 1.0, "relu", [], "")
    return torch.ops.mkldnn._convolution_pointwise.binary(x, plus, *given, "add", 1.0, "relu", [], "")
