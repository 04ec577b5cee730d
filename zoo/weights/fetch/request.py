"""One request by our own rules: no .netrc, tokens for their host alone, redirects that stay on http(s),
patience within bounds."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.weights.fetch.hosts import redirect_target, scrub, token_header

NO_HOST = "host name not found (no network?)"


@dataclass(frozen=True)
class Policy:
    """How patient a download is. Times in seconds, sizes in bytes."""

    attempts: int = 5  # failures in a row without progress
    total_attempts: int = 100
    backoff_s: float = 0.5
    longest_wait_s: float = 60.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    slowest_bytes_per_s: float = 1024.0
    slow_window_s: float = 60.0
    redirects: int = 10
    largest_file_bytes: int = 64 << 30


@dataclass
class Watch:
    """What a caller sees and steers: progress, remarks, and a flag that stops the transfer."""

    progress: Callable[[int, int | None], None] = lambda done, total: None
    say: Callable[[str], None] = lambda text: None
    stop: threading.Event = field(default_factory=threading.Event)


class Again(Exception):
    """This attempt failed, another may not."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def new_session() -> Any:
    """A requests session that reads no .netrc, takes what a server sends as it is, and keeps no
    credentials."""
    import requests

    session = requests.Session()
    session.trust_env = False
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "detection-zoo", "Accept": "*/*"})
    bundle = next(
        (
            os.environ[n]
            for n in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
            if os.environ.get(n)
        ),
        None,
    )
    if bundle:
        session.verify = bundle
    return session


def ask(
    session: Any, url: str, headers: dict[str, str], policy: Policy, method: str = "GET"
) -> tuple[Any, list[str]]:
    """Send a request and follow redirects by our own rules.

    Returns:
        The response, its body unread, and the addresses passed, the last one its own.

    Raises:
        DownloadError: a redirect that may not be followed, or too many; a host that does not exist, or no
            network.
        Again: the connection failed.
    """
    import requests
    from requests.utils import get_environ_proxies

    trail = [url]
    while len(trail) <= policy.redirects + 1:
        here = trail[-1]
        try:
            response = session.request(
                method,
                here,
                headers={**headers, **token_header(here, url)},
                stream=True,
                allow_redirects=False,
                timeout=(policy.connect_timeout_s, policy.read_timeout_s),
                proxies=get_environ_proxies(here),
            )
        except requests.exceptions.RequestException as error:
            problem = connection_problem(error)
            raise DownloadError(problem) if NO_HOST in problem else Again(problem) from None
        if response.status_code not in (301, 302, 303, 307, 308):
            return response, trail
        location = response.headers.get("Location", "")
        response.close()
        if not location:
            raise DownloadError(f"HTTP {response.status_code} without a Location")
        trail.append(redirect_target(here, location))
    raise DownloadError(f"more than {policy.redirects} redirects, a loop")


def connection_problem(error: Exception) -> str:
    """One line about a failed connection, without secrets."""
    text = scrub(str(error))
    for sign, meaning in (
        ("NameResolution", NO_HOST),
        ("Failed to resolve", NO_HOST),
        ("Tunnel connection failed", "the proxy refuses the connection"),
        ("Connection refused", "connection refused"),
        ("timed out", "timed out"),
        ("CERTIFICATE", "certificate not accepted"),
    ):
        if sign in text:
            return meaning
    if short := re.search(r"(\d+) more expected", text):
        return f"it ended {int(short[1]):,} bytes early"
    return f"{type(error).__name__}: {text[:200]}"


def backoff_s(failures: int, asked_s: float | None, policy: Policy) -> float:
    """Seconds to wait before the next attempt: what the server asks, else a random time under a bound that
    doubles.

    Raises:
        DownloadError: the server asks for more than the policy grants.
    """
    if asked_s is not None:
        if asked_s > policy.longest_wait_s:
            raise DownloadError(
                f"the server asks to come back in {asked_s:.0f} s; run the same command later"
            )
        return asked_s
    return random.uniform(0, min(policy.longest_wait_s, policy.backoff_s * 2**failures))


def retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, in either of its forms; none where it is absent or
    malformed."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
