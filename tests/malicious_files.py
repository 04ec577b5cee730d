"""Files that try to run code, to take all memory or to hang, each with the words a refusal must contain.
Nothing here is ever unpickled."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass

CANARY = "detection_zoo_canary"
COMMAND = f"import os; os.environ['{CANARY}'] = 'ran'"
MARK, TUPLE, REDUCE, STOP = b"(", b"t", b"R", b"."


@dataclass(frozen=True)
class Bad:
    """One file: its bytes, and a pattern that the refusal must match."""

    name: str
    content: bytes
    refusal: str


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return b"\x80\x02" + name(module, attribute) + MARK + b"".join(arguments) + TUPLE + REDUCE + STOP


def number(value: int) -> bytes:
    return b"\x8a" + bytes([10]) + value.to_bytes(10, "little", signed=True)


def array(shape: bytes, dtype: bytes, data: bytes) -> bytes:
    """A numpy array as numpy pickles one, with parts of one's own."""
    start = (
        b"\x80\x02"
        + name("numpy.core.multiarray", "_reconstruct")
        + MARK
        + name("numpy", "ndarray")
        + b"K\x00\x85"
        + b"U\x01b"
        + TUPLE
        + REDUCE
    )
    return start + MARK + b"K\x01" + shape + dtype + b"\x89" + data + TUPLE + b"b" + STOP


def dtype(code: str, state: bytes | None = None) -> bytes:
    state = (
        state
        if state is not None
        else MARK
        + b"K\x03"
        + b"U\x01<"
        + b"NNN"
        + b"J\xff\xff\xff\xff"
        + b"J\xff\xff\xff\xff"
        + b"K\x00"
        + TUPLE
    )
    return (
        name("numpy", "dtype")
        + MARK
        + b"U"
        + bytes([len(code)])
        + code.encode()
        + b"K\x00K\x01"
        + TUPLE
        + REDUCE
        + state
        + b"b"
    )


def raw(count: int) -> bytes:
    return b"T" + struct.pack("<i", count) + bytes(count)


def laughs(levels: int) -> bytes:
    """A tuple of the same tuple twice, again and again: 2**levels when walked."""
    body = b"\x80\x02)q\x000"
    for level in range(levels):
        body += b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1]) + b"0"
    return body + b"h" + bytes([levels]) + STOP


