"""Settings that a folder of recorded outputs states only in words, and the one way to read them.

A template is the wording with holes: `text.scan("score {number}, NMS {number}, {whole} an image")`.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from detection_zoo.zoo.parity.files import ParityError
from detection_zoo.zoo.parity.standin import normal_input

NEEDED = object()  # a default that is none
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_PAIR = r"\(\s*\d+\s*,\s*\d+\s*\)"
_SLICE = r"\[\d*:\d*\]"
_NESTED = r"[-+\d\s.,e]|\[[-+\d\s.,e]*\]|\([-+\d\s.,e]*\)"
_CALL = re.compile(
    r"(?:(?P<times>[\d.]+)\*)?(?:synth\.)?normal_input\(\s*(?P<seed>\d+)(?P<counts>\+i)?\s*,"
    r"\s*\((?P<shape>[\w\s,]+)\)\s*\)(?P<shift>-[\d.]+)?"
)


def _fraction(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def _row(kind: type) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in text.split(",") if part.strip()]


def _pairs(text: str) -> list[tuple[int, int]]:
    return [literal_eval(pair) for pair in re.findall(_PAIR, text)]


def _slices(text: str) -> list[slice]:
    ends = re.findall(r"\[(\d*):(\d*)\]", text)
    return [slice(int(first or 0), int(end) if end else None) for first, end in ends]


_HOLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "whole": (r"((?<![\d.])\d+(?!\.?\d))", int),
    "number": (rf"({_NUMBER}(?:/\d+)?)", _fraction),
    "word": (r"(\w+)", str),
    "inside": (r"([^()]*)", str),
    "wholes": (r"(\d+(?:\s*,\s*\d+)*)", _row(int)),
    "numbers": (rf"({_NUMBER}(?:\s*,\s*{_NUMBER})*)", _row(float)),
    "list": (rf"(\[(?:{_NESTED})*\]|\((?:{_NESTED})*\))", literal_eval),
    "pairs": (rf"({_PAIR}(?:(?:\s|,|and)*{_PAIR})*)", _pairs),
    "slices": (rf"({_SLICE}(?:(?:\s|,|and)*{_SLICE})*)", _slices),
}
_PARTS = re.compile(r"\{(?P<hole>\w+)\}|<(?P<one>[^>]*)>|(?P<any>\.\.\.)|(?P<blank>\s+)|(?P<plain>.)")


@cache
def _compiled(template: str) -> tuple[re.Pattern[str], tuple[Callable[[str], Any], ...]]:
    """The regular expression of a template, and what makes a value of each of its groups."""
    pattern, makers = "", []
    for part in _PARTS.finditer(template):
        if part["hole"]:
            own, maker = _HOLES[part["hole"]]
            pattern, makers = pattern + own, [*makers, maker]
        elif part["one"]:
            pattern += f"(?:{'|'.join(re.escape(word) for word in part['one'].split('|'))})?"
        elif part["any"]:
            pattern += ".*?"
        elif part["blank"]:
            pattern += r"\s*"
        else:
            mark = re.escape(part["plain"])
            pattern += rf"\s*{mark}\s*" if part["plain"] in ",()[]" else mark
    return re.compile(pattern), tuple(makers)


@dataclass(frozen=True)
class Call:
    """A call such as "2*normal_input(100+i,(2,3,h,w))-3.5" in a text; products and sums are of float32."""

    seed: int
    shape: tuple[str, ...]
    text: Text
    times: float = 1.0
    shift: float = 0.0
    counts: bool = False  # the seed counts up with the level i

    def array(self, level: int = 0, **letters: int) -> np.ndarray:
        """The float32 array of one level; letters: what the letters of the shape stand for."""
        try:
            shape = tuple(int(letters.get(side, side)) for side in self.shape)
        except ValueError:
            raise self.text.error(f"a shape of numbers in place of ({','.join(self.shape)})") from None
        array = normal_input(self.seed + (level if self.counts else 0), shape)
        return np.float32(self.times) * array + np.float32(self.shift)


@dataclass(frozen=True)
class Text:
    """What a folder says in words.

    words: as recorded. where: file and field, for errors.
    """

    words: str
    where: str = "a description"

    def error(self, wanted: str) -> ParityError:
        """That something is not said."""
        return ParityError(f"{self.where}: {self.words!r} does not say {wanted}")

    def __contains__(self, words: str) -> bool:
        return words in self.words

    def names(self) -> set[str]:
        """Every word, for options that are on where they are named."""
        return set(re.findall(r"\w+", self.words))

    def scan(self, *templates: str, default: Any = NEEDED) -> Any:
        """The value in the one hole of a template, or a tuple of the values of several holes.

        Args:
            templates: the first that fits counts. Holes are {whole}, {number} (1/9 too), {word}, {list}
                (numbers in brackets), {wholes} and {numbers} (the same without brackets), {pairs} ("(1, 2)
                and (3, 4)"), {slices} ("[:3] and [3:5]"). "..." stands for any words, "<of|to>" for one of
                these words or none.
            default: what is given back where no template fits.

        Raises:
            ParityError: no template fits, and no default is given.
        """
        for template in templates:
            pattern, makers = _compiled(template)
            if found := pattern.search(self.words):
                try:
                    values = tuple(make(own) for make, own in zip(makers, found.groups(), strict=True))
                except (ValueError, SyntaxError, ZeroDivisionError):
                    raise self.error(f"numbers where {template!r} has them") from None
                return values if len(values) > 1 else values[0]
        if default is NEEDED:
            raise self.error(" or ".join(repr(template) for template in templates))
        return default

    def calls(self) -> list[Call]:
        """Every call of normal_input, in order."""
        return [
            Call(
                int(found["seed"]),
                tuple(side.strip() for side in found["shape"].split(",") if side.strip()),
                self,
                float(found["times"] or 1),
                float(found["shift"] or 0),
                bool(found["counts"]),
            )
            for found in _CALL.finditer(self.words)
        ]

    def call(self, place: int = 0) -> Call:
        """The call of normal_input at a place; raises ParityError where there are fewer."""
        calls = self.calls()
        if place >= len(calls):
            raise self.error(f"'normal_input(seed, (shape))' of {place + 1} inputs")
        return calls[place]
