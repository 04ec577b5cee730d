"""KEY=VALUE settings that change a row: its conventions, the arguments of its components, its schedule. No
torch."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from detection_zoo.zoo.conventions import Conventions
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import Component, ModelEntry, Schedule
from detection_zoo.zoo.manifest_files import merge
from detection_zoo.zoo.registry import BACKBONES, DETECTORS, NECKS, did_you_mean

COMPONENTS = {"backbone": BACKBONES, "neck": NECKS, "detector": DETECTORS}
SCHEDULE = "schedule"


def parse_setting(text: str) -> tuple[str, Any]:
    """Split "SECTION.FIELD=VALUE" in two; the value as TOML, or else as plain text."""
    path, _, value = text.partition("=")
    if not value:
        raise ManifestError(f"{text!r}: write SECTION.FIELD=VALUE")
    try:
        return path.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # TOMLDecodeError among them
        return path.strip(), value.strip()


def with_settings(
    entry: ModelEntry, schedule: Schedule, settings: Iterable[str]
) -> tuple[ModelEntry, Schedule, list[str]]:
    """Apply settings to a row and a schedule.

    Args:
        settings: "SECTION.FIELD=VALUE", "backbone.ARGUMENT=VALUE" or "schedule.FIELD=VALUE".

    Returns:
        row, schedule, and "field: old -> new" of every setting.

    Raises:
        ManifestError: there is no such field (with the nearest name), or the value does not fit it.
    """
    lines = []
    for text in settings:
        path, value = parse_setting(text)
        section, _, field = path.partition(".")
        if section == SCHEDULE:
            lines.append(f"{path}: {getattr(schedule, field, None)} -> {value}")
            schedule = _changed(schedule, {field: value}, f"row {entry.name}", path, value)
        else:
            lines.append(f"{path}: {_present(entry, section, field)} -> {value}")
            entry = with_value(entry, path, value)
    return entry, schedule, lines


def with_value(entry: ModelEntry, path: str, value: Any) -> ModelEntry:
    """The row with one convention ("image.channel_order") or one argument of a component
    ("backbone.stride_in_1x1") set.

    Raises:
        ManifestError: there is no such field, or the value does not fit it.
    """
    section, _, field = path.partition(".")
    if section in COMPONENTS and getattr(entry, section) is not None and field:
        component = getattr(entry, section)
        _check_argument(section, component, field, entry.name)
        changed = Component(name=component.name, **{**component.arguments, field: value})
        return entry.model_copy(update={section: changed})
    if entry.conventions is None or not field:
        known = [*Conventions.model_fields, *COMPONENTS, SCHEDULE]
        raise ManifestError(
            f"row {entry.name}: {path!r} is no field ({did_you_mean(section, known)}); write"
            " SECTION.FIELD=VALUE, as in image.channel_order=rgb or backbone.stride_in_1x1=false"
        )
    whole = merge(entry.conventions.model_dump(exclude_unset=True), {section: {field: value}})
    where = f"row {entry.name}"
    if section not in Conventions.model_fields:
        known = [*Conventions.model_fields, *COMPONENTS, SCHEDULE]
        raise ManifestError(f"{where}: {path!r}: no section {section!r}; {did_you_mean(section, known)}")
    conventions = _validated(Conventions, whole, where, path, value)
    return entry.model_copy(update={"conventions": conventions})


def _check_argument(section: str, component: Component, field: str, row: str) -> None:
    """Raise for an argument that a registered builder does not take; builders that are not imported are
    checked when they are called."""
    if component.name not in COMPONENTS[section]:
        return
    parameters = inspect.signature(COMPONENTS[section][component.name]).parameters
    if field not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise ManifestError(
            f"row {row}: {section}.{field}: {component.name} has no such argument;"
            f" {did_you_mean(field, parameters)}"
        )


def _present(entry: ModelEntry, section: str, field: str) -> Any:
    """What a field has now, for messages; none where it is not set."""
    if section in COMPONENTS and getattr(entry, section) is not None:
        return getattr(entry, section).arguments.get(field)
    return getattr(getattr(entry.conventions, section, None), field, None)


def _changed(record: BaseModel, update: dict[str, Any], where: str, path: str, value: Any) -> Any:
    return _validated(type(record), record.model_dump() | update, where, path, value)


def _validated(kind: type[BaseModel], values: dict[str, Any], where: str, path: str, value: Any) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] != "extra_forbidden":
            raise ManifestError(f"{where}: {path}: {first['msg']}, but it is {value!r:.60}") from None
        holder: Any = kind
        for name in first["loc"][:-1]:
            annotation = holder.model_fields[name].annotation
            holder = next(a for a in getattr(annotation, "__args__", (annotation,)) if a is not type(None))
        field = str(first["loc"][-1])
        raise ManifestError(
            f"{where}: {path}: there is no field {field!r}; {did_you_mean(field, holder.model_fields)}"
        ) from None
