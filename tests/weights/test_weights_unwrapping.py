"""Checkpoints of other tools' training scripts: the state dict is found, prefixes go, notes are not built."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.registry import CHECKPOINT_FORMATS
from detection_zoo.zoo.weights.load import format_of_file, load_weights
from detection_zoo.zoo.weights.pickle.machine import Name
from detection_zoo.zoo.weights.pickle.safe import read_torch_file
from detection_zoo.zoo.weights.read import read_arrays
from detection_zoo.zoo.weights.rename import plain_names


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)


@pytest.fixture
def trained() -> Small:
    torch.manual_seed(5)
    return Small()


def loads(model: Small, path: Path) -> None:
    """The file fills a fresh model with the trained values."""
    fresh = Small()
    load_weights(fresh, path, format_of_file(fresh, path, None))
    for ours, theirs in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


NOTES: dict[str, Any] = {
    "args": argparse.Namespace(lr=0.02, device="cuda", out=pathlib.PosixPath("/x"), dtype=torch.float16),
    "nested": argparse.Namespace(inner=argparse.Namespace(values=[1, 2], shape=torch.Size([1]))),
    "history": collections.defaultdict(list, {"loss": [0.5, 0.25]}),
    "counts": collections.Counter([16, 16, 22]),
    "recent": collections.deque([1, 2], maxlen=4),
    "path": pathlib.PurePosixPath("a/b"),
    "when": datetime.datetime(2024, 5, 6, tzinfo=datetime.UTC),
    "space": types.SimpleNamespace(a=1),
    "kinds": {torch.float32: "a", "layout": torch.strided},
    "numpy": (np.float32, np.dtype("f4"), np.float64(3)),
    "types": [list, dict, int],
    "range": range(3),
    "version": torch.__version__,
    "random": torch.get_rng_state(),
    "numpy random": np.random.get_state(),
    "epoch": 25,
    "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9).state_dict(),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "net", "weights", "ema"])
def test_containers_and_notes(tmp_path: Path, trained: Small, key: str, zipped: bool, protocol: int) -> None:
    path = tmp_path / "checkpoint.pth"
    content = {"epoch": 3, **NOTES, key: trained.state_dict()}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    loads(trained, path)


def test_notes_are_not_built(tmp_path: Path) -> None:
    torch.save({"args": NOTES["args"], "history": NOTES["history"]}, tmp_path / "notes.pth")
    found = read_torch_file(tmp_path / "notes.pth")
    assert isinstance(found["args"], Name) and found["args"].path == "argparse.Namespace"
    assert found["history"] == {"loss": [0.5, 0.25]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{n}": v for n, v in state.items()},
        lambda state: {f"module.module.{n}": v for n, v in state.items()},
        lambda state: {f"_orig_mod.{n}": v for n, v in state.items()},
        lambda state: {f"module._orig_mod.{n}": v for n, v in state.items()},
        lambda state: {f"_orig_mod.module.{n}": v for n, v in state.items()},
        lambda state: {n.replace("stem.", "stem._orig_mod."): v for n, v in state.items()},
        lambda state: {"n_averaged": torch.tensor(7), **{f"module.{n}": v for n, v in state.items()}},
        lambda state: {"model": {"state_dict": {f"module.{n}": v for n, v in state.items()}}},
        lambda state: {"model": None, "state_dict": state, "ema": {"module": state, "updates": 3}},
        lambda state: {"version": 2, **state},
    ],
)
def test_prefixes_and_nesting(tmp_path: Path, trained: Small, wrap: Any) -> None:
    torch.save(wrap(trained.state_dict()), tmp_path / "c.pth")
    loads(trained, tmp_path / "c.pth")


def test_data_parallel_and_compiled_models_themselves(tmp_path: Path, trained: Small) -> None:
    for wrapped in (
        nn.DataParallel(trained),
        torch.compile(trained),
        torch.optim.swa_utils.AveragedModel(trained),
    ):
        torch.save({"model": wrapped.state_dict()}, tmp_path / "c.pth")
        loads(trained, tmp_path / "c.pth")


@pytest.mark.parametrize("name", ["maskrcnn_benchmark_pth", "torchvision_detection_pth", "ssdlite_pth"])
def test_prefixes_go_in_every_format(name: str) -> None:
    names = ["backbone.body.layer1.0.conv1.weight", "head.weight"]
    plain = CHECKPOINT_FORMATS[name].translate(dict.fromkeys(names, 0)).state
    for prefix in ("module.", "_orig_mod."):
        assert CHECKPOINT_FORMATS[name].translate({prefix + n: 0 for n in names}).state == plain


def test_two_names_that_become_one_are_an_error() -> None:
    with pytest.raises(CheckpointError, match="has .* and another tensor that also maps to a.w of the model"):
        plain_names({"a._orig_mod.w": 1, "a.w": 2})


def test_a_file_of_another_format_than_the_rows_is_recognised(tmp_path: Path, trained: Small) -> None:
    state = {f"model.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"model": {name.removeprefix("model."): v for name, v in state.items()}}, tmp_path / "c.pth")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Small()

    assert format_of_file(Wrapped(), tmp_path / "c.pth", "ssdlite_pth") == "torchvision_detection_pth"


def test_what_was_found_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save({"epoch": 3, "optimizer": {"state": {}}, "args": argparse.Namespace(a=1)}, path)
    with pytest.raises(CheckpointError, match=r"contains a dict of 'epoch' \(a int\), 'optimizer' \(a dict"):
        read_arrays(path)
    torch.save({"other.weight": torch.ones(1), "stem.weight": torch.ones(4, 3, 3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"has other.weight, stem.weight; as \w+, 1 of the model's 7"):
        format_of_file(Small(), path, None)


@pytest.mark.parametrize("thing", [nn.Conv2d(1, 1, 1), {"model": {"w": torch.ones(1)}, "net": Small()}])
def test_program_code_is_still_refused(tmp_path: Path, thing: Any) -> None:
    torch.save(thing, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="refused: the pickle names"):
        read_arrays(tmp_path / "c.pth")
