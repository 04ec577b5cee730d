"""Optional trace of module outputs and of tensors recorded by name in detectors.

Without an active trace `record` does nothing, so it is not part of compiled and exported models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_open: dict[str, Any] | None = None


def record(name: str, value: Any) -> None:
    """Keep a copy of a tensor, or of a list, tuple or dict of tensors, in the active trace.

    Args:
        name: in the trace; replaces an earlier value of that name. value: of any shape.
    """
    if _open is not None:
        _open[name] = _copied(value)


@contextmanager
def trace(model: nn.Module, *paths: str) -> Iterator[dict[str, Any]]:
    """Inside the block, keep the values passed to `record`, and the outputs of modules by their path.

    Args:
        model: the model. paths: of modules; those missing in the model are ignored.

    Yields:
        name or path -> value of its last call, detached and copied at the time of the call.
    """
    global _open
    before, found = _open, {}
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name in paths}
    handles = [
        module.register_forward_hook(lambda _module, _given, output, path=path: record(path, output))
        for path, module in modules.items()
    ]
    _open = found
    try:
        yield found
    finally:
        _open = before
        for handle in handles:
            handle.remove()


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        return [_copied(each) for each in value]
    return {name: _copied(each) for name, each in value.items()}
