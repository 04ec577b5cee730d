"""Read a configuration file of Detectron or Detectron.pytorch: parse, fix, check against the known options.
No torch.

Nothing is silently dropped: unknown options, options of the wrong type and duplicate options are errors;
fixes are reported.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.registry import did_you_mean

_OPTIONS = yaml.safe_load(Path(__file__).with_name("detectron_options.yaml").read_text(encoding="utf-8"))
DEFAULTS: dict[str, Any] = _OPTIONS["defaults"]
WITHOUT_EFFECT = {name: reason for reason, names in _OPTIONS["without_effect"].items() for name in names}
MODULE_OPTIONS = (
    "MODEL.CONV_BODY",
    "FAST_RCNN.ROI_BOX_HEAD",
    "MRCNN.ROI_MASK_HEAD",
    "KRCNN.ROI_KEYPOINTS_HEAD",
    "RESNETS.TRANS_FUNC",
    "RESNETS.STEM_FUNC",
    "RESNETS.SHORTCUT_FUNC",
)
RENAMED_MODULES = {"head_builder.roi_2mlp_head": "fast_rcnn_heads.roi_2mlp_head"}
_SECTION = re.compile(r"^([A-Z][A-Z0-9_]*):\s*(#.*)?$")
_OPTION = re.compile(r"^([A-Z][A-Z0-9_]*):\s*\S")

LARGEST_BYTES = 1 << 18  # the largest file of either project has 3 kB
DEEPEST = 20  # levels; options are on the second or third


class _Loader(yaml.SafeLoader):
    """YAML without objects and aliases, of few levels, in which an option given twice is an error."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As the base class; raises ConstructorError for an alias and beyond DEEPEST levels."""
        event = self.peek_event()
        self.depth += 1
        if self.depth > DEEPEST or isinstance(event, yaml.AliasEvent):
            reason = "an alias" if isinstance(event, yaml.AliasEvent) else f"more than {DEEPEST} levels"
            raise yaml.constructor.ConstructorError(None, None, f"{reason}, not read", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "an option without a name", key.start_mark)
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@dataclass
class Options:
    """Options by dotted name: the file's value, else the default; records which were read, so that no
    given one is ignored.

    given: what the file sets; notes: what was fixed or renamed; refused: unsupported options,
        with the reason; idle: options
    that this model does not use, with the reason.
    """

    given: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    idle: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return self.given[name] if name in self.given else default(name)

    def without_effect(self) -> dict[str, str]:
        """Given options that change nothing, or nothing for this model, with the reason."""
        always = {
            name: WITHOUT_EFFECT[name]
            for name in self.given
            if name not in self.asked and name in WITHOUT_EFFECT
        }
        return always | {name: reason for name, reason in self.idle.items() if name in self.given}

    def unread(self) -> list[str]:
        """Given options that were not read, although they may have an effect."""
        return [
            name
            for name in self.given
            if name not in self.asked and name not in WITHOUT_EFFECT and name not in self.idle
        ]


def default(name: str) -> Any:
    """The default of an option by its dotted name."""
    value: Any = DEFAULTS
    for part in name.split("."):
        value = value[part]
    return value


def read_options(path: Path) -> Options:
    """The options that a configuration file sets, checked.

    Args:
        path: a YAML file of Detectron or Detectron.pytorch.

    Raises:
        ManifestError: the file does not parse, or an option is unknown, given twice or of the wrong type;
            says where.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: no such file")
    if path.stat().st_size > LARGEST_BYTES:
        raise ManifestError(f"{path}: larger than {LARGEST_BYTES:,} bytes; is it a configuration file?")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error})") from None
    notes = _indent_strays(lines)
    try:
        document = yaml.load("\n".join(lines), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ManifestError(
            f"{path}:{where}: not valid YAML: {getattr(error, 'problem', None) or error}; correct the file"
        ) from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise ManifestError(f"{path}: a value cannot be read ({error!s:.100}); correct the file") from None
    if not isinstance(document, dict):
        raise ManifestError(f"{path}: contains no options; is it a configuration file?")
    options = Options({}, notes)
    _collect(document, DEFAULTS, "", options.given, path)
    for name in MODULE_OPTIONS:
        if name in options.given:
            options.given[name] = _module(name, options.given[name], notes)
    return options


def _indent_strays(lines: list[str]) -> list[str]:
    """Indent, in place, unindented options below their section; returns notes on the fixes."""
    notes = []
    for number in range(1, len(lines)):
        section, option = _SECTION.match(lines[number - 1]), _OPTION.match(lines[number])
        if section and option and option[1] not in DEFAULTS and option[1] in DEFAULTS.get(section[1], ()):
            lines[number] = "  " + lines[number]
            notes.append(
                f"line {number + 1}: {option[1]} is not indented under {section[1]}; read as"
                f" {section[1]}.{option[1]}"
            )
    return notes


def _collect(
    values: dict[str, Any], known: dict[str, Any], prefix: str, given: dict[str, Any], path: Path
) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise ManifestError(f"{path}: no option is named {name}: {did_you_mean(str(key), known)}")
        if isinstance(known[key], dict):
            if not isinstance(value, dict):
                raise ManifestError(f"{path}: {name} is a section of options, but it is {value!r:.200}")
            _collect(value, known[key], f"{name}.", given, path)
        else:
            given[name] = _typed(value, known[key], name, path)


def _typed(value: Any, like: Any, name: str, path: Path) -> Any:
    """The value in the type of the option's default; strings that are Python literals are read as such."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass  # a plain word or a path
    if isinstance(like, str):
        return str(value)
    if isinstance(like, float) and type(value) is int:
        return float(value)
    if isinstance(like, list) and isinstance(value, (list, tuple)):
        return list(value)
    if type(value) is not type(like):
        raise ManifestError(
            f"{path}: {name} needs a value of type {type(like).__name__} like {like!r}, but it is"
            f" {value!r:.200}"
        )
    return value


def _module(name: str, value: str, notes: list[str]) -> str:
    """A module option by its current name: Detectron's `add_` prefix is removed, and a module that does not
    exist is replaced."""
    parts = value.split(".")
    parts[-1] = parts[-1].removeprefix("add_")
    plain = ".".join(parts)
    if plain in RENAMED_MODULES:
        notes.append(
            f"{name}: there is no module {plain.partition('.')[0]}; read as {RENAMED_MODULES[plain]}"
        )
    return RENAMED_MODULES.get(plain, plain)
