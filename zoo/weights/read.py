"""Reading local weight files: arrays by the file's own names, from the files of training scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.machine import Name
from detection_zoo.zoo.weights.pickle.safe import file_kind, load_pickle, read_torch_file
from detection_zoo.zoo.weights.pickle.source import shown

# Keys under which training files store the state dict; the first one present is used.
CONTAINERS = (
    "averaged",  # of this project's trainings, where the weights were averaged
    "blobs",
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "weights",
    "ema",
    "model_ema",
    "module",
)
MAX_LEVELS = 3
OUTLINE_LEVELS = 2
SHOWN = 8
_NOTES = (str, bytes, int, float, complex, bool, type(None), Name)


def read_arrays(path: Path | str) -> dict[str, Any]:
    """Arrays by name of a checkpoint of any tool: a bare state dict, or one under a key of CONTAINERS.

    Args:
        path: torch file of any age, pickle of numpy arrays, or safetensors.

    Returns:
        Tensors (torch files, safetensors) or numpy arrays, by the file's own names. Numbers and notes among
            them are left out.

    Raises:
        CheckpointError: the file cannot be read safely, or has no state dict; the message describes its
            content.
    """
    path = Path(path)
    content = _read_content(path)
    arrays = _state_dict(content, MAX_LEVELS)
    if arrays is None:
        raise CheckpointError(
            f"{path}: has no state dict (arrays by name), nor one under {', '.join(CONTAINERS)}; it contains"
            f" {_outline(content)}; is it the right file?"
        )
    return arrays


def _read_content(path: Path) -> Any:
    kind = file_kind(path)
    if kind == "safetensors":
        return read_safetensors(path)
    return load_pickle(path) if kind == "unknown" else read_torch_file(path)


def read_safetensors(path: Path) -> dict[str, Any]:
    """Tensors by name of a safetensors file; raises CheckpointError where it is malformed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({error!s:.200}); is it cut short? fetch it again"
        ) from None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "reshape")


def _state_dict(content: Any, levels: int) -> dict[str, Any] | None:
    """The arrays of a state dict, or of the first nested one; None if there is none."""
    if not isinstance(content, dict) or not levels:
        return None
    arrays = {name: value for name, value in content.items() if _is_array(value)}
    others = [value for value in content.values() if not _is_array(value) and not isinstance(value, _NOTES)]
    if arrays and not others and all(isinstance(name, str) for name in arrays):
        return arrays
    below = (_state_dict(content.get(key), levels - 1) for key in CONTAINERS)
    return next((found for found in below if found), None)


def _outline(content: Any, levels: int = OUTLINE_LEVELS) -> str:
    """A short description of a value."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if not levels:
        return f"a dict of {len(content)}"
    if levels < OUTLINE_LEVELS and all(map(_is_array, content.values())):
        return f"a dict of {len(content)} arrays"
    parts = [
        f"{shown(name)} ({'array' if _is_array(value) else _outline(value, levels - 1)})"
        for name, value in sorted(content.items(), key=lambda item: _is_array(item[1]))[:SHOWN]
    ]
    more = f", ... ({len(content)} in all)" if len(content) > SHOWN else ""
    return f"a dict of {', '.join(parts)}{more}" if parts else "an empty dict"
