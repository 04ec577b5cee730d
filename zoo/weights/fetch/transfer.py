"""Download from one address to one `.part` file: resume, redirects, retries, refusal of pages; bytes are
hashed while they are written."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.manifest_files import MANIFEST_FOLDER
from detection_zoo.zoo.weights.fetch import headers
from detection_zoo.zoo.weights.fetch.cache import CHUNK_BYTES
from detection_zoo.zoo.weights.fetch.hosts import hide, read_page
from detection_zoo.zoo.weights.fetch.part_file import PartFile
from detection_zoo.zoo.weights.fetch.request import Again, Client, Patience, Policy, Watch, backoff_s

RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
GONE_STATUS = (401, 403, 404, 410)  # the file itself is missing or forbidden, for any range
UNPACKED = ("gzip", "deflate")
PAGE_BYTES = 128 * 1024
ERROR_BYTES = 2048
DISK_MARGIN_BYTES = 32 << 20


def download(url: str, part: PartFile, expected_bytes: int | None, policy: Policy, watch: Watch) -> None:
    """Download the file of an address into a part file, with as many attempts as the policy allows.

    Args:
        url: a direct address, http(s) or file:, whose relative paths begin in the folder of the manifests.
        part: may have the beginning of the file from an earlier run.
        expected_bytes: the size the manifest states, or none.

    Raises:
        DownloadError: the file cannot be fetched from this address; gives the reason.
    """
    if urlsplit(url).scheme == "file":
        _copy(url, part, watch)
        return
    failures, best, patience = 0, 0, Patience(policy, part.offset)
    with Client(policy, watch.stop) as client:
        for attempt in range(1, policy.total_attempts + 1):
            try:
                _attempt(client, url, part, expected_bytes, watch, patience)
                return
            except Again as error:
                failures = 0 if part.offset >= best + CHUNK_BYTES else failures + 1
                best = max(best, part.offset)
                left_s = patience.left_s
                if failures >= policy.attempts or attempt == policy.total_attempts or left_s <= 0:
                    raise DownloadError(f"{error} (tried {attempt} times)") from None
                wait_s = backoff_s(failures, error.wait_s, policy, left_s)
                watch.say(f"{hide(url)}: {error}; retrying in {wait_s:.1f} s")
                if watch.stop.wait(wait_s):
                    raise KeyboardInterrupt from None


def _copy(url: str, part: PartFile, watch: Watch) -> None:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or ".." in path.parts:
        raise DownloadError(f"{url}: write file:///ABSOLUTE/PATH, or file:PATH below {MANIFEST_FOLDER}")
    path = MANIFEST_FOLDER / path  # an absolute path stays
    if not path.is_file():
        raise DownloadError(f"{path}: no such file")
    part.restart(url=url)
    with path.open("rb") as file:
        part.fill(file, watch, path.stat().st_size, sys.maxsize)


def _attempt(
    client: Client, url: str, part: PartFile, expected_bytes: int | None, watch: Watch, patience: Patience
) -> None:
    """One request; returns when the part file is complete."""
    if part.state.get("url") != url:
        part.restart(url=url)
    asked = _range_headers(part)
    response, trail = client.ask(part.state.get("confirmed", url), asked, max(1.0, patience.left_s))
    with response:
        if response.status_code == 416 and _is_whole(response, part):
            part.state["whole_by"] = "size"
            return
        _check_status(client, response, part, bool(asked))
        client.guard.deadline = patience.ends
        first = client.read(response, _is_unpacked(response))
        if _is_page(response, first):
            rest = client.beginning(response, PAGE_BYTES)
            _follow_page(trail[-1], (first + rest)[:PAGE_BYTES], part)
        total = _begin(response, part, expected_bytes, client.policy)
        _body(client, response, first, part, total, expected_bytes, watch, patience)


def _follow_page(url: str, page: bytes, part: PartFile) -> None:
    """Store the address on a confirmation page, and request the file there."""
    was_confirmed = "confirmed" in part.state
    if was_confirmed:
        part.restart(url=part.state["url"])
        raise Again("the confirmation page was sent again")
    part.restart(url=part.state["url"], confirmed=read_page(url, page))
    raise Again("the server sent a confirmation page", wait_s=0)


def _range_headers(part: PartFile) -> dict[str, str]:
    validator = part.state.get("validator")
    if part.offset and validator and not part.state.get("no_range"):
        return {"Range": f"bytes={part.offset}-", "If-Range": validator}
    return {}


def _is_whole(response: Any, part: PartFile) -> bool:
    """Whether a 416 means that the part file is complete."""
    found = headers.content_range(response.headers)
    complete = found is not None and found.first is None and found.total == part.offset
    return complete and part.offset > 0 and part.state.get("total") in (None, part.offset)


def _check_status(client: Client, response: Any, part: PartFile, ranged: bool) -> None:
    """Raise for every status but 200 and 206.

    Args:
        ranged: whether the rest of a file was requested.
    """
    status = response.status_code
    if status == 416:
        part.restart(url=part.state["url"])
        raise Again("HTTP 416: the server reports another size; starting over")
    if status in RETRY_STATUS:
        raise Again(f"HTTP {status}", wait_s=headers.retry_after_s(response.headers))
    if ranged and 400 <= status < 500 and status not in GONE_STATUS:
        part.restart(**{**_kept(part), "no_range": True})
        raise Again(f"HTTP {status} for a request of the rest of the file; starting over")
    if status not in (200, 206):
        if "confirmed" in part.state:
            part.restart(url=part.state["url"])
            raise Again(f"HTTP {status} after a confirmation page")
        advice = {
            401: "it requires a login",
            403: "not public (any more)",
            404: "the file is gone",
            410: "the file is gone",
        }.get(status, "")
        raise DownloadError(f"HTTP {status} {advice}".strip() + _error_code(client, response))


def _error_code(client: Client, response: Any) -> str:
    """The code in a bucket's XML error, to distinguish a closed bucket from a missing file."""
    body = client.beginning(response, ERROR_BYTES)
    start, end = body.find(b"<Code>"), body.find(b"</Code>")
    return f" ({body[start + 6 : end].decode('ascii', 'replace')[:60]!s})" if 0 <= start < end else ""


