"""Whether a row's own weights are here, fetchable, manual, partial or absent. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from detection_zoo.zoo.manifest import ModelEntry, WeightSpec
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER
from detection_zoo.zoo.weights.fetch.cache import Pin, WeightCache
from detection_zoo.zoo.weights.fetch.one import refusal_of

State = Literal["here", "fetchable", "needs a person", "partial", "none"]


@dataclass(frozen=True)
class Availability:
    """State of the weights that `--weights published` means for a row.

    spec: the weight file; none where the state is "partial" or "none". reason: one sentence: what is
        missing, and what to do; empty if the file is here.
    """

    state: State
    spec: WeightSpec | None
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether these weights can be loaded automatically: the file is here, or can be fetched."""
        return self.state in ("here", "fetchable")


def availability(
    entry: ModelEntry, cache: WeightCache | None = None, pins: dict[str, Pin] | None = None
) -> Availability:
    """Determine how a row's own trained weights can be obtained, without network access.

    Args:
        entry: the row.
        cache: folder of the weights; default: the user's.
        pins: `cache.pins()`, if several rows are checked.

    Returns:
        State, weight file and reason.
    """
    cache = cache or WeightCache()
    own = entry.trained_weights
    spec = next((spec for spec in own if not spec.wrong), None)
    if spec is None:
        return _nothing_usable(entry, own)
    if cache.find(spec, pins) or any(path.is_file() for path in map(shipped_path, spec.urls) if path):
        return Availability("here", spec)
    if refusal_of(spec):
        page = spec.manual or spec.urls[0]
        return Availability(
            "needs a person",
            spec,
            f"download them manually from {page}, then `python download_weights.py import FILE {entry.name}`",
        )
    return Availability(
        "fetchable", spec, f"not on this machine; `python download_weights.py get {entry.name}` fetches them"
    )


def shipped_path(url: str) -> Path | None:
    """Path of a file shipped with the manifests ("file:weights/x.safetensors"); else none."""
    return MANIFEST_FOLDER / unquote(urlsplit(url).path) if url.startswith("file:") else None


def _nothing_usable(entry: ModelEntry, own: list[WeightSpec]) -> Availability:
    if own:
        return Availability("none", None, f"the published link is wrong: {own[0].wrong}")
    part = next((spec.partial for spec in entry.weights if spec.partial and not spec.wrong), None)
    if part is not None:
        return Availability(
            "partial", None, f"the published file is not a complete model, but {part}; train it from there"
        )
    return Availability("none", None, "none are published; train it, or run it with --weights FILE")
