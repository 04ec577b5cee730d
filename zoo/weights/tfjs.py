"""Read TensorFlow.js models, stored as one zip file of model.json and its shards, into numpy arrays by name;
no code is run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.safe import file_kind
from detection_zoo.zoo.weights.pickle.source import shown
from detection_zoo.zoo.weights.zip_entries import ZipEntries, zip_entries

DESCRIPTION = "model.json"
LARGEST_DESCRIPTION_BYTES = 8 << 20
LARGEST_GROWTH = 8  # of the unpacked entries over the file
MAX_DIMENSIONS = 32
TYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "uint16": "<u2", "bool": "?"}
QUANTISED = ("uint8", "uint16", "float16")  # types in which a quantised weight may be stored


def read_tfjs(path: Path, name: str = DESCRIPTION) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of a TensorFlow.js model, and its description.

    Args:
        path: zip file with the description and the shards that it lists, stored or compressed.
        name: of the description: model.json, or a file with only its list of weights.

    Returns:
        Arrays by the model's own names (quantised ones widened to float32), and the content of model.json.

    Raises:
        CheckpointError: malformed, cut short, or a weight of a non-numeric type.
    """
    if (kind := file_kind(path)) != "torch zip":
        raise CheckpointError(
            f"{path}: not a TensorFlow.js model in a zip file ({kind}); fetch it again, or where it is a file"
            " of another format, say which with --format"
        )
    with zip_entries(path, growth=LARGEST_GROWTH) as entries:
        description = _description(entries, name)
        return _weights(entries, description["weightsManifest"]), description


def _description(entries: ZipEntries, name: str) -> dict[str, Any]:
    path = entries.path
    if name not in entries:
        raise CheckpointError(
            f"{path}: not a TensorFlow.js model in a zip file (no {name}); where it is a file of"
            " another format, say which with --format"
        )
    if entries.sizes[name] > LARGEST_DESCRIPTION_BYTES:
        raise CheckpointError(
            f"{path}: its {name} is larger than {LARGEST_DESCRIPTION_BYTES:,} bytes: refused"
        )
    try:
        description = json.loads(entries.read(name).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its {name} is malformed ({type(error).__name__}: {error!s:.120}); fetch it again"
        ) from error
    if isinstance(description, list):
        description = {"weightsManifest": description}
    if not isinstance(description, dict) or not isinstance(description.get("weightsManifest"), list):
        raise CheckpointError(f"{path}: its {name} lists no weights; is it a TensorFlow.js model?")
    return description


