"""Read the TOML files of the manifests and validate them. No torch."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from detection_zoo.zoo.conventions import Conventions
from detection_zoo.zoo.entry import leaving_on_interrupt
from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.manifest import (
    DatasetSpec,
    Manifests,
    MetricSpec,
    ModelEntry,
    Schedule,
    TimingProtocol,
)
from detection_zoo.zoo.registry import did_you_mean
from detection_zoo.zoo.regular import read_regular
from detection_zoo.zoo.templates import expand_rows

MANIFEST_FOLDER = Path(__file__).resolve().parent.parent / "manifests"
MOST_DOTS = 500  # limit of dots in a line of a manifest
LARGEST_BYTES = 16 << 20  # of a manifest; the largest of the project has 0.2 MB
SHARED = {
    "conventions": Conventions,
    "schedules": Schedule,
    "datasets": DatasetSpec,
    "metrics": MetricSpec,
    "protocols": TimingProtocol,
}
SHARED_FILES = tuple(f"{kind}.toml" for kind in SHARED)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file of at most 16 MiB; raises ManifestError that names it where it is none."""
    try:
        data = read_regular(path, LARGEST_BYTES)
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest; it is part of the project, restore it") from None
    except ValueError as error:
        raise ManifestError(f"{path}: {error}; expected a TOML file") from None
    for number, line in enumerate(data.splitlines(), 1):
        if line.count(b".") > MOST_DOTS:  # tomllib takes quadratic time for keys of many parts
            raise ManifestError(f"{path}: line {number} has more than {MOST_DOTS} dots; a TOML file has few")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError among them
        raise ManifestError(f"{path}: not valid TOML: {error!s:.200}; is the file cut short?") from None


def _problem(where: str, error: ValidationError) -> ManifestError:
    """One line per problem: file, row, field, value, and what is allowed."""
    lines = []
    for detail in error.errors():
        field = ".".join(str(part) for part in detail["loc"])
        given = (
            "" if detail["type"] in ("missing", "extra_forbidden") else f", but it is {detail['input']!r:.80}"
        )
        text = {
            "missing": "is required and missing",
            "extra_forbidden": "is not a field here; see manifests/README.md",
        }.get(detail["type"], detail["msg"])
        lines.append(f"{where}: field {field}: {text}{given}")
    return ManifestError("\n".join(lines))


def _validate(kind: type[BaseModel], value: Any, where: str) -> Any:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _problem(where, error) from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` updated by the values of `over`, nested tables merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = (
            merge(merged[key], value)
            if isinstance(value, dict) and isinstance(merged.get(key), dict)
            else value
        )
    return merged


def _with_base(raw: dict[str, Any], name: str, where: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A table of conventions.toml or schedules.toml, merged over the table that it `extends`."""
    if name not in raw:
        raise ManifestError(f"{where}: nothing is named {name!r}: {did_you_mean(name, raw)}")
    if name in seen:
        raise ManifestError(f"{where}: {name!r} extends itself: {' -> '.join((*seen, name))}")
    if not isinstance(raw[name], dict):
        raise ManifestError(f"{where}: field {name}: expected a table [{name}], but it is {raw[name]!r:.80}")
    own = {k: v for k, v in raw[name].items() if k != "extends"}
    if "extends" not in raw[name]:
        return own
    return merge(_with_base(raw, raw[name]["extends"], f"{where}: {name}: field extends", (*seen, name)), own)


def _entry(row: dict[str, Any], path: Path, number: int, raw_conventions: dict[str, Any]) -> ModelEntry:
    where = f"{path}: row {number} ({row.get('name', 'without a name')})"
    row = {**row, "source": path.stem}
    adjust = row.pop("adjust", {})
    if isinstance(name := row.get("conventions"), str):
        bundle = merge(_with_base(raw_conventions, name, f"{where}: field conventions"), adjust)
        row = {**row, "conventions": _validate(Conventions, bundle, where), "conventions_name": name}
    elif name is not None or adjust:
        raise ManifestError(
            f"{where}: field conventions: expected the name of a bundle of conventions.toml, but it is"
            f" {name!r:.80}"
        )
    return _validate(ModelEntry, row, where)


def _known(where: str, field: str, name: str | None, known: Iterable[str]) -> None:
    """Raise if a row refers to an unknown name."""
    if name is not None and name not in known:
        raise ManifestError(f"{where}: field {field}: unknown {name!r}: {did_you_mean(name, known)}")


def _check_references(manifests: Manifests) -> None:
    """Check that referenced names exist, and that no two rows have the same address without a reason."""
    owner: dict[str, str] = {}
    for entry in manifests.entries.values():
        where = entry.where
        _known(where, "schedule", entry.schedule, manifests.schedules)
        _known(where, "initial", entry.initial, manifests.entries)
        _known(where, "dataset", entry.dataset, manifests.datasets)
        splits = manifests.datasets[entry.dataset].splits
        _known(where, "train_split", entry.train_split, splits)
        _known(where, "test_split", entry.test_split, splits)
        for number, published in enumerate(entry.published):
            field = f"published.{number}"
            _known(where, f"{field}.dataset", published.dataset, manifests.datasets)
            _known(
                where,
                f"{field}.split",
                published.split,
                manifests.datasets[published.dataset or entry.dataset].splits,
            )
            for metric in published.values:
                _known(where, f"{field}.values", metric, manifests.metrics)
        for spec in entry.weights:
            for url in spec.urls:
                if owner.setdefault(url, entry.name) != entry.name and not (spec.wrong or spec.shared):
                    raise ManifestError(
                        f"{where}: weights address {url} is also used by row {owner[url]}; give the reason in"
                        " 'shared' or 'wrong'"
                    )


def read_manifests(folder: Path) -> Manifests:
    """Read and validate every manifest of a folder.

    Args:
        folder: with conventions, schedules, datasets, metrics and protocols (.toml) and one TOML file per
            source.

    Raises:
        ManifestError: names the file, row, field, the value and what is allowed.
    """
    shared = {kind: _read_tables(folder, kind) for kind in SHARED}
    bundles = read_toml(folder / "conventions.toml")
    entries: dict[str, ModelEntry] = {}
    for path in sorted(folder.glob("*.toml")):
        if path.name in SHARED_FILES:
            continue
        document = read_toml(path)
        for number, row in enumerate(expand_rows(document, path), start=1):
            entry = _entry(row, path, number, bundles)
            if entry.name in entries:
                raise ManifestError(
                    f"{path}: row {number}: name {entry.name!r} is taken by a row of"
                    f" {entries[entry.name].source}.toml; names are unique"
                )
            entries[entry.name] = entry
    manifests = Manifests.model_construct(entries=entries, **shared)
    _check_references(manifests)
    return manifests


def _read_tables(folder: Path, kind: str) -> dict[str, Any]:
    """Every table of a shared file, by name."""
    path = folder / f"{kind}.toml"
    raw = read_toml(path)
    return {
        name: _validate(SHARED[kind], _with_base(raw, name, str(path)), f"{path}: {name}") for name in raw
    }


@cache
def load_manifests() -> Manifests:
    """The project's own manifests, read once per process."""
    with leaving_on_interrupt():
        return read_manifests(MANIFEST_FOLDER)


@cache
def load_metrics() -> dict[str, MetricSpec]:
    """The metrics of metrics.toml alone, without the other manifests."""
    with leaving_on_interrupt():
        return _read_tables(MANIFEST_FOLDER, "metrics")
