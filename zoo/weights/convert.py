"""Conversion of fetched checkpoints to safetensors; the tensors keep the names of the original file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.regular import sync_folder
from detection_zoo.zoo.weights.fetch.cache import WeightCache, fresh, sha256_of, write_atomic
from detection_zoo.zoo.weights.rename import account


def converted_path(cache: WeightCache, sha256: str, checkpoint: str) -> Path:
    """Path of a file's conversion: by the file's hash and format."""
    return cache.converted / f"{sha256}.{checkpoint}.safetensors"


def read_arrays(spec: WeightSpec, cache: WeightCache, row: str) -> tuple[dict[str, Any], Path]:
    """The tensors of a row's fetched file by the file's own names: from its conversion if there is one,
    else from the file.

    Args:
        spec: the weight file.
        cache: where files are kept.
        row: for messages.

    Returns:
        The arrays (numpy's or torch's, depending on the format), and the path they were read from.

    Raises:
        CheckpointError: the file is not on this machine, is damaged, or cannot be read safely.
    """
    from detection_zoo.zoo.weights.load import checkpoint_format

    path = _source(spec, cache, row)
    cache.require_sound(path, row)
    converted = converted_path(cache, path.name, spec.format)
    if converted.is_file():
        return read_converted(converted, path.name), converted
    return checkpoint_format(spec.format).read(path), path


def _source(spec: WeightSpec, cache: WeightCache, row: str) -> Path:
    """The file in the cache; a file included with its manifest is copied there first."""
    from detection_zoo.zoo.weights.fetch.one import fetch_weights

    if path := cache.find(spec):
        return path
    if spec.urls and all(url.startswith("file:") for url in spec.urls):
        return fetch_weights(spec, row, cache, offline=True).path
    raise CheckpointError(
        f"row {row}: its weights are not on this machine; fetch them with: python download_weights.py get"
        f" {row}"
    )


def read_converted(path: Path, source_sha256: str) -> dict[str, Any]:
    """The tensors of a conversion, in the order of the original file.

    Raises:
        CheckpointError: it is damaged, or was converted from another file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in json.loads(notes.get("order", "[]"))}
            whole = set(tensors) == set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable ({error}); remove it, and convert the row again"
        ) from error
    if (
        notes.get("source_sha256") != source_sha256
        or not whole
        or tensors_sha256(tensors) != notes.get("tensors_sha256")
    ):
        raise CheckpointError(
            f"{path}: not the conversion of {source_sha256}, or damaged; remove it, and convert the row again"
        )
    return (
        {name: tensor.numpy() for name, tensor in tensors.items()}
        if notes.get("arrays") == "numpy"
        else tensors
    )


def tensors_sha256(tensors: Mapping[str, Any]) -> str:
    """A digest of names, types, shapes and values, in order."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
        )
    return digest.hexdigest()


def convert(
    spec: WeightSpec, cache: WeightCache, row: str, shapes: Mapping[str, tuple[int, ...]] | None
) -> dict[str, Any]:
    """Write the safetensors file of a fetched checkpoint.

    Args:
        spec: the weight file, already fetched.
        cache: where files are kept.
        row: the manifest row.
        shapes: shapes of the row's model by name; None if the file is not a whole model.

    Returns:
        The record stored with the file: row, format, both digests, the rename report.

    Raises:
        CheckpointError: the file cannot be read safely, or does not fit the model.
    """
    from detection_zoo.zoo.weights.load import checkpoint_format

    source = _source(spec, cache, row)
    if sha256_of(source) != source.name:
        raise CheckpointError(f"{source}: damaged; run `download_weights.py verify`, then get {row} again")
    arrays = checkpoint_format(spec.format).read(source)
    report = _report(arrays, spec.format, f"{source} for row {row}", shapes)
    target = converted_path(cache, source.name, spec.format)
    notes = {
        "source_sha256": source.name,
        "row": row,
        "format": spec.format,
        "rename_report": json.dumps(report),
    }
    _write(arrays, target, notes)
    record = {
        **notes,
        "rename_report": report,
        "converted": str(target),
        "converted_sha256": sha256_of(target),
        "bytes": target.stat().st_size,
    }
    write_atomic(target.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    return record


def _report(
    arrays: dict[str, Any], checkpoint: str, where: str, shapes: Mapping[str, tuple[int, ...]] | None
) -> dict[str, Any]:
    from detection_zoo.zoo.weights.load import checkpoint_format

    translation = checkpoint_format(checkpoint).translate(dict(arrays))
    report: dict[str, Any] = {
        "names": {name: translation.origin[name] for name in translation.state},
        "left_out": dict(translation.dropped),
    }
    if shapes is not None:
        result = account(translation, shapes, where).require_complete()
        report |= {
            "summary": result.summary(),
            "matched": len(result.matched),
            "initial_value_kept": list(result.defaulted),
        }
    return report


def _write(arrays: Mapping[str, Any], target: Path, notes: dict[str, str]) -> None:
    import torch
    from safetensors.torch import save_file

    kind = "torch" if all(isinstance(array, torch.Tensor) for array in arrays.values()) else "numpy"
    tensors = {name: torch.as_tensor(array).detach().clone().contiguous() for name, array in arrays.items()}
    notes = notes | {
        "arrays": kind,
        "order": json.dumps(list(tensors)),
        "tensors_sha256": tensors_sha256(tensors),
    }
    part = fresh(target.with_name(f".{target.name}.part"))
    save_file(tensors, part, notes)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    sync_folder(target.parent)
