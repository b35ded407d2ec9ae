# SPDX-License-Identifier: Apache-2.0
"""Parts of one file by several range requests at a time.

Each part is received in a thread of its own, which may wait for a name, a head or a slow server. What arrives goes through one
short queue to the caller's thread: that alone writes, counts and asks whether to go on. A full queue slows all down.
"""

from __future__ import annotations

import queue
import re
import threading
from contextlib import suppress
from dataclasses import dataclass

from vla_ota_manager.errors import CancelledError, FetchError, OtaError
from vla_ota_manager.fetch.http import Cancelled, Connection, Http, Reply
from vla_ota_manager.fetch.pace import StallGuard
from vla_ota_manager.fetch.source import Url

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_QUEUED_CHUNKS = 4
_POLL_S = 0.1

News = bytes | Exception | None
"""A part's next bytes, what went wrong with it, or the end of the server's answer."""


@dataclass(frozen=True)
class Source:
    """What all parts are of: a file of ``size`` bytes at ``url``, whose strong validator is ``etag`` ("" = none)."""

    url: Url
    size: int
    etag: str


class Ranges:
    """Range requests that are under way. ``busy``: the parts that they are for; ``further``: asked for beside another one."""

    def __init__(self, http: Http, source: Source) -> None:
        self._http, self._source = http, source
        self._stopped = threading.Event()
        self._news: queue.Queue[tuple[int, News]] = queue.Queue(_QUEUED_CHUNKS)
        self.busy: set[int] = set()
        self.further: set[int] = set()

    def begin(self, part: int, start: int, end: int, connection: Connection | None = None) -> None:
        """Ask for a part's bytes from ``start`` to before ``end``; ``connection``: that was done, and so much was promised."""
        (self.further.add if self.busy else self.further.discard)(part)
        self.busy.add(part)
        arguments = (part, start, end, connection)
        threading.Thread(target=self._guard, args=arguments, name="vla_ota_fetch", daemon=True).start()

    def take(self, cancelled: Cancelled) -> tuple[int, News]:
        """Wait for news of any part. After bytes more will follow; after anything else the part is no longer ``busy``.

        Raises:
            CancelledError: ``cancelled`` said so.
        """
        while not cancelled():
            with suppress(queue.Empty):
                part, news = self._news.get(timeout=_POLL_S)
                if not isinstance(news, bytes):
                    self.busy.discard(part)
                return part, news
        raise CancelledError("CANCELLED", "stopped on request", self._source.url.text)

    def stop(self) -> None:
        """Give up all that is under way."""
        self._stopped.set()

    # -- in the threads -----------------------------------------------------------------------------------------------------

    def _guard(self, part: int, start: int, end: int, connection: Connection | None) -> None:
        try:
            if connection is None:
                connection, end = self._ask(start, end)
            else:
                connection.cancelled = self._stopped.is_set
            self._receive(part, start, end, connection)
            self._put(part, None)
        except CancelledError:
            pass
        except Exception as e:
            self._put(part, e if isinstance(e, OtaError) else OtaError("INTERNAL_ERROR", repr(e)))

    def _ask(self, start: int, end: int) -> tuple[Connection, int]:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if self._source.etag:
            headers["If-Range"] = self._source.etag
        connection, reply = self._http.open(self._source.url, headers, self._stopped.is_set)
        try:
            return connection, self._promised(reply, start, end)
        except FetchError:
            connection.__exit__()
            raise

    def _promised(self, reply: Reply, start: int, end: int) -> int:
        """Return the end of what a server sends; refuse what is not of this part, or of another copy of the file."""
        announced = reply.headers.get("content-range", "")
        match, etag = CONTENT_RANGE.fullmatch(announced), reply.headers.get("etag", "")
        changed = bool(self._source.etag) and etag not in ("", self._source.etag)
        fits = match is not None and int(match[1]) == start <= int(match[2]) < end
        if reply.status != 206 or changed or match is None or not fits or match[3] not in ("*", str(self._source.size)):
            what = f"{reply.status} {announced!r} instead of bytes {start} to {end - 1}"
            raise FetchError("CONTENT_RANGE_INVALID", what, self._source.url.text, retryable=True)
        return int(match[2]) + 1

    def _receive(self, part: int, start: int, end: int, connection: Connection) -> None:
        url, config = self._source.url, self._http.config
        guard = StallGuard(config, url, config.fetch_connections)
        try:
            while chunk := connection.read():
                guard.add(len(chunk))
                if len(chunk) > end - start:
                    raise FetchError(
                        "CONTENT_RANGE_INVALID", f"more arrives than up to {end}", url.text, retryable=True
                    )
                start += len(chunk)
                self._put(part, chunk)
        finally:
            connection.__exit__()
        if start < end:
            raise FetchError("TRUNCATED", f"a part ended after byte {start} of {end}", url.text, retryable=True)

    def _put(self, part: int, news: News) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._news.put((part, news), timeout=_POLL_S)
                return
