"""A real HTTP server on this machine that misbehaves on purpose: the first part of the path names how."""

from __future__ import annotations

import gzip
import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BODY = b"\x80\x02" + b"".join(
    hashlib.sha256(str(i).encode()).digest() for i in range(12_000)
)  # 384,002 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()
HALF = len(BODY) // 2
ETAG = '"one"'

CONFIRM_PAGE = b"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body><p>too large to scan</p>
<form id="download-form" action="/drive-confirmed/download" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="abc"><input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="u-1"></form></body></html>"""
QUOTA_PAGE = b"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p>Sorry, you can't view or download this file at this time.</p><p>Too many users have viewed or downloaded this file recently.</p></body></html>"""
HTML_PAGE = b"<!doctype html><html><head><title>Page not found</title></head><body>Sorry</body></html>"


@dataclass
class Seen:
    """One request as it came."""

    path: str
    headers: dict[str, str]


@dataclass
class HostileServer:
    """A running server: its address, what it was asked, and where a case may send a client on."""

    port: int
    seen: list[Seen] = field(default_factory=list)
    count: Counter = field(default_factory=Counter)
    other: str = ""  # another origin, for redirects
    files: dict[str, bytes] = field(default_factory=dict)
    neighbour: HostileServer | None = None
    released: threading.Event = field(
        default_factory=threading.Event
    )  # set at the end: cases that hang let go

    def url(self, case: str, name: str = "weights.pkl") -> str:
        return f"http://localhost:{self.port}/{case}/{name}"


class Handler(BaseHTTPRequestHandler):
    """Answers by the case in the path."""

    protocol_version = "HTTP/1.1"
    state: HostileServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        case = self.path.split("?")[0].split("/")[1]
        self.state.seen.append(Seen(self.path, dict(self.headers)))
        self.state.count[case] += 1
        answer = CASES.get(case)
        if answer is None:
            self.send_error(404)
        else:
            answer(self, self.state.count[case])

    def start(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def whole(self, body: bytes = BODY, status: int = 200, **headers: str) -> None:
        self.start(status, len(body), **headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self, body: bytes, length: int, **headers: str) -> None:
        """Announce `length` bytes, send `body`, and hang up."""
        self.start(200, length, **headers)
        self.wfile.write(body)
        self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def range_start(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])

    def ranged(self, body: bytes = BODY, etag: str = ETAG, **headers: str) -> None:
        """An honest server: Range with If-Range."""
        start = self.range_start()
        if start and self.headers.get("If-Range", etag) == etag:
            if start >= len(body):
                self.whole(b"", 416, Content_Range=f"bytes */{len(body)}")
                return
            self.whole(
                body[start:],
                206,
                ETag=etag,
                Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}",
                **headers,
            )
        else:
            self.whole(body, ETag=etag, **headers)


