"""A server that never comes to an end: each request and each address has a deadline, whatever comes slowly or
without end; and the bodies of redirects and errors are not read."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_modes import ARRIVES, BODY, MODES, SHA256, answer, fields, hostile_modes

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.manifest import WeightSpec
from detection_zoo.zoo.weights.fetch.cache import WeightCache
from detection_zoo.zoo.weights.fetch.one import fetch_weights
from detection_zoo.zoo.weights.fetch.request import Again, Client, Policy, Watch

# a twentieth of the usual patience; without a deadline each of these takes minutes at least
BRISK = Policy(attempts=2, backoff_s=0.01, answer_s=0.8, patience_s=1.2, slow_window_s=0.8)
WITHOUT_END = [
    *("slow_status", "slow_header", "slow_404", "slow_page", "slow_body", "slow_redirects", "silence"),
    *("continue_flood", "early_hints_flood", "endless_trailers", "endless_body"),
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with hostile_modes() as port:
        yield port


def outcome(url: str, home: Path, policy: Policy = BRISK, **known: str) -> list[object]:
    """What a download ended with; it is stopped where it has no end."""
    ended: list[object] = []
    watch = Watch()

    def work() -> None:
        weights = WeightSpec(urls=[url], format="detectron", holds="detector", **known)
        try:
            ended.append(fetch_weights(weights, "row", WeightCache(home), policy=policy, watch=watch).path)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    watch.stop.set()
    return ended


@pytest.mark.parametrize("mode", WITHOUT_END)
def test_an_address_has_a_deadline(mode: str, port: int, tmp_path: Path) -> None:
    (error,) = outcome(f"http://localhost:{port}/{mode}/x.pkl", tmp_path, sha256=SHA256)
    assert isinstance(error, DownloadError) and mode in str(error)
    assert not list((tmp_path / "sha256").iterdir())


@pytest.mark.parametrize("mode", ["slow_header", "slow_body", "silence"])
def test_a_published_md5_has_a_deadline(mode: str, port: int, tmp_path: Path) -> None:
    url = f"http://localhost:{port}"
    (path,) = outcome(f"{url}/good/x.pkl", tmp_path, md5_url=f"{url}/{mode}/x.md5")
    assert isinstance(path, Path) and path.name == SHA256


@pytest.mark.parametrize("status", ["302 F", "404 N"])
def test_the_body_of_a_redirect_or_an_error_is_not_read(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server counts what it could send of 256 MiB; kernel buffers take some."""
    sent = [0]

    def serve(connection, number, request) -> None:
        connection.sendall(f"HTTP/1.1 {status}\r\n".encode() + fields("Location: /good/x.pkl"))
        for _ in range(256):
            connection.sendall(bytes(1 << 20))
            sent[0] += 1

    monkeypatch.setitem(MODES, "large", serve)
    monkeypatch.setitem(MODES, "good", answer("200 OK", f"Content-Length: {len(BODY)}", body=BODY))
    with hostile_modes() as port:
        (ended,) = outcome(f"http://localhost:{port}/large/x.pkl", tmp_path, sha256=SHA256)
    assert isinstance(ended, Path if status == "302 F" else DownloadError)
    assert sent[0] < 32


@pytest.mark.parametrize("mode", ARRIVES)
def test_a_wrong_answer_for_the_rest_of_a_file_is_recovered_from(mode: str, tmp_path: Path) -> None:
    with hostile_modes() as port:
        (path,) = outcome(
            f"http://localhost:{port}/{mode}/x.pkl", tmp_path, Policy(backoff_s=0.01), sha256=SHA256
        )
    assert isinstance(path, Path) and path.name == SHA256


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), AttributeError("x"), TypeError("x"), EOFError("x"), OSError("x")]
    + [http.client.HTTPException("x"), UnicodeEncodeError("idna", "x", 0, 1, "x")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_library_raises_about_an_answer_is_the_failure_of_one_attempt(error: Exception) -> None:
    """Which of them a library raises about malformed headers depends on its version."""
    with Client(BRISK, threading.Event()) as client, pytest.raises((Again, DownloadError)):
        with client.failures("late"):
            raise error
