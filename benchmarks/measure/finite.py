"""Numbers that are not finite: a model that gives them is broken, and neither its time nor its accuracy means
anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from detection_zoo.benchmarks.measure.parts import around_parts, parts_of
from detection_zoo.zoo.records import tensors_in


def check_finite(value: Any, what: str, *, boxes: bool = True) -> None:
    """Raise FloatingPointError where a number in it is NaN or infinite; waits for the device.

    Args:
        value: tensors of any shape, alone or in lists, mappings and dataclasses; anything else in them is
            passed by.
        what: gave it, for the message.
        boxes: look at fields called boxes too. Raw ones may be infinite: in some families a side is an
            exponential without a bound, and a box that overflows is dropped later.
    """
    edges = [
        torch.stack(torch.aminmax(tensor)).float() for tensor in _numbers(value, boxes)
    ]  # a NaN is the least and the greatest
    if edges and not bool(torch.cat(edges).isfinite().all()):
        raise FloatingPointError(
            f"{what} outputs numbers that are not finite (NaN or infinite); check weights and precision"
        )


def _numbers(value: Any, boxes: bool) -> Iterator[Tensor]:
    """Floating-point tensors that are not empty."""
    every = tensors_in(value, None if boxes else "boxes")
    return (one for one in every if one.is_floating_point() and one.numel())


@contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """In this block, what each part of the model gives and what its forward phase gives is checked; not for
    timing.

    Raises:
        FloatingPointError: names the first part that gives a NaN or an infinite number.
    """

    def around(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def checked(*arguments: Any, **options: Any) -> Any:
            found = call(*arguments, **options)
            check_finite(found, f"the model ({name})", boxes=False)
            return found

        return checked

    with around_parts(
        model, {**parts_of(model), "raw outputs": ("raw" if hasattr(model, "raw") else "forward",)}, around
    ):
        yield
