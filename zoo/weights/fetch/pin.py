"""Write recorded hashes into the manifests, changing nothing else. No torch."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.weights.fetch.cache import write_atomic
from detection_zoo.zoo.weights.fetch.selection import Chosen, paste_lines


def pin(chosen: Chosen, sha256: str, size_bytes: int, folder: Path) -> None:
    """Add a file's SHA-256 (and its size, where missing) to its row; comments and layout stay.

    Args:
        chosen: the row and the file.
        sha256: in hexadecimal.
        size_bytes: of the file.
        folder: of the manifests.

    Raises:
        ManifestError: the row is not written as [[model]] and [[model.weights]] tables; says what to paste.
    """
    path = folder / f"{chosen.entry.source}.toml"
    text = path.read_text(encoding="utf-8")
    document = tomllib.loads(text)
    model, weights = _place(document, chosen, path)
    wanted = copy.deepcopy(document)
    row = wanted["model"][model]["weights"][weights]
    lines = [f'sha256 = "{sha256}"'] + ([] if "bytes" in row else [f"bytes = {size_bytes}"])
    row |= {"sha256": sha256, "bytes": row.get("bytes", size_bytes)}
    after = _header_line(text, model, weights)
    edited = text.splitlines(keepends=True)
    if after is not None:
        newline = "\r\n" if edited[after].endswith("\r\n") else "\n"
        edited[after] = edited[after].rstrip("\r\n") + newline
        edited.insert(after + 1, newline.join([*lines, ""]))
    result = "".join(edited)
    if after is None or _parsed(result) != wanted:
        raise ManifestError(
            f"{path}: row {chosen.row} is not laid out as [[model.weights]]; paste by"
            f" hand:\n{paste_lines(chosen, sha256, size_bytes)}"
        )
    write_atomic(path, result)


def _place(document: dict[str, Any], chosen: Chosen, path: Path) -> tuple[int, int]:
    """Which [[model]], and which [[model.weights]] in it, stands for the file."""
    spec = chosen.spec
    for model, row in enumerate(document.get("model", [])):
        if row.get("name") != chosen.row:
            continue
        for weights, table in enumerate(row.get("weights", [])):
            if (
                table.get("urls", []) == spec.urls
                and table.get("filename") == spec.filename
                and table.get("manual") == spec.manual
            ):
                if "sha256" in table:
                    raise ManifestError(
                        f"{path}: row {chosen.row}: {chosen.filename} is pinned already; change a pin by"
                        " hand, knowing why"
                    )
                return model, weights
    raise ManifestError(
        f"{path}: no row {chosen.row} with the file {chosen.filename} any more; was the manifest changed"
        " meanwhile?"
    )


def _header_line(text: str, model: int, weights: int) -> int | None:
    """Index of the line [[model.weights]] number `weights` in [[model]] number `model`, both counted from
    0."""
    models, files = -1, -1
    for index, line in enumerate(text.splitlines()):
        if re.match(r"\s*\[\[\s*model\s*\]\]", line):
            models, files = models + 1, -1
        elif re.match(r"\s*\[\[\s*model\s*\.\s*weights\s*\]\]", line):
            files += 1
            if (models, files) == (model, weights):
                return index
    return None


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
