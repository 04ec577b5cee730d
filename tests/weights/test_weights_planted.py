"""What lies where files of ours are expected, put there by others: pipes, devices, folders, links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detection_zoo.benchmarks.report.layouts import read_layouts
from detection_zoo.zoo.errors import DownloadError, ManifestError
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, SHARED_FILES, read_manifests
from detection_zoo.zoo.weights.exchange import import_path, verify_others
from detection_zoo.zoo.weights.fetch.audit import read_rows
from detection_zoo.zoo.weights.fetch.cache import WeightCache

PLANTS = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("/nowhere"),
}


@pytest.fixture(params=PLANTS)
def plant(request: pytest.FixtureRequest):
    return PLANTS[request.param]


def test_verify_sets_aside_what_is_no_file(plant, tmp_path: Path) -> None:
    cache = WeightCache(tmp_path)
    for folder in (cache.files, cache.converted):
        folder.mkdir(parents=True)
    plant(cache.files / ("ab" * 32))
    (cache.converted / "a.safetensors").write_bytes(b"x")
    plant(cache.converted / "a.json")
    assert [record["status"] for record in verify_others(cache, set())] == ["damaged", "damaged"]
    assert not list(cache.files.iterdir())


def test_an_index_that_is_no_file_is_refused(plant, tmp_path: Path) -> None:
    plant(tmp_path / "weights.json")
    with pytest.raises(DownloadError, match=r"no readable weights\.json"):
        import_path(tmp_path, [], False, WeightCache(tmp_path / "home"), lambda chosen, path: None)


def test_a_manifest_that_is_no_file_is_refused(plant, tmp_path: Path) -> None:
    for read in (read_manifests, read_layouts):
        plant(tmp_path / "conventions.toml")
        with pytest.raises(ManifestError, match=r"conventions\.toml: "):
            read(tmp_path)
        os.rename(tmp_path / "conventions.toml", tmp_path / "old")
    plant(tmp_path / "source.toml")
    assert "source.toml" in read_rows(tmp_path)[1][0]


@pytest.mark.parametrize("weights", ["5", "[5]", '"x"', "{a = 1}"])
def test_audit_passes_over_weights_of_another_kind(weights: str, tmp_path: Path) -> None:
    good = '[[model.weights]]\nurls = ["https://example.org/a"]\nformat = "zoo"\nholds = "detector"\n'
    text = f'[[model]]\nname = "bad"\nweights = {weights}\n[[model]]\nname = "good"\n{good}'
    (tmp_path / "source.toml").write_text(text)
    rows, faults = read_rows(tmp_path)
    assert [name for name, _ in rows] == ["good"] and "bad" in faults[0]


WRONG_KINDS = [
    *("defaults = 5", "defaults = [1]", "[defaults]\nweights = 5", "template = 5", "[template]\na = 5"),
    *("[template.a]\nweights = [1]", "mirrors = 5", 'mirrors = "x"', "mirrors = [5]"),
]
WRONG_FIELDS = [
    *("extends = 5", "extends = [[1]]", "extends = {a = 1}", "weights = [{path = 5}]", "weights = [[]]"),
    *('weights = [{md5_url = ["{url}"], urls = [5]}]', 'weights = [{md5_url = "{url}", urls = 5}]'),
    *('weights = [{md5_url = "{url}", urls = [5]}]', "published = 5", "published = [5]", "title = [5]"),
]


@pytest.mark.parametrize("text", [f"{text}\n[[model]]\n" for text in WRONG_KINDS] + WRONG_FIELDS)
def test_fields_of_another_kind_are_manifest_errors(text: str, tmp_path: Path) -> None:
    text = text if "[[model]]" in text else f'mirrors = ["x"]\n[[model]]\n{text}\n'
    for name in SHARED_FILES:
        (tmp_path / name).write_text((MANIFEST_FOLDER / name).read_text())
    (tmp_path / "source.toml").write_text(text)
    with pytest.raises(ManifestError, match=r"source\.toml: "):
        read_manifests(tmp_path)
    read_rows(tmp_path)
