"""Shared fields of a manifest file's rows: `[defaults]`, `[template.NAME]` with `extends`, `mirrors`. No
torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.registry import did_you_mean

TABLES = ("model", "defaults", "template", "mirrors")
LISTS = ("weights", "published")  # of a template, one table: fields of every item of the row's own list


def expand_rows(document: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The rows of a manifest file with the fields of its shared tables filled in.

    A row's own fields win over the templates that it `extends` (the last one named first), those over the
    templates that these extend, and those over `[defaults]`; a field is taken or replaced whole. `weights`
    and `published` of a template give fields to every item of those lists. A weight's `path` is relative to
    each address of `mirrors`. In text, `{title}` is the row's title, `{row}` its name without the source;
    `{url}` in `md5_url` is the first address.

    Args:
        document: of a TOML file.
        path: of that file, for messages.

    Raises:
        ManifestError: an unknown table or template, or no rows.
    """
    if unknown := sorted(set(document) - set(TABLES)):
        raise ManifestError(
            f"{path}: only [[model]] tables, [defaults], [template.NAME] and mirrors are allowed here, not"
            f" {', '.join(unknown)}"
        )
    rows = document.get("model")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ManifestError(f"{path}: contains no list of [[model]] tables; is the file empty or cut short?")
    _check_shared(document, path)
    return [_expanded(row, document, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]


def _check_shared(document: dict[str, Any], path: Path) -> None:
    """Raise if a shared table has a wrong type."""
    templates, mirrors = document.get("template", {}), document.get("mirrors", [])
    tables = {"defaults": document.get("defaults", {}), "template": templates}
    if isinstance(templates, dict):
        tables |= {f"template.{name}": value for name, value in templates.items()}
    for name, table in list(tables.items()):
        if isinstance(table, dict) and name != "template":
            tables |= {f"{name}.{field}": table[field] for field in LISTS if field in table}
    if wrong := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise ManifestError(f"{path}: {wrong[0]} is {tables[wrong[0]]!r:.80}, expected a table")
    if not isinstance(mirrors, list) or not all(isinstance(mirror, str) for mirror in mirrors):
        raise ManifestError(f"{path}: mirrors is {mirrors!r:.80}, expected a list of URLs")


def _expanded(row: dict[str, Any], document: dict[str, Any], where: str) -> dict[str, Any]:
    templates = document.get("template", {})
    bases = [document.get("defaults", {}), *_templates(row.get("extends", []), templates, where)]
    merged: dict[str, Any] = {}
    for table in (*bases, row):
        merged |= {field: value for field, value in table.items() if field not in (*LISTS, "extends")}
    for field in LISTS:
        if not isinstance(items := row.get(field, []), list) or not all(isinstance(i, dict) for i in items):
            merged[field] = items  # rejected by validation
        elif items:
            shared = {k: v for base in bases for k, v in base.get(field, {}).items()}
            merged[field] = [{**shared, **item} for item in items]
    texts = {"{title}": str(merged.get("title", "")), "{row}": str(merged.get("name", "")).rpartition(".")[0]}
    merged = {
        field: value if field in ("name", "title") else _filled(value, texts)
        for field, value in merged.items()
    }
    if isinstance(weights := merged.get("weights"), list):
        mirrors = document.get("mirrors", [])
        merged["weights"] = [
            _addressed(item, mirrors, where) if isinstance(item, dict) else item for item in weights
        ]
    return merged


def _templates(
    names: Any, known: dict[str, Any], where: str, seen: tuple[str, ...] = ()
) -> Iterable[dict[str, Any]]:
    """The templates of these names, each after the ones that it extends."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ManifestError(f"{where}: field extends: is {names!r:.80}, expected names of templates")
    for name in names:
        if name not in known:
            raise ManifestError(f"{where}: field extends: unknown {name!r}: {did_you_mean(str(name), known)}")
        if name in seen:
            raise ManifestError(f"{where}: template {name!r} extends itself: {' -> '.join((*seen, name))}")
        yield from _templates(known[name].get("extends", []), known, where, (*seen, name))
        yield known[name]


def _filled(value: Any, texts: dict[str, str]) -> Any:
    """The value with placeholders replaced in all its texts."""
    if isinstance(value, str):
        for placeholder, text in texts.items() if "{" in value else ():
            value = value.replace(placeholder, text)
    elif isinstance(value, list):
        return [_filled(item, texts) for item in value]
    elif isinstance(value, dict):
        return {key: _filled(item, texts) for key, item in value.items()}
    return value


def _addressed(item: dict[str, Any], mirrors: list[str], where: str) -> dict[str, Any]:
    """A weight with `urls` in place of `path`."""
    item = dict(item)
    if "path" in item:
        if not mirrors or "urls" in item:
            raise ManifestError(f"{where}: field weights.path: needs `mirrors` in the file, and no `urls`")
        path = item.pop("path")
        if not isinstance(path, str):
            raise ManifestError(f"{where}: field weights.path: is {path!r:.80}, expected a string")
        item["urls"] = [mirror + path for mirror in mirrors]
    md5_url, urls = item.get("md5_url"), item.get("urls")
    if isinstance(md5_url, str) and isinstance(urls, list) and urls and isinstance(urls[0], str):
        item["md5_url"] = md5_url.replace("{url}", urls[0])
    return item
