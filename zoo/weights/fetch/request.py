"""One request: no .netrc, tokens only for their host, redirects only to http(s), limited retries and
deadlines."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.plain import one_line
from detection_zoo.zoo.weights.fetch.cache import CHUNK_BYTES
from detection_zoo.zoo.weights.fetch.connection import Guard, guarded_adapter
from detection_zoo.zoo.weights.fetch.hosts import (
    host_of,
    is_private_address,
    is_private_host,
    redirect_target,
    scrub,
    token_header,
)

NO_HOST = "host name not found (no network?)"
LARGEST_COOKIES = 8192  # characters


@dataclass(frozen=True)
class Policy:
    """Timeouts and retries of a download. Times in seconds, sizes in bytes."""

    attempts: int = 5  # failures in a row without progress
    total_attempts: int = 100
    backoff_s: float = 0.5
    longest_wait_s: float = 60.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 15.0  # of silence
    answer_s: float = 15.0  # until status and headers are received, redirects included
    patience_s: float = 20.0  # without progress, over all attempts at one address
    slowest_bytes_per_s: float = 1024.0
    slow_window_s: float = 15.0
    redirects: int = 10
    largest_file_bytes: int = 64 << 30


@dataclass
class Watch:
    """Callbacks for progress and messages, and an event that stops the transfer."""

    progress: Callable[[int, int | None], None] = lambda done, total: None
    say: Callable[[str], None] = lambda text: None
    stop: threading.Event = field(default_factory=threading.Event)


class Patience:
    """Time left without progress, over all attempts at one address.

    Args:
        policy: with the number of seconds.
        offset: bytes already received.
    """

    def __init__(self, policy: Policy, offset: int) -> None:
        self.best, self._policy = offset, policy
        self.ends = time.monotonic() + policy.patience_s

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.ends - time.monotonic()

    def note(self, offset: int) -> None:
        """Restart the time if enough bytes were received."""
        if offset >= self.best + self._policy.slowest_bytes_per_s * self._policy.slow_window_s:
            self.best, self.ends = offset, time.monotonic() + self._policy.patience_s


class Again(Exception):
    """This attempt failed; another one may succeed."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Client:
    """Sends the requests of one download. Use it as a context manager.

    Args:
        policy: timeouts and retries.
        stop: ends a running request promptly, with KeyboardInterrupt.

    It reads no .netrc, requests uncompressed bodies, stores no credentials, and uses one connection per
    request.
    """

    def __init__(self, policy: Policy, stop: threading.Event) -> None:
        import requests

        self.policy, self.stop, self.guard = policy, stop, Guard(stop)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers.update(
            {
                "Accept-Encoding": "identity",
                "User-Agent": "detection-zoo",
                "Accept": "*/*",
                "Connection": "close",
            }
        )
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, guarded_adapter(self.guard))
        bundles = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
        if bundle := next((os.environ[n] for n in bundles if os.environ.get(n)), None):
            self.session.verify = bundle

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.guard.close()
        self.session.close()

    def ask(self, url: str, headers: dict[str, str], within_s: float | None = None) -> tuple[Any, list[str]]:
        """Send a request and follow allowed redirects; their bodies are not read.

        Args:
            url: http(s) address.
            headers: in addition to the client's own.
            within_s: time limit for the response headers; default and maximum: the policy's.

        Returns:
            The response with an unread body, and the chain of addresses, its own last. The deadline also
            applies to the body until `guard.deadline` is changed.

        Raises:
            DownloadError: a redirect that may not be followed, or too many; a host that does not exist, or no
                network.
            Again: the connection failed, or no response arrived in time.
        """
        limit_s = min(self.policy.answer_s, within_s if within_s is not None else self.policy.answer_s)
        self.guard.deadline, self.guard.public_only = time.monotonic() + limit_s, False
        trail = [url]
        while len(trail) <= self.policy.redirects + 1:
            here = trail[-1]
            self.guard.end_request()
            with self.failures(f"no complete response within {limit_s:.0f} s"):
                response = self._send(here, headers, url)
            if self.guard.expired:  # cut within a header, it may look like a complete response
                raise Again(f"no complete response within {limit_s:.0f} s")
            if response.status_code not in (301, 302, 303, 307, 308):
                return response, trail
            location = response.headers.get("Location", "")
            response.close()
            if not location:
                raise DownloadError(f"HTTP {response.status_code} without a Location")
            trail.append(redirect_target(here, location))
            if len(trail) == 2:
                peer = self.guard.peer
                self.guard.public_only = not (
                    is_private_host(host_of(url)) if peer is None else is_private_address(peer)
                )
        raise DownloadError(f"more than {self.policy.redirects} redirects, a loop")

    def _send(self, url: str, headers: dict[str, str], origin: str) -> Any:
        import requests
        from requests.cookies import extract_cookies_to_jar
        from requests.utils import get_environ_proxies

        request = requests.Request("GET", url, headers={**headers, **token_header(url, origin)})
        prepared = self.session.prepare_request(request)
        response = self.session.get_adapter(url).send(
            prepared,
            stream=True,
            timeout=(self.policy.connect_timeout_s, self.policy.read_timeout_s),
            verify=self.session.verify,
            proxies=get_environ_proxies(url),
        )
        extract_cookies_to_jar(self.session.cookies, prepared, response.raw)
        if sum(len(cookie.value or "") for cookie in self.session.cookies) > LARGEST_COOKIES:
            self.session.cookies.clear()
        return response

    @contextmanager
    def failures(self, late: str) -> Iterator[None]:
        """Convert library errors about a connection or response to an error of this attempt.

        Args:
            late: message if the deadline passed.

        Raises:
            KeyboardInterrupt: the caller stops the transfer.
            DownloadError: no such host, or no such address. Again: anything else.
        """
        import http.client

        import requests
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (
            *(requests.exceptions.RequestException, HTTPError, http.client.HTTPException),
            *(OSError, ValueError, AttributeError, TypeError, EOFError),
        ) as error:
            if self.stop.is_set():
                raise KeyboardInterrupt from None
            if self.guard.expired:
                raise Again(late) from None
            problem = connection_problem(error)
            if NO_HOST in problem or isinstance(error, (requests.exceptions.InvalidURL, UnicodeError)):
                raise DownloadError(problem) from None
            raise Again(problem) from None

    def read(self, response: Any, decode: bool = False) -> bytes:
        """The next available bytes of a body; empty at the end. Raises as `failures`."""
        with self.failures("the connection was too slow"):
            data = response.raw.read1(CHUNK_BYTES, decode_content=decode)
        if self.stop.is_set():
            raise KeyboardInterrupt
        if not data and self.guard.expired:
            raise Again("the connection was too slow")
        return data

    def beginning(self, response: Any, size: int) -> bytes:
        """The first `size` bytes of a body, or fewer if the server sends no more."""
        body = b""
        with suppress(Again):  # a truncated message or page is still useful
            while len(body) < size and (chunk := self.read(response)):
                body += chunk
        return body[:size]


