"""Torch storages that a file names, and tensors made of their bytes."""

from __future__ import annotations

from typing import Any

from detection_zoo.zoo.weights.pickle.machine import Machine
from detection_zoo.zoo.weights.pickle.names import STORAGE_TYPES, Storage, TensorView
from detection_zoo.zoo.weights.pickle.source import shown


class Storages:
    """The storages that a file names, each with one size and kind."""

    def __init__(self) -> None:
        self.by_key: dict[Any, Storage] = {}

    def add(self, machine: Machine, storage: Storage) -> Storage:
        """Note a storage; raises CheckpointError where its key had another size or kind."""
        first = self.by_key.setdefault(storage.key, storage)
        if (first.kind, first.root_count) != (storage.kind, storage.root_count):
            raise machine.refuse(f"storage {storage.key!s:.80} is named with two sizes or kinds")
        return storage


def storage_of(machine: Machine, key: Any) -> Storage:
    """The storage that a persistent id of torch names.

    Args:
        machine: reads the pickle.
        key: ("storage", class, key, place, elements[, view]).
    """
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] not in ("storage", b"storage"):
        raise machine.refuse(
            f"a persistent id {shown(key)} (a whole module is program code; only its state dict can be read)"
        )
    kind, name, count, view = key[1], key[2], key[4], key[5] if len(key) == 6 else None
    element = getattr(kind, "path", "").removeprefix("torch.").removesuffix("Storage")
    if (
        element not in STORAGE_TYPES
        or type(count) is not int
        or not 0 <= count < 1 << 47
        or not isinstance(name, (str, int))
    ):
        raise machine.refuse(f"a storage {shown(key)}")
    storage = Storage(element, name, count)
    if view is not None:
        _, start, elements = view if isinstance(view, tuple) and len(view) == 3 else (None, None, None)
        if (
            type(start) is not int
            or type(elements) is not int
            or start < 0
            or elements < 0
            or start + elements > count
        ):
            raise machine.refuse(f"a view {shown(view)} outside its storage of {count} elements")
        storage.start, storage.count, storage.whole = start, elements, count
    return storage


def settle(value: Any, data: dict[Any, bytes | bytearray]) -> Any:
    """The value with each tensor view replaced by a torch tensor; views of one storage share memory.

    Args:
        value: checked containers with TensorView leaves.
        data: bytes of each storage, by key.
    """
    storages: dict[Any, Any] = {}
    done: dict[int, Any] = {}

    def convert(node: Any) -> Any:
        if id(node) in done:
            return done[id(node)]
        if isinstance(node, TensorView):
            result = _tensor(node, data, storages)
        elif isinstance(node, dict):
            result = {key: convert(item) for key, item in node.items()}
        elif isinstance(node, (list, tuple)):
            result = type(node)(convert(item) for item in node)
        else:
            return node
        done[id(node)] = result
        return result

    return convert(value)


def _tensor(view: TensorView, data: dict[Any, bytes | bytearray], storages: dict[Any, Any]) -> Any:
    import torch

    storage = view.storage
    if storage.key not in storages:
        dtype = getattr(torch, STORAGE_TYPES[storage.kind][0])
        raw = data.pop(storage.key)
        raw = raw if isinstance(raw, bytearray) else bytearray(raw)  # frombuffer needs writable memory
        storages[storage.key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return storages[storage.key].as_strided(view.shape, view.strides, storage.start + view.offset)
