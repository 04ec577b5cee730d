"""Move weights between machines: verify, export and import. No torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.regular import read_regular
from detection_zoo.zoo.weights.fetch.cache import WeightCache, fresh, sha256_of, write_atomic
from detection_zoo.zoo.weights.fetch.one import Fetched, import_file
from detection_zoo.zoo.weights.fetch.selection import Chosen

INDEX = "weights.json"
LARGEST_INDEX_BYTES = 16 << 20


def verify_files(files: Iterable[Chosen], cache: WeightCache) -> list[dict[str, object]]:
    """Read every fetched file again and compare; a damaged one is moved aside, so that the next `get` fetches
    it again.

    Returns:
        One record a file: row, file, status ('good', 'damaged' or 'absent'), sha256.
    """
    pins, seen, records = cache.pins(), {}, []
    for chosen in files:
        sha256, path = cache.expected_sha256(chosen.spec, pins), cache.find(chosen.spec, pins)
        if path is not None and path not in seen:
            sound = _sound(path) and chosen.spec.bytes in (None, path.stat().st_size)
            seen[path] = "good" if sound else "damaged"
        status = seen.get(path, "absent")
        records.append({"row": chosen.row, "file": chosen.filename, "status": status, "sha256": sha256})
    for path, status in seen.items():
        if status == "damaged":
            set_aside(path, cache)
    return records


def verify_others(cache: WeightCache, known: set[str]) -> list[dict[str, object]]:
    """The same for files that no row uses any more, and for converted files.

    Args:
        known: hashes of files that were read already.
    """
    records: list[dict[str, object]] = []
    folders = [folder for folder in (cache.files, cache.converted) if folder.exists()]
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        if path.name in known or path.suffix == ".json" or path.name.startswith("."):
            continue
        status = "good" if _sound(path) else "damaged"
        records.append({"row": "", "file": path.name, "status": status, "sha256": None})
        if status == "damaged":
            set_aside(path, cache)
    return records


def _sound(path: Path) -> bool:
    """Whether a stored file has the hash in its name, or a converted file the hash in its record."""
    try:
        if path.suffix != ".safetensors":
            return sha256_of(path) == path.name
        note = json.loads(read_regular(path.with_suffix(".json"), LARGEST_INDEX_BYTES))
        return sha256_of(path) == note["converted_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def remove_files(
    files: Iterable[Chosen], cache: WeightCache, everything: list[Chosen]
) -> list[dict[str, object]]:
    """Remove fetched files, what was converted from them, and unfinished downloads of them.

    Args:
        files: what to remove; recorded hashes stay, so that the next `get` is verified by them.
        cache: where files are kept.
        everything: the weight files of all rows, to name those that share a removed file.

    Returns:
        One record a file: row, file, status ("removed" or "absent"), sha256, shared_with (names of rows).
    """
    pins, records = cache.pins(), []
    owners: dict[str | None, list[str]] = {}
    for chosen in everything:
        owners.setdefault(cache.expected_sha256(chosen.spec, pins), []).append(chosen.row)
    for chosen in files:
        path = cache.find(chosen.spec, pins)
        with cache.lock_file(chosen.spec):
            part = cache.part(chosen.spec)
            for unfinished in (part, part.with_name(part.name + ".json")):
                unfinished.unlink(missing_ok=True)
            if path is not None:
                cache.forget(path)
        sha256 = path.name if path is not None else None
        shared = sorted({row for row in owners.get(sha256, []) if row != chosen.row}) if sha256 else []
        status = "absent" if path is None else "removed"
        record = {"row": chosen.row, "file": chosen.filename, "status": status, "sha256": sha256}
        records.append({**record, "shared_with": shared})
    return records


def set_aside(path: Path, cache: WeightCache) -> None:
    """Move a damaged file to the folder `damaged`."""
    (cache.home / "damaged").mkdir(exist_ok=True)
    os.replace(path, cache.home / "damaged" / path.name)


def export_files(files: Iterable[Chosen], cache: WeightCache, folder: Path) -> list[dict[str, object]]:
    """Copy fetched files into a folder under readable names, with SHA256SUMS and an index that `import`
    reads.

    Raises:
        DownloadError: a file is not here, or is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, object]] = []
    names: dict[str, str] = {}
    for chosen in files:
        path = cache.find(chosen.spec)
        if path is None:
            raise DownloadError(f"{chosen.row}: {chosen.filename} is not in {cache.home}; get it first")
        if sha256_of(path) != path.name:
            raise DownloadError(
                f"{path}: damaged; run `download_weights.py verify`, then get {chosen.row} again"
            )
        name = chosen.filename
        if names.get(name, path.name) != path.name:  # another file has this name
            name = f"{chosen.row}.{name}"
        names[name] = path.name
        part = fresh(folder / f".{name}.part")
        shutil.copyfile(path, part)
        os.replace(part, folder / name)
        record = {"row": chosen.row, "file": chosen.filename, "exported": name, "sha256": path.name}
        records.append(record | {"bytes": path.stat().st_size})
    write_atomic(
        folder / "SHA256SUMS", "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(names.items()))
    )
    write_atomic(folder / INDEX, json.dumps(records, indent=1) + "\n")
    return records


