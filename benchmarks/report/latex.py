"""Tables as LaTeX: longtable, booktabs and hyperref, nothing else. No torch."""

from __future__ import annotations

import re

from detection_zoo.benchmarks.report.table import Table

PREAMBLE = "% \\usepackage{booktabs,longtable,hyperref}, in a document that reads UTF-8\n"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
URL_SPECIAL = {character: f"\\{character}" for character in "%#&_{}"}
LINK_OR_MARK = re.compile(
    r"\[(?P<text>model|page)\]\((?P<url>[^)\s]*)\)|\[(?P<mark>\d+)\]"
)  # as table.py writes links and footnote marks


def escape(text: str) -> str:
    """Text with LaTeX's special characters made plain, on one line."""
    return "".join(SPECIAL.get(character, character) for character in text.replace("\n", " "))


def latex(tables: list[Table]) -> str:
    """Tables as LaTeX source, each with its footnotes below it; ends with a newline."""
    return PREAMBLE + "\n".join(_table(table) for table in tables)


def _table(table: Table) -> str:
    title, columns = escape(table.title), "l" * len(table.headers)
    heads = " & ".join(escape(header) for header in table.headers) + r" \\"
    rows = [" & ".join(_cell(cell) for cell in row) + r" \\" for row in table.rows]
    notes = [rf"\item {_note(text)}" for text in table.footnotes]
    below = [r"\begin{itemize}\footnotesize", *notes, r"\end{itemize}"] if notes else []
    return "\n".join(
        [
            rf"\begin{{longtable}}{{{columns}}}",
            rf"\caption{{{title}}}\\",
            r"\toprule",
            heads,
            r"\midrule",
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *rows,
            r"\end{longtable}",
            *below,
            "",
        ]
    )


def _cell(cell: str) -> str:
    """A cell: plain text escaped, links as \\href, footnote marks raised, a lone dash as an en dash."""
    parts, end = [], 0
    for found in LINK_OR_MARK.finditer(cell):
        parts.append(escape(cell[end : found.start()]))
        parts.append(
            rf"\textsuperscript{{[{found['mark']}]}}" if found["mark"] else _link(found["url"], found["text"])
        )
        end = found.end()
    text = "".join([*parts, escape(cell[end:])])
    return "-" + text if re.fullmatch(r"-(\\textsuperscript.*)?", text) else text


def _link(url: str, text: str) -> str:
    return rf"\href{{{''.join(URL_SPECIAL.get(character, character) for character in url)}}}{{{text}}}"


def _note(text: str) -> str:
    """A footnote; its number stands in braces, or \\item would take it for its label."""
    number, mark, rest = text.partition("] ") if text.startswith("[") else ("", "", text)
    return f"{{{escape(number + ']')}}} {escape(rest)}" if mark else escape(text)
