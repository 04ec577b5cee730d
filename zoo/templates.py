"""What rows of a manifest file share: `[defaults]`, `[template.NAME]` with `extends`, `mirrors`. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detection_zoo.zoo.errors import ManifestError
from detection_zoo.zoo.registry import did_you_mean

TABLES = ("model", "defaults", "template", "mirrors")
LISTS = ("weights", "published")  # of a template, one table: fields of every item of the row's own list


def expand_rows(document: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The rows of a manifest file with what they take from its shared tables filled in.

    A row's own fields win over the templates that it `extends` (the last one named first), those over
    `[defaults]`; a field is taken or replaced whole. `weights` and `published` of a template give fields to
    every item of those lists. A weight's `path` stands below each address of `mirrors`; `{title}` in text is
    the row's title, `{url}` in `md5_url` the first address.

    Args:
        document: of a TOML file.
        path: of that file, for messages.

    Raises:
        ManifestError: an unknown table or template, or no rows.
    """
    if unknown := sorted(set(document) - set(TABLES)):
        raise ManifestError(
            f"{path}: only [[model]] tables, [defaults], [template.NAME] and mirrors belong here, but there"
            f" is {', '.join(unknown)}"
        )
    rows = document.get("model")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ManifestError(f"{path}: holds no list of [[model]] tables; is the file empty or cut short?")
    _check_shared(document, path)
    return [_expanded(row, document, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]


def _check_shared(document: dict[str, Any], path: Path) -> None:
    """Refuse what rows share where it is of another kind than it should be."""
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
    names = row.get("extends", [])
    bases = [document.get("defaults", {}), *_templates(names, document.get("template", {}), where)]
    merged: dict[str, Any] = {}
    for table in (*bases, row):
        merged |= {field: value for field, value in table.items() if field not in (*LISTS, "extends")}
    for field in LISTS:
        if not isinstance(items := row.get(field, []), list) or not all(isinstance(i, dict) for i in items):
            merged[field] = items  # validation says what is wrong with it
        elif items:
            shared = {k: v for base in bases for k, v in base.get(field, {}).items()}
            merged[field] = [{**shared, **item} for item in items]
    title = str(merged.get("title", ""))
    merged = {field: _titled(value, title) for field, value in merged.items() if field != "title"} | (
        {"title": merged["title"]} if "title" in merged else {}
    )
    if isinstance(weights := merged.get("weights"), list):
        mirrors = document.get("mirrors", [])
        merged["weights"] = [
            _addressed(item, mirrors, where) if isinstance(item, dict) else item for item in weights
        ]
    return merged


def _templates(names: Any, known: dict[str, Any], where: str) -> Iterable[dict[str, Any]]:
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ManifestError(f"{where}: field extends: is {names!r:.80}, expected names of templates")
    for name in names:
        if name not in known:
            raise ManifestError(f"{where}: field extends: unknown {name!r}: {did_you_mean(str(name), known)}")
        yield known[name]


def _titled(value: Any, title: str) -> Any:
    if isinstance(value, str):
        return value.replace("{title}", title)
    if isinstance(value, list):
        return [_titled(item, title) for item in value]
    if isinstance(value, dict):
        return {key: _titled(item, title) for key, item in value.items()}
    return value


def _addressed(item: dict[str, Any], mirrors: list[str], where: str) -> dict[str, Any]:
    """A weight with `urls` in place of `path`."""
    item = dict(item)
    if "path" in item:
        if not mirrors or "urls" in item:
            raise ManifestError(
                f"{where}: field weights.path: needs `mirrors` in the file, and no urls beside it"
            )
        path = item.pop("path")
        if not isinstance(path, str):
            raise ManifestError(f"{where}: field weights.path: is {path!r:.80}, expected a string")
        item["urls"] = [mirror + path for mirror in mirrors]
    md5_url, urls = item.get("md5_url"), item.get("urls")
    if isinstance(md5_url, str) and isinstance(urls, list) and urls and isinstance(urls[0], str):
        item["md5_url"] = md5_url.replace("{url}", urls[0])
    return item
