# SPDX-License-Identifier: Apache-2.0
"""One GET request, read in a thread of its own so that the caller can give up at any moment.

A blocking read cannot be interrupted, neither while a name is looked up nor while a server keeps silent. So the request
runs in a daemon thread that hands over the reply's head and then chunks through a short queue; whoever waits on the queue
looks at its own clock and its own reasons to stop. Giving a connection up shuts its socket down, which ends a read that is
under way in the thread: a server that trickles its headers would keep both for as long as it likes.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import CancelledError, FetchError, RefusedFetchError
from vla_ota_manager.fetch.source import AllowedSources, Url, parse_url

CHUNK_BYTES = 512 << 10
_LEAST_CHUNK_BYTES = 4 << 10
_QUEUED_CHUNKS = 4
_POLL_S = 0.1
_REDIRECTS = (301, 302, 303, 307, 308)
_RETRYABLE = (408, 425, 429, 500, 502, 503, 504)

Cancelled = Callable[[], bool]


@dataclass
class Reply:
    """The head of a reply; read its body by :meth:`Connection.read`. A file URL answers like a server that knows ranges."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""


class Connection:
    """One request and its reply. Use as a context manager, so that it is given up on every way out."""

    def __init__(self, url: Url, headers: dict[str, str], config: OtaConfig, cancelled: Cancelled) -> None:
        self.url = url
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "vla_ota", **headers}
        self._config = config
        self.cancelled = cancelled
        """Asked by whoever waits in :meth:`head` or :meth:`read`."""
        # with a bandwidth cap, small enough for several chunks a second
        quarter = config.bandwidth_bytes_s // 4 or CHUNK_BYTES
        self._chunk_bytes = max(_LEAST_CHUNK_BYTES, min(CHUNK_BYTES, quarter))
        self._queue: queue.Queue[Reply | bytes | Exception | None] = queue.Queue(_QUEUED_CHUNKS)
        self._given_up = threading.Event()
        self._line: socket.socket | None = None
        self._line_lock = threading.Lock()
        target = self._read_file if url.is_file else self._read_http
        self._thread = threading.Thread(target=self._guard, args=(target,), name="vla_ota_fetch", daemon=True)

    def __enter__(self) -> Connection:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._hang_up()

    def _hang_up(self) -> None:
        with self._line_lock:
            line, self._line = self._line, None
        if line is not None:
            with suppress(OSError):  # the other side was faster
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def head(self) -> Reply:
        """Wait for the reply's head; the bound is on the whole of it, however regularly it trickles."""
        reply = self._take(time.monotonic() + self._config.connect_timeout_s + self._config.read_timeout_s)
        if not isinstance(reply, Reply):
            raise FetchError("CONNECTION_FAILED", "no reply", self.url.text, retryable=True)
        return reply

    def read(self) -> bytes:
        """Wait for the next bytes of the body; empty at its end."""
        data = self._take(time.monotonic() + self._config.read_timeout_s)
        return data if isinstance(data, bytes) else b""

    def _take(self, deadline: float) -> Reply | bytes | None:
        while True:
            if self.cancelled():
                raise CancelledError("CANCELLED", "stopped on request", self.url.text)
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise FetchError("STALLED", "the server keeps silent", self.url.text, retryable=True) from None
                continue
            if isinstance(item, Exception):
                raise item
            return item

    # -- in the thread ------------------------------------------------------------------------------------------------------

    def _guard(self, read: Callable[[], None]) -> None:
        try:
            read()
            self._put(None)
        except FetchError as e:
            self._put(e)
        except (requests.RequestException, HTTPError, OSError, ValueError) as e:
            self._put(FetchError("CONNECTION_FAILED", _first_line(e), self.url.text, retryable=True))
        finally:
            self._hang_up()

    def _connected(self, line: socket.socket) -> None:
        """Take a handle of a socket that was just connected: shutting that down works below TLS and a proxy, too."""
        with self._line_lock:
            self._line = line.dup()
        if self._given_up.is_set():
            self._hang_up()

    def _put(self, item: Reply | bytes | Exception | None) -> None:
        while not self._given_up.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def _read_http(self) -> None:
        config = self._config
        with requests.Session() as session:
            session.trust_env = False  # no proxies, credentials or certificates that nobody configured here
            for prefix in ("http://", "https://"):
                session.mount(prefix, _Adapter(self._connected))
            proxies = {"http": config.proxy, "https": config.proxy} if config.proxy else {}
            response = session.get(
                self.url.text,
                headers=self._headers,
                stream=True,
                allow_redirects=False,
                timeout=(config.connect_timeout_s, config.read_timeout_s),
                proxies=proxies,
                verify=config.ca_file or True,
            )
            with response:
                self._put(
                    Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()})
                )
                raw: Any = response.raw
                read = getattr(
                    raw, "read1", raw.read
                )  # urllib3 before 2.3, as Ubuntu 24.04 has it, waits for a whole chunk
                while not self._given_up.is_set() and (data := read(self._chunk_bytes, decode_content=False)):
                    self._put(data)

    def _read_file(self) -> None:
        path = self.url.path.resolve()
        if not path.is_file():
            self._put(Reply(404))
            return
        with Path(path).open("rb") as file:
            size = path.stat().st_size
            start = _range_start(self._headers)
            if start:
                file.seek(start)
                self._put(Reply(206, {"content-range": f"bytes {start}-{size - 1}/{size}"} if start < size else {}))
            else:
                self._put(Reply(200, {"content-length": str(size)}))
            while not self._given_up.is_set() and (data := file.read(self._chunk_bytes)):
                self._put(data)