def _begin(response: Any, part: PartFile, expected_bytes: int | None, policy: Policy) -> int | None:
    """Align the part file with the response; returns the total size, or None if the server does not
    send it."""
    packing = headers.packing(response.headers)
    encoded = packing != "identity"
    validator = None if encoded else headers.validator(response.headers)
    size = None if encoded else headers.content_length(response.headers)
    if response.status_code == 206:
        total = _continued(headers.content_range(response.headers), part, encoded, validator)
    else:
        total = size
        part.restart(**_kept(part), validator=validator, total=total)
    if encoded and packing not in UNPACKED:
        raise DownloadError(f"the server compresses the file as {packing!r:.40}, which was not requested")
    if expected_bytes and total not in (None, expected_bytes):
        raise DownloadError(
            f"the server's file has {total:,} bytes, the manifest says {expected_bytes:,}: another file"
        )
    if (total or 0) > policy.largest_file_bytes:
        raise DownloadError(f"the server announces {total:,} bytes, more than any checkpoint has")
    _check_space(part, total if total is not None else expected_bytes)
    return total


def _kept(part: PartFile) -> dict[str, Any]:
    """The state of an address that is kept when its file is restarted."""
    return {key: value for key, value in part.state.items() if key in ("url", "confirmed", "no_range")}


def _is_unpacked(response: Any) -> bool:
    return headers.packing(response.headers) in UNPACKED


def _continued(
    found: headers.ContentRange | None, part: PartFile, encoded: bool, validator: str | None
) -> int | None:
    """The size of the file where the response is the rest of the part file; restarts the file where it is
    not."""
    fits = found is not None and found.first == part.offset and part.offset and not encoded
    if (
        not fits
        or validator != part.state.get("validator")
        or found.total not in (None, part.state.get("total"))
    ):
        part.restart(**{**_kept(part), "no_range": True})
        raise Again("the server sent another range or version than requested; starting over")
    part.resumed = True
    return part.state.get("total")


def _check_space(part: PartFile, total: int | None) -> None:
    free = shutil.disk_usage(part.path.parent).free
    needed = (total or 0) - part.offset
    if needed + DISK_MARGIN_BYTES > free:
        sizes = f"{needed / 2**20:,.0f} MiB are still needed, {free / 2**20:,.0f} MiB are free"
        raise DownloadError(f"{sizes} in {part.path.parent}; free some space or set --home to a larger disk")


def _is_page(response: Any, first: bytes) -> bool:
    """Whether a page was received instead of a file: no checkpoint begins with '<', and none is of type
    text/html unless a server is misconfigured."""
    if response.status_code != 200:
        return False
    careless = first[:1] in (b"\x80", b"P", b"(")
    return first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" or (
        "text/html" in (headers.media_type(response.headers) or "").lower() and not careless
    )


def _limit(response: Any, total: int | None, expected_bytes: int | None, policy: Policy) -> int:
    """The most bytes the body may have: a packed body of unknown size has a limit."""
    if total or expected_bytes:
        return total or expected_bytes or 0
    if not _is_unpacked(response):
        return policy.largest_file_bytes
    length = headers.content_length(response.headers)
    return 1 << 30 if length is None else 32 * length


def _body(
    client: Client,
    response: Any,
    first: bytes,
    part: PartFile,
    total: int | None,
    expected_bytes: int | None,
    watch: Watch,
    patience: Patience,
) -> None:
    """Append the body; returns where the file is complete as far as the server states."""
    policy, unpack = client.policy, _is_unpacked(response)
    limit = _limit(response, total, expected_bytes, policy)
    window_start_s, window_offset, chunk = time.monotonic(), part.offset, first
    while chunk:
        if watch.stop.is_set():
            raise KeyboardInterrupt
        if part.offset + len(chunk) > limit:
            part.restart(url=part.state["url"])
            raise DownloadError(f"more than {limit:,} bytes received: another file than announced")
        part.write(chunk)
        watch.progress(part.offset, total)
        patience.note(part.offset)
        client.guard.deadline = patience.ends
        if (passed_s := time.monotonic() - window_start_s) > policy.slow_window_s:
            if (part.offset - window_offset) / passed_s < policy.slowest_bytes_per_s:
                raise Again(f"slower than {policy.slowest_bytes_per_s:.0f} bytes/s")
            window_start_s, window_offset = time.monotonic(), part.offset
        chunk = client.read(response, unpack)
    if total is not None and part.offset < total:
        raise Again(f"cut after {part.offset:,} of {total:,} bytes")
    ended = unpack or headers.is_chunked(response.headers)
    part.state["whole_by"] = "size" if total is not None else "end mark" if ended else "nothing"
