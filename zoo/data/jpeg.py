"""Segments of JPEG files: whether a file is complete or cut short."""

from __future__ import annotations

import re

_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # a marker that is neither stuffing nor a restart
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_CUT = "is cut short (no end marker after its last scan)"
_START, _SCAN, _END, _PROGRESSIVE = b"\xff\xd8", 0xDA, 0xD9, 0xC2
_COEFFICIENTS = frozenset(range(64))
_MOST_SCANS = 256  # encoders write about ten; each costs a pass over the image


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes begin as a JPEG file does."""
    return data[:2] == _START


def jpeg_problem(data: bytes) -> str | None:
    """A fault of a JPEG file that decoders ignore, or None; bytes after the end marker are allowed.

    A file is cut short where no end marker follows its last scan, or where the scans of a progressive one
    do not refine every coefficient to its last bit (ITU-T T.81, G.1): a truncated file with an appended
    end marker.

    Args:
        data: the whole file.
    """
    place, scans, progressive = 2, [], False
    while True:
        place = data.find(b"\xff", place)
        while 0 <= place < len(data) - 1 and data[place + 1] == 0xFF:  # fill bytes
            place += 1
        if place < 0 or place >= len(data) - 1:
            return _CUT if scans else "cannot be decoded: it is cut short before its first scan"
        marker, place = data[place + 1], place + 2
        if marker == _END:
            break
        if marker in _ALONE or marker == 0:
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        segment = data[place + 2 : place + length]
        progressive |= marker == _PROGRESSIVE
        place += length
        if marker == _SCAN:
            scans.append(segment)
            if len(scans) > _MOST_SCANS:
                return f"has more than {_MOST_SCANS} scans"
            found = _AFTER_SCAN.search(data, place)
            if found is None:
                return _CUT
            place = found.start()
    if progressive and not _complete(scans):
        return "is cut short (its last progressive scans are missing)"
    return None


def _complete(scans: list[bytes]) -> bool:
    """Whether every component's 64 coefficients got their last bit."""
    done: dict[int, set[int]] = {}
    for scan in scans:
        count = scan[0] if scan else 0
        if len(scan) < 1 + 2 * count + 3:
            return False
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
        for component in scan[1 : 1 + 2 * count : 2]:
            reached = done.setdefault(component, set())
            if bits & 0x0F == 0:
                reached.update(range(first, last + 1))
    return bool(done) and all(reached >= _COEFFICIENTS for reached in done.values())
