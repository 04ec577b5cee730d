"""Text tables that fit a terminal: cells are wrapped, and columns that do not fit follow in another block."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

GAP = "  "
LEAST = 16  # minimum column width for a long word, characters
PIECE = re.compile(r"[^_./,:;=&?\-]*[_./,:;=&?\-]+|[^_./,:;=&?\-]+")  # a long word may break after these


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Return the terminal width: COLUMNS if set, otherwise the terminal's; None if the stream (default:
    stdout) is not a terminal, so that lines are not wrapped for other programs."""
    if re.fullmatch("[0-9]{1,6}", given := os.environ.get("COLUMNS", "")) and int(given) > 0:
        return int(given)
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else None


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Wrap text at `width` characters, with later lines indented: at spaces, inside a word only if it
    is longer than a line."""
    lines, line = [], ""
    for word in text.split():
        room = width - len(line) - (1 if line.strip() else 0)
        if len(word) <= room:
            line += f" {word}" if line.strip() else word
            continue
        if line.strip():
            lines.append(line)
            line = indent
        for piece in _pieces(word, width - len(indent)):
            if len(line) + len(piece) > width:
                lines.append(line)
                line = indent
            line += piece
    return [*lines, line] if line.strip() or not lines else lines


def _pieces(word: str, width: int) -> list[str]:
    if len(word) <= width:
        return [word]
    pieces = PIECE.findall(word)
    return [piece[start : start + width] for piece in pieces for start in range(0, len(piece), width)]


def table_lines(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, keys: int = 1
) -> list[str]:
    """Return headers, a rule and rows as lines of text.

    Args:
        headers: (C,) titles.
        rows: one-line cells, C per row.
        width: characters per line; None: no limit.
        keys: number of leading columns that identify a row; if the columns do not fit side by side,
            they are repeated in each further block.
    """
    columns = [[headers[place], *(row[place] for row in rows)] for place in range(len(headers))]
    natural = [max(map(len, column)) for column in columns]
    if width is None or sum(natural) + len(GAP) * (len(natural) - 1) <= width:
        return _block(columns, natural)
    least = [
        max(_least(cell, width if place == 0 else LEAST) for cell in column)
        for place, column in enumerate(columns)
    ]
    least[0] = min(least[0], width * 2 // 3)
    over = sum(least) + len(GAP) * (len(least) - 1) - width
    if 0 < over <= least[0] - width // 3:  # wrap long names before moving columns to another block
        least[0] -= over
    lines: list[str] = []
    for block in _blocks(least, width, keys):
        widths = _grown([least[c] for c in block], [natural[c] for c in block], width)
        lines += [*([""] if lines else []), *_block([columns[c] for c in block], widths)]
    return lines


def _least(cell: str, most: int) -> int:
    """Return the width that a cell needs so that words of at most `most` characters do not break."""
    return max((min(len(word), most) for word in cell.split()), default=0)


def _blocks(least: list[int], width: int, keys: int) -> list[list[int]]:
    """Split the columns into blocks that fit the width, each with the key columns."""
    head = list(range(min(keys, len(least))))
    while len(head) > 1 and sum(least[c] + len(GAP) for c in head) > width * 3 // 5:
        head.pop()
    blocks, block = [], list(head)
    for place in range(len(head), len(least)):
        if len(block) > len(head) and sum(least[c] + len(GAP) for c in (*block, place)) - len(GAP) > width:
            blocks.append(block)
            block = list(head)
        block.append(place)
    return [*blocks, block]


def _grown(least: list[int], natural: list[int], width: int) -> list[int]:
    """Distribute spare width over the columns, first to those that need least, so that few wrap."""
    widths = list(least)
    spare = width - sum(widths) - len(GAP) * (len(widths) - 1)
    for place in sorted(range(len(widths)), key=lambda c: natural[c] - least[c]):
        more = max(0, min(natural[place] - widths[place], spare))
        widths[place] += more
        spare -= more
    while spare < 0:  # a single wide column next to the keys: shrink it
        widest = max(range(len(widths)), key=lambda c: widths[c])
        widths[widest] -= 1
        spare += 1
    return widths


def _block(columns: list[list[str]], widths: list[int]) -> list[str]:
    lines = []
    for number, cells in enumerate(zip(*columns, strict=True)):
        parts = [wrap(cell, max(1, width)) for cell, width in zip(cells, widths, strict=True)]
        for place in range(max(map(len, parts))):
            row = [
                (part[place] if place < len(part) else "").ljust(width)
                for part, width in zip(parts, widths, strict=True)
            ]
            lines.append(GAP.join(row).rstrip())
        if number == 0:
            lines.append(GAP.join("-" * width for width in widths))
    return lines
