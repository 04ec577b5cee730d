"""Model cost: parameters, multiply-accumulates (MAC) and floating-point
operations (FLOP)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from detection_zoo.zoo.detectors.base import Detector

MILLION, BILLION = 1e6, 1e9


@dataclass(frozen=True)
class ModelCost:
    """Counts for one image.

    parameters: trainable and frozen parameters, without buffers.
    macs: multiply-accumulates of convolutions, linear layers and other products; a multiply and an add
        count as ONE.
    flops: the same; a multiply and an add count as TWO.
    elementwise: two per normalised value, one per activated or pooled value.
    """

    parameters: int
    macs: int
    flops: int
    elementwise: int

    @property
    def parameters_m(self) -> float:
        """Parameters in millions."""
        return self.parameters / MILLION

    @property
    def gmacs(self) -> float:
        """Billions of MACs with the elementwise operations, as counters for PyTorch print them and as
        HarDNet's README quotes them."""
        return (self.macs + self.elementwise) / BILLION


_ATEN = torch.ops.aten
_NORMS = (_ATEN.native_batch_norm, _ATEN.cudnn_batch_norm, _ATEN._native_batch_norm_legit_no_training)
_ACTIVATIONS = (_ATEN.relu, _ATEN.relu_, _ATEN.hardtanh, _ATEN.hardtanh_)
_POOLS = (_ATEN.max_pool2d_with_indices, _ATEN.avg_pool2d, _ATEN.mean)
# operations per element of an operator's first input
_ELEMENTWISE = dict.fromkeys((*_NORMS, _ATEN.native_group_norm), 2) | dict.fromkeys(_ACTIVATIONS + _POOLS, 1)


class _Operations(TorchDispatchMode):
    """Counts the operations of every operator. The first operator below torch's own FlopCounterMode imports
    torch's compiler, which takes more than a second."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def count(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with self:
            out = operator.decompose(*args, **kwargs)
        if out is NotImplemented:
            out, packet = operator(*args, **kwargs), operator._overloadpacket
            if packet in _ELEMENTWISE:
                self.counts[packet] += _ELEMENTWISE[packet] * args[0].numel()
            elif packet in flop_registry:
                self.counts[packet] += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


_Operations.__torch_dispatch__ = _Operations.count  # torch wraps one that the class defines: it imports that


def model_cost(model: nn.Module, input_size: tuple[int, int]) -> ModelCost:
    """Count a model's parameters and operations on one black image.

    For a detector, everything before post-processing is counted. If the cost depends on the number of
    proposals, it is counted for a black image.

    Args:
        model: a classifier (also on the meta device, where nothing is computed) or a detector.
        input_size: (height, width) of the network's input in pixels.
    """
    device = next(model.parameters()).device
    images, training = torch.zeros(1, 3, *input_size, device=device), model.training
    model.eval()
    with torch.no_grad(), _Operations() as counter:
        if isinstance(model, Detector):
            model.raw(images, torch.tensor([input_size], device=device))
        else:
            model(images)
    model.train(training)
    counts = counter.counts
    elementwise = sum(count for op, count in counts.items() if op in _ELEMENTWISE)
    flops = sum(counts.values()) - elementwise
    return ModelCost(sum(p.numel() for p in model.parameters()), flops // 2, flops, elementwise)
