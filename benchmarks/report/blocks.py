"""Generated blocks of Markdown documents: the text between `<!-- table: NAME -->` and `<!-- end -->`. Does
not import torch."""

from __future__ import annotations

import re
from collections.abc import Callable

from detection_zoo.zoo.errors import ZooError

BLOCK = re.compile(r"^<!-- table: (?P<name>\S+) -->\n(?P<inside>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^[ \t]*<!-- *(?:table: *\S+|end) *-->[ \t]*$", re.MULTILINE)


def block_names(text: str) -> list[str]:
    """Return the names of the blocks of a text, in order."""
    return [found["name"] for found in BLOCK.finditer(text)]


def renew_blocks(text: str, render: Callable[[str], str], where: str) -> str:
    """Return the text with the content of every block replaced.

    Args:
        text: Markdown; each marker is on its own line.
        render: returns the Markdown of a block from its name; its exceptions for unknown names are passed on.
        where: name of the file, for messages.

    Raises:
        ZooError: a start or end marker is missing, or blocks are nested.
    """
    paired = sum(len(MARKER.findall(found.group())) for found in BLOCK.finditer(text))
    if len(MARKER.findall(text)) != paired or paired != 2 * len(block_names(text)):
        lines = [str(text[: found.start()].count("\n") + 1) for found in MARKER.finditer(text)]
        raise ZooError(
            f"{where}: the markers in lines {', '.join(lines)} are not pairs of '<!-- table: NAME -->' and"
            " '<!-- end -->', each alone on its line; add what is missing"
        )
    return BLOCK.sub(
        lambda found: f"<!-- table: {found['name']} -->\n{render(found['name'])}<!-- end -->", text
    )
