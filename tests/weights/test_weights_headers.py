"""What servers say is data: headers, redirects, addresses in messages, planted files."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.weights.fetch import headers
from detection_zoo.zoo.weights.fetch.cache import WeightCache, write_atomic
from detection_zoo.zoo.weights.fetch.hosts import (
    hide,
    is_private_address,
    is_private_host,
    redirect_target,
    scrub,
)
from detection_zoo.zoo.weights.fetch.one import fetch_weights
from detection_zoo.zoo.weights.fetch.request import Policy

NUMBERS = [
    *[("0", 0), ("300002", 300002), (" 7 ", 7), ("²", None), ("9" * 5000, None), ("-5", None), ("+5", None)],
    *[("5, 7", None), ("5_0", None), ("٣", None), ("0x10", None), ("", None), ("1e3", None)],
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_lengths(text: str, value: int | None) -> None:
    assert headers.content_length({"Content-Length": text}) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("bytes 5-9/10", (5, 9, 10)),
        ("bytes 5-9/*", (5, 9, None)),
        ("bytes */10", (None, None, 10)),
        *[
            (text, None)
            for text in ("bytes 5-9/²", "bytes 5-/10", "pages 1-2/3", "", "bytes 1-2/" + "9" * 99)
        ],
    ],
)
def test_ranges(text: str, value: tuple | None) -> None:
    found = headers.content_range({"Content-Range": text})
    assert (found and (found.first, found.last, found.total)) == value


@pytest.mark.parametrize(
    "text", ["²", "nan", "inf", "-5", "1e9", "", "Mon, 01 Jan 0001 00:00:00 +2359", "\x1b"]
)
def test_a_malformed_wait_is_none(text: str) -> None:
    assert headers.retry_after_s({"Retry-After": text}) in (None, 0.0)


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"ETag": '"a-b"'}, '"a-b"'),
        ({"ETag": 'W/"a"'}, None),
        (
            {"ETag": 'W/"a"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            "Mon, 01 Jan 2024 00:00:00 GMT",
        ),
        ({"ETag": '"' + "a" * 60_000 + '"'}, None),
        ({"ETag": '"\xfc"'}, None),
        ({"ETag": '"a\r\n b"'}, None),
        ({"Last-Modified": "x" * 300}, None),
    ],
)
def test_validators(fields: dict[str, str], value: str | None) -> None:
    assert headers.validator(fields) == value


PRIVATE = [
    *("localhost", "a.localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "10.1.2.3"),
    *(
        "192.168.0.1",
        "172.16.5.4",
        "169.254.169.254",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "0.0.0.0",
    ),
    *("100.64.0.1", "metadata.google.internal", "printer.local", "localhost."),
]


@pytest.mark.parametrize("host", PRIVATE)
def test_a_public_host_leads_to_no_private_one(host: str) -> None:
    assert is_private_host(host)
    target = f"http://[{host}]/x" if ":" in host else f"http://{host}/x"
    with pytest.raises(DownloadError, match="from a public host to a private one .* is refused"):
        redirect_target("http://example.org/y", target)
    assert redirect_target("http://127.0.0.1/y", target) == target


@pytest.mark.parametrize(
    "host", ["example.org", "8.8.8.8", "2606:4700::1111", "local.example.org", "1.example"]
)
def test_public_hosts(host: str) -> None:
    assert not is_private_host(host)


@pytest.mark.parametrize(
    "location",
    ["http://[::1/x", "http://a:99999999/x", "/" + "a" * 60_000, "http://u@b/x", "ftp://\x1b[31m/"],
)
def test_malformed_redirects(location: str) -> None:
    with pytest.raises(DownloadError, match="refused") as caught:
        redirect_target("http://example.org/y", location)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 400


MACHINE = socket.gethostname()


def resolves() -> bool:
    try:
        return is_private_address(socket.gethostbyname(MACHINE)) and not is_private_host(MACHINE)
    except OSError:
        return False


class Proxy(BaseHTTPRequestHandler):
    """Answers every address with a redirect to this machine's name, which only a resolver knows to be
    private."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", f"http://{MACHINE}:{self.server.server_address[1]}/secret")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("0.0.0.0", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("no_proxy", MACHINE)
    monkeypatch.delenv("NO_PROXY", raising=False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(not resolves(), reason="the name of this machine does not lead to it")
def test_a_name_that_leads_to_a_private_address_is_refused(proxy: None, tmp_path: Path) -> None:
    spec = WeightSpec(urls=["http://weights.example.org/a.pth"], format="zoo", holds="detector")
    with pytest.raises(DownloadError, match="redirect to the private address .* is refused"):
        fetch_weights(spec, "r", WeightCache(tmp_path), policy=Policy(attempts=1))


def test_secrets_in_addresses_are_hidden() -> None:
    text = "https://user:pw@a.org/x https://ghp_abc@a.org/x https://a.org/x?id=5&token=HUSH&X-Amz-Signature=HUSH2 end"
    shown = hide(text, {"MY_TOKEN": "hush3"})
    for secret in ("pw", "ghp_abc", "HUSH"):
        assert secret not in shown
    assert "id=5" in shown and shown.endswith(" end")


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "?" + "a" * 200_000, "&token" * 40_000, "http://" + "a" * 200_000, "a:/" * 70_000]
)
def test_long_text_is_scrubbed_in_no_time(text: str) -> None:
    began_s = time.process_time()
    scrub(text)
    hide(text)
    assert time.process_time() - began_s < 1


@pytest.mark.parametrize("plant", ["symlink", "dangling", "hard link", "folder", "pipe"])
def test_planted_names_are_not_followed(plant: str, tmp_path: Path) -> None:
    cache, victim, source = WeightCache(tmp_path / "home"), tmp_path / "victim", tmp_path / "a.pth"
    victim.write_text("precious")
    source.write_bytes(b"x" * 1000)
    cache.prepare()
    spec = WeightSpec(urls=[source.as_uri()], format="zoo", holds="detector")
    part = cache.part(spec)
    if plant == "symlink":
        part.symlink_to(victim)
    elif plant == "dangling":
        part.symlink_to(tmp_path / "new")
    elif plant == "hard link":
        os.link(victim, part)
    elif plant == "folder":
        part.mkdir()
    else:
        os.mkfifo(part)
    with pytest.raises(DownloadError, match="not a regular file; remove it"):
        fetch_weights(spec, "r", cache)
    assert victim.read_text() == "precious" and not (tmp_path / "new").exists()


def test_text_files_are_written_beside_planted_links(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".a.json.new").symlink_to(victim)
    write_atomic(tmp_path / "a.json", "{}")
    assert victim.read_text() == "precious" and (tmp_path / "a.json").read_text() == "{}"


@pytest.mark.parametrize("plant", ["symlink", "pipe"])
def test_planted_records_of_hashes_are_not_followed(plant: str, tmp_path: Path) -> None:
    cache, victim = WeightCache(tmp_path / "home"), tmp_path / "victim"
    victim.write_text("precious")
    cache.prepare()
    cache.record.symlink_to(victim) if plant == "symlink" else os.mkfifo(cache.record)
    spec = WeightSpec(urls=["https://example.org/a.pth"], format="zoo", holds="detector")
    with pytest.raises(DownloadError, match="pins.jsonl: not a regular file; remove it"):
        cache.pins()
    with pytest.raises(DownloadError, match="pins.jsonl: not a regular file; remove it"):
        cache.remember(spec, "0" * 64, 1, "x", "r")
    assert victim.read_text() == "precious"
