"""Random and mutated checkpoint files: each is read or refused; nothing runs, crashes, hangs or escapes as
another error.

The full run: DETECTION_ZOO_TEST_FUZZ=100000 python -m pytest tests/test_weights_fuzz.py -s
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
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
    tensor,
    torch_files,
    torch_pickle,
    torch_zip,
)

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.safe import load_pickle, read_torch_file

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
    return honest * 4 + [bad.content for bad in pickles() + torch_files() if len(bad.content) < 20_000]


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
        raise AssertionError(f"still reading after {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    watching = True
    try:
        yield
    finally:
        watching = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_both(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    seen["inputs"] += 1
    for read in (load_pickle, read_torch_file):
        try:
            with limited():
                read(path)
            seen[f"{read.__name__} read"] += 1
        except CheckpointError:
            seen[f"{read.__name__} refused"] += 1
    assert CANARY not in os.environ
    assert not [what for what in seen if what.startswith("ran ")], seen


def warm_up(path: Path) -> None:
    """Read honest files and one that torch itself refuses, so that no import is left to happen (an import
    runs code, of torch)."""
    for content in SEEDS[:9] + [
        torch_zip(pickle.dumps({"a": b"x"}, 3)),
        torch_zip(pickle.dumps({"a": np.float64(2), "b": {1}}, 2)),
    ]:
        path.write_bytes(content)
        for read in (load_pickle, read_torch_file):
            with contextlib.suppress(CheckpointError):
                read(path)


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    sys.addaudithook(watch)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about odd protocols
        warm_up(Path(folder) / "model.bin")
        yield Path(folder) / "model.bin"
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nfuzz: {dict(seen)}, peak memory of the process {peak_mib:.0f} MiB")
    assert peak_mib < 2048


SEEDS = seeds()
FUZZ = settings(
    max_examples=EXAMPLES // 3 + 1, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@FUZZ
@given(seed=st.sampled_from(SEEDS), mutations=st.lists(mutation, min_size=1, max_size=6))
def test_mutated_files(path: Path, seed: bytes, mutations: list) -> None:
    read_both(path, mutate(seed, mutations))


@FUZZ
@given(
    pieces=st.lists(piece, max_size=60), start=st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04"])
)
def test_random_opcodes(path: Path, pieces: list[bytes], start: bytes) -> None:
    read_both(path, start + b"".join(pieces))


@FUZZ
@given(mutations=st.lists(mutation, max_size=4), zipped=st.booleans())
def test_mutated_pickles_inside_torch_files(path: Path, mutations: list, zipped: bool) -> None:
    if zipped:
        read_both(path, torch_zip(mutate(torch_pickle(good_tensor()), mutations)))
    else:
        held = storage("FloatStorage", "0", 4, legacy=True)
        value = mutate(torch_pickle(tensor(held, 0, [2, 2], [2, 1])), mutations)
        read_both(path, legacy(value, ["0"], (4).to_bytes(8, "little") + bytes(16)))
