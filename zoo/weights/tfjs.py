"""Read TensorFlow.js models, kept as one zip file of model.json and its shards: arrays by name, in numpy
alone, nothing run."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.safe import MALFORMED_ZIP

DESCRIPTION = "model.json"
LARGEST_DESCRIPTION_BYTES = 64 << 20
TYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "uint16": "<u2", "bool": "?"}
QUANTISED = ("uint8", "uint16", "float16")  # how a weight may be stored in place of its own type


def read_tfjs(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of a TensorFlow.js model, and its description.

    Args:
        path: zip file that holds model.json and the shards it names, plainly stored or compressed.

    Returns:
        Arrays by the model's own names (quantised ones widened to float32), and the content of model.json.

    Raises:
        CheckpointError: malformed, cut short, or a weight of a type that holds no numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            description = _description(archive, path)
            return dict(_weights(archive, description, path)), description
    except MALFORMED_ZIP as error:
        raise CheckpointError(
            f"{path}: not a TensorFlow.js model in a zip file ({type(error).__name__}: {error}); "
            "fetch it again, or where it is a file of another format, say which with --format"
        ) from error


def _description(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    if archive.getinfo(DESCRIPTION).file_size > LARGEST_DESCRIPTION_BYTES:
        raise CheckpointError(
            f"{path}: its {DESCRIPTION} is larger than {LARGEST_DESCRIPTION_BYTES:,} bytes: refused"
        )
    description = json.loads(archive.read(DESCRIPTION))
    if not isinstance(description, dict) or not isinstance(description.get("weightsManifest"), list):
        raise CheckpointError(f"{path}: its {DESCRIPTION} lists no weights; is it a TensorFlow.js model?")
    return description


def _weights(
    archive: zipfile.ZipFile, description: Mapping[str, Any], path: Path
) -> Iterator[tuple[str, Any]]:
    """(name, array) of every weight; a group's shards are one run of bytes, which its weights fill
    exactly."""
    for group in description["weightsManifest"]:
        if sum(archive.getinfo(shard).file_size for shard in group["paths"]) != sum(
            _stored(entry, path)[1] for entry in group["weights"]
        ):
            raise CheckpointError(
                f"{path}: the shards {', '.join(group['paths'][:2])} ... are not as long as their weights; is"
                " it cut short? fetch it again"
            )
        data, start = b"".join(archive.read(shard) for shard in group["paths"]), 0
        for entry in group["weights"]:
            size = _stored(entry, path)[1]
            yield entry["name"], _array(entry, data[start : start + size], path)
            start += size


def _stored(entry: Mapping[str, Any], path: Path) -> tuple[str, int]:
    """numpy type code and bytes of a weight as it lies in the shards."""
    stored = entry.get("quantization", {}).get("dtype", entry["dtype"])
    shape = entry["shape"]
    if (
        entry["dtype"] not in TYPES
        or stored not in TYPES
        or not all(type(side) is int and side >= 0 for side in shape)
    ):
        raise CheckpointError(
            f"{path}: weight {entry['name']!r:.80} has type {stored!r:.20} and shape {shape!r:.60}: not an"
            " array of numbers"
        )
    return TYPES[stored], math.prod(shape) * int(TYPES[stored].lstrip("<")[1:] or 1)


def _array(entry: Mapping[str, Any], data: bytes, path: Path) -> Any:
    import numpy as np

    code, _ = _stored(entry, path)
    array = np.frombuffer(data, code).reshape(entry["shape"])
    quantisation = entry.get("quantization")
    if quantisation is None:
        return array.copy()
    if quantisation["dtype"] not in QUANTISED or entry["dtype"] != "float32":
        raise CheckpointError(
            f"{path}: weight {entry['name']!r:.80} is {entry['dtype']} stored as {quantisation['dtype']}: not"
            " understood"
        )
    if quantisation["dtype"] == "float16":
        return array.astype(np.float32)
    return array.astype(np.float32) * np.float32(quantisation["scale"]) + np.float32(quantisation["min"])


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
        if "epsilon" in node.get("attr", {}):
            arrays[f"{node['name']}/epsilon"] = np.float32(node["attr"]["epsilon"]["f"])
    return arrays


def torch_layout(kernel: Any, *, depthwise: bool = False) -> Any:
    """A kernel as torch has it.

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