def pickles() -> list[Bad]:
    """Pickles that a reader of Detectron files must refuse."""
    code, evaluate = text(COMMAND), r"refused.*'builtins\.(eval|exec)'"
    arguments = MARK + code + TUPLE
    encode = name("_codecs", "encode")
    return [
        Bad("reduce text", b"cposix\nsystem\n(S'touch " + CANARY.encode() + b"'\ntR.", r"'posix\.system'"),
        Bad("reduce os.system", call("os", "system", code), r"'os\.system'"),
        Bad("reduce exec", call("builtins", "exec", code), evaluate),
        Bad("reduce python 2 exec", call("__builtin__", "eval", code), r"'__builtin__\.eval'"),
        Bad(
            "stack global",
            b"\x80\x04" + short("builtins") + short("exec") + b"\x93" + arguments + b"R.",
            evaluate,
        ),
        Bad(
            "stack global of a dotted name",
            b"\x80\x04" + short("collections") + short("abc.sys.modules") + b"\x93.",
            r"'collections\.abc\.sys\.modules'",
        ),
        Bad("stack global of numbers", b"\x80\x04K\x01K\x02\x93.", "STACK_GLOBAL of 1 and 2"),
        Bad("global alone", b"\x80\x02" + name("os", "system") + STOP, r"'os\.system'"),
        Bad("inst", b"(" + code + b"ibuiltins\nexec\n.", r"INST \('builtins\.exec'\)"),
        Bad("obj", b"(" + name("builtins", "exec") + code + b"o.", evaluate),
        Bad(
            "obj of an admitted name",
            b"(" + name("collections", "OrderedDict") + b"o.",
            r"OBJ \(collections\.OrderedDict\)",
        ),
        Bad(
            "newobj", b"\x80\x02" + name("subprocess", "Popen") + arguments + b"\x81.", r"'subprocess\.Popen'"
        ),
        Bad(
            "newobj of an admitted name",
            b"\x80\x02" + name("collections", "OrderedDict") + b")\x81.",
            r"NEWOBJ \(collections\.OrderedDict",
        ),
        Bad("newobj_ex", b"\x80\x04" + name("numpy", "ndarray") + b")}\x92.", r"NEWOBJ_EX \(numpy\.ndarray"),
        Bad(
            "build of a dict",
            b"\x80\x02}}" + text("__class__") + text("x") + b"sb.",
            "BUILD sets attributes of dict.*__class__",
        ),
        Bad("build of a list", b"\x80\x02]" + b"}b.", "BUILD sets attributes of list"),
        Bad(
            "build with slots", b"\x80\x02}N}" + text("a") + b"K\x01s\x86b.", "BUILD sets attributes of dict"
        ),
        Bad("persistent id", b"Pweights\n.", "persistent id 'weights'"),
        Bad("binary persistent id", b"\x80\x02" + text("weights") + b"Q.", "persistent id 'weights'"),
        Bad("ext1", b"\x80\x02\x82\x07.", r"EXT1 \(7\)"),
        Bad("ext2", b"\x80\x02\x83\x07\x00.", r"EXT2 \(7\)"),
        Bad("ext4", b"\x80\x02\x84\x07\x00\x00\x00.", r"EXT4 \(7\)"),
        Bad("next buffer", b"\x80\x05\x97.", "NEXT_BUFFER"),
        Bad("read-only buffer", b"\x80\x05N\x98.", "READONLY_BUFFER"),
        Bad("getattr", call("builtins", "getattr", code), r"'builtins\.getattr'"),
        Bad("import", call("builtins", "__import__", text("os")), r"'builtins\.__import__'"),
        Bad("partial", call("functools", "partial", code), r"'functools\.partial'"),
        Bad("attrgetter", call("operator", "attrgetter", code), r"'operator\.attrgetter'"),
        Bad("copyreg", call("copy_reg", "_reconstructor", code), r"'copy_reg\._reconstructor'"),
        Bad("numpy load", call("numpy", "load", code), r"'numpy\.load'"),
        Bad("torch load", call("torch", "load", code), r"'torch\.load'"),
        Bad("nested pickle", call("pickle", "loads", b"C\x01."), r"'pickle\.loads'"),
        Bad("terminal escapes in a name", b"cos\x1b[2J\nsystem\n.", r"'os\\x1b\[2J\.system'"),
        Bad("name of a megabyte", b"c" + b"a" * (1 << 20) + b"\nb\n.", r"'aaaa.*\.\.\."),
        Bad(
            "call of an array type",
            b"\x80\x02" + name("numpy", "ndarray") + b"K\x05\x85R.",
            r"call of numpy\.ndarray",
        ),
        Bad("call of a string", b"\x80\x02" + text("x") + b")R.", "call of 'x'"),
        Bad(
            "unpacking codec", call("_codecs", "encode", text("x"), text("zip")), "_codecs.encode with 'zip'"
        ),
        Bad("memo index bomb", b"\x80\x02]r\xff\xff\xff\x7f.", "memo index 2147483647"),
        Bad(
            "memo amplification",
            b"\x80\x02"
            + text("a" * 100_000)
            + b"q\x00"
            + encode
            + b"q\x01"
            + text("latin1")
            + b"q\x02]("
            + b"h\x01h\x00h\x02\x86R" * 100
            + b"e.",
            "memory bomb",
        ),
        Bad("array amplification", b"\x80\x02" + raw(100_000) + b"q\x000" + _many_arrays(100), "memory bomb"),
        Bad("nested lists", b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + STOP, "nested deeper than 64"),
        Bad("nested tuples", b"\x80\x02)" + b"\x85" * 50_000 + STOP, "nested deeper than 64"),
        Bad("billion laughs", laughs(60), "expand without end"),
        Bad("list in itself", b"\x80\x02]q\x00h\x00a.", "contains itself"),
        Bad("dict in itself", b"\x80\x02}q\x00K\x01h\x00s.", "contains itself"),
        Bad("set of a nested tuple", b"\x80\x04\x8f(" + b")\x85\x90.", "key of type tuple"),
        Bad("tuple key", b"\x80\x02})K\x01s.", "key of type tuple"),
        Bad("list key", b"\x80\x02}]K\x01s.", "key of type list"),
        Bad(
            "bytes of 2**60",
            b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
            "length of 1152921504606846976 bytes",
        ),
        Bad(
            "text of 2**60",
            b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
            "length of 1152921504606846976 bytes",
        ),
        Bad(
            "bytearray of 2**60",
            b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"x.",
            "length of 1152921504606846976 bytes",
        ),
        Bad(
            "string of negative length",
            b"T" + struct.pack("<i", -5) + b"xxxxxx.",
            "not a pickle|negative length",
        ),
        Bad("negative string in a list", b"]T" + struct.pack("<i", -5) + b"xxxxxx.", "negative length"),
        Bad(
            "integer of 2 GB",
            b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
            "integer of 2147483647 bytes",
        ),
        Bad("integer of a million digits", b"(L" + b"9" * 1_000_000 + b"L\nt.", "integer of 1000001 digits"),
        Bad("bytearray by size", call("builtins", "bytearray", number(1 << 40)), "bytearray of int"),
        Bad("set by size", call("builtins", "set", number(1 << 40)), "set of"),
        Bad(
            "set amplification",
            b"\x80\x02]("
            + b"N" * 500_000
            + b"eq\x000"
            + (name("builtins", "set") + b"h\x00\x85R0") * 20
            + b"N.",
            "pickle operations",
        ),
        Bad(
            "two million operations",
            b"\x80\x02" + b"]0" * 1_000_000 + b"N.",
            "more than 1,000,000 pickle operations",
        ),
        Bad("object array", array(b"K\x01\x85", dtype("O8"), b"](Nel")[:-1] + STOP, "numpy object array"),
        Bad("object array by list", array(b"K\x01\x85", dtype("f4"), b"](Ne"), "numpy object array"),
        Bad("structured dtype", array(b"K\x01\x85", dtype("V8"), raw(8)), "numpy dtype"),
        Bad(
            "void dtype with fields",
            array(b"K\x01\x85", dtype("f4", MARK + b"K\x03U\x01<" + b"N)}" + b"K\x04K\x04K\x00t"), raw(4)),
            "state of a numpy dtype",
        ),
        Bad(
            "array larger than its data",
            array(number(1 << 30) + b"\x85", dtype("f4"), raw(4)),
            "array of shape",
        ),
        Bad(
            "array of overflowing shape",
            array(number(1 << 40) + number(1 << 40) + b"\x86", dtype("f4"), raw(4)),
            "shape",
        ),
        Bad("array of negative shape", array(number(-1) + b"\x85", dtype("f4"), raw(4)), "the shape"),
        Bad("array of 40 dimensions", array(MARK + b"K\x01" * 40 + TUPLE, dtype("f4"), raw(4)), "the shape"),
        Bad(
            "array without state",
            b"\x80\x02"
            + name("numpy.core.multiarray", "_reconstruct")
            + MARK
            + name("numpy", "ndarray")
            + b"K\x00\x85U\x01bt"
            + b"R.",
            r"numpy\.ndarray is not a value",
        ),
        Bad("array without dtype", array(b"K\x01\x85", text("f4"), raw(4)), "where a numpy dtype belongs"),
        Bad(
            "array of a subclass",
            array(b"K\x01\x85", dtype("f4"), raw(4)).replace(b"numpy\nndarray", b"numpy\nmatrix"),
            r"'numpy\.matrix'",
        ),
        Bad("unknown opcode", b"\x80\x02\xff.", "unknown opcode"),
        Bad("empty stack", b"\x80\x02R.", "empty stack"),
        Bad("no mark", b"\x80\x02t.", "no mark"),
        Bad("values left over", b"\x80\x02NN.", "left on the stack"),
        Bad("missing memo", b"\x80\x02h\x05.", "memo entry 5 does not exist"),
        Bad("cut short", pickle.dumps({"blobs": {"w": b"x" * 1000}}, 2)[:-20], "cut short|ends early"),
        Bad("odd dict", b"(K\x01d.", "key without a value"),
        Bad("broken UTF-8", b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", "UnicodeDecodeError"),
        Bad("web page", b"<!DOCTYPE html><html></html>", r"not a (pickle|torch checkpoint) \(HTML\)"),
        Bad("empty file", b"", "empty"),
    ]


def _many_arrays(count: int) -> bytes:
    """Arrays over one memoised string of 100,000 bytes."""
    one = array(number(100_000) + b"\x85", dtype("u1"), b"h\x00")[2:-1]
    return b"](" + one * count + b"e."


def torch_pickle(tensor: bytes) -> bytes:
    return b"\x80\x02}" + text("w") + tensor + b"s."


def storage(kind: str, key: str, count: int, legacy: bool = False) -> bytes:
    identity = (
        text("storage")
        + name("torch", kind)
        + text(key)
        + text("cpu")
        + number(count)
        + (b"N" if legacy else b"")
    )
    return MARK + identity + TUPLE + b"Q"


def tensor(held: bytes, offset: int, shape: list[int], strides: list[int]) -> bytes:
    sizes = b"".join(MARK + b"".join(number(n) for n in numbers) + TUPLE for numbers in (shape, strides))
    hooks = b"\x89" + name("collections", "OrderedDict") + b")R"
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + MARK
        + held
        + number(offset)
        + sizes
        + hooks
        + TUPLE
        + REDUCE
    )


