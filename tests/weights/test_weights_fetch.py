"""Fetching from a server that misbehaves: each case ends in the right file or in one clear error, never in a
bad file under a good name."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_server import BODY, SHA256, HostileServer, hostile_server

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.weights.fetch import hosts
from detection_zoo.zoo.weights.fetch.cache import WeightCache
from detection_zoo.zoo.weights.fetch.one import Fetched, fetch_weights, import_file
from detection_zoo.zoo.weights.fetch.request import Policy, Watch

FAST = Policy(attempts=3, backoff_s=0.01, connect_timeout_s=5, read_timeout_s=5)
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[HostileServer]:
    with hostile_server() as state:
        yield state


@pytest.fixture
def server(shared_server: HostileServer) -> HostileServer:
    for state in (shared_server, shared_server.neighbour):
        state.seen.clear()
        state.count.clear()
    return shared_server


@pytest.fixture
def cache(tmp_path: Path) -> WeightCache:
    return WeightCache(tmp_path / "home")


def spec(*urls: str, **fields: object) -> WeightSpec:
    return WeightSpec(urls=list(urls), format="detectron", holds="detector", **fields)


def get(cache: WeightCache, weights: WeightSpec, policy: Policy = FAST, **options: object) -> Fetched:
    return fetch_weights(weights, "some_row", cache, policy=policy, **options)


def nothing_bad(cache: WeightCache) -> None:
    """Every file under a good name has the content that the name promises."""
    for path in cache.files.glob("*") if cache.files.exists() else ():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


ARRIVES = [
    "good",
    "cut-then-good",
    "cut-then-etag-changed",
    "etag-changed-if-range-ignored",
    "range-ignored",
    "wrong-range",
    "lying-range",
    "416",
    "429",
    "500",
    "redirect",
    "redirect-other-host",
    "chunked",
    "gzip",
    "traversal",
    "no-length",
    "stall-then-good",
]
FAILS = {
    "cut-always": "bytes early",
    "length-too-large": "bytes early|another file",
    "length-too-small": "another file|SHA-256",
    "wrong-range-always": "bytes early",
    "429-for-hours": "requires a wait of 7200 s",
    "500-always": r"HTTP 500 \(tried 3 times\)",
    "404": r"HTTP 404 the file is gone \(NoSuchKey\)",
    "redirect-loop": "redirects, a loop",
    "redirect-to-file": r"redirect to .*file.* is refused",
    "redirect-signed-to-file": "only http",
    "redirect-nowhere": "without a Location",
    "html": "web page instead.*Page not found",
    "html-as-binary": "web page instead",
    "brotli": "compresses the file as 'br'",
    "wrong-bytes": "SHA-256 is .* not the file",
    "empty": "empty file|0 bytes",
    "huge": "another file|more than any",
    "larger": "another file|SHA-256",
    "gzip-bomb": "more than .* bytes received",
    "chunked-cut": "connection broke",
    "no-length-cut": "bytes received|SHA-256",
    "stall": "timed out",
    "drip": "slower than",
}


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "sized"])
@pytest.mark.parametrize("case", ARRIVES)
def test_arrives(case: str, pinned: bool, server: HostileServer, cache: WeightCache) -> None:
    policy = replace(FAST, read_timeout_s=0.3) if "stall" in case else FAST
    fields = {"sha256": SHA256} if pinned else {"bytes": len(BODY)}
    if case == "lying-range" and not pinned:
        fields = {"md5": MD5}
    fetched = get(cache, spec(server.url(case), **fields), policy)
    assert fetched.path.read_bytes() == BODY
    assert fetched.path == cache.file(SHA256)
    assert fetched.hash_from == ("manifest" if pinned else "first use")
    assert not list(cache.parts.iterdir())
    assert not list(cache.home.rglob("*evil*"))


@pytest.mark.parametrize(
    "known", [{"sha256": SHA256}, {"sha256": SHA256, "bytes": len(BODY)}], ids=["hash", "hash-and-size"]
)
@pytest.mark.parametrize("case", FAILS)
def test_fails_clearly(case: str, known: dict, server: HostileServer, cache: WeightCache) -> None:
    policy = FAST
    if case == "stall":
        policy = replace(FAST, attempts=2, read_timeout_s=0.2)
    if case == "drip":
        policy = replace(FAST, attempts=2, slow_window_s=0.2)
    with pytest.raises(DownloadError, match=FAILS[case]) as caught:
        get(cache, spec(server.url(case), **known), policy)
    assert "some_row" in str(caught.value) and f"localhost:{server.port}/{case}/" in str(caught.value)
    assert not list(cache.files.iterdir())


@pytest.mark.parametrize("case", ["no-length", "no-length-cut"])
def test_unpinned_without_size_or_end_is_refused(
    case: str, server: HostileServer, cache: WeightCache
) -> None:
    with pytest.raises(DownloadError, match="cannot be checked for completeness"):
        get(cache, spec(server.url(case)))
    nothing_bad(cache)


def test_length_too_large_is_settled_by_the_hash(server: HostileServer, cache: WeightCache) -> None:
    assert get(cache, spec(server.url("length-too-large-then-416"), sha256=SHA256)).path.read_bytes() == BODY


def test_resume_asks_for_the_rest_only(server: HostileServer, cache: WeightCache) -> None:
    get(cache, spec(server.url("cut-then-good"), sha256=SHA256))
    first, second = server.seen
    assert "Range" not in first.headers
    assert second.headers["Range"] == "bytes=192001-" and second.headers["If-Range"] == '"one"'


def test_stopped_download_is_resumed_by_the_next_call(server: HostileServer, cache: WeightCache) -> None:
    server.files["big.pkl"] = big = BODY * 20
    stop = threading.Event()
    watch = Watch(progress=lambda done, total: stop.set() if done > len(big) // 3 else None, stop=stop)
    weights = spec(server.url("files", "big.pkl"))
    with pytest.raises(KeyboardInterrupt):
        get(cache, weights, watch=watch)
    kept = next(cache.parts.glob("*.part")).stat().st_size
    assert len(big) // 3 < kept < len(big)
    assert get(cache, weights).path.read_bytes() == big
    assert server.seen[-1].headers["Range"] == f"bytes={kept}-"


def test_retry_after_is_waited_for(server: HostileServer, cache: WeightCache) -> None:
    said: list[str] = []
    get(cache, spec(server.url("429"), sha256=SHA256), watch=Watch(say=said.append))
    assert any("HTTP 429; retrying in 1.0 s" in line for line in said)


def test_token_goes_to_its_host_alone(
    server: HostileServer, cache: WeightCache, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("LOCALHOST_TOKEN", "hush-hush-1")
    monkeypatch.setenv("127_0_0_1_TOKEN", "hush-hush-2")
    said: list[str] = []
    watch = Watch(say=said.append)
    get(cache, spec(server.url("redirect-signed"), sha256=SHA256), watch=watch)
    assert server.seen[0].headers["Authorization"] == "Bearer hush-hush-1"
    assert "Authorization" not in server.neighbour.seen[0].headers
    for case, name in (("404", "hush-hush-1"), ("redirect-signed-to-file", "x")):
        with pytest.raises(DownloadError) as caught:
            get(cache, spec(server.url(case, name)), watch=watch)
        said.append(str(caught.value))
    written = b"".join(
        path.read_bytes() for path in cache.home.rglob("*") if path.is_file() and path.parent != cache.files
    )
    told = "".join([*said, *capfd.readouterr()])
    for secret in ("hush-hush", "do-not-tell"):
        assert secret not in told and secret.encode() not in written


def test_no_authorization_without_a_token_nor_from_netrc(
    server: HostileServer, cache: WeightCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    get(cache, spec(server.url("good"), sha256=SHA256))
    assert "Authorization" not in server.seen[0].headers


def test_proxy_from_the_environment(
    server: HostileServer, cache: WeightCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    with pytest.raises(DownloadError):
        get(cache, spec("http://weights.invalid/good/x.pkl", sha256=SHA256))
    assert (
        server.seen[0].path == "http://weights.invalid/good/x.pkl"
    )  # a proxy is asked for the whole address


def test_mirrors_in_order_and_all_reasons(server: HostileServer, cache: WeightCache) -> None:
    fetched = get(
        cache,
        spec(
            server.url("404"),
            server.url("html"),
            server.url("wrong-bytes"),
            server.url("good"),
            sha256=SHA256,
        ),
    )
    assert fetched.url == server.url("good")
    assert [s.path.split("/")[1] for s in server.seen] == ["404", "html", "wrong-bytes", "good"]
    with pytest.raises(DownloadError) as caught:
        get(
            cache,
            spec(server.url("404"), server.url("html"), sha256="0" * 64, manual="https://example.org/page"),
        )
    assert [
        word in str(caught.value)
        for word in ("HTTP 404", "web page", "https://example.org/page", "import FILE some_row")
    ] == [True] * 4


def test_drive_confirm_page(
    server: HostileServer, cache: WeightCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "DRIVE_DOWNLOAD", f"http://localhost:{server.port}/drive/download")
    fetched = get(cache, spec("https://drive.google.com/open?id=abc", sha256=SHA256, filename="x.pth"))
    assert fetched.path.read_bytes() == BODY
    assert server.seen[0].path == "/drive/download?id=abc&export=download"
    assert server.seen[1].path == "/drive-confirmed/download?id=abc&confirm=t&uuid=u-1"


@pytest.mark.parametrize(
    ("case", "message"), [("quota", "quota for this file is used up.*import"), ("html", "web page instead")]
)
def test_drive_dead_ends(
    case: str, message: str, server: HostileServer, cache: WeightCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "DRIVE_DOWNLOAD", f"http://localhost:{server.port}/{case}/download")
    with pytest.raises(DownloadError, match=message):
        get(cache, spec("https://drive.google.com/file/d/abc/view", filename="x.pth"))


def test_first_use_is_recorded_and_checked_ever_after(server: HostileServer, cache: WeightCache) -> None:
    server.files["model.pth"] = BODY
    weights = spec(server.url("files", "model.pth"))
    first = get(cache, weights)
    assert first.hash_from == "first use" and first.sha256 == SHA256
    record = json.loads(cache.record.read_text())
    assert (record["key"], record["sha256"], record["bytes"], record["row"]) == (
        server.url("files", "model.pth"),
        SHA256,
        len(BODY),
        "some_row",
    )
    assert get(cache, weights).hash_from == "record" and len(server.seen) == 1
    first.path.unlink()
    server.files["model.pth"] = BODY[::-1]
    with pytest.raises(
        DownloadError, match="the record of .* says .* not the file; if the publisher replaced it"
    ):
        get(cache, weights)
    nothing_bad(cache)


def test_torn_record_line_is_dropped(cache: WeightCache) -> None:
    weights = spec("https://example.org/a.pth")
    cache.remember(weights, "1" * 64, 5, "https://example.org/a.pth", "row_a")
    whole = cache.record.read_bytes()
    cache.record.write_bytes(whole + whole[:30])
    assert cache.pin_of(weights).sha256 == "1" * 64
    cache.remember(spec("https://example.org/b.pth"), "2" * 64, 5, "x", "row_b")
    assert [pin.row for pin in cache.pins().values()] == ["row_a", "row_b"]


def test_published_md5(server: HostileServer, cache: WeightCache) -> None:
    assert get(cache, spec(server.url("good"), md5_url=server.url("md5sum"))).path.read_bytes() == BODY
    with pytest.raises(DownloadError, match="MD5 is .* the publisher says 0000"):
        get(WeightCache(cache.home / "second"), spec(server.url("good"), md5_url=server.url("md5sum-wrong")))
    said: list[str] = []
    get(
        WeightCache(cache.home / "third"),
        spec(server.url("good"), md5_url=server.url("404")),
        watch=Watch(say=said.append),
    )
    assert any("published MD5 could not be fetched" in line for line in said)


def test_refused_rows(server: HostileServer, cache: WeightCache) -> None:
    with pytest.raises(DownloadError, match="marked wrong .*: holds V-39"):
        get(cache, spec(server.url("good"), wrong="holds V-39"))
    with pytest.raises(DownloadError, match="manual download: open https://pan.baidu.com/s/1 .*import FILE"):
        get(cache, spec("https://pan.baidu.com/s/1", manual="https://pan.baidu.com/s/1", filename="a.pth"))
    with pytest.raises(DownloadError, match="--offline forbids"):
        get(cache, spec(server.url("good")), offline=True)
    assert not server.seen


def test_disk_space_is_checked_first(server: HostileServer, cache: WeightCache) -> None:
    with pytest.raises(DownloadError, match="MiB are still needed.*MiB are free"):
        get(cache, spec(server.url("huge")), replace(FAST, largest_file_bytes=1 << 60))


def test_file_address_and_import(cache: WeightCache, tmp_path: Path) -> None:
    (tmp_path / "a file.pth").write_bytes(BODY)
    assert get(cache, spec((tmp_path / "a file.pth").as_uri()), offline=True).sha256 == SHA256
    other = WeightCache(tmp_path / "other")
    manual = spec(manual="https://pan.baidu.com/s/1", sha256=SHA256, filename="a.pth")
    assert import_file(tmp_path / "a file.pth", manual, "r", other).path.read_bytes() == BODY
    (tmp_path / "b.pth").write_bytes(BODY + b"x")
    with pytest.raises(DownloadError, match="SHA-256 is"):
        import_file(tmp_path / "b.pth", spec(manual="https://p", sha256="3" * 64), "r", other)
    nothing_bad(other)


def test_unreachable_folder(tmp_path: Path, server: HostileServer) -> None:
    (tmp_path / "home").write_text("a file, not a folder")
    with pytest.raises(DownloadError, match="cannot create the weight folder"):
        get(WeightCache(tmp_path / "home"), spec(server.url("good")))


def test_no_network_says_so(cache: WeightCache) -> None:
    with pytest.raises(DownloadError, match="host name not found|tests may not use the network|refused"):
        get(cache, spec("https://weights.invalid/x.pth"), replace(FAST, attempts=1))


def test_stored_files_are_read_only(server: HostileServer, cache: WeightCache) -> None:
    assert os.stat(get(cache, spec(server.url("good"))).path).st_mode & 0o222 == 0
