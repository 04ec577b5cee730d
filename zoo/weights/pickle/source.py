"""The byte source of a pickle, and limits on bytes, operations, and the structure of the result."""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from detection_zoo.zoo.errors import CheckpointError

MAX_OPCODES = 1_000_000  # the largest checkpoint of the manifests needs about 60,000
MAX_LINE_BYTES = 1 << 28
MAX_DEPTH = 64
MAX_EXPANDED = 4_000_000
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 160, 160


def shown(value: object) -> str:
    """A value from a file, printable: escaped and cut to 120 characters, however large or deep."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


class Source:
    """A byte source of known size; a read beyond its end is refused before memory is allocated."""

    def __init__(self, file: BinaryIO, size: int, label: str) -> None:
        self.file, self.remaining, self.label = file, size, label
        self.size = size

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes; raises CheckpointError where fewer are left."""
        if count > self.remaining:
            raise CheckpointError(
                f"{self.label}: the pickle has a length of {count} bytes, {self.remaining} are left: cut"
                f" short"
                " or malformed; fetch it again"
            )
        self.remaining -= count
        data = self.file.read(count)
        if len(data) != count:
            raise CheckpointError(f"{self.label}: ends early; fetch it again")
        return data

    def line(self) -> bytes:
        """The bytes up to the next newline, without it; raises CheckpointError where there is none."""
        data = self.file.readline(min(self.remaining, MAX_LINE_BYTES))
        self.remaining -= len(data)
        if not data.endswith(b"\n"):
            raise CheckpointError(
                f"{self.label}: the pickle ends inside a line: cut short or malformed; fetch it again"
            )
        return data[:-1]

    def number(self, layout: str) -> int:
        """One number in a layout of `struct`."""
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]


class Budget:
    """The limit of operations for one file, and of bytes beyond its own size.

    Args:
        file_bytes: size of the file.
        label: the file's name for messages.
    """

    def __init__(self, file_bytes: int, label: str) -> None:
        self.label, self.operations = label, MAX_OPCODES
        self.bytes = 3 * file_bytes + (1 << 20)

    def spend_operation(self, count: int = 1) -> None:
        """Count operations; raises CheckpointError beyond the limit."""
        self.operations -= count
        if self.operations < 0:
            raise CheckpointError(
                f"{self.label}: refused: more than {MAX_OPCODES:,} pickle operations; no checkpoint of a"
                " detector needs so many"
            )

    def spend_bytes(self, count: int) -> None:
        """Count bytes that are copied; raises CheckpointError where a small file grows too much."""
        self.bytes -= count
        if self.bytes < 0:
            raise CheckpointError(
                f"{self.label}: refused: its content grows beyond four times the file, a memory bomb"
            )


def check_plain(value: Any, refuse: Callable[[str], CheckpointError], stray: tuple[type, ...]) -> None:
    """Refuse cycles, deep nesting, unfinished objects, bare names, and sharing that a walk over the value
    would expand without end.

    Args:
        value: the content of a pickle.
        refuse: makes the error from a reason.
        stray: placeholder types that may not remain in it.
    """
    size: dict[int, int] = {}
    depth: dict[int, int] = {}
    open_now: set[int] = set()
    todo: list[tuple[Any, bool]] = [(value, False)]
    while todo:
        node, done = todo.pop()
        if isinstance(node, stray) and not getattr(node, "plain", False):
            raise refuse(f"{node.path} is not a value")
        if not isinstance(node, (list, tuple, dict)) or (id(node) in size and not done):
            continue
        children = list(node.values()) if isinstance(node, dict) else node
        if not done:
            if id(node) in open_now:
                raise refuse("a container that contains itself")
            open_now.add(id(node))
            todo.append((node, True))
            if len(open_now) > MAX_DEPTH + 1:
                raise refuse(f"containers nested deeper than {MAX_DEPTH}")
            todo.extend((child, False) for child in children)
            continue
        open_now.discard(id(node))
        size[id(node)] = 1 + sum(size.get(id(child), 1) for child in children)
        depth[id(node)] = 1 + max((depth.get(id(child), 0) for child in children), default=0)
        if depth[id(node)] > MAX_DEPTH:
            raise refuse(f"containers nested deeper than {MAX_DEPTH}")
        if size[id(node)] > MAX_EXPANDED:
            raise refuse("containers shared so often that they would expand without end")
