"""`download_weights.py import` compares tensors where no hash is known; `remove` removes; a damaged file is never
loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_manifests import demo_manifests
from typer.testing import CliRunner, Result

from detection_zoo.zoo.build import build_model
from detection_zoo.zoo.errors import CheckpointError
from detection_zoo.zoo.manifest_files import read_manifests
from detection_zoo.zoo.weights.convert import read_arrays
from detection_zoo.zoo.weights.fetch.cache import WeightCache
from detection_zoo.zoo.weights.fetch.one import fetch_weights
from download_weights import app

ROW = "retinanet_resnet14_slim_fpn.demo"
FILE = """
[[model.weights]]
manual = "https://pan.baidu.com/s/1"
filename = "{name}"
format = "zoo"
holds = "detector"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on the demo rows, one of which has two files that a person has to get."""
    files = FILE.format(name="final.pth") + FILE.format(name="earlier.pth")
    folder = demo_manifests(tmp_path / "manifests", ROW, {ROW: files}, others=True)
    monkeypatch.setenv("DETECTION_ZOO_HOME", str(tmp_path / "home"))

    def call(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [*arguments, "--manifests", str(folder)])
        assert result.exit_code == code, result.output
        return result

    call.entry = read_manifests(folder).entry(ROW)
    return call


def save(path: Path, change: Any = lambda state: state) -> Path:
    torch.save({"model": change(dict(build_model(ROW, "random").state_dict()))}, path)
    return path


def without_last(state: dict[str, Any]) -> dict[str, Any]:
    return dict(list(state.items())[:-1])


def wider(state: dict[str, Any]) -> dict[str, Any]:
    name = next(name for name, value in state.items() if value.dim() == 4)
    return state | {name: torch.zeros(1, *state[name].shape[1:])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_last, "1 missing"),
        (wider, "1 of wrong shape"),
        (lambda state: state | {"other.weight": torch.ones(1)}, "1 unexpected"),
        (lambda state: {"weight": torch.ones(1)}, "missing"),
    ],
)
def test_other_tensors_than_the_rows_are_refused(run: Any, tmp_path: Path, change: Any, message: str) -> None:
    path = save(tmp_path / "final.pth", change)
    assert message in run("import", str(path), ROW, code=1).stderr
    assert not list((tmp_path / "home" / "sha256").glob("*"))


def test_the_rows_tensors_are_taken_under_the_name_that_is_given(run: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "download (1)")
    assert "it could be" in run("import", str(path), ROW, code=1).stderr
    assert "no row has such a file" in run("import", str(path), ROW, "--as", "x.pth", code=1).stderr
    run("import", str(path), ROW, "--as", "earlier.pth")
    taken = json.loads(run("list", ROW, "--json").stdout)
    assert {r["file"]: r["here"] for r in taken} == {"final.pth": False, "earlier.pth": True}


def test_remove(run: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    run("import", str(save(tmp_path / "final.pth")), ROW)
    run("convert", ROW, code=1)  # of the other file, which is not here
    assert len(list((home / "converted").iterdir())) == 2
    assert "1 removed" in run("remove", ROW).stderr
    for folder in ("sha256", "converted", "verified", "parts"):
        assert not list((home / folder).glob("*")), folder
    assert "0 removed" in run("remove", ROW).stderr
    assert "no row matches" in run("remove", "nothing_like_it", code=2).stderr


def test_links_planted_where_files_are_written_are_not_followed(run: Any, tmp_path: Path) -> None:
    victim, home, out = tmp_path / "victim", tmp_path / "home", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    (out / ".final.pth.part").symlink_to(victim)
    run("import", str(save(tmp_path / "final.pth")), ROW)
    run("export", str(out), "--all", "--holds", "detector")
    run("convert", ROW, code=1)  # of the other file, which is not here
    (converted,) = (home / "converted").glob("*.safetensors")
    converted.unlink()
    (converted.parent / f".{converted.name}.part").symlink_to(victim)
    run("convert", ROW, code=1)
    assert victim.read_text() == "precious" and converted.is_file() and not converted.is_symlink()
    assert (out / "final.pth").stat().st_size == (tmp_path / "final.pth").stat().st_size


@pytest.mark.parametrize("keep_times", [True, False])
def test_a_changed_byte_is_never_loaded(run: Any, tmp_path: Path, keep_times: bool) -> None:
    run("import", str(save(tmp_path / "final.pth")), ROW)
    cache, spec = WeightCache(tmp_path / "home"), run.entry.weights[0]
    stored = cache.find(spec)
    assert (
        read_arrays(spec, cache, ROW)[1] == stored and fetch_weights(spec, ROW, cache).sha256 == stored.name
    )
    before = stored.stat()
    stored.chmod(0o644)
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    if keep_times:
        os.utime(stored, ns=(before.st_atime_ns, before.st_mtime_ns))
    for read in (lambda: read_arrays(spec, cache, ROW), lambda: fetch_weights(spec, ROW, cache)):
        with pytest.raises(CheckpointError, match="damaged, its SHA-256 is"):
            read()


def test_an_unchanged_file_is_hashed_once(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("import", str(save(tmp_path / "final.pth")), ROW)
    cache = WeightCache(tmp_path / "home")
    stored = cache.find(run.entry.weights[0])

    def hashed(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr("hashlib.file_digest", hashed)
    assert cache.digest_of(stored) == stored.name
    (cache.verified / stored.name).write_text("[" * 100_000)
    with pytest.raises(AssertionError, match="hashed again"):
        cache.digest_of(stored)
