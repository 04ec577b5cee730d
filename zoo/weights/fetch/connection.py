"""Connections with a deadline, to allowed addresses only. A socket's timeout limits only the time between two
bytes, so a slow server could keep a request open without end."""

from __future__ import annotations

import math
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from detection_zoo.zoo.errors import DownloadError
from detection_zoo.zoo.weights.fetch.hosts import is_private_address

CHECK_S = 0.1


class Guard:
    """Cuts the connections of one client at a deadline, or when the caller stops it.

    Args:
        stop: ends everything.

    `deadline` (seconds of time.monotonic) may be moved at any time. `public_only`: whether connections to
        private addresses are refused. `peer`: address of the last server, None with a proxy.
    """

    def __init__(self, stop: threading.Event) -> None:
        self.stop, self.deadline, self.public_only = stop, math.inf, False
        self.peer: str | None = None
        self._done, self._lock = threading.Event(), threading.Lock()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline

    def _watch(self) -> None:
        while not self._done.wait(CHECK_S):
            if self.stop.is_set() or self.expired:
                self._cut()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):  # ended already
                    connection.shutdown(socket.SHUT_RDWR)

    def admit(self, connection: socket.socket, proxied: bool) -> socket.socket:
        """Watch a new connection; raises DownloadError where it leads to a private address."""
        self.peer = None if proxied else connection.getpeername()[0]
        if self.public_only and self.peer is not None and is_private_address(self.peer):
            connection.close()
            raise DownloadError(f"a redirect to the private address {self.peer} is refused")
        with self._lock:
            # TLS moves a connection into another object; the duplicate stays valid
            self._sockets.append(connection.dup())
        return connection

    def end_request(self) -> None:
        """Close what is left of the last request."""
        self._cut()
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()

    def close(self) -> None:
        """Close everything, and end the watching thread."""
        self._done.set()
        self.end_request()


def guarded_adapter(guard: Guard) -> Any:
    """A transport adapter of requests whose connections a guard watches."""
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return guard.admit(super()._new_conn(), self.proxy is not None)

    class Encrypted(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return guard.admit(super()._new_conn(), self.proxy is not None)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

    pools = {"http": PlainPool, "https": EncryptedPool}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
            manager = super().proxy_manager_for(proxy, **kwargs)
            if proxy.lower().startswith("http"):  # a SOCKS proxy has its own connections
                manager.pool_classes_by_scheme = pools
            return manager

    return Adapter()
