"""Tables and their renderer: text, Markdown, CSV, JSON, LaTeX. Does not import torch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from detection_zoo.benchmarks.terminal import table_lines, wrap
from detection_zoo.zoo.plain import one_line

Form = Literal["text", "markdown", "csv", "json", "latex"]
LONG_NOTE = 20  # maximum number of words of a note on one line
FORMULA_SIGNS = tuple("=+-@＝＋－＠")  # spreadsheets treat full-width forms like the ASCII ones
MARK = re.compile(r" ?\[\d+\]")  # note mark at the end of a cell
LATEX_HEAD = "% \\usepackage{booktabs,longtable,hyperref}, in a UTF-8 document\n"
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


class Link(NamedTuple):
    """A hyperlink: text and URL."""

    text: str
    url: str


Cell = str | Sequence[str | Link]


@dataclass
class Table:
    """Headers, rows of cells, and notes below the table; `[3]` at the end of a cell refers to the note that
    begins with it.

    name: file name, and table column in CSV. title: heading. records: its lines as data, for JSON. flat:
    write these records to CSV, with all digits, instead of the cells. keys: number of leading columns that
    identify a row.
    """

    headers: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    name: str = ""
    title: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    flat: bool = False
    keys: int = 1


class Notes:
    """Numbered notes without duplicates."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, *texts: str) -> str:
        """Return the marks of these notes for the end of a cell; empty texts get none."""
        once = dict.fromkeys(text for text in texts if text)
        return "".join(f"[{self.numbers.setdefault(text, len(self.numbers) + 1)}]" for text in once)

    def lines(self) -> list[str]:
        """Return every note, preceded by its number."""
        return [f"[{number}] {text}" for text, number in self.numbers.items()]


def render(tables: Iterable[Table], form: Form, width: int | None = None) -> str:
    """Render tables as text that ends with a newline; terminal control characters are replaced.

    Args:
        tables: in output order.
        form: output format.
        width: maximum characters per line of text; None: no limit.
    """
    tables = list(tables)
    if form == "text":
        return "\n".join(_text(table, width) for table in tables)
    if form == "json":
        return json.dumps([record for table in tables for record in table.records], indent=2) + "\n"
    if form == "csv":
        return (
            records_csv([record for table in tables for record in table.records])
            if tables and tables[0].flat
            else _cells_csv(tables)
        )
    return (
        LATEX_HEAD + "\n".join(map(_latex, tables)) if form == "latex" else "\n".join(map(_markdown, tables))
    )


def _plain(cell: Cell, link: Callable[[Link], str], text: Callable[[str], str] = one_line) -> str:
    """Return a cell as one line, with links written by `link`, other parts by `text`."""
    parts = [cell] if isinstance(cell, str) else cell
    return "".join(text(part) if isinstance(part, str) else link(part) for part in parts)


def is_address(url: str) -> bool:
    """Return whether a URL is safe as a link in a browser."""
    return url.startswith(("https://", "http://"))


def sentences(note: str) -> str:
    """Return a note on one line; a long note is split at its semicolons into sentences."""
    note = one_line(note)
    if len(note.split()) <= LONG_NOTE:
        return note
    return ". ".join(part[:1].upper() + part[1:] for part in note.rstrip(".").split("; ")) + "."


# --- text ----------


def text_table(headers: list[str], rows: list[list[str]], width: int | None = None) -> str:
    """Render a plain text table without title and notes; see `render`."""
    return render([Table(headers, list(map(list, rows)))], "text", width).rstrip("\n")


def _text(table: Table, width: int | None) -> str:
    def link(found: Link) -> str:
        return one_line(found.text if width else f"{found.text} {found.url}")

    rows = [[_plain(cell, link) for cell in row] for row in table.rows]
    lines = wrap(one_line(table.title), width or 10**6) if table.title else []
    lines += table_lines([one_line(header) for header in table.headers], rows, width, table.keys)
    return "\n".join([*lines, *([""] if table.notes else []), *note_lines(table.notes, width)]) + "\n"


def note_lines(notes: Iterable[str], width: int | None = None) -> list[str]:
    """Return notes as lines of text, each preceded by a dash."""
    return [line for note in notes for line in wrap(f"- {sentences(note)}", width or 10**6, indent="  ")]


# --- Markdown ----------