def connection_problem(error: Exception) -> str:
    """One line about a failed connection, without secrets."""
    text = scrub(str(error)[:4000])
    for sign, meaning in (
        ("NameResolution", NO_HOST),
        ("Failed to resolve", NO_HOST),
        ("Tunnel connection failed", "the proxy refused the connection"),
        ("Connection refused", "connection refused"),
        ("timed out", "timed out"),
        ("CERTIFICATE", "certificate not accepted"),
    ):
        if sign in text:
            return meaning
    if short := re.search(r"(\d+) more expected", text):
        return f"it ended {int(short[1]):,} bytes early"
    if "IncompleteRead" in text or "Connection broken" in text:
        return "the connection broke before the end"
    return f"{type(error).__name__}: {one_line(text)[:200]}"


def backoff_s(failures: int, asked_s: float | None, policy: Policy, left_s: float) -> float:
    """Seconds to wait before the next attempt: the server's Retry-After, else a random time below a doubling
    bound.

    Args:
        failures: in a row.
        asked_s: of the server's Retry-After header, or None.
        policy: longest wait and backoff.
        left_s: time left for this address.

    Raises:
        DownloadError: the server requires a longer wait than is left.
    """
    if asked_s is not None:
        if asked_s > min(policy.longest_wait_s, left_s):
            raise DownloadError(f"the server requires a wait of {asked_s:.0f} s; run the same command later")
        return asked_s
    return random.uniform(0, min(policy.longest_wait_s, left_s, policy.backoff_s * 2**failures))
