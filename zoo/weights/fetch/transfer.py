"""One address to one `.part` file: resume, redirects, retries, refusal of pages; the bytes are hashed as they
pass."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.weights.fetch.cache import CHUNK_BYTES
from detection_zoo.zoo.weights.fetch.hosts import hide, read_page
from detection_zoo.zoo.weights.fetch.part_file import PartFile
from detection_zoo.zoo.weights.fetch.request import (
    Again,
    Policy,
    Watch,
    ask,
    backoff_s,
    connection_problem,
    new_session,
    retry_after_s,
)

RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
PAGE_BYTES = 128 * 1024
DISK_MARGIN_BYTES = 32 << 20


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


def _attempt(
    session: Any, url: str, part: PartFile, expected_bytes: int | None, policy: Policy, watch: Watch
) -> None:
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
        raise Again(f"HTTP {status}", wait_s=retry_after_s(response.headers.get("Retry-After")))
    if status not in (200, 206):
        if "confirmed" in part.state:
            part.restart(url=part.state["url"])
            raise Again(f"HTTP {status} behind a page that asks for confirmation")
        advice = {
            401: "it wants a login",
            403: "not public (any more)",
            404: "the file is gone",
            410: "the file is gone",
        }.get(status, "")
        raise DownloadError(f"HTTP {status} {advice}".strip() + _error_code(response))


def _error_code(response: Any) -> str:
    """The code in a bucket's XML error, to tell a closed bucket from a lost file."""
    body = response.raw.read(2048, decode_content=True) or b""
    start, end = body.find(b"<Code>"), body.find(b"</Code>")
    return f" ({body[start + 6 : end].decode('ascii', 'replace')[:60]})" if 0 <= start < end else ""


def _begin(response: Any, part: PartFile, expected_bytes: int | None, policy: Policy) -> int | None:
    """Line the part file up with the response; returns the total size, or none where the server does not
    say."""
    headers, encoded = response.headers, _packing(response) != "identity"
    etag = headers.get("ETag", "")
    validator = (
        None if encoded else etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    )
    length = headers.get("Content-Length", "")
    size = int(length) if length.isdigit() and not encoded else None
    if response.status_code == 206:
        total = _continued(headers.get("Content-Range", ""), part, encoded, validator)
    else:
        total = size
        part.restart(**_kept(part), validator=validator, total=total)
    if _packing(response) not in ("identity", "gzip", "deflate"):
        raise DownloadError(
            f"the server packs the file as {_packing(response)!r:.40}, which was not asked for"
        )
    if expected_bytes and total not in (None, expected_bytes):
        raise DownloadError(
            f"the server's file has {total:,} bytes, the manifest says {expected_bytes:,}: another file"
        )
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
    """Whether a page came in place of a file: no checkpoint begins with '<', and none is of type text/html
    unless a server is careless."""
    if response.status_code != 200:
        return False
    careless = first[:1] in (b"\x80", b"P", b"(")
    return first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" or (
        "text/html" in response.headers.get("Content-Type", "").lower() and not careless
    )


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
    return (
        32 * int(length)
        if packed and length.isdigit()
        else (1 << 30)
        if packed
        else policy.largest_file_bytes
    )


def _body(
    response: Any,
    first: bytes,
    part: PartFile,
    total: int | None,
    expected_bytes: int | None,
    policy: Policy,
    watch: Watch,
) -> None:
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
    ended = (
        _packing(response) != "identity" or "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    )
    part.state["whole_by"] = "size" if total is not None else "end mark" if ended else "nothing"
