"""Blocks of documents: the text between `<!-- table: NAME -->` and `<!-- end -->` is made from records,
again and again. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable

BLOCK = re.compile(r"^<!-- table: (?P<name>\S+) -->\n(?P<inside>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^[ \t]*<!-- *(?:table: *\S+|end) *-->[ \t]*$", re.MULTILINE)


def block_names(text: str) -> list[str]:
    """Names of the blocks of a text, in their order."""
    return [found["name"] for found in BLOCK.finditer(text)]


def renew_blocks(text: str, render: Callable[[str], str], where: str) -> str:
    """The text with every block's inside made anew, everything else untouched.

    Args:
        text: Markdown with markers, each alone on its line.
        render: a block's name -> its Markdown; raises what it raises for a name it does not know.
        where: the file, for messages.

    Raises:
        ValueError: a marker without its partner, or one inside another block.
    """
    paired = sum(len(MARKER.findall(found.group())) for found in BLOCK.finditer(text))
    if len(MARKER.findall(text)) != paired or paired != 2 * len(block_names(text)):
        lines = [str(text[: found.start()].count("\n") + 1) for found in MARKER.finditer(text)]
        raise ValueError(
            f"{where}: the markers in lines {', '.join(lines)} are not pairs of '<!-- table: NAME -->' and"
            " '<!-- end -->', each alone on its line; add what is missing"
        )
    return BLOCK.sub(
        lambda found: f"<!-- table: {found['name']} -->\n{render(found['name'])}<!-- end -->", text
    )
