"""Checkpoints are read without running a byte of them: honest files of every age equal what torch and pickle
read, bad ones are refused by name."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from malicious_files import CANARY, Bad, legacy, pickles, raw, torch_files

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.weights.pickle.safe import file_kind, load_pickle, read_torch_file

PICKLES, TORCH_FILES = pickles(), torch_files()


def refuse(bad: Bad, path: Path, read: Any) -> None:
    """The file is refused with the expected words, in memory bounded by its size, and nothing of it ran."""
    path.write_bytes(bad.content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=bad.refusal) as caught:
            read(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value) and len(str(caught.value)) < 800
    assert peak_bytes < 48 * len(bad.content) + (4 << 20)
    assert CANARY not in os.environ and not Path(CANARY).exists()


def test_there_are_enough() -> None:
    names = [bad.name for bad in PICKLES + TORCH_FILES]
    assert len(set(names)) == len(names) >= 100


@pytest.mark.parametrize("bad", PICKLES, ids=lambda bad: bad.name)
def test_malicious_pickle_is_refused(bad: Bad, tmp_path: Path) -> None:
    refuse(bad, tmp_path / "model_final.pkl", load_pickle)


@pytest.mark.parametrize("bad", TORCH_FILES, ids=lambda bad: bad.name)
def test_malicious_torch_file_is_refused(bad: Bad, tmp_path: Path) -> None:
    import torch  # noqa: F401 - its own memory is not the reader's

    refuse(bad, tmp_path / "model.pth", read_torch_file)


def same(ours: Any, theirs: Any) -> None:
    """Equal in type, shape, dtype and value, all the way down."""
    import torch

    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor) and (ours.dtype, ours.shape, ours.stride()) == (
            theirs.dtype,
            theirs.shape,
            theirs.stride(),
        )
        assert torch.equal(ours, theirs.detach())
    elif isinstance(theirs, np.ndarray):
        assert (
            isinstance(ours, np.ndarray)
            and (ours.dtype, ours.shape) == (theirs.dtype.newbyteorder("="), theirs.shape)
            and ours.flags.writeable
        )
        np.testing.assert_array_equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict) and list(ours) == list(theirs)
        for key, value in theirs.items():
            same(ours[key], value)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs) and isinstance(ours, (list, tuple))
        for our, their in zip(ours, theirs, strict=True):
            same(our, their)
    else:
        assert type(ours) is type(theirs) and ours == theirs


def arrays() -> dict[str, Any]:
    """What a Detectron file holds, and every kind of number and container beside it."""
    rng = np.random.default_rng(7)
    blobs = {f"res2_0_branch2a_w_{i}": rng.standard_normal((4, 3, 2, 2)).astype(np.float32) for i in range(3)}
    return {
        "blobs": blobs,
        "cfg": "MODEL:\n  TYPE: généralisé\n",
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 3)),
        "scalar": np.float32(3),
        "bools": np.array([True, False]),
        "half": np.ones(3, np.float16),
        "point": np.array(2),
        "negative": -5,
        "long": 2**70,
        "float": 1.5,
        "tuple": (1, 2, 3, 4),
        "none": None,
        "bytes": b"abc\xff",
        "no_bytes": b"",
        "set": {1},
        "frozen": frozenset({"a"}),
        "ordered": collections.OrderedDict(a=1, b=[2]),
        "shared": [[1] * 3] * 3,
        "complex": 1 + 2j,
    }


def test_a_changed_byte_of_a_torch_file_is_found(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "model.pth"
    torch.save({"weight": torch.full((64, 64), 0.5)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(np.full(8, 0.5, "float32").tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"Bad CRC-32 for file .*/data/0"):
        read_torch_file(path)


def test_a_torch_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    import torch

    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.arange(9.0)}, tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_torch_file(tmp_path / "model.pth")["weight"], torch.arange(9.0))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_honest_pickle(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps(arrays(), protocol))
    same(load_pickle(path), arrays())


def test_python_2_pickle(tmp_path: Path) -> None:
    """As Python 2 and its numpy write one: names and array data are byte strings, to be read as latin1."""
    data = np.array([[1.5, -2.0]], "<f4")
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    body = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01K\x02\x86"
        + dtype
        + b"\x89U\x08"
        + data.tobytes()
        + b"tb"
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(b"\x80\x02}U\x05blobs}U\x07conv1_w" + body + b"ss.")
    same(load_pickle(path), {"blobs": {"conv1_w": data}})


def state_dict() -> dict[str, Any]:
    """A checkpoint of a small model with its optimiser, shared storages, views and every dtype."""
    import torch

    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    momentum = {
        "state": {0: {"momentum_buffer": torch.rand(4, 3, 3, 3)}},
        "param_groups": [{"lr": 0.1, "nesterov": False, "params": [0, 1, 2, 3]}],
    }
    state = model.state_dict()
    state["view"], state["transposed"], state["tied"] = (
        state["0.weight"][1:3],
        torch.arange(12).reshape(3, 4).t(),
        state["0.bias"],
    )
    # a 1x1 kernel turned from TensorFlow's order: strides of sides of one cell are as large as one likes
    state["turned"] = torch.arange(12).as_strided((3, 4, 1, 1), (1, 3, 1 << 30, 1 << 30))
    for dtype in (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ):
        state[str(dtype)] = torch.tensor([0, 1, 1]).to(dtype)
    state["none"], state["scalar"] = torch.empty(0), torch.tensor(3.0)
    return {
        "model": state,
        "optimizer": momentum,
        "iteration": 90000,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "array": np.arange(6.0),
        "numpy scalar": np.float64(2),
        "milestones": collections.Counter([60, 60, 80]),
        "size": torch.Size([2, 3]),
    }


@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (False, 2), (False, 4)])
def test_honest_torch_file(zipped: bool, protocol: int, tmp_path: Path) -> None:
    import torch

    path, content = tmp_path / "model.pth", state_dict()
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert file_kind(path) == ("torch zip" if zipped else "pickle")
    ours = read_torch_file(path)
    same(ours, content)
    assert ours["model"]["view"].data_ptr() == ours["model"]["0.weight"][1:3].data_ptr()  # views stay views
    if protocol == 2:
        state = tmp_path / "state.pth"
        torch.save(content["model"], state, _use_new_zipfile_serialization=zipped)
        same(read_torch_file(state), torch.load(state, weights_only=True))


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickled_state_dict(protocol: int, tmp_path: Path) -> None:
    """Some packages carry `pickle.dump` of a state dict; its tensors come back, each with a storage of its
    own."""
    path, content = tmp_path / "state.pkl", state_dict()["model"]
    path.write_bytes(pickle.dumps(content, protocol))
    ours = read_torch_file(path)
    assert list(ours) == list(content)
    for name, tensor in content.items():
        same(ours[name].contiguous(), tensor.contiguous())


def test_tar_file_of_torch_0_1(tmp_path: Path) -> None:
    """As torch 0.1 wrote one; torch itself still reads it, and is the reference."""
    import torch

    def member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))

    weights, counts = np.arange(12, dtype="<f4"), np.arange(3, dtype="<i8")
    storages = pickle.dumps(2, 2)
    for key, kind, data in ((11, b"FloatStorage", weights), (12, b"LongStorage", counts)):
        storages += (
            b"\x80\x02(K"
            + bytes([key])
            + b"X\x03\x00\x00\x00cpuctorch\n"
            + kind
            + b"\nt."
            + struct.pack("<q", len(data))
            + data.tobytes()
        )
    storages += pickle.dumps([(13, 11, 4, 6)], 2)
    tensors = pickle.dumps(3, 2)
    for key, storage, shape, strides, offset in (
        (1, 11, (3, 4), (4, 1), 0),
        (2, 12, (2,), (1,), 1),
        (3, 13, (2, 3), (1, 2), 0),
    ):
        tensors += (
            b"\x80\x02(K"
            + bytes([key])
            + b"K"
            + bytes([storage])
            + b"ctorch\nFloatTensor\nt."
            + struct.pack("<ii", len(shape), 0)
        )
        tensors += struct.pack(f"<{2 * len(shape)}q", *shape, *strides) + struct.pack("<q", offset)
    content = (
        b"\x80\x02}("
        + b"".join(
            b"U\x01" + name + b"U\x01" + key + b"Q"
            for name, key in ((b"w", b"1"), (b"n", b"2"), (b"v", b"3"))
        )
        + b"u."
    )
    path = tmp_path / "resnet.pth"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, part in (
            ("sys_info", pickle.dumps({}, 2)),
            ("pickle", content),
            ("tensors", tensors),
            ("storages", storages),
        ):
            member(archive, name, part)
    ours = read_torch_file(path)
    same(ours, torch.load(path, weights_only=False))  # a file written above, by this test
    np.testing.assert_array_equal(ours["w"], weights.reshape(3, 4))


def test_legacy_view_metadata(tmp_path: Path) -> None:
    """Files of torch 0.2 name a view by its root storage."""
    import torch

    view = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06(X\x01\x00\x00\x00vK\x02K\x04ttQ"
    value = b"\x80\x02ctorch._utils\n_rebuild_tensor\n(" + view + b"K\x00K\x02K\x02\x86K\x02K\x01\x86tR."
    path = tmp_path / "old.pth"
    path.write_bytes(legacy(value, ["0"], struct.pack("<q", 6) + np.arange(6, dtype="<f4").tobytes()))
    same(read_torch_file(path), torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
    same(read_torch_file(path), torch.load(path, weights_only=True))


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file; fetch it first"):
        load_pickle(tmp_path / "x.pkl")


def test_memory_of_an_honest_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.pkl"
    body = b"".join(b"U\x02" + f"{i:02d}".encode() + raw(1 << 20) for i in range(20))
    path.write_bytes(b"\x80\x02}(" + body + b"u.")
    tracemalloc.start()
    assert len(load_pickle(path)) == 20
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 3 * path.stat().st_size