def _markdown(table: Table) -> str:
    labels: dict[str, str] = {}

    def link(found: Link) -> str:
        if not is_address(found.url):
            return _markdown_text(f"{found.text}: {found.url}")
        label = labels.setdefault(found.url, f"{table.name}-{len(labels) + 1}")
        return f"[{_markdown_text(found.text)}][{label}]"

    rows = [[_plain(cell, link, _markdown_text) for cell in row] for row in table.rows]
    heads = [_markdown_text(header) for header in table.headers]
    lines = [f"### {_markdown_text(table.title)}", ""] if table.title else []
    lines += [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    lines.insert(len(lines) - len(rows), "|" + "---|" * len(heads))
    lines += ["", *(f"- {_markdown_text(sentences(note))}" for note in table.notes)] if table.notes else []
    addresses = [f"[{label}]: {quote(url, safe=URL_SAFE)}" for url, label in labels.items()]
    return "\n".join([*lines, *(["", *addresses] if addresses else [])]) + "\n"


URL_SAFE = "%/:=&?~#+!$,;'@()*[]"


def _markdown_text(text: str) -> str:
    """Return text on one line, escaped so that it cannot end the cell, open a tag or become a link."""
    text = one_line(text)
    for special in ("\\", "|", "<"):
        text = text.replace(special, f"\\{special}")
    return text.replace("](", "]\\(")


# --- CSV ----------


def guarded(value: Any) -> Any:
    """Return a CSV cell that spreadsheets do not interpret as a formula."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.lstrip()[:1] in FORMULA_SIGNS and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cells_csv(tables: list[Table]) -> str:
    """Write the cells without marks and notes, with the table's name in the first column; a dash becomes an
    empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for table in tables:
        writer.writerow(["table", *map(guarded, table.headers)])
        for row in table.rows:
            cells = [MARK.sub("", _plain(cell, lambda found: found.url)).strip() for cell in row]
            writer.writerow([table.name, *("" if cell == "-" else guarded(cell) for cell in cells)])
    return out.getvalue()


def records_csv(records: list[dict[str, Any]]) -> str:
    """Write records as CSV with all digits; columns that are empty in all records are omitted."""
    names = dict.fromkeys(
        name for record in records for name, value in record.items() if value is not None
    ).keys()
    every = dict.fromkeys(name for record in records for name in record)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [name for name in every if name in names]
    writer.writerow(map(guarded, columns))
    writer.writerows([guarded(record.get(name)) for name in columns] for record in records)
    return out.getvalue()


# --- LaTeX ----------


def latex_text(text: str) -> str:
    """Return text on one line with LaTeX's special characters escaped."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in one_line(text))


def _latex(table: Table) -> str:
    heads = " & ".join(latex_text(header) for header in table.headers) + r" \\"
    rows = [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in table.rows]
    notes = [rf"\item {_latex_note(sentences(text))}" for text in table.notes]
    return "\n".join(
        [
            rf"\begin{{longtable}}{{{'l' * len(table.headers)}}}",
            rf"\caption{{{latex_text(table.title)}}}\\",
            *(r"\toprule", heads, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"),
            *rows,
            r"\end{longtable}",
            *([r"\begin{itemize}\footnotesize", *notes, r"\end{itemize}"] if notes else []),
            "",
        ]
    )


def _latex_cell(cell: Cell) -> str:
    """Render a cell: text escaped, links as \\href, note marks as superscripts, a single dash as an en
    dash."""

    def text(part: str) -> str:
        marked = re.sub(r"\[(\d+)\]", r"\\textsuperscript{[\1]}", latex_text(part))
        return re.sub(r"^-(?=\\textsuperscript|$)", "--", marked)

    def link(found: Link) -> str:
        if not is_address(found.url):
            return latex_text(f"{found.text}: {found.url}")
        address = "".join(f"\\{c}" if c in "%#&_{}" else c for c in quote(found.url, safe=URL_SAFE))
        return rf"\href{{{address}}}{{{latex_text(found.text)}}}"

    return _plain(cell, link, text)


def _latex_note(text: str) -> str:
    """Render a note; its number is in braces, because \\item would read it as its label."""
    number, mark, rest = text.partition("] ") if text.startswith("[") else ("", "", text)
    return f"{{{latex_text(number + ']')}}} {latex_text(rest)}" if mark else latex_text(text)
