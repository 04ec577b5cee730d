"""Read the torch formats that came before the zip file: one stream of pickles and storages (0.2 to 1.5), and
tar (0.1)."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.machine import Machine, Name
from detection_zoo.zoo.weights.pickle.names import Storage, TensorView, tensor_view, torch_names
from detection_zoo.zoo.weights.pickle.source import Budget, Source, shown
from detection_zoo.zoo.weights.pickle.storages import Storages, settle, storage_of

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of torch's format before 1.6
PROTOCOL_VERSION = 1001
TAR_BLOCK = 512


def read_legacy(path: Path) -> Any:
    """The content of a torch file of 0.2 to 1.5 (or saved since without the zip format).

    Args:
        path: magic number, protocol, system, object, storage keys as pickles; then each storage with its
            element count.

    Raises:
        CheckpointError: something other than tensors and plain containers is used, or the file is malformed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        return settle(*_read_stream(Source(file, size, str(path)), Budget(size, str(path))))


def read_pickled_tensors(path: Path) -> Any:
    """The content of a plain pickle of torch tensors (`pickle.dump` of a state dict): each storage is a
    legacy torch file within it.

    Raises:
        CheckpointError: something other than tensors and plain containers is used, or the file is malformed.
    """
    size, label, data = path.stat().st_size, str(path), {}

    def storage_from_bytes(machine: Machine, arguments: tuple) -> Storage:
        if len(arguments) != 1 or not isinstance(arguments[0], bytes):
            raise machine.refuse(f"a storage of {shown(arguments)}")
        storage, inner = _read_stream(_source(arguments[0], label), machine.budget)
        if not isinstance(storage, Storage) or set(inner) != {storage.key}:
            raise machine.refuse("a storage with other content")
        place = len(data)
        data[place] = inner[storage.key]
        return replace(storage, key=place)

    names = torch_names() | {
        "torch.storage._load_from_bytes": Name("torch.storage._load_from_bytes", storage_from_bytes)
    }
    with path.open("rb") as file:
        value = Machine(Source(file, size, label), names, None, Budget(size, label)).run()
    return settle(value, data)


def _read_stream(source: Source, budget: Budget) -> tuple[Any, dict[Any, bytes]]:
    """The value of a legacy stream, its tensors as views, and the bytes of their storages."""
    names = torch_names()
    named = Storages()
    storages = named.by_key

    def persistent(machine: Machine, arguments: tuple) -> Storage:
        return named.add(machine, storage_of(machine, arguments[0]))

    def following() -> Any:
        return Machine(source, names, persistent, budget).run()

    if following() != MAGIC_NUMBER:
        raise CheckpointError(
            f"{source.label}: a plain pickle, not a torch file (its magic number is missing)"
        )
    if (version := following()) != PROTOCOL_VERSION:
        raise CheckpointError(
            f"{source.label}: torch file protocol {version!r:.20}, only {PROTOCOL_VERSION} exists"
        )
    system = following()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(
            f"{source.label}: written on a big-endian machine or malformed; convert it where it was written"
        )
    value, keys = following(), following()
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, (str, int)) for key in keys)
        or len(set(map(repr, keys))) != len(keys)
        or any(key not in storages for key in keys)
        or len(keys) != len(storages)
    ):
        raise CheckpointError(
            f"{source.label}: its list of storages does not fit its tensors; malformed, fetch it again"
        )
    return value, {key: _read_storage(source, storages[key]) for key in keys}


def _read_storage(source: Source, storage: Storage) -> bytes:
    count = source.number("<q")
    if count != storage.root_count:
        raise CheckpointError(
            f"{source.label}: storage {storage.key} has {count} elements, its tensors expect"
            f" {storage.root_count}; malformed"
        )
    return source.read(count * storage.item_bytes)


