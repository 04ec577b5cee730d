"""One address to one `.part` file: resume, redirects, retries, refusal of pages; the bytes are hashed as they pass."""
from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import DownloadError
from .cache import CHUNK_BYTES, write_atomic
from .hosts import hide, read_page, redirect_target, scrub, token_header

RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
NO_HOST = "host name not found (no network?)"
PAGE_BYTES = 128 * 1024
DISK_MARGIN_BYTES = 32 << 20


@dataclass(frozen=True)
class Policy:
    """How patient a download is. Times in seconds, sizes in bytes."""

    attempts: int = 5  # failures in a row without progress
    total_attempts: int = 100
    backoff_s: float = 0.5
    longest_wait_s: float = 60.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    slowest_bytes_per_s: float = 1024.0
    slow_window_s: float = 60.0
    redirects: int = 10
    largest_file_bytes: int = 64 << 30


@dataclass
class Watch:
    """What a caller sees and steers: progress, remarks, and a flag that stops the transfer."""

    progress: Callable[[int, int | None], None] = lambda done, total: None
    say: Callable[[str], None] = lambda text: None
    stop: threading.Event = field(default_factory=threading.Event)


class Again(Exception):
    """This attempt failed, another may not."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class PartFile:
    """A file that grows, is hashed as it grows, and remembers which version of which address it is a part of.

    Args:
        path: the `.part` file; its state lies beside it in `.part.json`.
        with_md5: also compute the MD5.
    """

    def __init__(self, path: Path, with_md5: bool) -> None:
        self.path, self.state_path, self.with_md5 = path, path.with_name(path.name + ".json"), with_md5
        self.file = path.open("ab", buffering=0)  # what came is on its way to the disk, should this process be killed
        self.state: dict[str, Any] = self._read_state()
        self.offset, self.resumed = 0, False
        self._hash_existing()

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _hash_existing(self) -> None:
        self.sha256, self.md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False) if self.with_md5 else None
        if not self.state:
            self.file.truncate(0)
        with self.path.open("rb") as existing:
            while chunk := existing.read(CHUNK_BYTES):
                self._update(chunk)
        self.resumed = self.offset > 0

    def _update(self, chunk: bytes) -> None:
        self.sha256.update(chunk)
        if self.md5:
            self.md5.update(chunk)
        self.offset += len(chunk)

    def restart(self, **state: Any) -> None:
        """Empty the file and note what it will be a part of."""
        self.file.truncate(0)
        self.file.seek(0)
        self.offset, self.resumed, self.state = 0, False, state
        self._hash_existing()
        write_atomic(self.state_path, json.dumps(state))

    def write(self, chunk: bytes) -> None:
        """Append bytes; raises DownloadError where the disk is full."""
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self.file.write(rest):]
        except OSError as error:
            raise DownloadError(f"cannot write {self.path}: {error.strerror}; free some space and run again, it goes on from there") from None
        self._update(chunk)

    def close(self, sync: bool = False) -> None:
        """Close the file; with `sync`, after its bytes are on the disk."""
        if not self.file.closed:
            if sync:
                os.fsync(self.file.fileno())
            self.file.close()

    def discard(self) -> None:
        """Remove the file and its state: its content is of no use."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Remove the state, when the file is whole or gone."""
        for path in (self.state_path, self.state_path.with_name(f".{self.state_path.name}.new")):
            path.unlink(missing_ok=True)


