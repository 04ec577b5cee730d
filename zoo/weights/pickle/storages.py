"""Torch storages that a file names, and tensors made of their bytes."""

from __future__ import annotations

from typing import Any

from detection_zoo.zoo.weights.pickle.machine import Machine
from detection_zoo.zoo.weights.pickle.names import Storage, TensorView


def storage_of(machine: Machine, key: Any) -> Storage:
    """The storage that a persistent id of torch names.

    Args:
        machine: reads the pickle.
        key: ("storage", class, key, place, elements[, view]).
    """
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] not in ("storage", b"storage"):
        raise machine.refuse(
            f"a persistent id {key!r:.120} (a whole module is program code; only its state dict can be read)"
        )
    kind, name, count, view = key[1], key[2], key[4], key[5] if len(key) == 6 else None
    path = getattr(kind, "path", "")
    if (
        not path.startswith("torch.")
        or not path.endswith("Storage")
        or type(count) is not int
        or count < 0
        or not isinstance(name, (str, int))
    ):
        raise machine.refuse(f"a storage {key!r:.120}")
    storage = Storage(path.removeprefix("torch.").removesuffix("Storage"), name, count)
    if view is not None:
        _, start, elements = view
        if (
            type(start) is not int
            or type(elements) is not int
            or start < 0
            or elements < 0
            or start + elements > count
        ):
            raise machine.refuse(f"a view {view!r:.120} outside its storage of {count} elements")
        storage.start, storage.count, storage.whole = start, elements, count
    return storage


def settle(value: Any, data: dict[Any, bytes]) -> Any:
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


def _tensor(view: TensorView, data: dict[Any, bytes], storages: dict[Any, Any]) -> Any:
    import torch

    storage = view.storage
    if storage.key not in storages:
        kinds = {
            "Double": torch.float64,
            "Float": torch.float32,
            "Half": torch.float16,
            "BFloat16": torch.bfloat16,
            "Long": torch.int64,
            "Int": torch.int32,
            "Short": torch.int16,
            "Char": torch.int8,
            "Byte": torch.uint8,
            "Bool": torch.bool,
            "ComplexFloat": torch.complex64,
            "ComplexDouble": torch.complex128,
        }
        raw = data.pop(storage.key)
        storages[storage.key] = (
            torch.frombuffer(bytearray(raw), dtype=kinds[storage.kind])
            if raw
            else torch.empty(0, dtype=kinds[storage.kind])
        )
    return storages[storage.key].as_strided(view.shape, view.strides, storage.start + view.offset)
