"""What records work on a simulated GPU or a CPU, as CUDA graphs do on a GPU: operators are written to a tape,
and run again on the same memory. The host's code does not run again, so its numbers stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from simulated_gpu import LOG, GpuTensor, computed, facts_of, leaves, mapped, memory_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detection_zoo.zoo.graphs import CaptureError, Replay

Result = TypeVar("Result")


def address(one: Tensor) -> int:
    """Of the memory that a tensor and its views share."""
    return memory_of(one).untyped_storage().data_ptr()


def tensors(value: Any) -> Iterator[Tensor]:
    """Tensors among an operator's arguments or results."""
    return (one for one in leaves(value) if isinstance(one, Tensor))


class Tape(TorchDispatchMode):
    """Operators that ran inside, with their arguments and the memory of new results.

    external: addresses of the device's memory that was read and that no operator on the tape made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[Any, Any, Any, dict[int, Tensor]]] = []
        self.made: set[int] = set()
        self.external: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = {address(one) for one in tensors((args, kwargs)) if isinstance(one, GpuTensor)}
        self.external |= read - self.made
        result = func(*args, **kwargs)
        given, found = {address(one) for one in tensors((args, kwargs))}, list(tensors(result))
        new = {place: memory_of(one) for place, one in enumerate(found) if address(one) not in given}
        self.made |= {address(one) for one in new.values()}
        about = facts_of(func)
        if not about.ours:  # replayed on the memory alone
            args, kwargs = mapped(memory_of, (args, kwargs))
        if new or not found or about.written is not None:  # others only look at memory in another way
            self.events.append((func, args, kwargs, new))
        return result

    def forget(self) -> None:
        """Leave in the memory of all results what a recording leaves there: anything."""
        for *_, new in self.events:
            for one in new.values():
                if one.is_floating_point():
                    one.fill_(torch.nan)

    def replay(self) -> None:
        """Run all again; results go to the memory of the first ones."""
        for func, args, kwargs, new in self.events:
            if facts_of(func).ours:
                again = func(*args, **kwargs)
            else:
                with torch._C.DisableTorchFunction():
                    again = computed(func, args, kwargs)
            if new:
                found = list(tensors(again))
                for place, one in new.items():
                    one.copy_(memory_of(found[place]))


class TapeCapture:
    """The `Capture` of tests; tapes: one a recording."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.tapes: list[Tape] = []

    def __call__(self, work: Callable[[], Result]) -> tuple[Result, Replay]:
        """Run work once, record it, and replay it."""
        work()
        tape, LOG.capturing = Tape(), True
        try:
            with tape:
                result = work()
        except RuntimeError as error:
            raise CaptureError(str(error)) from error
        finally:
            LOG.capturing = False
        self.tapes.append(tape)
        tape.forget()
        tape.replay()
        return result, tape.replay