def new_session() -> Any:
    """A requests session that reads no .netrc, takes what a server sends as it is, and keeps no credentials."""
    import requests

    session = requests.Session()
    session.trust_env = False
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "detection-zoo", "Accept": "*/*"})
    bundle = next((os.environ[n] for n in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE") if os.environ.get(n)), None)
    if bundle:
        session.verify = bundle
    return session


def ask(session: Any, url: str, headers: dict[str, str], policy: Policy, method: str = "GET") -> tuple[Any, list[str]]:
    """Send a request and follow redirects by our own rules.

    Returns:
        The response, its body unread, and the addresses passed, the last one its own.

    Raises:
        DownloadError: a redirect that may not be followed, or too many; a host that does not exist, or no network.
        Again: the connection failed.
    """
    import requests
    from requests.utils import get_environ_proxies

    trail = [url]
    while len(trail) <= policy.redirects + 1:
        here = trail[-1]
        try:
            response = session.request(method, here, headers={**headers, **token_header(here, url)}, stream=True, allow_redirects=False,
                                       timeout=(policy.connect_timeout_s, policy.read_timeout_s), proxies=get_environ_proxies(here))
        except requests.exceptions.RequestException as error:
            problem = connection_problem(error)
            raise DownloadError(problem) if NO_HOST in problem else Again(problem) from None
        if response.status_code not in (301, 302, 303, 307, 308):
            return response, trail
        location = response.headers.get("Location", "")
        response.close()
        if not location:
            raise DownloadError(f"HTTP {response.status_code} without a Location")
        trail.append(redirect_target(here, location))
    raise DownloadError(f"more than {policy.redirects} redirects, a loop")


def connection_problem(error: Exception) -> str:
    """One line about a failed connection, without secrets."""
    text = scrub(str(error))
    for sign, meaning in (("NameResolution", NO_HOST), ("Failed to resolve", NO_HOST), ("Tunnel connection failed", "the proxy refuses the connection"),
                          ("Connection refused", "connection refused"), ("timed out", "timed out"), ("CERTIFICATE", "certificate not accepted")):
        if sign in text:
            return meaning
    if short := re.search(r"(\d+) more expected", text):
        return f"it ended {int(short[1]):,} bytes early"
    return f"{type(error).__name__}: {text[:200]}"


def download(url: str, part: PartFile, expected_bytes: int | None, policy: Policy, watch: Watch) -> None:
    """Bring the whole file behind an address into a part file, over as many attempts as the policy grants.

    Args:
        url: a direct address, http(s) or file:.
        part: may hold the beginning of the file from an earlier run.
        expected_bytes: the size the manifest states, or none.

    Raises:
        DownloadError: this address does not give the file; says why.
    """
    if urlsplit(url).scheme == "file":
        _copy(url, part, watch)
        return
    failures, best = 0, 0
    with new_session() as session:
        for attempt in range(1, policy.total_attempts + 1):
            try:
                _attempt(session, url, part, expected_bytes, policy, watch)
                return
            except Again as error:
                failures = 0 if part.offset >= best + CHUNK_BYTES else failures + 1
                best = max(best, part.offset)
                if failures >= policy.attempts or attempt == policy.total_attempts:
                    raise DownloadError(f"{error} (tried {attempt} times)") from None
                wait_s = backoff_s(failures, error.wait_s, policy)
                watch.say(f"{hide(url)}: {error}; again in {wait_s:.1f} s")
                if watch.stop.wait(wait_s):
                    raise KeyboardInterrupt from None


def backoff_s(failures: int, asked_s: float | None, policy: Policy) -> float:
    """Seconds to wait before the next attempt: what the server asks, else a random time under a bound that doubles.

    Raises:
        DownloadError: the server asks for more than the policy grants.
    """
    if asked_s is not None:
        if asked_s > policy.longest_wait_s:
            raise DownloadError(f"the server asks to come back in {asked_s:.0f} s; run the same command later")
        return asked_s
    return random.uniform(0, min(policy.longest_wait_s, policy.backoff_s * 2**failures))


def _copy(url: str, part: PartFile, watch: Watch) -> None:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise DownloadError(f"{url}: write file:///ABSOLUTE/PATH")
    if not path.is_file():
        raise DownloadError(f"{path}: no such file")
    part.restart(url=url)
    total = path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            if watch.stop.is_set():
                raise KeyboardInterrupt
            part.write(chunk)
            watch.progress(part.offset, total)
    part.state["whole_by"] = "size"


def _attempt(session: Any, url: str, part: PartFile, expected_bytes: int | None, policy: Policy, watch: Watch) -> None:
    """One request; returns when the part file is complete."""
    if part.state.get("url") != url:
        part.restart(url=url)
    response, trail = ask(session, part.state.get("confirmed", url), _range_headers(part), policy)
    with response:
        if response.status_code == 416 and _is_whole(response, part):
            part.state["whole_by"] = "size"
            return
        _check_status(response, part)
        first = _read(response)
        if _is_page(response, first):
            _follow_page(trail[-1], first + _rest_of_page(response), part)
        total = _begin(response, part, expected_bytes, policy)
        _body(response, first, part, total, expected_bytes, policy, watch)


def _follow_page(url: str, page: bytes, part: PartFile) -> None:
    """Note the address behind a confirm page, and ask again there."""
    was_confirmed = "confirmed" in part.state
    if was_confirmed:
        part.restart(url=part.state["url"])
        raise Again("the page that asks for confirmation came again")
    part.restart(url=part.state["url"], confirmed=read_page(url, page))
    raise Again("a page asks for confirmation", wait_s=0)


def _range_headers(part: PartFile) -> dict[str, str]:
    validator = part.state.get("validator")
    if part.offset and validator and not part.state.get("no_range"):
        return {"Range": f"bytes={part.offset}-", "If-Range": validator}
    return {}


def _is_whole(response: Any, part: PartFile) -> bool:
    """Whether a 416 says that the part file already holds everything."""
    complete = response.headers.get("Content-Range", "").strip() == f"bytes */{part.offset}"
    return complete and part.offset > 0 and part.state.get("total") in (None, part.offset)


def _check_status(response: Any, part: PartFile) -> None:
    """Raise for every status but 200 and 206."""
    status = response.status_code
    if status == 416:
        part.restart(url=part.state["url"])
        raise Again("HTTP 416: the server knows another size; starting over")
    if status in RETRY_STATUS:
        raise Again(f"HTTP {status}", wait_s=_retry_after_s(response.headers.get("Retry-After")))
    if status not in (200, 206):
        if "confirmed" in part.state:
            part.restart(url=part.state["url"])
            raise Again(f"HTTP {status} behind a page that asks for confirmation")
        advice = {401: "it wants a login", 403: "not public (any more)", 404: "the file is gone", 410: "the file is gone"}.get(status, "")
        raise DownloadError(f"HTTP {status} {advice}".strip() + _error_code(response))


def _error_code(response: Any) -> str:
    """The code in a bucket's XML error, to tell a closed bucket from a lost file."""
    body = response.raw.read(2048, decode_content=True) or b""
    start, end = body.find(b"<Code>"), body.find(b"</Code>")
    return f" ({body[start + 6 : end].decode('ascii', 'replace')[:60]})" if 0 <= start < end else ""


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _begin(response: Any, part: PartFile, expected_bytes: int | None, policy: Policy) -> int | None:
    """Line the part file up with the response; returns the total size, or none where the server does not say."""
    headers, encoded = response.headers, _packing(response) != "identity"
    etag = headers.get("ETag", "")
    validator = None if encoded else etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    length = headers.get("Content-Length", "")
    size = int(length) if length.isdigit() and not encoded else None
    if response.status_code == 206:
        total = _continued(headers.get("Content-Range", ""), part, encoded, validator)
    else:
        total = size
        part.restart(**_kept(part), validator=validator, total=total)
    if _packing(response) not in ("identity", "gzip", "deflate"):
        raise DownloadError(f"the server packs the file as {_packing(response)!r:.40}, which was not asked for")
    if expected_bytes and total not in (None, expected_bytes):
        raise DownloadError(f"the server's file has {total:,} bytes, the manifest says {expected_bytes:,}: another file")
    if (total or 0) > policy.largest_file_bytes:
        raise DownloadError(f"the server announces {total:,} bytes, more than any checkpoint has")
    _check_space(part, total if total is not None else expected_bytes)
    return total


def _kept(part: PartFile) -> dict[str, Any]:
    """What stays true of an address when its file is begun anew."""
    return {key: value for key, value in part.state.items() if key in ("url", "confirmed", "no_range")}


def _packing(response: Any) -> str:
    return response.headers.get("Content-Encoding", "").lower().strip() or "identity"


def _continued(content_range: str, part: PartFile, encoded: bool, validator: str | None) -> int | None:
    expected = f"bytes {part.offset}-"
    total_text = content_range.rpartition("/")[2]
    total = int(total_text) if total_text.isdigit() else None
    wrong = not content_range.startswith(expected) or not part.offset or encoded
    if wrong or validator != part.state.get("validator") or total not in (None, part.state.get("total")):
        part.restart(**_kept(part), no_range=True)
        raise Again("the server sent another range or version than asked; starting over")
    part.resumed = True
    return part.state.get("total")


def _check_space(part: PartFile, total: int | None) -> None:
    free = shutil.disk_usage(part.path.parent).free
    needed = (total or 0) - part.offset
    if needed + DISK_MARGIN_BYTES > free:
        sizes = f"{needed / 2**20:,.0f} MiB are still needed, {free / 2**20:,.0f} MiB are free"
        raise DownloadError(f"{sizes} in {part.path.parent}; free some space or set --home to a larger disk")


def _read(response: Any) -> bytes:
    """The next bytes, as soon as some are there; empty at the end."""
    import http.client

    from urllib3.exceptions import HTTPError

    try:
        return response.raw.read1(CHUNK_BYTES, decode_content=_packing(response) in ("gzip", "deflate"))
    except (HTTPError, http.client.HTTPException, OSError) as error:
        raise Again(f"the connection broke: {connection_problem(error)}") from None


def _is_page(response: Any, first: bytes) -> bool:
    """Whether a page came in place of a file: no checkpoint begins with '<', and none is of type text/html unless a server is careless."""
    if response.status_code != 200:
        return False
    careless = first[:1] in (b"\x80", b"P", b"(")
    return first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" or ("text/html" in response.headers.get("Content-Type", "").lower() and not careless)


def _rest_of_page(response: Any) -> bytes:
    body = b""
    while len(body) < PAGE_BYTES and (chunk := _read(response)):
        body += chunk
    return body[:PAGE_BYTES]


def _limit(response: Any, total: int | None, expected_bytes: int | None, policy: Policy) -> int:
    """The most bytes the body may have: a packed body of unknown size may not grow without measure."""
    if total or expected_bytes:
        return total or expected_bytes or 0
    length = response.headers.get("Content-Length", "")
    packed = _packing(response) != "identity"
    return 32 * int(length) if packed and length.isdigit() else (1 << 30) if packed else policy.largest_file_bytes


def _body(response: Any, first: bytes, part: PartFile, total: int | None, expected_bytes: int | None, policy: Policy, watch: Watch) -> None:
    """Append the body; returns where the file is complete as far as the server tells."""
    limit = _limit(response, total, expected_bytes, policy)
    window_start_s, window_offset, chunk = time.monotonic(), part.offset, first
    while chunk:
        if watch.stop.is_set():
            raise KeyboardInterrupt
        if part.offset + len(chunk) > limit:
            part.restart(url=part.state["url"])
            raise DownloadError(f"more than {limit:,} bytes came: another file than announced")
        part.write(chunk)
        watch.progress(part.offset, total)
        if (passed_s := time.monotonic() - window_start_s) > policy.slow_window_s:
            if (part.offset - window_offset) / passed_s < policy.slowest_bytes_per_s:
                raise Again(f"slower than {policy.slowest_bytes_per_s:.0f} bytes/s")
            window_start_s, window_offset = time.monotonic(), part.offset
        chunk = _read(response)
    if total is not None and part.offset < total:
        raise Again(f"cut after {part.offset:,} of {total:,} bytes")
    ended = _packing(response) != "identity" or "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    part.state["whole_by"] = "size" if total is not None else "end mark" if ended else "nothing"
