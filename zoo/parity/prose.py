"""Settings that a folder of recorded outputs states in notes: sentences such as "score 0.05, NMS 0.5".

This module alone reads sentences, by templates of `zoo.parity.wordings` whose holes are fields of `Note`. A
folder's settings.json takes their place.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from detection_zoo.zoo.parity.files import ParityError
from detection_zoo.zoo.parity.settings import FILE, Draw, Note, Rows, Settings, Size
from detection_zoo.zoo.parity.wordings import WORDINGS, Template, Wording

_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_PAIR = r"\(\s*\d+\s*,\s*\d+\s*\)"
_SLICE = r"\[\d*:\d*\]"
_NESTED = r"[-+\d\s.,e]|\[[-+\d\s.,e]*\]|\([-+\d\s.,e]*\)"
_WHOLE = r"(?<![\d.])\d+(?!\.?\d)"
_CALL = re.compile(
    r"(?:(?P<times>[\d.]+)\*)?(?:synth\.)?normal_input\(\s*(?P<seed>\d+)(?P<counts>\+i)?\s*,"
    r"\s*\((?P<shape>[\w\s,]+)\)\s*\)(?P<shift>-[\d.]+)?"
)


def _fraction(text: str) -> float:
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def _slices(text: str) -> list[Rows]:
    ends = re.findall(r"\[(\d*):(\d*)\]", text)
    return [(int(first or 0), int(end) if end else None) for first, end in ends]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


# type of a field -> regular expression of its hole, and what makes its value; of other types: _BRACKETS
_HOLES: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: (rf"({_WHOLE})", int),
    float: (rf"({_NUMBER}(?:/\d+)?)", _fraction),
    str: (r"([\w-]+)", str),
    list[int]: (r"(\d+(?:\s*,\s*\d+)*)", _parts),
    list[float]: (rf"({_NUMBER}(?:\s*,\s*{_NUMBER})*)", _parts),
    list[Size]: (
        rf"({_PAIR}(?:(?:\s|,|and)*{_PAIR})*)",
        lambda text: [literal_eval(pair) for pair in re.findall(_PAIR, text)],
    ),
    list[Rows]: (rf"({_SLICE}(?:(?:\s|,|and)*{_SLICE})*)", _slices),
}
_BRACKETS = (rf"(\[(?:{_NESTED})*\]|\((?:{_NESTED})*\))", literal_eval)
_TOKENS = re.compile(r"\{(?P<hole>\w*)\}|<(?P<one>[^>]*)>|(?P<any>\.\.\.)|(?P<blank>\s+)|(?P<plain>.)")


@cache
def _compiled(template: str) -> tuple[re.Pattern[str], dict[str, Callable[[str], Any]]]:
    """The regular expression of a template, and what makes the value of each of its fields."""
    pattern, makers = "", {}
    for part in _TOKENS.finditer(template):
        if part["hole"]:
            kinds = get_args(Note.model_fields[part["hole"]].annotation)
            own, makers[part["hole"]] = _HOLES.get(kinds[0], _BRACKETS)
            pattern += own
        elif part["hole"] == "":
            pattern += _WHOLE
        elif part["one"]:
            pattern += f"(?:{'|'.join(re.escape(word) for word in part['one'].split('|'))})?"
        elif part["any"]:
            pattern += ".*?"
        elif part["blank"]:
            pattern += r"\s*"
        else:
            mark = re.escape(part["plain"])
            pattern += rf"\s*{mark}\s*" if part["plain"] in ",()[]" else mark
    return re.compile(pattern), makers


def _scan(words: str, template: Template, where: str, *, needed: bool = True) -> dict[str, Any]:
    """The fields that the first fitting template gives; raises ParityError where none fits and one must."""
    for each in _alternatives(template):
        pattern, makers = _compiled(each)
        if found := pattern.search(words):
            try:
                values = zip(makers, found.groups(), strict=True)
                return {name: makers[name](text) for name, text in values}
            except (ValueError, SyntaxError, ZeroDivisionError):
                raise ParityError(f"{where}: {words!r} has no numbers where {each!r} has them") from None
    if needed:
        raise ParityError(
            f"{where}: {words!r} does not state {' or '.join(map(repr, _alternatives(template)))}"
        )
    return {}


def draws(words: str) -> list[Draw]:
    """Every call of normal_input in a note, such as "2*normal_input(100+i,(2,3,h,w))-3.5", in order."""
    return [
        Draw(
            seed=int(found["seed"]),
            shape=tuple(int(side) if side.isdigit() else side for side in _parts(found["shape"]) if side),
            times=float(found["times"] or 1),
            shift=float(found["shift"] or 0),
            by_level=bool(found["counts"]),
        )
        for found in _CALL.finditer(words)
    ]


def read_note(words: str, rule: Wording, where: str) -> Note:
    """The settings that a note states.

    Args:
        words: the note. rule: its templates. where: file and field, for errors.

    Raises:
        ParityError: a setting is not stated.
    """
    values: dict[str, Any] = {"arrays": draws(words)}
    for template in rule.templates:
        values |= _scan(words, template, where)
    for phrase, template in rule.where.items():
        if phrase in words:
            values |= _scan(words, template, where)
    for template in rule.optional:
        values |= _scan(words, template, where, needed=False)
    values |= {name: bool(re.search(phrase, words)) for name, phrase in rule.flags.items()}
    try:
        note = Note(**values)
    except ValidationError as error:
        raise ParityError(f"{where}: {words!r}: {error.errors()[0]['msg']}") from None
    if len(note.arrays) < rule.arrays:
        raise ParityError(
            f"{where}: {words!r} does not state 'normal_input(seed, (shape))' of {rule.arrays} inputs"
        )
    return note.placed(where)


def settings_from_notes(meta: Mapping[str, Any], adapter: str, where: str) -> Settings:
    """The settings of all notes of an object.

    Args:
        meta: of outputs.json, steps.json or train_steps.json. adapter: key of `WORDINGS`. where: the file,
            for errors.
    """
    notes: dict[str, Note] = {}
    for path, words in _walk(meta):
        if rule := rule_of(path, adapter):
            note = read_note(words, rule, f"{where}: {path}")
            if note.model_dump(exclude_defaults=True):
                notes[path] = note
    return Settings(notes=notes)


def _walk(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and words of every field of an object; a field that holds no words is described by its name."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _walk(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner if isinstance(inner, str) else key


def read_settings(folder: Path, meta: Mapping[str, Any], adapter: str) -> Settings:
    """The settings of a folder: of its settings.json where it has one, else of its notes.

    Args:
        folder: the folder. meta: the object with its notes. adapter: key of `WORDINGS`.

    Raises:
        ParityError: a setting is not stated, or settings.json is not valid.
    """
    path, where = folder / FILE, str(getattr(meta, "path", folder))
    if not path.is_file():
        return settings_from_notes(meta, adapter, where)
    settings = Settings.read(path)
    for key, note in settings.notes.items():
        for template in rule.templates if (rule := rule_of(key, adapter)) else ():
            fields = [list(_compiled(each)[1]) for each in _alternatives(template)]
            if not any(all(getattr(note, name) is not None for name in names) for names in fields):
                needed = " or ".join(", ".join(names) for names in fields)
                raise ParityError(f"{path}: {key}: lacks {needed}")
    return settings


def rule_of(path: str, adapter: str) -> Wording | None:
    """The templates of a note; none where it states no setting."""
    return next((rule for rule in WORDINGS.get(adapter, ()) if fnmatchcase(path, rule.path)), None)


def _alternatives(template: Template) -> tuple[str, ...]:
    return (template,) if isinstance(template, str) else template
