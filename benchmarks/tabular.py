"""Tables, and the one renderer of all of them: text, Markdown, CSV, JSON, LaTeX. No torch."""

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
LONG_NOTE = 20  # words of a sentence
FORMULA_SIGNS = tuple("=+-@＝＋－＠")  # spreadsheets take the wide forms for the narrow ones
MARK = re.compile(r" ?\[\d+\]")  # of a note, behind a cell
LATEX_HEAD = "% \\usepackage{booktabs,longtable,hyperref}, in a document that reads UTF-8\n"
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


class Link(NamedTuple):
    """A word that leads to an address."""

    text: str
    url: str


Cell = str | Sequence[str | Link]


@dataclass
class Table:
    """Headers, rows of cells and notes below; `[3]` behind a cell refers to the note that begins with it.

    name: of its files and in CSV. title: above it. records: its lines as data, for JSON. flat: CSV
    holds these records, every digit kept, in place of the cells. keys: leading columns that name a row.
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
    """Notes by number, each text once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, *texts: str) -> str:
        """The marks of these notes, for the end of a cell; empty texts have none."""
        once = dict.fromkeys(text for text in texts if text)
        return "".join(f"[{self.numbers.setdefault(text, len(self.numbers) + 1)}]" for text in once)

    def lines(self) -> list[str]:
        """Every note behind its number."""
        return [f"[{number}] {text}" for text, number in self.numbers.items()]


def render(tables: Iterable[Table], form: Form, width: int | None = None) -> str:
    """Finished tables as text that ends with a newline; characters that steer a terminal are replaced.

    Args:
        tables: in their order.
        form: how.
        width: of a line of text in letters; None: no limit.
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


def _plain(cell: Cell, link: Callable[[Link], str]) -> str:
    """A cell as one line, its links as `link` writes them."""
    parts = [cell] if isinstance(cell, str) else cell
    return "".join(one_line(part) if isinstance(part, str) else link(part) for part in parts)


def is_address(url: str) -> bool:
    """Whether a browser may follow it."""
    return url.startswith(("https://", "http://"))


def sentences(note: str) -> str:
    """A note on one line; a long one broken at its semicolons into sentences."""
    note = one_line(note)
    if len(note.split()) <= LONG_NOTE:
        return note
    return ". ".join(part[:1].upper() + part[1:] for part in note.rstrip(".").split("; ")) + "."


# --- text ----------


def text_table(headers: list[str], rows: list[list[str]], width: int | None = None) -> str:
    """A plain table without title and notes; see `render`."""
    return render([Table(headers, list(map(list, rows)))], "text", width).rstrip("\n")


def _text(table: Table, width: int | None) -> str:
    def link(found: Link) -> str:
        return one_line(found.text if width else f"{found.text} {found.url}")

    rows = [[_plain(cell, link) for cell in row] for row in table.rows]
    lines = wrap(one_line(table.title), width or 10**6) if table.title else []
    lines += table_lines([one_line(header) for header in table.headers], rows, width, table.keys)
    return "\n".join([*lines, *([""] if table.notes else []), *note_lines(table.notes, width)]) + "\n"


def note_lines(notes: Iterable[str], width: int | None = None) -> list[str]:
    """Notes as lines of text, each behind a dash."""
    return [line for note in notes for line in wrap(f"- {sentences(note)}", width or 10**6, indent="  ")]


# --- Markdown ----------


def _markdown(table: Table) -> str:
    labels: dict[str, str] = {}

    def link(found: Link) -> str:
        if not is_address(found.url):
            return _markdown_text(f"{found.text}: {found.url}")
        label = labels.setdefault(found.url, f"{table.name}-{len(labels) + 1}")
        return f"[{_markdown_text(found.text)}][{label}]"

    rows = [
        [
            "".join(
                _markdown_text(one_line(part)) if isinstance(part, str) else link(part)
                for part in ([cell] if isinstance(cell, str) else cell)
            )
            for cell in row
        ]
        for row in table.rows
    ]
    heads = [_markdown_text(one_line(header)) for header in table.headers]
    lines = [f"### {_markdown_text(one_line(table.title))}", ""] if table.title else []
    lines += [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    lines.insert(len(lines) - len(rows), "|" + "---|" * len(heads))
    lines += ["", *(f"- {_markdown_text(sentences(note))}" for note in table.notes)] if table.notes else []
    addresses = [f"[{label}]: {quote(url, safe=URL_SAFE)}" for url, label in labels.items()]
    return "\n".join([*lines, *(["", *addresses] if addresses else [])]) + "\n"


URL_SAFE = "%/:=&?~#+!$,;'@()*[]"


def _markdown_text(text: str) -> str:
    """Text in which nothing ends the cell, opens a tag or becomes a link."""
    for special in ("\\", "|", "<"):
        text = text.replace(special, f"\\{special}")
    return text.replace("](", "]\\(")


# --- CSV ----------


def guarded(value: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula."""
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
    """Cells without marks and notes, the table's name in the first column; a dash is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for table in tables:
        writer.writerow(["table", *map(guarded, table.headers)])
        for row in table.rows:
            cells = [MARK.sub("", _plain(cell, lambda found: found.url)).strip() for cell in row]
            writer.writerow([table.name, *("" if cell == "-" else guarded(cell) for cell in cells)])
    return out.getvalue()


def records_csv(records: list[dict[str, Any]]) -> str:
    """Records as CSV, every digit kept; columns that are empty in all of them are left out."""
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
    """Text on one line with LaTeX's special characters made plain."""
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
    """A cell: text escaped, links as \\href, marks of notes raised, a lone dash as an en dash."""

    def text(part: str) -> str:
        marked = re.sub(r"\[(\d+)\]", r"\\textsuperscript{[\1]}", latex_text(part))
        return re.sub(r"^-(?=\\textsuperscript|$)", "--", marked)

    def link(found: Link) -> str:
        if not is_address(found.url):
            return latex_text(f"{found.text}: {found.url}")
        address = "".join(f"\\{c}" if c in "%#&_{}" else c for c in quote(found.url, safe=URL_SAFE))
        return rf"\href{{{address}}}{{{latex_text(found.text)}}}"

    parts = [cell] if isinstance(cell, str) else cell
    return "".join(text(part) if isinstance(part, str) else link(part) for part in parts)


def _latex_note(text: str) -> str:
    """A note; its number is in braces, or \\item would take it for its label."""
    number, mark, rest = text.partition("] ") if text.startswith("[") else ("", "", text)
    return f"{{{latex_text(number + ']')}}} {latex_text(rest)}" if mark else latex_text(text)
