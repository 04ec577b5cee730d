"""Write recorded hashes into the manifests, changing nothing else. No torch."""

from __future__ import annotations

import copy
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.templates import expand_rows
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
        ManifestError: the row is not written as [[model]] and [[model.weights]] tables; the message has the
            lines to paste.
    """
    path = folder / f"{chosen.entry.source}.toml"
    text = path.read_text(encoding="utf-8")
    document = tomllib.loads(text)
    model, weights = _place(document, chosen, path)
    wanted = copy.deepcopy(document)
    row = wanted["model"][model]["weights"][weights]
    lines = [f'sha256 = "{sha256}"'] + ([] if "bytes" in row else [f"bytes = {size_bytes}"])
    row |= {"sha256": sha256, "bytes": row.get("bytes", size_bytes)}
    result = _with_lines(text, model, weights, lines)
    with suppress(tomllib.TOMLDecodeError):
        if result is not None and tomllib.loads(result) == wanted:
            write_atomic(path, result)
            return
    raise ManifestError(
        f"{path}: row {chosen.row}: its weights are not written as one table per file; paste by"
        f" hand:\n{paste_lines(chosen, sha256, size_bytes)}"
    )


def _place(document: dict[str, Any], chosen: Chosen, path: Path) -> tuple[int, int]:
    """Indices of the file's [[model]] table, and of [[model.weights]] in it."""
    spec = chosen.spec
    for model, row in enumerate(expand_rows(document, path)):
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
                        f"{path}: row {chosen.row}: {chosen.filename} is pinned already; edit the manifest"
                        " to change a pin"
                    )
                return model, weights
    raise ManifestError(
        f"{path}: no row {chosen.row} with the file {chosen.filename} any more; was the manifest changed"
        " meanwhile?"
    )


def _with_lines(text: str, model: int, weights: int, lines: list[str]) -> str | None:
    """The text with fields added to weight file number `weights` of [[model]] number `model`, both counted
    from 0; None where that file cannot be found."""
    starts = [match.start() for match in re.finditer(r"(?m)^\s*\[\[\s*model\s*\]\]", text)] + [len(text)]
    block = text[starts[model] : starts[model + 1]]
    headers = list(re.finditer(r"(?m)^[ \t]*\[\[\s*model\s*\.\s*weights\s*\]\][^\r\n]*(\r?\n|$)", block))
    if len(headers) > weights:
        place = headers[weights].end()
        newline = headers[weights].group(1) or "\n"
        before = "" if headers[weights].group(1) else newline
        added = before + newline.join([*lines, ""])
    else:
        items = re.search(r"(?m)^weights\s*=\s*\[", block)
        ends = _inline_ends(block, items.end()) if items else []
        if len(ends) <= weights:
            return None
        place, added = ends[weights], f", {', '.join(lines)} "
        while block[place - 1] == " ":
            place -= 1
        added = added.rstrip()
    place += starts[model]
    return text[:place] + added + text[place:]


def _inline_ends(text: str, start: int) -> list[int]:
    """Offsets of the closing braces of the inline tables in an array that begins at `start`."""
    ends, depth = [], 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', text[start:]):
        mark = match.group()
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(mark, 0)
        if depth < 0:
            break
        if mark == "}" and depth == 0:
            ends.append(start + match.start())
    return ends