def import_path(
    path: Path,
    rows: list[Chosen],
    named: bool,
    cache: WeightCache,
    check: Callable[[Chosen, Path], None],
    name: str | None = None,
) -> list[tuple[Chosen, Fetched]]:
    """Import a manually downloaded file, or a folder that `export` wrote.

    Args:
        path: the file or folder.
        rows: the weight files of the named row, or of all rows.
        named: whether a row was named.
        cache: where files are kept.
        check: raises CheckpointError if a file without a known hash does not fit the row.
        name: which of the row's files it is, if its name differs.

    Raises:
        DownloadError: no row, or more than one, fits the file; or it is not its row's file.
    """
    if path.is_dir():
        return _import_folder(path, rows, cache, check)
    if not path.is_file():
        raise DownloadError(f"{path}: no such file")
    fits = _fitting(path, rows, named, cache, name)
    if len({chosen.same_as for chosen in fits}) != 1:
        found = ", ".join(f"{c.row} ({c.filename})" for c in fits[:6])
        raise DownloadError(
            f"{path}: {'it could be ' + found if fits else 'no row has such a file'}; name the row:"
            " download_weights.py import FILE ROW"
        )
    return [(fits[0], _import(path, fits[0], cache, check))]


def _import(path: Path, chosen: Chosen, cache: WeightCache, check: Callable[[Chosen, Path], None]) -> Fetched:
    if cache.expected_sha256(chosen.spec) is None:
        check(chosen, path)
    return import_file(path, chosen.spec, chosen.row, cache)


def _fitting(
    path: Path, rows: list[Chosen], named: bool, cache: WeightCache, name: str | None
) -> list[Chosen]:
    """Rows whose hash the file has; else rows by the file's name, or the only one of a named row."""
    if name is not None:
        return [c for c in rows if c.filename == name]
    sha256, pins = sha256_of(path), cache.pins()
    if exact := [c for c in rows if cache.expected_sha256(c.spec, pins) == sha256]:
        return exact
    same_name = [c for c in rows if c.filename == path.name]
    return same_name or ([c for c in rows if not c.spec.wrong] if named else [])


def _import_folder(
    folder: Path, rows: list[Chosen], cache: WeightCache, check: Callable[[Chosen, Path], None]
) -> list[tuple[Chosen, Fetched]]:
    try:
        index = json.loads(read_regular(folder / INDEX, LARGEST_INDEX_BYTES))
        wanted = [(str(r["row"]), str(r["file"]), folder / Path(str(r["exported"])).name) for r in index]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DownloadError(
            f"{folder}: no readable {INDEX} in it ({error}); import a folder that `export` wrote, or single"
            " files"
        ) from None
    by_name = {(chosen.row, chosen.filename): chosen for chosen in rows}
    taken = []
    for row, file, path in wanted:
        if (row, file) not in by_name:
            raise DownloadError(
                f"{folder / INDEX}: row {row} with {file} is not in the manifests of this machine"
            )
        chosen = by_name[row, file]
        taken.append((chosen, _import(path, chosen, cache, check)))
    return taken
