"""A pickle reader that cannot run code: it interprets the opcodes itself and has a short list of allowed
globals, each with its own constructor.

Python's own unpickler is not used: even with a guarded `find_class` a file can make it reserve any amount of
memory (a memo index of 2**31, a length of 2**60), and numpy's `__setstate__` does not validate its argument.
Here nothing is imported by name, every length is checked against the file before memory is allocated, and
time and memory are bounded by the size of the file.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.source import MAX_OPCODES, Budget, Source, check_plain, shown

MAX_INTEGER_BYTES = 16  # torch's legacy magic number has 10
SCALARS = (str, bytes, int, float, bool, type(None))

Construct = Callable[["Machine", tuple], Any]


@dataclass(frozen=True)
class Name:
    """Placeholder of an allowed global: `construct` makes its value from the arguments of REDUCE, None for a
    marker. A plain one also replaces its own objects: they are never built."""

    path: str
    construct: Construct | None = None
    plain: bool = False

    def __repr__(self) -> str:
        return f"<{self.path}>"


@dataclass
class Unfinished:
    """Placeholder of an object until BUILD gives its state; `finish` makes the value from that state."""

    path: str
    finish: Callable[[Machine, Any], Any]
    memo_keys: list[int] = field(default_factory=list)


class Machine:
    """Interprets one pickle.

    Args:
        source: the bytes.
        names: allowed globals by "module.name"; anything else is refused with its name.
        persistent: makes a value from a persistent id; none where the format has no such thing.
        budget: bytes that values may take beyond the file itself, shared by all machines of one file.
        allow_names: whether the value may contain a bare name (torch 0.1 files name the type of each
            storage).
    """

    def __init__(
        self,
        source: Source,
        names: dict[str, Name],
        persistent: Construct | None = None,
        budget: Budget | None = None,
        allow_names: bool = False,
    ) -> None:
        self.source, self.names, self.persistent, self.allow_names = source, names, persistent, allow_names
        self.budget = budget or Budget(source.size, source.label)
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def refuse(self, reason: str) -> CheckpointError:
        """An error that names the file and the reason."""
        return CheckpointError(
            f"{self.source.label}: refused: {reason}; only numpy arrays, tensors and plain containers are"
            " read"
        )

    def run(self) -> Any:
        """The value of the pickle, checked: no unfinished object, no cycle, bounded depth and size.

        Raises:
            CheckpointError: with the offending name, or what is malformed.
        """
        table, read, spend = _OPCODES, self.source.read, self.budget.spend_operation
        try:
            while (code := read(1)) != b".":
                spend()
                if code not in table:
                    raise self.refuse(f"unknown opcode {shown(code)}")
                table[code](self)
            value = self._pop()
            if self.marks or self.stack:
                raise self.refuse("values are left on the stack")
        except (IndexError, ValueError, TypeError, KeyError, OverflowError, struct.error) as error:
            raise self.refuse(f"malformed pickle ({type(error).__name__}: {shown(str(error))})") from error
        check_plain(value, self.refuse, (Unfinished,) if self.allow_names else (Unfinished, Name))
        return value

    def _protocol(self) -> None:
        if (version := self.source.number("<B")) > pickle.HIGHEST_PROTOCOL:
            raise self.refuse(f"pickle protocol {version}, which does not exist")

    def _pop(self) -> Any:
        if not self.stack:
            raise self.refuse("malformed pickle: a value is taken from an empty stack")
        return self.stack.pop()

    def _top(self, kind: type) -> Any:
        if not self.stack or not (isinstance(self.stack[-1], kind) or _plain(self.stack[-1])):
            raise self.refuse(f"malformed pickle: {kind.__name__} expected below the items")
        return self.stack[-1]

    def _items(self) -> list[Any]:
        if not self.marks:
            raise self.refuse("malformed pickle: no mark on the stack")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _discard(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.marks.pop()

    def _fill(self, target: dict, items: list[Any]) -> dict:
        if len(items) % 2:
            raise self.refuse("malformed pickle: a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value
        return target

    def key(self, key: Any) -> Any:
        """A dict key or set member, which must be a scalar: hashing a nested tuple may take for ever."""
        if _plain(key):
            return key
        if not isinstance(key, SCALARS) or (type(key) is int and abs(key) >= 1 << 60):
            raise self.refuse(f"a key of type {type(key).__name__}")
        return key

    def _put(self, index: int) -> None:
        if not self.stack:
            raise self.refuse("malformed pickle: memo of an empty stack")
        if not 0 <= index <= MAX_OPCODES:
            raise self.refuse(f"memo index {index}, a memory bomb")
        self.memo[index] = top = self.stack[-1]
        if isinstance(top, Unfinished):
            top.memo_keys.append(index)

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise self.refuse(f"memo entry {index} does not exist")
        self.stack.append(self.memo[index])

    def _bytes(self, count: int) -> bytes:
        if count < 0:
            raise self.refuse(f"a negative length ({count})")
        return self.source.read(count)

    def _text(self, count: int) -> str:
        return self._bytes(count).decode("utf-8", "surrogatepass")

    def _integer(self, count: int) -> int:
        if not 0 <= count <= MAX_INTEGER_BYTES:
            raise self.refuse(f"an integer of {count} bytes")
        return int.from_bytes(self.source.read(count), "little", signed=True)

    def _decimal(self) -> int | bool:
        line = self.source.line()
        if line in (b"00", b"01"):
            return line == b"01"
        if len(line) > 3 * MAX_INTEGER_BYTES:
            raise self.refuse(f"an integer of {len(line)} digits")
        return int(line.removesuffix(b"L"))

    def _quoted(self) -> str:
        line = self.source.line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"\"'":
            raise self.refuse("malformed pickle: a string without quotes")
        return codecs.escape_decode(line[1:-1])[0].decode("latin1")

    def _global(self, module: str, name: str) -> None:
        path = f"{module}.{name}"
        if path not in self.names:
            raise self.refuse(f"the pickle names {shown(path)}, which could run code")
        self.stack.append(self.names[path])

    def _global_lines(self) -> None:
        module, name = (self.source.line().decode("utf-8") for _ in range(2))
        self._global(module, name)

    def _global_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self.refuse(f"STACK_GLOBAL of {shown(module)} and {shown(name)}")
        self._global(module, name)

    def _construct(self) -> None:
        arguments, function = self._pop(), self._pop()
        if _plain(function) and isinstance(arguments, tuple):
            self.stack.append(function)
            return
        if not isinstance(function, Name) or function.construct is None or not isinstance(arguments, tuple):
            what = function.path if isinstance(function, Name) else shown(function)
            raise self.refuse(f"a call of {what} with {type(arguments).__name__}")
        self.stack.append(function.construct(self, arguments))

    def _new_object(self, opcode: str, values: int) -> None:
        if len(self.stack) <= values or not _plain(self.stack[-1 - values]):
            raise self.refuse(f"opcode {opcode} ({_stack_names(self)}), which could run code")
        del self.stack[-values:]

    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        if _plain(target):
            self.stack.append(target)
            return
        if isinstance(target, Unfinished):
            value = target.finish(self, state)
            for index in target.memo_keys:
                self.memo[index] = value
            self.stack.append(value)
        elif isinstance(target, dict) and isinstance(state, dict) and set(state) <= {"_metadata"}:
            self.stack.append(target)  # a state dict carries versions of its modules as an attribute
        else:
            raise self.refuse(
                f"BUILD sets attributes of {type(target).__name__}:"
                f" {shown(list(state) if isinstance(state, dict) else state)}"
            )

    def _persistent(self) -> None:
        key = self._pop()
        if self.persistent is None:
            raise self.refuse(f"a persistent id {shown(key)}")
        self.stack.append(self.persistent(self, (key,)))

    def _persistent_line(self) -> None:
        self.stack.append(self.source.line().decode("latin1"))
        self._persistent()


def _plain(value: Any) -> bool:
    return isinstance(value, Name) and value.plain


def _push(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(make(machine))


def _gather(make: Callable[[Machine, list], Any]) -> Callable[[Machine], None]:
    def step(machine: Machine) -> None:
        items = machine._items()
        machine.stack.append(make(machine, items))

    return step


def _tuple(count: int) -> Callable[[Machine], None]:
    def step(machine: Machine) -> None:
        items = [machine._pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return step


def _extend(
    kind: type, add: Callable[[Machine, Any, list], Any], count: int | None = None
) -> Callable[[Machine], None]:
    def step(machine: Machine) -> None:
        items = machine._items() if count is None else [machine._pop() for _ in range(count)][::-1]
        if not _plain(top := machine._top(kind)):
            add(machine, top, items)

    return step


def _two_lines(machine: Machine) -> str:
    return shown(".".join(machine.source.line().decode("latin1") for _ in range(2)))


def _below_mark(machine: Machine) -> str:
    items = machine._items()
    return items[0].path if items and isinstance(items[0], Name) else shown(items[:1])


def _stack_names(machine: Machine) -> str:
    return ", ".join(
        item.path if isinstance(item, Name) else type(item).__name__ for item in machine.stack[-3:]
    )


def _forbid(opcode: str, detail: Callable[[Machine], str]) -> Callable[[Machine], None]:
    def step(machine: Machine) -> None:
        raise machine.refuse(f"opcode {opcode} ({detail(machine)}), which could run code")

    return step


_OPCODES: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": Machine._protocol,
    b"\x95": lambda m: m.source.number("<Q"),  # a frame only helps buffering
    b"(": Machine._mark,
    b"0": Machine._discard,
    b"1": lambda m: m._items(),
    b"2": lambda m: m.stack.append(m._top(object)),
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"I": _push(Machine._decimal),
    b"L": _push(Machine._decimal),
    b"J": _push(lambda m: m.source.number("<i")),
    b"K": _push(lambda m: m.source.number("<B")),
    b"M": _push(lambda m: m.source.number("<H")),
    b"\x8a": _push(lambda m: m._integer(m.source.number("<B"))),
    b"\x8b": _push(lambda m: m._integer(m.source.number("<i"))),
    b"F": _push(lambda m: float(m.source.line())),
    b"G": _push(lambda m: m.source.number(">d")),
    b"S": _push(Machine._quoted),
    b"T": _push(lambda m: m._bytes(m.source.number("<i")).decode("latin1")),
    b"U": _push(lambda m: m._bytes(m.source.number("<B")).decode("latin1")),
    b"V": _push(lambda m: m.source.line().decode("raw-unicode-escape")),
    b"X": _push(lambda m: m._text(m.source.number("<I"))),
    b"\x8c": _push(lambda m: m._text(m.source.number("<B"))),
    b"\x8d": _push(lambda m: m._text(m.source.number("<Q"))),
    b"B": _push(lambda m: m._bytes(m.source.number("<I"))),
    b"C": _push(lambda m: m._bytes(m.source.number("<B"))),
    b"\x8e": _push(lambda m: m._bytes(m.source.number("<Q"))),
    b"\x96": _push(lambda m: m._bytes(m.source.number("<Q"))),
    b"]": _push(lambda m: []),
    b"}": _push(lambda m: {}),
    b")": _push(lambda m: ()),
    b"\x8f": _push(lambda m: set()),
    b"l": _gather(lambda m, items: items),
    b"t": _gather(lambda m, items: tuple(items)),
    b"d": _gather(lambda m, items: m._fill({}, items)),
    b"\x91": _gather(lambda m, items: frozenset(m.key(i) for i in items)),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"a": _extend(list, lambda m, top, items: top.extend(items), 1),
    b"e": _extend(list, lambda m, top, items: top.extend(items)),
    b"s": _extend(dict, Machine._fill, 2),
    b"u": _extend(dict, Machine._fill),
    b"\x90": _extend(set, lambda m, top, items: top.update(m.key(i) for i in items)),
    b"g": lambda m: m._get(int(m._decimal())),
    b"h": lambda m: m._get(m.source.number("<B")),
    b"j": lambda m: m._get(m.source.number("<I")),
    b"p": lambda m: m._put(int(m._decimal())),
    b"q": lambda m: m._put(m.source.number("<B")),
    b"r": lambda m: m._put(m.source.number("<I")),
    b"\x94": lambda m: m._put(len(m.memo)),
    b"c": Machine._global_lines,
    b"\x93": Machine._global_stack,
    b"R": Machine._construct,
    b"b": Machine._build,
    b"Q": Machine._persistent,
    b"P": Machine._persistent_line,
    b"i": _forbid("INST", _two_lines),
    b"o": _forbid("OBJ", _below_mark),
    b"\x81": lambda m: m._new_object("NEWOBJ", 1),
    b"\x92": lambda m: m._new_object("NEWOBJ_EX", 2),
    b"\x82": _forbid("EXT1", lambda m: str(m.source.number("<B"))),
    b"\x83": _forbid("EXT2", lambda m: str(m.source.number("<H"))),
    b"\x84": _forbid("EXT4", lambda m: str(m.source.number("<i"))),
    b"\x97": _forbid("NEXT_BUFFER", lambda m: "a buffer outside the file"),
    b"\x98": _forbid("READONLY_BUFFER", lambda m: "a buffer outside the file"),
}