Case = Callable[[Handler, int], None]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Register how the server answers under /name/."""

    def add(answer: Case) -> Case:
        CASES[name] = answer
        return answer

    return add


case("good")(lambda h, n: h.ranged())
case("cut-then-good")(lambda h, n: h.cut(BODY[:HALF], len(BODY), ETag=ETAG) if n == 1 else h.ranged())
case("cut-always")(lambda h, n: h.cut(BODY[:HALF], len(BODY)))
case("cut-then-etag-changed")(
    lambda h, n: h.cut(b"\x80old" * 30_000, len(BODY), ETag='"old"') if n == 1 else h.ranged()
)
case("etag-changed-if-range-ignored")(
    lambda h, n: (
        h.cut(b"\x80old" * 30_000, len(BODY), ETag='"old"')
        if n == 1
        else (
            h.whole(
                BODY[h.range_start() :],
                206,
                ETag=ETAG,
                Content_Range=f"bytes {h.range_start()}-{len(BODY) - 1}/{len(BODY)}",
            )
            if h.range_start()
            else h.whole(ETag=ETAG)
        )
    )
)
case("length-too-large")(lambda h, n: h.cut(BODY, len(BODY) + 100, ETag=ETAG))
case("length-too-large-then-416")(
    lambda h, n: h.cut(BODY, len(BODY) + 100, ETag=ETAG) if n == 1 else h.ranged()
)
case("length-too-small")(lambda h, n: h.cut(BODY, HALF))
case("range-ignored")(lambda h, n: h.cut(BODY[:HALF], len(BODY), ETag=ETAG) if n == 1 else h.whole(ETag=ETAG))
case("wrong-range")(
    lambda h, n: (
        h.cut(BODY[:HALF], len(BODY), ETag=ETAG)
        if n == 1
        else (
            h.whole(BODY[10:], 206, ETag=ETAG, Content_Range=f"bytes 10-{len(BODY) - 1}/{len(BODY)}")
            if h.range_start()
            else h.whole(ETag=ETAG)
        )
    )
)
case("wrong-range-always")(
    lambda h, n: (
        h.cut(BODY[:HALF], len(BODY), ETag=ETAG)
        if not h.range_start()
        else h.whole(BODY[10:], 206, ETag=ETAG, Content_Range=f"bytes 10-{len(BODY) - 1}/{len(BODY)}")
    )
)
case("lying-range")(  # says the right range, sends other bytes
    lambda h, n: (
        h.cut(BODY[:HALF], len(BODY), ETag=ETAG)
        if n == 1
        else (
            h.whole(
                BODY[: len(BODY) - h.range_start()],
                206,
                ETag=ETAG,
                Content_Range=f"bytes {h.range_start()}-{len(BODY) - 1}/{len(BODY)}",
            )
            if h.range_start()
            else h.whole(ETag=ETAG)
        )
    )
)
case("416")(
    lambda h, n: (
        h.cut(BODY[:HALF], len(BODY), ETag=ETAG)
        if n == 1
        else h.whole(b"", 416, Content_Range="bytes */7")
        if n == 2
        else h.ranged()
    )
)
case("429")(lambda h, n: h.whole(b"slow down", 429, Retry_After="1") if n == 1 else h.ranged())
case("429-for-hours")(lambda h, n: h.whole(b"slow down", 429, Retry_After="7200"))
case("500")(lambda h, n: h.whole(b"oops", 500) if n < 3 else h.ranged())
case("500-always")(lambda h, n: h.whole(b"oops", 500))
case("404")(lambda h, n: h.whole(b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", 404))
case("redirect-loop")(lambda h, n: h.whole(b"", 302, Location="/redirect-loop/weights.pkl"))
case("redirect")(lambda h, n: h.whole(b"", 302, Location="/good/weights.pkl"))
case("redirect-other-host")(lambda h, n: h.whole(b"", 302, Location=f"{h.state.other}/good/weights.pkl"))
case("redirect-signed")(
    lambda h, n: h.whole(b"", 302, Location=f"{h.state.other}/good/weights.pkl?signature=do-not-tell")
)
case("redirect-signed-to-file")(
    lambda h, n: h.whole(b"", 302, Location="ftp://localhost/x?signature=do-not-tell")
)
case("redirect-to-file")(lambda h, n: h.whole(b"", 301, Location="file:///etc/hostname"))
case("redirect-nowhere")(lambda h, n: h.whole(b"", 302))
case("html")(lambda h, n: h.whole(HTML_PAGE, Content_Type="text/html; charset=utf-8"))
case("html-as-binary")(lambda h, n: h.whole(HTML_PAGE, Content_Type="application/octet-stream"))
case("quota")(lambda h, n: h.whole(QUOTA_PAGE, Content_Type="text/html"))
case("drive")(lambda h, n: h.whole(CONFIRM_PAGE, Content_Type="text/html"))
case("drive-confirmed")(
    lambda h, n: h.ranged() if "uuid=u-1" in h.path and "confirm=t" in h.path else h.whole(HTML_PAGE)
)
case("gzip")(lambda h, n: h.whole(gzip.compress(BODY), Content_Encoding="gzip"))
case("gzip-bomb")(lambda h, n: h.whole(gzip.compress(bytes(64 << 20)), Content_Encoding="gzip"))
case("brotli")(lambda h, n: h.whole(BODY, Content_Encoding="br"))
case("wrong-bytes")(lambda h, n: h.ranged(BODY[:-1] + bytes([BODY[-1] ^ 1])))
case("traversal")(lambda h, n: h.ranged(Content_Disposition='attachment; filename="../../../evil.pkl"'))
case("empty")(lambda h, n: h.whole(b""))
case("huge")(lambda h, n: h.cut(b"\x80", 1 << 50))
case("larger")(lambda h, n: h.whole(BODY + b"more"))
case("md5sum")(
    lambda h, n: h.whole(
        hashlib.md5(BODY, usedforsecurity=False).hexdigest().encode() + b"  model_final.pkl\n"
    )
)
case("md5sum-wrong")(lambda h, n: h.whole(b"0" * 32 + b"\n"))


@case("files")
def _files(h: Handler, n: int) -> None:
    h.ranged(h.state.files[h.path.rpartition("/")[2]])


@case("no-length")
def _no_length(h: Handler, n: int) -> None:
    h.send_response(200)
    h.send_header("Connection", "close")
    h.end_headers()
    h.wfile.write(BODY)
    h.hang_up()


@case("no-length-cut")
def _no_length_cut(h: Handler, n: int) -> None:
    h.send_response(200)
    h.send_header("Connection", "close")
    h.end_headers()
    h.wfile.write(BODY[:HALF])
    h.hang_up()


def _chunks(h: Handler, body: bytes) -> None:
    h.start(200, None, Transfer_Encoding="chunked")
    for at in range(0, len(body), 50_000):
        piece = body[at : at + 50_000]
        h.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")


@case("chunked")
def _chunked(h: Handler, n: int) -> None:
    _chunks(h, BODY)
    h.wfile.write(b"0\r\n\r\n")


@case("chunked-cut")
def _chunked_cut(h: Handler, n: int) -> None:
    _chunks(h, BODY[:HALF])
    h.hang_up()


@case("stall")
def _stall(h: Handler, n: int) -> None:
    """Half the file, then silence until the client hangs up."""
    h.start(200, len(BODY), ETag=ETAG)
    h.wfile.write(BODY[:HALF])
    h.wfile.flush()
    h.connection.recv(1)
    h.hang_up()


@case("stall-then-good")
def _stall_then_good(h: Handler, n: int) -> None:
    _stall(h, n) if n == 1 else h.ranged()


@case("drip")
def _drip(h: Handler, n: int) -> None:
    """One byte every 20 ms: never silent for long, never done."""
    h.start(200, len(BODY), ETag=ETAG)
    for byte in BODY:
        if h.state.released.wait(0.02):
            break
        try:
            h.wfile.write(bytes([byte]))
        except OSError:
            break
    h.hang_up()


class Server(ThreadingHTTPServer):
    """Threads that end with the test, and no noise about clients that hang up."""

    daemon_threads, block_on_close = True, False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def hostile_server() -> Iterator[HostileServer]:
    """A server on a free port of this machine; a second one beside it is another origin (`other`)."""
    servers, states = [], []
    for _ in range(2):
        handler = type("BoundHandler", (Handler,), {})
        server = Server(("127.0.0.1", 0), handler)
        handler.state = HostileServer(server.server_address[1])
        servers.append(server)
        states.append(handler.state)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    states[0].other = f"http://127.0.0.1:{states[1].port}"
    states[0].neighbour = states[1]
    try:
        yield states[0]
    finally:
        for server, state in zip(servers, states, strict=True):
            state.released.set()
            server.shutdown()
            server.server_close()