def torch_zip(
    data_pickle: bytes, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pickle)
        for entry, content in (
            {"archive/data/0": bytes(16), "archive/version": b"3\n"} | (entries or {})
        ).items():
            archive.writestr(entry, content)
    return out.getvalue()


def good_tensor() -> bytes:
    return tensor(storage("FloatStorage", "0", 4), 0, [2, 2], [2, 1])


def legacy(value: bytes, keys: list[str], data: bytes) -> bytes:
    head = [
        pickle.dumps(part, 2)
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001})
    ]
    return b"".join(head) + value + pickle.dumps(keys, 2) + data


def legacy_tensor(held: bytes) -> bytes:
    return torch_pickle(tensor(held, 0, [2, 2], [2, 1]))


def tar_header(name: str, size: str) -> bytes:
    return (
        name.encode().ljust(100, b"\0")
        + bytes(24)
        + size.encode().ljust(12, b"\0")
        + bytes(20)
        + b"0"
        + bytes(100)
        + b"ustar\x0000"
        + bytes(247)
    )


def duplicate(content: bytes) -> bytes:
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as archive:
        archive.filelist.append(archive.filelist[0])
        archive._didModify = True
    return out.getvalue()


def dtype_state(size: int, alignment: int, flags: int, names: bytes = b"N") -> bytes:
    """The state of a numpy dtype, in which flags 63 claim that the elements are Python objects; `names` is a
    pickled tuple of fields."""
    numbers = b"".join(b"J" + struct.pack("<i", n) for n in (size, alignment, flags))
    return MARK + b"K\x03U\x01<N" + names + b"N" + numbers + TUPLE


