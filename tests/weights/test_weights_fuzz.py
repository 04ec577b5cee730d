"""Random and mutated files of every kind that is read (pickle, torch's zip, legacy and tar, safetensors,
TensorFlow.js): each is read or refused; nothing runs, crashes, hangs, grows or escapes as another error.

The full run: DETECTION_ZOO_TEST_FUZZ=100000 python -m pytest tests/weights/test_weights_fuzz.py -s
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malicious_files import (
    CANARY,
    good_tensor,
    legacy,
    pickles,
    storage,
    tar_header,
    tensor,
    torch_files,
    torch_pickle,
    torch_zip,
)

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.safe import load_pickle, read_torch_file
from detection_zoo.zoo.weights.read import read_arrays, read_safetensors
from detection_zoo.zoo.weights.tfjs import read_tfjs_graph

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch, about odd files
EXAMPLES = int(os.environ.get("DETECTION_ZOO_TEST_FUZZ", "1000"))
LONGEST_S = 30
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "exec",
    "compile",
    "pickle.find_class",
    "ctypes.dlopen",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "webbrowser.open",
    "marshal.loads",
    "code.__new__",
)
seen: Counter = Counter()
slowest: dict[str, float] = {}
watching = False


def watch(event: str, arguments: tuple) -> None:
    if watching and event.startswith(FORBIDDEN):
        seen[f"ran {event} {arguments!r:.100}"] += 1


def seeds() -> list[bytes]:
    """Honest files small enough to be hit often, and every malicious one."""
    import torch

    array = {"blobs": {"w": np.arange(4, dtype=np.float32)}, "cfg": "x", "more": [1, 2.5, None, (True, b"z")]}
    honest = [pickle.dumps(array, protocol) for protocol in range(6)] + [
        torch_zip(torch_pickle(good_tensor()))
    ]
    for zipped in (True, False):
        out = io.BytesIO()
        torch.save({"w": torch.ones(2, 2), "n": torch.tensor(3)}, out, _use_new_zipfile_serialization=zipped)
        honest.append(out.getvalue())
    return (honest + other_formats()) * 4 + [
        bad.content for bad in pickles() + torch_files() if len(bad.content) < 20_000
    ]


def other_formats() -> list[bytes]:
    """A tar file of torch 0.1, a safetensors file, and TensorFlow.js models, quantised and not."""
    import torch
    from safetensors.torch import save

    return [
        torch_tar(),
        save({"w": torch.ones(2, 2), "b": torch.zeros(3, dtype=torch.int64)}, {"note": "x"}),
        tfjs(),
        tfjs({"dtype": "uint8", "scale": 0.5, "min": -1.0}),
        tfjs({"dtype": "float16"}, zipfile.ZIP_DEFLATED),
    ]


def torch_tar() -> bytes:
    """Two tensors over one storage, as torch 0.1 wrote them."""
    kept = b"\x80\x02(K\x07X\x03\x00\x00\x00cpuctorch\nFloatStorage\nt." + struct.pack("<q4f", 4, 1, 2, 3, 4)
    views = b"".join(
        b"\x80\x02(K"
        + bytes([key])
        + b"K\x07ctorch\nFloatTensor\nt."
        + struct.pack("<ii5q", 2, 0, 2, 2, 2, 1, 0)
        for key in (1, 2)
    )
    parts = {
        "storages": pickle.dumps(1, 2) + kept + pickle.dumps([], 2),
        "tensors": pickle.dumps(2, 2) + views,
        "pickle": b"\x80\x02}(U\x01wU\x011QU\x01vU\x012Qu.",
    }
    return b"".join(
        tar_header(name, f"{len(part):011o}") + part.ljust(-(-len(part) // 512) * 512, b"\0")
        for name, part in parts.items()
    ) + bytes(1024)


def tfjs(quantisation: dict[str, Any] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A small model with a graph."""
    width = {"uint8": 1, "float16": 2}.get((quantisation or {}).get("dtype", ""), 4)
    weight = {"name": "w", "shape": [2, 3], "dtype": "float32"}
    weight |= {"quantization": quantisation} if quantisation else {}
    nodes = [{"name": "norm", "attr": {"epsilon": {"f": 0.001}}}]
    model = {
        "modelTopology": {"node": nodes},
        "weightsManifest": [{"paths": ["shard1", "shard2"], "weights": [weight]}],
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("model.json", json.dumps(model))
        archive.writestr("shard1", bytes(3 * width))
        archive.writestr("shard2", bytes(3 * width))
    return out.getvalue()


OPCODES = bytes(range(0x80, 0x99)) + b"(.0125FINPRQSTUVXGJKLMabcdeghijlopqrstu)]}\n\x00\xff"
NAMES = [
    "os\nsystem",
    "numpy\nndarray",
    "numpy\ndtype",
    "numpy.core.multiarray\n_reconstruct",
    "torch\nFloatStorage",
    "collections\nOrderedDict",
    "builtins\nset",
    "builtins\nbytearray",
    "torch._utils\n_rebuild_tensor_v2",
    "_codecs\nencode",
    "torch._utils\n_rebuild_parameter",
]
TOKENS = [f"c{name}\n".encode() for name in NAMES] + [
    b"\xff" * 8,
    b"\x00\x00\x00\x80",
    b"K\x01\x85R",
    b")R",
    b"U\x02f4K\x00K\x01\x87R",
]
piece = st.one_of(
    st.sampled_from([OPCODES[i : i + 1] for i in range(len(OPCODES))]),
    st.binary(max_size=6),
    st.sampled_from(TOKENS),
)
mutation = st.tuples(
    st.sampled_from(["replace", "insert", "delete", "repeat"]),
    st.integers(0, 1 << 16),
    st.integers(1, 40),
    piece,
)


def mutate(content: bytes, mutations: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, at, length, new in mutations:
        at %= len(content) + 1
        if kind == "replace":
            content = content[:at] + new + content[at + len(new) :]
        elif kind == "insert":
            content = content[:at] + new + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + length :]
        else:
            content = content[:at] + content[at : at + length] * 3 + content[at + length :]
    return content


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """No input may take longer than LONGEST_S, nor do what a checkpoint never does."""
    global watching

    def hang(*_: Any) -> None:
        raise AssertionError(f"still reading after {LONGEST_S} s of processor time")

    before = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    watching = True
    try:
        yield
    finally:
        watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


READERS = (load_pickle, read_torch_file, read_arrays, read_safetensors, read_tfjs_graph)


def read_all(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    seen["inputs"] += 1
    for read in READERS:
        began_s = time.process_time()
        try:
            with limited():
                read(path)
            seen[f"{read.__name__} read"] += 1
        except CheckpointError as error:
            seen[f"{read.__name__} refused"] += 1
            assert str(path) in str(error) and len(str(error)) < 2000
        spent_s = time.process_time() - began_s
        slowest[read.__name__] = max(slowest.get(read.__name__, 0.0), spent_s)
    assert CANARY not in os.environ
    assert not [what for what in seen if what.startswith("ran ")], seen


def warm_up(path: Path) -> None:
    """Read honest files and one that torch itself refuses, so that no import is left to happen (an import
    runs code, of torch)."""
    for content in SEEDS[:HONEST] + [
        torch_zip(pickle.dumps({"a": b"x"}, 3)),
        torch_zip(pickle.dumps({"a": np.float64(2), "b": {1}}, 2)),
    ]:
        path.write_bytes(content)
        for read in READERS:
            with contextlib.suppress(CheckpointError):
                read(path)


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    sys.addaudithook(watch)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about odd protocols
        warm_up(Path(folder) / "model.bin")
        before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield Path(folder) / "model.bin"
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\nfuzz: {dict(seen)}, peak memory of the process {peak_mib:.0f} MiB, {before_mib:.0f} MiB before;"
        f" slowest input in s of processor time: { {name: round(s, 2) for name, s in slowest.items()} }"
    )
    assert peak_mib < before_mib + 512  # of which Hypothesis takes some 200


SEEDS = seeds()
HONEST = 14
FUZZ = settings(  # small cases by Hypothesis; the rest is by chance
    max_examples=min(EXAMPLES, 5000) // 5 + 1,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@FUZZ
@given(seed=st.sampled_from(SEEDS), mutations=st.lists(mutation, min_size=1, max_size=6))
def test_mutated_files(path: Path, seed: bytes, mutations: list) -> None:
    read_all(path, mutate(seed, mutations))


@FUZZ
@given(
    pieces=st.lists(piece, max_size=60), start=st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04"])
)
def test_random_opcodes(path: Path, pieces: list[bytes], start: bytes) -> None:
    read_all(path, start + b"".join(pieces))


words = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=5)),
        st.sampled_from(
            ["float32", "uint8", "float16", "w", "shard1", "shard2", "model.json", "bool", "string"]
        ),
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["paths", "weights", "name", "shape", "dtype", "quantization", "scale", "min", "node"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def replaced(document: Any, at: int, value: Any) -> Any:
    """The document with its node number `at`, counted depth first, replaced."""
    count = itertools.count()

    def walk(node: Any) -> Any:
        if next(count) == at:
            return value
        if isinstance(node, dict):
            return {key: walk(item) for key, item in node.items()}
        return [walk(item) for item in node] if isinstance(node, list) else node

    return walk(document)


def with_description(description: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model.json", description)
        archive.writestr("shard1", bytes(12))
        archive.writestr("shard2", bytes(12))
    return out.getvalue()


@FUZZ
@given(at=st.integers(0, 24), value=words, again=st.integers(0, 24), mutations=st.lists(mutation, max_size=2))
def test_tfjs_descriptions(path: Path, at: int, value: Any, again: int, mutations: list) -> None:
    with zipfile.ZipFile(io.BytesIO(tfjs({"dtype": "uint8", "scale": 0.5, "min": 0}))) as archive:
        document = replaced(json.loads(archive.read("model.json")), at, value)
    text = json.dumps(replaced(document, again, value)).encode()
    read_all(path, with_description(mutate(text, mutations)))


HEADER = {
    "__metadata__": {"a": "b"},
    "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "I64", "shape": [1], "data_offsets": [16, 24]},
}


@FUZZ
@given(at=st.integers(0, 12), value=words, mutations=st.lists(mutation, max_size=2))
def test_safetensors_headers(path: Path, at: int, value: Any, mutations: list) -> None:
    text = mutate(json.dumps(replaced(HEADER, at, value)).encode(), mutations)
    read_all(path, struct.pack("<Q", len(text)) + text + bytes(24))


@FUZZ
@given(mutations=st.lists(mutation, max_size=4), zipped=st.booleans())
def test_mutated_pickles_inside_torch_files(path: Path, mutations: list, zipped: bool) -> None:
    if zipped:
        read_all(path, torch_zip(mutate(torch_pickle(good_tensor()), mutations)))
    else:
        held = storage("FloatStorage", "0", 4, legacy=True)
        value = mutate(torch_pickle(tensor(held, 0, [2, 2], [2, 1])), mutations)
        read_all(path, legacy(value, ["0"], (4).to_bytes(8, "little") + bytes(16)))


def chance(random: Random) -> bytes:
    """An input of any kind, the same for the same state of `random`."""
    mutations = [
        (
            random.choice(["replace", "insert", "delete", "repeat"]),
            random.randrange(1 << 16),
            random.randint(1, 40),
            random.choice([random.randbytes(random.randint(0, 6)), random.choice(TOKENS), OPCODES[:1]]),
        )
        for _ in range(random.randint(1, 6))
    ]
    kind = random.random()
    if kind < 0.6:
        return mutate(random.choice(SEEDS), mutations)
    if kind < 0.75:
        pieces = random.choices(
            [*TOKENS, *(OPCODES[i : i + 1] for i in range(len(OPCODES)))], k=random.randint(1, 60)
        )
        return random.choice([b"", b"\x80\x02", b"\x80\x04"]) + b"".join(pieces)
    value = random.choice(
        [None, -1, 1 << 70, 0.5, "w", "uint8", [], [2, 3], {}, {"dtype": "uint8"}, [["w"]], True]
    )
    if kind < 0.9:
        quantised = random.choice([None, {"dtype": "uint8", "scale": 0.5, "min": 0}, {"dtype": "float16"}])
        with zipfile.ZipFile(io.BytesIO(tfjs(quantised))) as archive:
            document = replaced(json.loads(archive.read("model.json")), random.randint(0, 24), value)
        text = json.dumps(document).encode()
        return with_description(mutate(text, mutations[: random.randint(0, 1)]))
    header = json.dumps(replaced(HEADER, random.randint(0, 16), value)).encode()
    header = mutate(header, mutations[: random.randint(0, 1)])
    return struct.pack("<Q", len(header)) + header + bytes(24)


def test_many_by_chance(path: Path) -> None:
    for number in range(EXAMPLES):
        content = chance(Random(number))
        try:
            read_all(path, content)
        except Exception as error:
            raise AssertionError(f"input {number} ({content[:80]!r}): {error!r}") from error
