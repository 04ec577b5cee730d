"""Checks for NaN and infinite outputs: the time and accuracy of such a model are
meaningless."""

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
    """Raise FloatingPointError if a number in a value is NaN or infinite; synchronises with the device.

    Args:
        value: tensors of any shape, or lists, mappings and dataclasses of tensors; other
            objects are ignored.
        what: its origin, for the message.
        boxes: also check fields named boxes. Raw boxes may be infinite: some families use an
            unbounded exponential for width and height, and drop overflowing boxes later.
    """
    edges = [
        torch.stack(torch.aminmax(tensor)).float() for tensor in _numbers(value, boxes)
    ]  # a NaN propagates to both minimum and maximum
    if edges and not bool(torch.cat(edges).isfinite().all()):
        raise FloatingPointError(
            f"{what} outputs numbers that are not finite (NaN or infinite); check weights and precision"
        )


def _numbers(value: Any, boxes: bool) -> Iterator[Tensor]:
    """Yield non-empty floating-point tensors."""
    every = tensors_in(value, None if boxes else "boxes")
    return (one for one in every if one.is_floating_point() and one.numel())


@contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """Check the outputs of each part of the model and of its forward phase inside this block; not
    for timing.

    Raises:
        FloatingPointError: names the first part that outputs a NaN or an infinite number.
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
