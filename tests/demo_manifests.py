"""Folders of manifests made of the project's own demo rows, for tests that need weight files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER, SHARED_FILES

OWN_WEIGHTS = ("weights =", "training =")  # of the files that come with the project


def demo_manifests(folder: Path, row: str, copies: Mapping[str, str], *, others: bool = False) -> Path:
    """Write a folder of manifests with copies of one demo row.

    Args:
        folder: made.
        row: of demo.toml; its own weights are left out.
        copies: name of each copy -> its [[model.weights]] tables.
        others: keep the other demo rows as well.
    """
    folder.mkdir()
    for name in SHARED_FILES:
        (folder / name).write_text((MANIFEST_FOLDER / name).read_text())
    head, *rows = (MANIFEST_FOLDER / "demo.toml").read_text().split("[[model]]\n")
    (mine,) = (text for text in rows if f'name = "{row}"' in text)
    plain = "\n".join(line for line in mine.splitlines() if not line.startswith(OWN_WEIGHTS))
    made = [f"{plain.replace(row, name)}\n{weights}\n" for name, weights in copies.items()]
    kept = [text for text in rows if text is not mine] if others else []
    (folder / "demo.toml").write_text("[[model]]\n".join([head, *kept, *made]))
    return folder