def second_end_record(content: bytes, count: int, start: int | None = None) -> bytes:
    """The same file with a zip64 end record, which says another number of entries or another place."""
    end = content.rindex(b"PK\x05\x06")
    length, here = struct.unpack("<II", content[end + 12 : end + 20])
    where = here if start is None else start
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, length, where)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    return content[:end] + record + locator + content[end:]


def overlapping() -> bytes:
    """Two entries of the directory over the bytes of one."""
    out = io.BytesIO(torch_zip(torch_pickle(good_tensor())))
    with zipfile.ZipFile(out, "a") as archive:
        twin = zipfile.ZipInfo("archive/data/1")
        first = archive.getinfo("archive/data/0")
        for field in ("header_offset", "file_size", "compress_size", "CRC"):
            setattr(twin, field, getattr(first, field))
        archive.filelist.append(twin)
        archive._didModify = True
    return out.getvalue()


def entry_inside_another() -> bytes:
    """The directory places the last entry inside the one before it, where it has other bytes; all sizes add
    up, since the bytes that the entry itself takes are passed over."""
    twin = torch_zip(b"", {"archive/data/2": b"y" * 16})
    start = twin.index(b"archive/data/2") - 30
    inner = bytes(10) + twin[start : start + 60]
    out = io.BytesIO(
        torch_zip(torch_pickle(good_tensor()), {"archive/data/1": inner, "archive/data/2": b"x" * 16})
    )
    with zipfile.ZipFile(out, "a") as archive:
        last = archive.getinfo("archive/data/2")
        last.header_offset = archive.getinfo("archive/data/1").header_offset + 30 + 14 + 10
        last.CRC = zlib.crc32(b"y" * 16)
        archive._didModify = True
    return out.getvalue()


