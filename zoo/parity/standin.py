"""Stand-in checkpoints: every tensor filled from its own name, as the folders of recorded reference outputs
describe them."""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.parity.files import ParityError
from detection_zoo.zoo.parity.prose import read_note
from detection_zoo.zoo.parity.wordings import CHECKPOINT_FORMAT

if TYPE_CHECKING:
    from detection_zoo.zoo.manifest import ModelEntry
    from detection_zoo.zoo.weights.rename import Translation

CHECKPOINT_FILE = "checkpoint.json"
PIECE = 1 << 14  # numbers that are drawn at once, so that their doubles stay in a processor's cache
M = TypeVar("M")


def fill(entry: dict[str, Any]) -> np.ndarray:
    """One tensor of a stand-in checkpoint; its numbers follow from its name alone.

    Args:
        entry: name, shape, fill, and where given dtype, gain, and fill_name (the name that the numbers follow
            from).

    Raises:
        CheckpointError: an unknown fill.
    """
    shape, gain = tuple(entry["shape"]), entry.get("gain", 1.0)
    draw = np.random.RandomState(zlib.crc32(entry.get("fill_name", entry["name"]).encode()))
    std = gain * math.sqrt(2.0 / max(1, math.prod(shape[1:])))
    fills: dict[str, Callable[[int], Any]] = {
        "zeros": np.zeros,
        "fan_in": lambda count: std * draw.standard_normal(count),
        "scale": lambda count: gain * (0.75 + 0.5 * draw.random_sample(count)),
        "shift": lambda count: gain * 0.1 * draw.standard_normal(count),
        "mean": lambda count: 0.1 * draw.standard_normal(count),
        "var": lambda count: 0.75 + 0.5 * draw.random_sample(count),
    }
    if entry["fill"] not in fills:
        raise CheckpointError(f"{entry['name']}: unknown fill {entry['fill']!r}; known: {', '.join(fills)}")
    values = np.empty(math.prod(shape), entry.get("dtype", "float32"))
    for start in range(0, len(values), PIECE):
        piece = values[start : start + PIECE]
        piece[:] = fills[entry["fill"]](len(piece))
    return values.reshape(shape)


def read_checkpoint_description(folder: Path | str, file: str = CHECKPOINT_FILE) -> dict[str, Any]:
    """The JSON description of a folder's checkpoint; raises CheckpointError where it is missing or
    malformed."""
    path = Path(folder) / file
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; a reference folder with a model describes its checkpoint there"
        ) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}; is the file cut short?") from None
    if not isinstance(described.get("tensors"), list):
        raise CheckpointError(f"{path}: has no list 'tensors' of names, shapes and fills")
    return described


@functools.lru_cache(maxsize=1)
def _filled(tensors: str) -> dict[str, np.ndarray]:
    """The filled tensors of a description's JSON list; the last are kept, as replays of a training with sums
    in another order start from them again. Do not change them."""
    return {entry["name"]: fill(entry) for entry in json.loads(tensors)}


def standin_arrays(folder: Path | str, file: str = CHECKPOINT_FILE) -> dict[str, np.ndarray]:
    """The whole stand-in checkpoint of a reference folder, in its own order; tensors of fixed values
    (anchors) included.

    Args:
        folder: holds the description.
        file: its name, where a folder describes one checkpoint in several formats.

    Returns:
        file's name -> array; the arrays are shared between calls, so do not change their numbers.
    """
    described = read_checkpoint_description(folder, file)
    arrays = dict(_filled(json.dumps(described["tensors"])))
    for entry in described.get("not_filled", []):
        if "values" in entry:
            arrays[entry["name"]] = np.array(entry["values"], dtype=entry.get("dtype", "float32")).reshape(
                entry["shape"]
            )
    return arrays


def standin_model(
    folder: Path, entry: ModelEntry, kind: type[M], form: str, file: str = CHECKPOINT_FILE
) -> tuple[M, Translation]:
    """A row's model with the stand-in checkpoint of a folder, and how the checkpoint's names were translated.

    Args:
        kind: the class that the model must have.
        form: format of the checkpoint. file: name of its description.

    Raises:
        ParityError: the row's model is of another class.
    """
    from detection_zoo.zoo.build import WithoutRandomFills, assemble
    from detection_zoo.zoo.weights.load import checkpoint_format, copy_into

    with WithoutRandomFills():
        model = assemble(entry)
    if not isinstance(model, kind):
        raise ParityError(f"{folder}: row {entry.name} is no {kind.__name__}; give the right row")
    translation = checkpoint_format(form).translate(standin_arrays(folder, file))
    copy_into(model, translation, f"stand-in checkpoint of {folder} ({form})")
    return model, translation


def write_standin_checkpoint(folder: Path | str, path: Path | str, file: str = CHECKPOINT_FILE) -> Path:
    """Write a folder's stand-in checkpoint as the file its source would have saved.

    Args:
        folder: reference folder.
        path: file to write; `.pkl` becomes Detectron's pickle of blobs, anything else a torch file with the
            tensors under "model" where the description has that, or bare.
        file: the description's name.
    """
    path = Path(path)
    arrays = standin_arrays(folder, file)
    temporary = path.with_name(path.name + ".part")
    if path.suffix == ".pkl":
        import pickle

        with temporary.open("wb") as stream:
            pickle.dump({"blobs": arrays}, stream, protocol=2)
    else:
        import torch

        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        words = read_checkpoint_description(folder, file).get("format", "")
        note = read_note(words, CHECKPOINT_FORMAT, f"{Path(folder) / file}: format")
        torch.save({"model": state} if note.wrapped else state, temporary)
    temporary.replace(path)
    return path
