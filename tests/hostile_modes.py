"""A server of raw sockets on this machine that answers as no server should: the first part of the path names
the mode. Every mode is a function of (connection, number of the request, request)."""

from __future__ import annotations

import gzip
import hashlib
import random
import socket
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from demo_manifests import demo_manifests

BODY = b"\x80\x02" + random.Random(3).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
OK, PART = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 206 Partial Content\r\n"
CUT = 100_000
ROW = "mask_rcnn_vovnet27_tiny_fpn.demo"

Mode = Callable[[socket.socket, int, bytes], None]
MODES: dict[str, Mode] = {}
ended = threading.Event()


def fields(*lines: str) -> bytes:
    """Header lines and the empty line after them."""
    return b"".join(line.encode("latin1") + b"\r\n" for line in lines) + b"\r\n"


LENGTH = f"Content-Length: {len(BODY)}"


def answer(status: str, *lines: str, body: bytes = b"") -> Mode:
    """A fixed answer."""
    return lambda c, n, request: c.sendall(f"HTTP/1.1 {status}\r\n".encode("latin1") + fields(*lines) + body)


def drip(c: socket.socket, data: bytes, pause_s: float = 0.25) -> None:
    """One byte now and then."""
    for byte in data:
        if ended.wait(pause_s):
            return
        c.sendall(bytes([byte]))


def flood(c: socket.socket, data: bytes) -> None:
    """The same bytes for ever."""
    while not ended.is_set():
        c.sendall(data)


def mode(make: Mode) -> Mode:
    """Register a mode by the name of its function."""
    MODES[make.__name__] = make
    return make


def resumed(name: str, first: tuple[str, ...], then: Mode) -> None:
    """A mode that cuts the first answer and gives `then` to whoever asks for the rest."""

    def serve(c: socket.socket, n: int, request: bytes) -> None:
        if n == 1:
            c.sendall(OK + fields(LENGTH, *first) + BODY[:CUT])
        elif b"\nrange:" in request.lower():
            then(c, n, request)
        else:
            MODES["good"](c, n, request)

    MODES[name] = serve


MODES["good"] = answer("200 OK", LENGTH, "Connection: close", body=BODY)


def packed_zeros(mib: int) -> bytes:
    """A gzip file of that many MiB of zeros, without packing each of them."""
    zeros, checksum = bytes(1 << 20), 0
    packer = zlib.compressobj(wbits=-15)
    piece = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(mib):
        checksum = zlib.crc32(zeros, checksum)
    sizes = struct.pack("<II", checksum, mib << 20)
    return gzip.compress(b"")[:10] + piece * mib + packer.flush() + sizes