def read_tar(path: Path) -> Any:
    """The content of a torch 0.1 file: a tar archive of `storages`, `tensors` and `pickle`.

    Args:
        path: read with our own tar reader: the standard library's can be made to loop.

    Raises:
        CheckpointError: something other than tensors and plain containers is used, or the file is malformed.
    """
    size, label = path.stat().st_size, str(path)
    parts = _tar_members(path, size)
    if missing := {"storages", "tensors", "pickle"} - set(parts):
        raise CheckpointError(
            f"{label}: a tar file without {', '.join(sorted(missing))} is not a torch checkpoint"
        )
    budget, names = Budget(size, label), torch_names()
    try:
        storages, data = _tar_storages(_source(parts["storages"], label), names, budget)
        tensors = _tar_tensors(_source(parts["tensors"], label), names, budget, storages)
    except (ValueError, TypeError, struct.error) as error:
        raise CheckpointError(f"{label}: refused: malformed tar checkpoint ({error})") from error

    def persistent(machine: Machine, arguments: tuple) -> Any:
        key = arguments[0]
        if not isinstance(key, (str, int)) or not str(key).isdigit() or int(key) not in tensors:
            raise machine.refuse(
                f"a persistent id {key!r:.120} (a whole module is program code; only its state dict can be"
                " read)"
            )
        return tensors[int(key)]

    return settle(Machine(_source(parts["pickle"], label), names, persistent, budget).run(), data)


def _source(data: bytes, label: str) -> Source:
    return Source(io.BytesIO(data), len(data), label)


def _tar_members(path: Path, size: int) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    with path.open("rb") as file:
        while len(header := file.read(TAR_BLOCK)) == TAR_BLOCK and header.strip(b"\0"):
            digits = header[124:136].strip(b"\0 ")
            if not re.fullmatch(rb"[0-7]{1,11}", digits) or (count := int(digits, 8)) > size - file.tell():
                raise CheckpointError(
                    f"{path}: refused: malformed tar header; is it cut short? fetch it again"
                )
            name = header[:100].rstrip(b"\0").decode("latin1").removeprefix("./")
            body = file.read(-(-count // TAR_BLOCK) * TAR_BLOCK)[:count]
            if header[156:157] in (b"0", b"\0"):
                parts[name] = body
    return parts


def _tar_storages(source: Source, names: dict, budget: Budget) -> tuple[dict[int, Storage], dict[Any, bytes]]:
    storages: dict[int, Storage] = {}
    data: dict[Any, bytes] = {}
    for _ in range(_count(source, Machine(source, names, None, budget).run())):
        key, _place, kind = Machine(source, names | {}, None, budget, allow_names=True).run()
        if not isinstance(key, int) or not getattr(kind, "path", "").endswith("Storage"):
            raise CheckpointError(f"{source.label}: refused: a storage of {kind!r:.80}")
        storage = Storage(kind.path.removeprefix("torch.").removesuffix("Storage"), key, source.number("<q"))
        data[key] = source.read(storage.count * storage.item_bytes)
        storages[key] = storage
    for key, root, offset, count in Machine(source, names, None, budget).run():
        if (
            root not in storages
            or type(offset) is not int
            or type(count) is not int
            or offset < 0
            or count < 0
            or offset + count > storages[root].count
        ):
            raise CheckpointError(f"{source.label}: refused: a view outside its storage")
        storages[key] = Storage(storages[root].kind, root, count, offset, storages[root].count)
    return storages, data


def _tar_tensors(
    source: Source, names: dict, budget: Budget, storages: dict[int, Storage]
) -> dict[int, TensorView]:
    tensors: dict[int, TensorView] = {}
    for _ in range(_count(source, Machine(source, names, None, budget).run())):
        machine = Machine(source, names, None, budget, allow_names=True)
        key, storage, _kind = machine.run()
        dimensions, _padding = source.number("<i"), source.read(4)
        if not 0 <= dimensions <= 32:
            raise CheckpointError(f"{source.label}: refused: a tensor of {dimensions} dimensions")
        shape, strides = (tuple(source.number("<q") for _ in range(dimensions)) for _ in range(2))
        if storage not in storages or not isinstance(key, int):
            raise CheckpointError(f"{source.label}: refused: tensor {key!r:.40} of an unknown storage")
        tensors[key] = tensor_view(machine, storages[storage], source.number("<q"), shape, strides)
    return tensors


def _count(source: Source, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= source.size:
        raise CheckpointError(f"{source.label}: refused: {value!r:.40} where a count belongs")
    return value
