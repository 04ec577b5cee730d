"""Reading local weight files: tensors by the file's own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.safe import file_kind, read_torch_file


def read_tensors(path: Path, *wrappers: str) -> dict[str, Any]:
    """Tensors by name of a torch file; a dict under the first of the `wrappers` keys that is there is taken
    in place of the whole.

    Raises:
        CheckpointError: the file cannot be read safely, or holds something else.
    """
    content = read_torch_file(path)
    for key in wrappers:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise CheckpointError(
            f"{path}: holds no state dict (tensors by name), nor one under {', '.join(wrappers) or 'a key'};"
            " is it the right file?"
        )
    return dict(content)


def read_own(path: Path) -> dict[str, Any]:
    """Tensors by name of a file that this project wrote: a training checkpoint, a state dict, or safetensors.

    Raises:
        CheckpointError: the file cannot be read safely, or holds something else.
    """
    if file_kind(path) != "safetensors":
        return read_tensors(path, "model")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); is it cut short?") from None