@dataclass(frozen=True)
class _Weight:
    """A weight as the description states it. `type`, `stored`: numpy type codes of the array and of the
    shards."""

    name: str
    type: str
    stored: str
    shape: tuple[int, ...]
    scale: float | None = None
    minimum: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes in the shards."""
        return math.prod(self.shape) * int(self.stored.lstrip("<")[1:] or 1)


def _weights(entries: ZipEntries, manifest: list[Any]) -> dict[str, Any]:
    """Arrays by name; the shards of a group are concatenated, and its weights fill these bytes exactly."""
    arrays: dict[str, Any] = {}
    used: set[str] = set()
    for group in manifest:
        shards = group.get("paths") if isinstance(group, dict) else None
        listed = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(listed, list) or not isinstance(shards, list) or not all(map(_is_text, shards)):
            raise CheckpointError(
                f"{entries.path}: its {DESCRIPTION} has a group without paths and weights; is it damaged?"
            )
        if len({*used, *shards}) != len(used) + len(shards):
            raise CheckpointError(f"{entries.path}: refused: its {DESCRIPTION} names a shard twice")
        used.update(shards)
        if lost := [shard for shard in shards if shard not in entries]:
            raise CheckpointError(f"{entries.path}: the shard {lost[0]!r:.80} is missing; fetch it again")
        weights = [_weight(value, entries.path) for value in listed]
        if sum(entries.sizes[shard] for shard in shards) != sum(weight.bytes for weight in weights):
            names = ", ".join(f"{shard:.60}" for shard in shards[:2])
            raise CheckpointError(
                f"{entries.path}: the shards {names} ... are not as long as their weights; is it cut short?"
                " fetch it again"
            )
        data, start = memoryview(b"".join(entries.read(shard) for shard in shards)), 0
        for weight in weights:
            if weight.name in arrays:
                raise CheckpointError(f"{entries.path}: two weights are called {weight.name!r:.80}")
            arrays[weight.name] = _array(weight, data[start : start + weight.bytes])
            start += weight.bytes
    return arrays


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _weight(value: Any, path: Path) -> _Weight:
    """One entry of the description, checked."""
    value = value if isinstance(value, dict) else {}
    name, kind, shape = value.get("name"), value.get("dtype"), value.get("shape")
    quantisation = value.get("quantization")
    stored = quantisation.get("dtype") if isinstance(quantisation, dict) else kind
    if (
        not isinstance(name, str)
        or not (_is_text(kind) and kind in TYPES and _is_text(stored) and stored in TYPES)
        or not (isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS)
        or not all(type(side) is int and 0 <= side < 1 << 47 for side in shape)
    ):
        raise CheckpointError(
            f"{path}: weight {shown(name)} has type {shown(stored)} and shape {shown(shape)}: not an array of"
            " numbers"
        )
    if quantisation is None:
        return _Weight(name, TYPES[kind], TYPES[kind], tuple(shape))
    if stored not in QUANTISED or kind not in ("float32", "int32") or (kind, stored) == ("int32", "float16"):
        raise CheckpointError(f"{path}: weight {shown(name)} is {kind} stored as {stored}: not understood")
    if stored == "float16":
        return _Weight(name, "<f4", TYPES[stored], tuple(shape))
    scale, minimum = quantisation.get("scale"), quantisation.get("min")
    if not all(type(number) in (int, float) and abs(number) < 1e38 for number in (scale, minimum)):
        raise CheckpointError(
            f"{path}: weight {shown(name)} is quantised with scale {shown(scale)} and min {shown(minimum)}:"
            " not numbers"
        )
    return _Weight(name, TYPES[kind], TYPES[stored], tuple(shape), scale, minimum)


def _array(weight: _Weight, data: memoryview) -> Any:
    import numpy as np

    array = np.frombuffer(data, weight.stored).reshape(weight.shape)
    if weight.scale is None:
        return array.astype(weight.type)
    if weight.type == TYPES["int32"]:
        return np.rint(array.astype("f8") * weight.scale + weight.minimum).astype(weight.type)
    return array.astype(weight.type) * np.float32(weight.scale) + np.float32(weight.minimum)


def read_tfjs_layers(path: Path) -> dict[str, Any]:
    """The weights of a layers model (Keras), by name; raises as `read_tfjs`."""
    return read_tfjs(path)[0]


def read_tfjs_graph(path: Path) -> dict[str, Any]:
    """The constants of a graph model by name, and the epsilon of each batch norm under NODE/epsilon; raises
    as `read_tfjs`."""
    import numpy as np

    arrays, description = read_tfjs(path)
    topology = description.get("modelTopology")
    nodes = topology.get("node") if isinstance(topology, dict) else None
    if not isinstance(nodes, list):
        raise CheckpointError(f"{path}: its {DESCRIPTION} has no graph; is it a layers model?")
    for node in nodes:
        try:
            if "epsilon" in node.get("attr", {}):
                epsilon = node["attr"]["epsilon"]["f"]
                if type(epsilon) not in (int, float):
                    raise TypeError(f"epsilon is a {type(epsilon).__name__}")
                arrays[f"{node['name']}/epsilon"] = np.float32(epsilon)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: its {DESCRIPTION} has a malformed node {shown(node)}; is it damaged?"
            ) from error
    return arrays


def torch_layout(kernel: Any, *, depthwise: bool = False) -> Any:
    """A kernel in torch's layout.

    Args:
        kernel: (height, width, in, out), depthwise (height, width, channels, 1), or of a linear layer (in,
            out).
        depthwise: whether it is depthwise.

    Returns:
        (out, in, height, width), (channels, 1, height, width) or (out, in).
    """
    import numpy as np

    axes = (1, 0) if kernel.ndim == 2 else (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
    return np.ascontiguousarray(kernel.transpose(axes))
