"""Parse a server's headers: a valid value, or None. No network."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from detection_zoo.zoo.plain import one_line

LONGEST_VALIDATOR = 200  # characters; it is sent with every resumed request
LONGEST_WAIT_S = 1e9

Headers = Mapping[str, str]


@dataclass(frozen=True)
class ContentRange:
    """A Content-Range: first and last byte (none for an unsatisfied range), and the size of the file, or
    none."""

    first: int | None
    last: int | None
    total: int | None


def whole_number(text: str | None) -> int | None:
    """A number of at most 18 ASCII digits; none for anything else."""
    text = (text or "").strip(" \t")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def content_length(headers: Headers) -> int | None:
    """Bytes that the body will have."""
    return whole_number(headers.get("Content-Length"))


def content_range(headers: Headers) -> ContentRange | None:
    """Byte range of the file in the body."""
    text = headers.get("Content-Range", "").strip(" \t")
    found = re.fullmatch(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)", text)
    return ContentRange(*(whole_number(group) for group in found.groups())) if found else None


def packing(headers: Headers) -> str:
    """How the body is compressed, in small letters: identity, gzip ..."""
    return headers.get("Content-Encoding", "").lower().strip() or "identity"


def media_type(headers: Headers) -> str | None:
    """The Content-Type, printable and of at most 100 characters."""
    text = headers.get("Content-Type")
    return one_line(text)[:100] if text is not None else None


def is_chunked(headers: Headers) -> bool:
    """Whether the body is sent in chunks, with an end mark."""
    return "chunked" in headers.get("Transfer-Encoding", "").lower()


def validator(headers: Headers) -> str | None:
    """Identifier of a version of the file: a strong ETag, else the date of its last change."""
    etag, date = headers.get("ETag", ""), headers.get("Last-Modified", "")
    for text, form in ((etag, r'"[!#-~]*"'), (date, r"[ -~]+")):
        if len(text) <= LONGEST_VALIDATOR and re.fullmatch(form, text):
            return text
    return None


def retry_after_s(headers: Headers) -> float | None:
    """Seconds of a Retry-After header, given as a number or a date."""
    text = headers.get("Retry-After")
    if text is None:
        return None
    if (seconds := whole_number(text)) is not None:
        return min(float(seconds), LONGEST_WAIT_S)
    try:
        return max(0.0, parsedate_to_datetime(text[:100]).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):
        return None