BOMB = packed_zeros(200)
PACKED = gzip.compress(BODY)
MODES |= {
    "short_404": answer("404 N", "Content-Length: 5000", body=b"short"),
    "gzip_lie_404": answer("404 N", "Content-Length: 5", "Content-Encoding: gzip", body=b"short"),
    "gzip_bomb_404": answer("404 N", f"Content-Length: {len(BOMB)}", "Content-Encoding: gzip", body=BOMB),
    "gzip_bomb": answer("200 K", f"Content-Length: {len(BOMB)}", "Content-Encoding: gzip", body=BOMB),
    "gzip_twice": answer("200 K", f"Content-Length: {len(BOMB)}", "Content-Encoding: gzip, gzip", body=BOMB),
    "gzip_lie": answer("200 K", LENGTH, "Content-Encoding: gzip", body=BODY),
    "gzip_redirect_bomb": answer(
        "302 F", f"Content-Length: {len(BOMB)}", "Content-Encoding: gzip", "Location: /gone", body=BOMB
    ),
    "length_superscript": answer("200 K", "Content-Length: \xb2", body=BODY[:CUT]),
    "length_of_5000_digits": answer("200 K", "Content-Length: " + "9" * 5000, body=BODY[:CUT]),
    "length_negative": answer("200 K", "Content-Length: -5", body=BODY[:CUT]),
    "length_twice": answer("200 K", LENGTH, "Content-Length: 7", body=BODY),
    "length_with_plus": answer("200 K", f"Content-Length: +{len(BODY)}", body=BODY[:CUT]),
    "retry_superscript": answer("503 S", "Retry-After: \xb2", "Content-Length: 0"),
    "retry_400_digits": answer("503 S", "Retry-After: " + "9" * 400, "Content-Length: 0"),
    "retry_year_1": answer("503 S", "Retry-After: Mon, 01 Jan 0001 00:00:00 +2359", "Content-Length: 0"),
    "retry_nan": answer("429 S", "Retry-After: nan", "Content-Length: 0"),
    "retry_after_8": answer("429 S", "Retry-After: 8", "Content-Length: 0"),
    "retry_20": answer("429 S", "Retry-After: 20", "Content-Length: 0"),
    "location_half_ipv6": answer("302 F", "Location: http://[::1/x", "Content-Length: 0"),
    "location_port": answer("302 F", "Location: http://localhost:99999999/x", "Content-Length: 0"),
    "location_latin1": answer("302 F", "Location: /gr\xfc\xdfe", "Content-Length: 0"),
    "location_latin1_host": answer("302 F", "Location: http://gr\xfc\xdf\x80e/x", "Content-Length: 0"),
    "location_label_of_300": answer(
        "302 F", "Location: http://" + "a" * 300 + ".example/", "Content-Length: 0"
    ),
    "location_of_60_kB": answer("302 F", "Location: /" + "a" * 60_000, "Content-Length: 0"),
    "location_with_password": answer("302 F", "Location: http://user:pw@localhost/x", "Content-Length: 0"),
    "location_with_escapes": answer("302 F", "Location: ftp://\x1b[31mx\x07/", "Content-Length: 0"),
    "location_to_a_file": answer("302 F", "Location: FILE:///etc/passwd", "Content-Length: 0"),
    "location_empty": answer("302 F", "Location: ", "Content-Length: 0"),
    "many_headers": answer("200 K", *(f"X-{i}: a" for i in range(5000)), LENGTH, body=BODY),
    "header_of_10_MB": answer("200 K", "X-A: " + "a" * 10_000_000, LENGTH, body=BODY),
    "status_999": answer("999 \x1b[31mhi", "Content-Length: 0"),
    "status_204": answer("204 N"),
    "status_100_digits": answer("2" * 100 + " K", "Content-Length: 0"),
    "chunk_too_large": answer("200 K", "Transfer-Encoding: chunked", body=b"ffffffffffffffff\r\n" + BODY),
    "chunk_junk": answer("200 K", "Transfer-Encoding: chunked", body=b"zz\r\n" + BODY),
    "chunk_negative": answer("200 K", "Transfer-Encoding: chunked", body=b"-5\r\n" + BODY),
    "chunk_superscript": answer("200 K", "Transfer-Encoding: chunked", body=b"\xb2\r\n" + BODY),
    "chunk_extension": answer("200 K", "Transfer-Encoding: chunked", body=b"5;" + b"a" * 20_000_000),
    "range_to_a_plain_request": answer(
        "206 P", f"Content-Range: bytes 0-{len(BODY) - 1}/{len(BODY)}", 'ETag: "a"', LENGTH, body=BODY
    ),
    "range_not_satisfiable": answer("416 R", "Content-Range: bytes */\xb2", "Content-Length: 0"),
    "cookies": answer("404 N", *(f"Set-Cookie: a{i}={'b' * 4000}; Path=/" for i in range(50)), body=b"x"),
    "page_of_tags": answer(
        "200 K", "Content-Type: text/html", body=b"<html><title>\x1b[31m" + b"<a><b>" * 20_000
    ),
    "page_of_entities": answer("200 K", "Content-Type: text/html", body=b"<html>" + b"&" * 120_000),
    "page_of_comments": answer("200 K", "Content-Type: text/html", body=b"<html>" + b"<!--" * 30_000),
    "page_of_one_tag": answer("200 K", "Content-Type: text/html", body=b"<a " + b"x='" * 40_000),
    "page_of_slashes": answer("200 K", "Content-Type: text/html", body=b"<" + b"a/" * 60_000),
    "page_form_elsewhere": answer(
        "200 K",
        "Content-Type: text/html",
        body=b'<form action="http://evil.example/x"><input type=hidden name=confirm value=t></form>',
    ),
}
resumed("etag_of_60_kB", ('ETag: "' + "a" * 60_000 + '"',), answer("431 H", "Content-Length: 0"))
resumed("etag_latin1", ('ETag: "\xfc\x80"',), answer("400 B", "Content-Length: 0"))
resumed("rest_is_refused", ('ETag: "a"',), answer("412 P", "Content-Length: 0"))
resumed(
    "rest_of_superscript_size",
    ('ETag: "a"',),
    answer("206 P", 'ETag: "a"', f"Content-Range: bytes {CUT}-300001/\xb2", body=BODY[CUT:]),
)
resumed(
    "rest_of_ten_bytes",
    ('ETag: "a"',),
    answer(
        "206 P", 'ETag: "a"', f"Content-Range: bytes {CUT}-{CUT + 9}/{len(BODY)}", body=BODY[CUT : CUT + 10]
    ),
)
resumed(
    "rest_is_a_page",
    ('ETag: "a"',),
    answer(
        "206 P",
        'ETag: "a"',
        f"Content-Range: bytes {CUT}-{len(BODY) - 1}/{len(BODY)}",
        body=b"<html>login</html>".ljust(len(BODY) - CUT),
    ),
)

