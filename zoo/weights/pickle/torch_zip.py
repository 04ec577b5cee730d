"""Read torch's zip format (1.6 and later): the pickle with our own reader, storages from the entries that
were checked."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.machine import Machine
from detection_zoo.zoo.weights.pickle.names import Storage, torch_names
from detection_zoo.zoo.weights.pickle.source import Budget, Source
from detection_zoo.zoo.weights.pickle.storages import Storages, settle, storage_of
from detection_zoo.zoo.weights.zip_entries import ZipEntries, zip_entries


def read_zip(path: Path, tensors: bool = True) -> Any:
    """The content of a torch zip file; torch's own reader does not see the file.

    Args:
        path: a file of `torch.save`, of any pickle protocol.
        tensors: False leaves a TensorView in place of each tensor, whose bytes are not read.

    Raises:
        CheckpointError: it names anything but tensors and plain kinds, is malformed or damaged.
    """
    with zip_entries(path) as entries:
        root = _root(entries)
        storages = Storages()

        def persistent(machine: Machine, arguments: tuple) -> Storage:
            storage = storage_of(machine, arguments[0])
            storage.key = str(storage.key)
            storages.add(machine, storage)
            if entries.sizes.get(f"{root}data/{storage.key}") != storage.root_count * storage.item_bytes:
                raise machine.refuse(
                    f"storage {storage.key:.80} of {storage.root_count} elements, which the file does not"
                    " hold"
                )
            return storage

        name = f"{root}data.pkl"
        label, content = f"{path} ({name})", bytes(entries.read(name))
        value = Machine(
            Source(io.BytesIO(content), len(content), label),
            torch_names(),
            persistent,
            Budget(path.stat().st_size, label),
        ).run()
        if not tensors:
            return value
        used = {f"{root}data/{key}": key for key in storages.by_key}
        for other in entries.sizes:
            if other not in used:
                entries.check(other)
        return settle(value, {key: entries.read(entry) for entry, key in used.items()})


def _root(entries: ZipEntries) -> str:
    """The folder in the file; raises CheckpointError where it is not a torch checkpoint of tensors."""
    path = entries.path
    pickles = [name for name in entries.sizes if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path}: refused: a zip file with {len(pickles)} data.pkl is not a torch checkpoint"
        )
    root = pickles[0].removesuffix("data.pkl")
    code = [
        name for name in entries.sizes if name.startswith(f"{root}code/") or name == f"{root}constants.pkl"
    ]
    if code:
        raise CheckpointError(
            f"{path}: refused: a TorchScript archive, whose {code[0]:.80} is program code; only tensors are"
            " read"
        )
    if f"{root}byteorder" in entries and entries.sizes[f"{root}byteorder"] != len("little"):
        raise CheckpointError(
            f"{path}: written on a big-endian machine or malformed; convert it where it was written"
        )
    return root
