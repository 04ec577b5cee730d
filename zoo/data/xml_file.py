"""XML annotation files: parsed in linear time, in any of Python's text encodings, with the line of each
element."""

from __future__ import annotations

import codecs
import re
import xml.parsers.expat
from dataclasses import dataclass, field
from pathlib import Path

from detection_zoo.zoo.data.fields import dataset_bytes
from detection_zoo.zoo.errors import DatasetError

MOST_BYTES, MOST_DEPTH, MOST_ELEMENTS = 2**26, 64, 10**5  # real annotations have a few kB and a depth of four
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z][\w.-]{0,40})["']""")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# supersets of declared encodings, as files often use them
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "cp950"}
# codecs that are not for text files; some take quadratic time
_NO_FILES = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem")


@dataclass
class Element:
    """An XML element with its start line, which the standard library's trees lack."""

    name: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, name: str) -> Element | None:
        """The first child of that name."""
        return next((c for c in self.children if c.name == name), None)


def read_xml(path: Path) -> Element:
    """Read an XML file.

    Returns:
        Its root element.

    Raises:
        DatasetError: names file and line: missing, malformed, not in the encoding that it declares, or beyond
            64 MiB, a depth of 64 or 100,000 elements; entity declarations are refused: they can expand to
            any amount of text.
    """
    try:
        data = dataset_bytes(path, MOST_BYTES)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such annotation file; its image is listed in the image set") from None
    parser = xml.parsers.expat.ParserCreate("utf-8")
    tree = _Tree(path, parser)
    try:
        parser.Parse(_decoded(data, path).encode("utf-8", "surrogatepass"), True)
    except xml.parsers.expat.ExpatError as error:
        raise DatasetError(
            f"{path}: line {error.lineno}: malformed XML ({xml.parsers.expat.ErrorString(error.code)});"
            " restore the file"
        ) from None
    return tree.top.children[0]


def _decoded(data: bytes, path: Path) -> str:
    declared = _DECLARED.match(data)
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None) or (
        declared[1].decode("ascii") if declared else "utf-8"
    )
    try:
        info = codecs.lookup(encoding)
    except LookupError:
        info = None
    if info is None or not info._is_text_encoding or info.name.replace("-", "_") in _NO_FILES:
        raise DatasetError(f"{path}: line 1: the encoding {encoding!r} is unknown; write the file as utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        wider = _WIDER.get(info.name.replace("-", "_"))
        if wider is not None:
            try:
                return data.decode(wider)
            except UnicodeDecodeError:
                pass
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}: line {line}: not in the encoding {encoding} ({error.reason}); write the file as utf-8"
        ) from None


class _Tree:
    """Collects the elements of a parser."""

    def __init__(self, path: Path, parser: xml.parsers.expat.XMLParserType) -> None:
        self.path, self.parser, self.count = path, parser, 0
        self.top = Element("", 0)
        self.stack = [self.top]
        self.texts: list[list[str]] = [[]]
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self.start, self.end
        parser.CharacterDataHandler, parser.EntityDeclHandler = self.text, self.entity

    def start(self, name: str, _: dict[str, str]) -> None:
        element = Element(name, self.parser.CurrentLineNumber)
        self.count += 1
        if len(self.stack) > MOST_DEPTH or self.count > MOST_ELEMENTS:
            raise DatasetError(
                f"{self.path}: line {element.line}: elements nested deeper than {MOST_DEPTH}, or more than"
                f" {MOST_ELEMENTS:,}; not an image annotation"
            )
        self.stack[-1].children.append(element)
        self.stack.append(element)
        self.texts.append([])

    def end(self, _: str) -> None:
        self.stack.pop().text = "".join(self.texts.pop())

    def text(self, data: str) -> None:
        self.texts[-1].append(data)

    def entity(self, name: str, *_: object) -> None:
        raise DatasetError(
            f"{self.path}: line {self.parser.CurrentLineNumber}: declares the entity {name!r:.60}; replace"
            " it with its text"
        )
