"""What malicious and malformed files cost: each kind is refused with the file's name, within a stated multiple of the
file's size in memory and a few seconds.

`python -m pytest tests/weights/test_weights_attack_costs.py -s` prints the rows of docs/security.md.
"""

from __future__ import annotations

import io
import json
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from forked import run_forked
from malicious_files import Bad, good_tensor, pickles, second_end_record, torch_files, torch_pickle, torch_zip
from safetensors.torch import load_file  # noqa: F401 - the memory of the import is not the reader's

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.safe import load_pickle, read_torch_file
from detection_zoo.zoo.weights.read import read_safetensors
from detection_zoo.zoo.weights.tfjs import read_tfjs_graph

LARGEST_MULTIPLE, BESIDE_MIB = 48, 16  # memory: so many times the file, and so much beside it
LONGEST_S = 10


def model(description: Any, shards: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        text = description if isinstance(description, (str, bytes)) else json.dumps(description)
        archive.writestr("model.json", text)
        for name, content in shards.items():
            archive.writestr(name, content)
    return out.getvalue()


def manifest(*weights: Any, paths: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    shards = paths if paths is not None else ["s"]
    return {"weightsManifest": [{"paths": shards, "weights": list(weights)}], "modelTopology": more}


def weight(**fields: Any) -> dict[str, Any]:
    return {"name": "w", "shape": [4], "dtype": "float32"} | fields


MIB = bytes(1 << 20)
EMPTY = {"name": "w", "shape": [0], "dtype": "float32"}


def tfjs_files() -> dict[str, bytes]:
    return {
        "one shard named 200 times": model(
            manifest(weight(shape=[200 << 18]), paths=["s"] * 200), {"s": MIB}
        ),
        "a shard in 200 groups": model(
            {
                "weightsManifest": [
                    {"paths": ["s"], "weights": [weight(name=f"w{i}", shape=[1 << 18])]} for i in range(200)
                ]
            },
            {"s": MIB},
        ),
        "compressed shards": model(manifest(weight(shape=[64 << 18])), {"s": MIB * 64}, zipfile.ZIP_DEFLATED),
        "compressed description": model(" " * (64 << 20), {}, zipfile.ZIP_DEFLATED),
        "description of 9 MB": model("[" + "[]," * (3 << 20) + "[]]", {}),
        "description of empty lists": model({"weightsManifest": [[]] * 200_000}, {}),
        "brackets": model("[" * 200_000, {}),
        "objects": model('{"a":' * 100_000, {}),
        "number of 5,000 digits": model('{"weightsManifest": ' + "9" * 5000 + "}", {}),
        "not UTF-8": model(b"\xff\xfe", {}),
        "shape of 2**40": model(manifest(weight(shape=[1 << 40])), {"s": MIB}),
        "shape of 40 sides": model(manifest(weight(shape=[1] * 40)), {"s": bytes(4)}),
        "shape of 2**40 and 0": model(manifest(weight(shape=[1 << 60, 0])), {"s": b""}),
        "negative shape": model(manifest(weight(shape=[-4])), {"s": bytes(16)}),
        "shape of booleans": model(manifest(weight(shape=[True, 4])), {"s": bytes(16)}),
        "shape of text": model(manifest(weight(shape="4")), {"s": bytes(16)}),
        "type of text": model(manifest(weight(dtype="string")), {"s": bytes(16)}),
        "type in a list": model(manifest(weight(dtype=["float32"])), {"s": bytes(16)}),
        "quantised by text": model(
            manifest(weight(quantization={"dtype": "uint8", "scale": "2", "min": 0})), {"s": bytes(4)}
        ),
        "quantised by infinity": model(
            manifest(weight(quantization={"dtype": "uint8", "scale": float("inf"), "min": 0})),
            {"s": bytes(4)},
        ),
        "quantised without numbers": model(
            manifest(weight(quantization={"dtype": "uint8"})), {"s": bytes(4)}
        ),
        "quantised as a list": model(manifest(weight(quantization=["uint8"])), {"s": bytes(4)}),
        "name in a list": model(manifest(weight(name=["w"])), {"s": bytes(16)}),
        "two of one name": model(manifest(EMPTY, EMPTY), {"s": b""}),
        "path that is a number": model(manifest(weight(), paths=[7]), {"s": bytes(16)}),
        "path outside": model(manifest(weight(), paths=["../s"]), {"../s": bytes(16)}),
        "group that is a number": model({"weightsManifest": [7]}, {}),
        "weights that are a number": model({"weightsManifest": [{"paths": [], "weights": 7}]}, {}),
        "node that is a number": model(manifest(weight(), node=[7]), {"s": bytes(16)}),
        "epsilon that is a list": model(
            manifest(weight(), node=[{"name": "n", "attr": {"epsilon": {"f": [1]}}}]), {"s": bytes(16)}
        ),
        "epsilon of 10**400": model(
            manifest(weight(), node=[{"name": "n", "attr": {"epsilon": {"f": 10**400}}}]), {"s": bytes(16)}
        ),
        "attributes that are a number": model(
            manifest(weight(), node=[{"name": "n", "attr": 7}]), {"s": bytes(16)}
        ),
    }


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any = (4,), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def safetensors_files() -> dict[str, bytes]:
    return {
        "header longer than the file": safetensors({}, length=1 << 40),
        "header of brackets": safetensors(b"{" + b'"a":[' * 100_000),
        "overlapping tensors": safetensors({"a": entry(), "b": entry()}, bytes(16)),
        "bytes between tensors": safetensors({"a": entry(offsets=(4, 20))}, bytes(20)),
        "bytes after": safetensors({"a": entry()}, bytes(20)),
        "tensor outside": safetensors({"a": entry(offsets=(0, 64), shape=(16,))}, bytes(16)),
        "shape of 2**60": safetensors({"a": entry(shape=(1 << 60, 16))}, bytes(16)),
        "shape of 2**70": safetensors({"a": entry(shape=(1 << 70,))}, bytes(16)),
        "negative shape": safetensors({"a": entry(shape=(-4,))}, bytes(16)),
        "unknown type": safetensors({"a": entry(dtype="OBJECT")}, bytes(16)),
        "two of one name": safetensors(b'{"a":' + json.dumps(entry()).encode() + b',"a":{}}', bytes(16)),
        "offsets backwards": safetensors({"a": entry(offsets=(16, 0))}, bytes(16)),
        "not UTF-8": safetensors(b'{"\xff": 1}'),
    }


@cache
def zip64_bomb() -> bytes:
    """0.5 MB: two directories, the second of which finds 128 MB of one tensor by compressing it."""
    inner = torch_zip(torch_pickle(good_tensor()), {"archive/data/1": bytes(128 << 20)}, zipfile.ZIP_DEFLATED)
    return second_end_record(inner, 4, 0)


def refused(files: dict[str, bytes]) -> list[Bad]:
    return [Bad(name, content, "") for name, content in files.items()]


# the files are made by the tests: every test process imports this module
KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[], list[Bad]]]] = {
    "pickle (.pkl)": (load_pickle, pickles),
    "torch file: zip, legacy, tar": (
        read_torch_file,
        lambda: [*torch_files(), Bad("zip64 bomb", zip64_bomb(), "refused")],
    ),
    "TensorFlow.js": (read_tfjs_graph, lambda: refused(tfjs_files())),
    "safetensors": (read_safetensors, lambda: refused(safetensors_files())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_refused_within_bounds(kind: str, tmp_path: Path) -> None:
    read, make = KINDS[kind]
    cases = make()
    worst_mib, worst_s, slowest = 0.0, 0.0, ""
    for bad in cases:
        path = tmp_path / "file"
        path.write_bytes(bad.content)
        tracemalloc.start()
        began_s = time.process_time()
        try:
            with pytest.raises(CheckpointError) as caught:
                read(path)
            peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()
        spent_s = time.process_time() - began_s
        assert str(path) in str(caught.value) and len(str(caught.value)) < 2000, bad.name
        assert peak_mib < LARGEST_MULTIPLE * len(bad.content) / 2**20 + BESIDE_MIB, bad.name
        assert spent_s < LONGEST_S, bad.name
        if spent_s > worst_s:
            worst_s, slowest = spent_s, bad.name
        worst_mib = max(worst_mib, peak_mib)
    print(f"\n| {kind} | {len(cases)} | {len(cases)} | {worst_mib:.0f} MiB | {worst_s:.1f} s ({slowest}) |")


def test_a_bomb_takes_no_memory_of_the_process(tmp_path: Path) -> None:
    """Beyond what Python's allocator sees: the memory of a whole process, measured from outside."""
    path = tmp_path / "bomb.pth"
    path.write_bytes(zip64_bomb())
    code = (
        "import resource, sys, torch\n"
        "from detection_zoo.zoo.errors import CheckpointError\n"
        "from detection_zoo.zoo.weights.read import read_arrays\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_arrays(sys.argv[1])\n"
        "except CheckpointError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = run_forked("-c", code, str(path), imports=("torch",))
    assert int(done.stdout) / 1024 < 64, done.stderr