def locator_elsewhere() -> bytes:
    """A zip64 end record in its place, and a locator that leads to another one inside an entry."""
    other = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, 60, 0)
    content = second_end_record(torch_zip(torch_pickle(good_tensor()), {"archive/data/1": other}), 4)
    at = content.rindex(b"PK\x06\x07") + 8
    return content[:at] + struct.pack("<Q", content.index(other)) + content[at + 8 :]


def hidden_entry() -> bytes:
    """An entry between the others that the directory does not list."""
    out = io.BytesIO(torch_zip(torch_pickle(good_tensor()), {"archive/data/1": b"hidden"}))
    with zipfile.ZipFile(out, "a") as archive:
        archive.filelist[:] = [i for i in archive.filelist if i.filename != "archive/data/1"]
        archive._didModify = True
    return out.getvalue()


def renamed_in_the_directory(content: bytes) -> bytes:
    """The directory calls an entry otherwise than the entry itself does."""
    at = content.rindex(b"archive/version")
    return content[:at] + b"archive/versiom" + content[at + 15 :]


def torch_files() -> list[Bad]:
    """torch checkpoints that must be refused."""
    held = storage("FloatStorage", "0", 4, legacy=True)
    four = struct.pack("<q", 4) + bytes(16)
    exec_call = call("builtins", "exec", text(COMMAND))
    nested = call("torch.storage", "_load_from_bytes", b"C\x01.")
    tar = tar_header("pickle", "00000000100")
    good = torch_zip(torch_pickle(good_tensor()))
    deflated = torch_zip(
        torch_pickle(good_tensor()), {"archive/data/1": bytes(10 << 20)}, zipfile.ZIP_DEFLATED
    )
    cases: list[tuple[str, bytes, str]] = [
        ("zip: exec", torch_zip(exec_call), r"'builtins\.exec'"),
        (
            "zip: custom class",
            torch_zip(b"\x80\x02" + name("my_models", "Detector") + b")\x81}b."),
            r"'my_models\.Detector'",
        ),
        (
            "zip: torch module",
            torch_zip(b"\x80\x02" + name("torch.nn.modules.linear", "Linear") + b")\x81}b."),
            r"'torch\.nn\.modules\.linear\.Linear'",
        ),
        (
            "zip: load from bytes",
            torch_zip(call("torch.storage", "_load_from_bytes", b"C\x01.")),
            r"'torch\.storage\._load_from_bytes'",
        ),
        ("zip: bomb", deflated, "zip bomb"),
        ("zip: cut short", good[:-40], "malformed zip"),
        ("zip: cut in half", good[: len(good) // 2], "malformed zip"),
        ("zip: bytes before", b"PK\x03\x04" + good, "malformed zip|before or after"),
        ("zip: comment", good[:-2] + struct.pack("<H", 4) + b"evil", "before or after"),
        ("zip: two entries of one name", duplicate(good), "two entries of one name|malformed zip"),
        (
            "zip: path outside",
            torch_zip(torch_pickle(good_tensor()), {"archive/../../evil": b"x"}),
            "points outside",
        ),
        (
            "zip: two pickles",
            torch_zip(torch_pickle(good_tensor()), {"other/data.pkl": exec_call}),
            "2 data.pkl",
        ),
        ("zip: two end records", second_end_record(good, 1), "two end records that differ"),
        ("zip: two directories", second_end_record(good, 3, 100), "two end records that differ"),
        ("zip: locator of another record", locator_elsewhere(), "two end records that differ"),
        ("zip: an entry inside another", entry_inside_another(), "entries overlap"),
        ("zip: bytes after", good + b"PK", "before or after"),
        ("zip: another zip after", good + good, "before or after"),
        ("zip: overlapping entries", overlapping(), "entries overlap|zip bomb"),
        (
            "zip: entry that is not listed",
            hidden_entry(),
            "differs from the directory's record|between its entries",
        ),
        ("zip: two names of an entry", renamed_in_the_directory(good), "differs from the directory's record"),
        (
            "zip: numpy array with the flags of objects",
            torch_zip(array(b"K\x01\x85", dtype("f8", dtype_state(-1, -1, 63)), raw(8))),
            "state of a numpy dtype",
        ),
        (
            "zip: numpy array with named fields",
            torch_zip(array(b"K\x01\x85", dtype("f8", dtype_state(-1, -1, 0, b"U\x01a\x85")), raw(8))),
            "state of a numpy dtype",
        ),
        (
            "zip: numpy array with another item size",
            torch_zip(array(b"K\x01\x85", dtype("f8", dtype_state(1, 1, 0)), raw(8))),
            "state of a numpy dtype",
        ),
        (
            "zip: empty tensor of 2**40 rows at 2**70",
            torch_zip(torch_pickle(tensor(storage("FloatStorage", "0", 4), 1 << 70, [1 << 40, 0], [1, 1]))),
            "outside its storage",
        ),
        (
            "zip: a list of a plain kind that names code",
            torch_zip(b"\x80\x02" + name("collections", "deque") + b")\x81" + name("os", "system") + b"a."),
            r"'os\.system'",
        ),
        ("zip: no pickle", torch_zip(b"N.").replace(b"data.pkl", b"date.pkl"), "0 data.pkl"),
        (
            "zip: TorchScript",
            torch_zip(
                torch_pickle(good_tensor()), {"archive/constants.pkl": b"N.", "archive/code/x.py": b""}
            ),
            "TorchScript",
        ),
        (
            "zip: storage missing",
            torch_zip(torch_pickle(tensor(storage("FloatStorage", "9", 4), 0, [4], [1]))),
            "storage 9",
        ),
        (
            "zip: storage too short",
            torch_zip(torch_pickle(tensor(storage("FloatStorage", "0", 400), 0, [4], [1]))),
            "storage 0 of 400",
        ),
        (
            "zip: unknown storage",
            torch_zip(torch_pickle(tensor(storage("EvilStorage", "0", 4), 0, [4], [1]))),
            r"'torch\.EvilStorage'",
        ),
        (
            "zip: tensor outside",
            torch_zip(torch_pickle(tensor(storage("FloatStorage", "0", 4), 3, [2], [1]))),
            "outside its storage",
        ),
        (
            "zip: expanded tensor",
            torch_zip(torch_pickle(tensor(storage("FloatStorage", "0", 4), 0, [1 << 40], [0]))),
            "outside its storage",
        ),
        (
            "zip: negative stride",
            torch_zip(torch_pickle(tensor(storage("FloatStorage", "0", 4), 3, [2], [-1]))),
            "the shape",
        ),
        ("zip: tensor of text", torch_zip(torch_pickle(tensor(text("x"), 0, [2], [1]))), "a tensor of str"),
        (
            "zip: whole module by id",
            torch_zip(b"\x80\x02(" + text("module") + text("x") + b"NNtQ."),
            "whole module is program code",
        ),
        ("legacy: exec", legacy(exec_call, [], b""), r"'builtins\.exec'"),
        ("legacy: exec first", exec_call, r"'builtins\.exec'"),
        (
            "legacy: whole module",
            legacy(
                b"\x80\x02(" + text("module") + text("x") + text("f.py") + text(COMMAND) + b"tQ.", [], b""
            ),
            "whole module is program code",
        ),
        (
            "pickled tensors: nested exec",
            call("torch.storage", "_load_from_bytes", b"B" + struct.pack("<I", len(exec_call)) + exec_call),
            r"'builtins\.exec'",
        ),
        ("pickled tensors: not bytes", call("torch.storage", "_load_from_bytes", text("x")), "a storage of"),
        (
            "pickled tensors: nested twice",
            call("torch.storage", "_load_from_bytes", b"C" + bytes([len(nested)]) + nested),
            r"'torch\.storage\._load_from_bytes'",
        ),
        (
            "legacy: wrong protocol",
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(7, 2),
            "protocol 7",
        ),
        ("legacy: cut short", legacy(legacy_tensor(held), ["0"], four[:-3]), "cut short"),
        (
            "legacy: other count",
            legacy(legacy_tensor(held), ["0"], struct.pack("<q", 1 << 50) + bytes(16)),
            "has 1125899906842624 elements",
        ),
        (
            "legacy: two sizes",
            legacy(
                b"\x80\x02(" + held + storage("FloatStorage", "0", 1 << 40, legacy=True) + b"t.", ["0"], four
            ),
            "two sizes",
        ),
        (
            "legacy: storage bomb",
            legacy(
                legacy_tensor(storage("FloatStorage", "0", 1 << 40, legacy=True)),
                ["0"],
                struct.pack("<q", 1 << 40),
            ),
            "cut short",
        ),
        ("legacy: keys do not fit", legacy(legacy_tensor(held), ["0", "1"], four * 2), "does not fit"),
        (
            "legacy: list among the keys",
            legacy(legacy_tensor(held), [["0"]], four),  # type: ignore[list-item]
            "does not fit",
        ),
        (
            "legacy: BUILD with a tuple of tuples of tuples",
            legacy(laughs(200)[:-1] + b"0]h\xc8b.", [], b""),
            "BUILD sets attributes of list",
        ),
        (
            "legacy: big-endian",
            legacy(legacy_tensor(held), ["0"], four).replace(
                b"little_endianq\x01\x88", b"little_endianq\x01\x89"
            ),
            "big-endian",
        ),
        ("tar: header", tar_header("pickle", "99999999999"), "malformed tar header"),
        ("tar: negative size", tar_header("pickle", "-0000000001"), "malformed tar header"),
        ("tar: parts missing", tar + exec_call.ljust(512, b"\0"), "without storages, tensors"),
        (
            "tar: exec",
            b"".join(
                tar_header(part, f"{len(exec_call):011o}") + exec_call.ljust(512, b"\0")
                for part in ("storages", "tensors", "pickle")
            ),
            r"'builtins\.exec'",
        ),
    ]
    return [Bad(*case) for case in cases]