# whose first answer is cut and whose next one is wrong; without asking for the rest the file arrives
ARRIVES = (
    *("etag_of_60_kB", "etag_latin1", "rest_is_refused", "rest_of_superscript_size", "rest_of_ten_bytes"),
    *("rest_is_a_page",),
)


@mode
def slow_status(c: socket.socket, n: int, request: bytes) -> None:
    drip(c, b"HTTP/1.1 200 " + b"O" * 10_000)


@mode
def slow_header(c: socket.socket, n: int, request: bytes) -> None:
    drip(c, OK + b"X-A: " + b"a" * 10_000)


@mode
def slow_404(c: socket.socket, n: int, request: bytes) -> None:
    c.sendall(b"HTTP/1.1 404 N\r\n" + fields("Content-Length: 5000"))
    drip(c, b"x" * 5000)


@mode
def slow_page(c: socket.socket, n: int, request: bytes) -> None:
    c.sendall(OK + fields("Content-Type: text/html", "Content-Length: 50000") + b"<html>")
    drip(c, b"a" * 50_000)


@mode
def slow_body(c: socket.socket, n: int, request: bytes) -> None:
    c.sendall(OK + fields(LENGTH))
    drip(c, BODY, 0.02)


@mode
def slow_redirects(c: socket.socket, n: int, request: bytes) -> None:
    drip(c, b"HTTP/1.1 302 F\r\nLocation: /slow_redirects/x\r\nContent-Length: 0\r\n\r\n", 0.05)


@mode
def silence(c: socket.socket, n: int, request: bytes) -> None:
    ended.wait(60)


@mode
def continue_flood(c: socket.socket, n: int, request: bytes) -> None:
    flood(c, b"HTTP/1.1 100 Continue\r\n\r\n" * 500)


@mode
def early_hints_flood(c: socket.socket, n: int, request: bytes) -> None:
    flood(c, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 500)


@mode
def endless_redirect_body(c: socket.socket, n: int, request: bytes) -> None:
    c.sendall(b"HTTP/1.1 302 F\r\n" + fields("Location: /gone/x"))
    flood(c, b"x" * 65536)


@mode
def endless_trailers(c: socket.socket, n: int, request: bytes) -> None:
    c.sendall(OK + fields("Transfer-Encoding: chunked") + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n")
    flood(c, b"X-T: a\r\n" * 1000)


@mode
def endless_body(c: socket.socket, n: int, request: bytes) -> None:
    c.sendall(OK + fields("Connection: close"))
    drip(c, b"\x80" * 100_000, 0.001)


@mode
def junk(c: socket.socket, n: int, request: bytes) -> None:
    c.sendall(b"\x00\xff\x1b[2J HTTP junk\r\n\r\n")


@mode
def no_headers(c: socket.socket, n: int, request: bytes) -> None:
    c.sendall(BODY)


@mode
def hangs_up(c: socket.socket, n: int, request: bytes) -> None:
    pass


@mode
def reset(c: socket.socket, n: int, request: bytes) -> None:
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.sendall(OK + fields(LENGTH) + BODY[:1000])


@contextmanager
def hostile_modes() -> Iterator[int]:
    """The server on a free port of this machine; gives the port."""
    ended.clear()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    count: Counter = Counter()

    def serve(c: socket.socket) -> None:
        with c, suppress(OSError):
            request = c.recv(1 << 20)
            name = request.split(b" ")[1].decode("latin1").split("/")[1]
            count[name] += 1
            gone = answer("404 Not Found", "Content-Length: 0")
            MODES.get(name, gone)(c, count[name], request)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def manifest_folder(folder: Path, urls: list[str], extra: str = "") -> Path:
    """A folder of manifests whose rows r0.demo, r1.demo, ... have one file each.

    Args:
        folder: made.
        urls: an address a row.
        extra: more lines of every file.
    """
    weights = (
        f'[[model.weights]]\nurls = ["{url}"]\nformat = "detectron_pkl"\nholds = "detector"\n{extra}'
        for url in urls
    )
    return demo_manifests(folder, ROW, {f"r{i}.demo": text for i, text in enumerate(weights)})