class _Adapter(HTTPAdapter):
    """Tells of every socket that is connected, directly or to a proxy."""

    def __init__(self, connected: Callable[[socket.socket], None]) -> None:
        self._pools = {
            "http": _watched(HTTPConnectionPool, HTTPConnection, connected),
            "https": _watched(HTTPSConnectionPool, HTTPSConnection, connected),
        }
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        """See HTTPAdapter."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _watched(pool: Any, connection: Any, connected: Callable[[socket.socket], None]) -> Any:
    """Return the pool's class with connections that call ``connected`` as soon as there is a socket."""

    class Watched(connection):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            line: socket.socket = super()._new_conn()
            connected(line)
            return line

    return type(pool.__name__, (pool,), {"ConnectionCls": Watched})


class Http:
    """GET with redirects followed by hand, each hop checked against the allowed sources."""

    def __init__(self, config: OtaConfig) -> None:
        self.config = config
        own = (Path(config.adapter_dir).resolve().as_uri(),) if config.adapter_dir else ()
        mirror = (config.mirror_url,) if config.mirror_url else ()
        self.allowed = AllowedSources((*config.allowed_sources, *mirror, *own))

    def open(self, url: Url, headers: dict[str, str], cancelled: Cancelled) -> tuple[Connection, Reply]:
        """Return a started connection (close it by ``with``) and the head of a reply with status 200, 206 or 416.

        Raises:
            FetchError: SOURCE_NOT_ALLOWED, REDIRECT_REFUSED, TOO_MANY_REDIRECTS, NOT_FOUND, HTTP_STATUS, CONNECTION_FAILED,
                STALLED, CONTENT_ENCODING_REFUSED; with ``retryable`` and ``retry_after_s``.
            CancelledError: ``cancelled`` said so.
        """
        for _ in range(self.config.max_redirects + 1):
            self.allowed.check(url)
            connection = Connection(url, headers, self.config, cancelled).__enter__()
            try:
                reply = connection.head()
                if reply.status not in _REDIRECTS:
                    self._check(url, reply)
                    return connection, reply
            except BaseException:
                connection.__exit__()
                raise
            connection.__exit__()
            url = self._redirect(url, reply)
        raise FetchError("TOO_MANY_REDIRECTS", f"more than {self.config.max_redirects}", url.text)

    def _redirect(self, url: Url, reply: Reply) -> Url:
        try:
            target = parse_url(urljoin(url.text, reply.headers.get("location", "")))
            self.allowed.check(target)
        except FetchError as e:
            raise RefusedFetchError("REDIRECT_REFUSED", f"leads to {e.where}: {e.reason}", url.text) from e
        if target.scheme != url.scheme and target.scheme != "https":
            raise RefusedFetchError("REDIRECT_REFUSED", f"leads from {url.scheme} to {target.scheme}", url.text)
        return target

    def _check(self, url: Url, reply: Reply) -> None:
        if reply.status in (404, 410):
            raise FetchError("NOT_FOUND", f"the server answered {reply.status}", url.text)
        if reply.status not in (200, 206, 416):
            raise FetchError(
                "HTTP_STATUS",
                f"the server answered {reply.status}",
                url.text,
                retryable=reply.status in _RETRYABLE,
                retry_after_s=min(_retry_after(reply.headers.get("retry-after", "")), self.config.retry_after_max_s),
            )
        encoding = reply.headers.get("content-encoding", "identity").strip().lower()
        if reply.status != 416 and encoding not in ("", "identity"):
            raise RefusedFetchError(
                "CONTENT_ENCODING_REFUSED", f"sent as {encoding!r} though identity was asked for", url.text
            )


def _retry_after(text: str) -> float:
    """Return the delay of a Retry-After header in either form [s]; 0 if there is none."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
    return max(0.0, moment.timestamp() - time.time())


def _range_start(headers: dict[str, str]) -> int:
    return int(headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0][:300]
