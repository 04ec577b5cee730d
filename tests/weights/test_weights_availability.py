"""How a row's own weights can be had."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from detection_zoo.zoo.manifest import ModelEntry, WeightSpec
from detection_zoo.zoo.manifest_files import load_manifests
from detection_zoo.zoo.weights.fetch.availability import availability
from detection_zoo.zoo.weights.fetch.cache import WeightCache

CONTENT = b"weights of a test"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def row(*weights: WeightSpec) -> ModelEntry:
    base = load_manifests().entry("faster_rcnn_vovnet39_fpn_2x.vovnet")
    return base.model_copy(update={"weights": list(weights)})


def spec(*urls: str, **fields: object) -> WeightSpec:
    return WeightSpec(urls=list(urls), format="maskrcnn_benchmark_pth", holds="detector", **fields)


URL = "https://example.org/a.pth"
CASES = [
    ((spec(URL),), "fetchable", "download_weights.py get"),
    ((spec(URL, sha256=SHA256),), "here", ""),
    ((spec(manual="https://example.org/page"),), "needs a person", "import FILE"),
    ((spec("https://pan.baidu.com/s/1"),), "needs a person", "pan.baidu.com"),
    ((spec(URL, partial="its first stages"),), "partial", "its first stages"),
    ((spec(URL, wrong="it is another model"),), "none", "it is another model"),
    ((spec(URL, wrong="it is another model"), spec(URL)), "fetchable", "get"),
    ((spec(URL, role="initial"),), "none", "none are published"),
    ((), "none", "none are published"),
]


@pytest.mark.parametrize("weights, state, reason", CASES)
def test_state_of_a_row(tmp_path: Path, weights: tuple, state: str, reason: str) -> None:
    cache = WeightCache(tmp_path)
    cache.prepare()
    cache.file(SHA256).write_bytes(CONTENT)
    found = availability(row(*weights), cache)
    assert found.state == state and reason in found.reason
    assert (found.spec is None) == (state in ("partial", "none"))
    assert found.usable == (state in ("here", "fetchable"))
    assert "\n" not in found.reason and bool(found.reason) == (state != "here")


def test_every_row_has_a_state(tmp_path: Path) -> None:
    cache = WeightCache(tmp_path)
    found = {name: availability(entry, cache, {}).state for name, entry in load_manifests().entries.items()}
    states = Counter(found.values())
    assert set(states) <= {"here", "fetchable", "needs a person", "partial", "none"}
    assert states["fetchable"] > 100
    here = {
        name for name, state in found.items() if state == "here"
    }  # with an empty cache: those that come along
    assert here == {entry.name for entry in load_manifests().entries.values() if entry.training}
