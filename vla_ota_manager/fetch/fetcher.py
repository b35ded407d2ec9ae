# SPDX-License-Identifier: Apache-2.0
"""Manifests into memory, blobs into the store: resumed, bounded, scanned while they arrive, never fetched twice."""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from vla_checkpoint import CancelledCheckError, CheckpointError
from vla_checkpoint.arrival import Arrival, Arrived
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import CancelledError, FetchError, RefusedFetchError, StoreError
from vla_ota_manager.fetch.flushing import Flusher
from vla_ota_manager.fetch.http import Cancelled, Connection, Http, Reply
from vla_ota_manager.fetch.pace import Bandwidth, Patience, StallGuard, pause
from vla_ota_manager.fetch.ranges import CONTENT_RANGE, Ranges, Source
from vla_ota_manager.fetch.source import Url, parse_mirror, parse_url
from vla_ota_manager.store import parts
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.parts import Parts, PartsFile

_T = TypeVar("_T")
_MIRROR_REST_S = 60.0
"""A mirror that failed is not asked for so long."""
_log = logging.getLogger("vla_ota_manager")


@dataclass
class Received:
    """Payload bytes of one update, counted as they arrive; ``on_change`` hears of them now and then."""

    count: int = 0
    on_change: Callable[[], None] = field(default=lambda: None)

    def add(self, count: int) -> None:
        """Count bytes received over the network (or from a file URL)."""
        self.count += count
        self.on_change()


class Fetcher:
    """Downloads for one manager."""

    def __init__(self, config: OtaConfig, blobs: BlobStore, rng: random.Random | None = None) -> None:
        self.config = config
        self._blobs = blobs
        self._mirror = parse_mirror(config.mirror_url) if config.mirror_url else ""
        self._http = Http(config)
        self._mirror_at = 0.0  # not before [s, monotonic]
        self._bandwidth = Bandwidth(config.bandwidth_bytes_s)
        self._rng = rng or random.Random()
        self.arrived: dict[str, Arrived] = {}
        """SHA-256 of every file that was fetched → what was found in it meanwhile, for ``verify_bundle``."""

    def check(self, url: Url) -> None:
        """Raise ``FetchError`` unless the URL is below an allowed source."""
        self._http.allowed.check(url)

    def manifest(
        self, url: Url, received: Received, cancelled: Cancelled, most_bytes: int = 0, *, once: bool = False
    ) -> bytes:
        """Fetch a manifest, or another file into memory, of at most ``most_bytes`` (0: ``max_manifest_bytes``).

        ``once``: without retries.

        Raises:
            FetchError, CancelledError: see :meth:`Http.open`; MANIFEST_TOO_LARGE.
        """
        limit = most_bytes or self.config.max_manifest_bytes
        attempt = functools.partial(self._small, url, received, cancelled, limit)
        return self._with_retries(attempt, cancelled, lambda: 0, 0 if once else self.config.retries)

    def blob(
        self,
        urls: list[Url],
        sha256: str,
        size: int,
        received: Received,
        on_progress: Callable[[int], None],
        cancelled: Cancelled,
    ) -> None:
        """Fetch a blob of known size into the store: from the site's mirror, or from the first URL that has it.

        Args:
            urls: tried in order while the answer is NOT_FOUND.
            sha256: what it must hash to.
            size: its length [bytes]; never a byte more is written.
            received: counts the payload.
            on_progress: called with the bytes of this blob that are on disk.
            cancelled: asked ten times a second.

        Raises:
            FetchError, CancelledError: see :meth:`Http.open`; SIZE_MISMATCH, BLOB_DIGEST_MISMATCH, TRUNCATED,
                CONTENT_RANGE_INVALID.
            StoreError: DISK_FULL, STORE_IO.
        """
        with closing(_Download(self, sha256, size, received, on_progress, cancelled)) as download:
            if self._by_mirror(download, urls[0], cancelled):
                return
            for index, url in enumerate(urls):
                try:
                    attempt = functools.partial(download.attempt, url, self.config.fetch_connections)
                    self._with_retries(attempt, cancelled, download.present, self.config.retries)
                    return
                except FetchError as e:
                    if e.code != "NOT_FOUND" or index == len(urls) - 1:
                        raise

    def _by_mirror(self, download: _Download, url: Url, cancelled: Cancelled) -> bool:
        """Fetch what is at ``url`` from this site's mirror; return False if that is not possible."""
        if not self._mirror or url.is_file or time.monotonic() < self._mirror_at:
            return False
        parts = urlsplit(url.text)
        try:
            mirrored = parse_url(self._mirror + parts.path + (f"?{parts.query}" if parts.query else ""))
            # one connection: it has the file from this network, or is fetching it from its beginning on
            attempt = functools.partial(download.attempt, mirrored, 1)
            self._with_retries(attempt, cancelled, download.present, retries=1)
        except FetchError as e:
            self._mirror_at = time.monotonic() + _MIRROR_REST_S
            _log.warning("the mirror is not used for %g s: %s", _MIRROR_REST_S, e)
            return False
        return True

    def _small(self, url: Url, received: Received, cancelled: Cancelled, with_limit: int) -> bytes:
        data = bytearray()
        connection, _ = self._http.open(url, {}, cancelled)
        guard = StallGuard(self.config, url)
        try:
            while chunk := connection.read():
                received.add(len(chunk))
                guard.add(len(chunk))
                data += chunk
                if len(data) > with_limit:
                    raise RefusedFetchError("MANIFEST_TOO_LARGE", f"more than {with_limit} bytes", url.text)
                self._bandwidth.spend(len(chunk), cancelled)
        finally:
            connection.__exit__()
        return bytes(data)

    def patience(self, progress: Callable[[], int], retries: int | None = None) -> Patience:
        """Return what decides about failures in a row; ``progress``: returns how far it is [bytes]."""
        return Patience(self.config, self._rng, self.config.retries if retries is None else retries, progress)

    def _with_retries(
        self, attempt: Callable[[], _T], cancelled: Cancelled, progress: Callable[[], int], retries: int
    ) -> _T:
        """Repeat ``attempt`` until it succeeds or patience ends."""
        patience = self.patience(progress, retries)
        while True:
            try:
                return attempt()
            except FetchError as e:
                pause(patience.wait_s(e), cancelled)


class _Download:
    """A blob on its way: its partial file and the scan of it, kept over attempts."""

    def __init__(
        self,
        fetcher: Fetcher,
        sha256: str,
        size: int,
        received: Received,
        on_progress: Callable[[int], None],
        cancelled: Cancelled,
    ) -> None:
        self._f, self._sha256, self._size = fetcher, sha256, size
        self._received, self._on_progress, self._cancelled = received, on_progress, cancelled
        info = fetcher._blobs.info(sha256, size)
        self._etag, self._parts = info.etag, info.parts
        self._resumed = info.size > 0
        self._in_parts = size > parts.PART_BYTES
        """Whether parts of it may be asked for at a time; not any more once a server did not do as asked."""
        self._alone = False
        """Whether a further connection was refused for good: one goes on."""
        self._offset, self._arrival = info.parts.front(), Arrival(fetcher._blobs.partial(sha256), size)
        """Up to where everything is there; and what scans it up to there."""
        if info.size:
            self._arrival.reached(self._offset)

    def close(self) -> None:
        """Let go of it."""
        self._arrival.close()

    def present(self) -> int:
        """Return how much of it is on the disk [bytes]."""
        return max(self._offset, self._parts.total)

    def attempt(self, url: Url, connections: int) -> None:
        """Ask for what is missing; a server may answer with a part of it, then for the rest."""
        self._guard = StallGuard(self._f.config, url)
        if self._offset == self._size:  # empty, or a manager was killed behind its last byte
            with self._f._blobs.fs.append(self._f._blobs.partial(self._sha256), self._size) as file:
                file.flush()
            self._arrival.reached(self._size)
        while self._offset < self._size:
            self._request(url, 1 if self._alone else connections)
        arrived = self._finish_scan()
        if arrived.scan.sha256 != self._sha256:
            resumed, self._resumed = self._resumed, False
            self._restart()
            self._f._blobs.discard(self._sha256)
            if resumed:  # bytes of an earlier attempt may be damaged, or of another copy: once more from the beginning
                self.attempt(url, connections)
                return
            what = f"hashes to {arrived.scan.sha256}, promised {self._sha256}"
            raise RefusedFetchError("BLOB_DIGEST_MISMATCH", what, url.text)
        self._f.arrived[self._sha256] = arrived
        self._f._blobs.finish(self._sha256)

    def _finish_scan(self) -> Arrived:
        try:
            return self._arrival.finish(self._cancelled)
        except CancelledCheckError as e:
            raise CancelledError("CANCELLED", "stopped on request") from e
        except (CheckpointError, OSError) as e:
            raise StoreError("STORE_IO", f"cannot be read: {e}", str(self._f._blobs.partial(self._sha256))) from e

    def _request(self, url: Url, connections: int) -> None:
        scattered = connections > 1 or not self._unbroken()
        in_parts = self._in_parts and scattered and not url.is_file
        wanted = self._parts.end(self._offset // parts.PART_BYTES) if in_parts else self._size
        headers = {}
        if self._offset or wanted < self._size:
            headers["Range"] = f"bytes={self._offset}-{wanted - 1 if wanted < self._size else ''}"
        if self._offset and self._etag:
            headers["If-Range"] = self._etag
        connection, reply = self._f._http.open(url, headers, self._cancelled)
        try:
            end = self._check_head(url, reply, wanted, asked="Range" in headers)
            if in_parts and reply.status == 206:
                self._receive_parts(url, connection, end, connections)
            else:
                self._receive(url, connection, end)
        finally:
            connection.__exit__()

    def _check_head(self, url: Url, reply: Reply, wanted: int, *, asked: bool) -> int:
        """Decide from where to where in the blob the body counts; return its end. Refuse a body that is not the blob's.

        ``wanted``: end of what was wanted; ``asked``: as a range.
        """
        if reply.status == 416:
            self._refuse_range(url, reply, asked)
        etag = reply.headers.get("etag", "")
        etag = etag if etag.startswith('"') else ""
        if reply.status == 206:
            end = self._check_range(url, reply, wanted, asked)
            self._resumed = self.present() > 0 or not etag
        else:
            end = self._size
            self._resumed = False
            self._restart(in_parts=self._in_parts and not asked)  # the range was ignored, or the copy has changed since
        self._etag = etag
        length = reply.headers.get("content-length")
        if length is not None and (not length.isdigit() or int(length) != end - self._offset):
            self._refuse_length(url, f"{length} bytes announced, {end - self._offset} of {self._size} expected", end)
        return end

    def _refuse_length(self, url: Url, what: str, end: int) -> None:
        """Refuse a body of another length: of the whole rest it is the bundle's fault, of a part the server's."""
        self._restart()
        if end == self._size:
            raise RefusedFetchError("SIZE_MISMATCH", what, url.text)
        raise FetchError("CONTENT_RANGE_INVALID", what, url.text, retryable=True)

    def _refuse_range(self, url: Url, reply: Reply, asked: bool) -> None:
        announced = reply.headers.get("content-range", "")
        if asked and announced in ("", f"bytes */{self._size}"):
            self._restart()  # a server that cannot do what was asked: once more from the beginning
            raise FetchError("CONTENT_RANGE_INVALID", "the server refuses the range", url.text, retryable=True)
        raise RefusedFetchError("SIZE_MISMATCH", f"{announced!r} announced, {self._size} bytes expected", url.text)

    def _check_range(self, url: Url, reply: Reply, wanted: int, asked: bool) -> int:
        """Return the end of the part that is sent: it may be shorter than what was asked for (RFC 9110, 15.3.7)."""
        announced = reply.headers.get("content-range", "")
        match = CONTENT_RANGE.fullmatch(announced)
        if match is not None and match[3] not in ("*", str(self._size)):
            raise RefusedFetchError("SIZE_MISMATCH", f"{announced!r} announced, {self._size} bytes expected", url.text)
        if match is None or not asked or not (self._offset == int(match[1]) <= int(match[2]) < wanted):
            what = f"{announced!r} instead of bytes from {self._offset} on"
            self._restart()
            raise FetchError("CONTENT_RANGE_INVALID", what, url.text, retryable=True)
        return int(match[2]) + 1

    # -- one connection -----------------------------------------------------------------------------------------------------

    def _receive(self, url: Url, connection: Connection, end: int) -> None:
        blobs, chunk = self._f._blobs, connection.read()
        with blobs.fs.append(blobs.partial(self._sha256), self._offset) as file, Flusher(file.flush) as flusher:
            blobs.forget_parts(self._sha256)
            self._parts = Parts.beginning(self._size, self._offset)
            if len(chunk) < self._size - self._offset or blobs.is_noted(self._sha256):  # else nothing is to go on from
                file.flush()
                self._noting()()
            while chunk:
                self._received.add(len(chunk))
                self._guard.add(len(chunk))
                if len(chunk) > end - self._offset:
                    self._refuse_length(url, f"more arrives than the bytes up to {end} of {self._size}", end)
                file.write(chunk)
                self._move_to(self._offset + len(chunk))
                blobs.fs.point("fetch.chunk")
                flusher.wrote(len(chunk), self._noting())
                self._on_progress(self._offset)
                self._f._bandwidth.spend(len(chunk), self._cancelled)
                chunk = connection.read()
            flusher.finish(self._noting())
        if self._offset < end:
            what = f"ended after {self._offset} of {self._size} bytes"
            raise FetchError("TRUNCATED", what, url.text, retryable=True)

    def _noting(self, *, scattered: bool = False) -> Callable[[], None]:
        """Return what writes down how far the download is now (``scattered``: all parts of it), unless it is complete."""
        if self._offset == self._size:
            return lambda: None
        parts_now = Parts(self._size, list(self._parts.there)) if scattered else None
        return functools.partial(self._f._blobs.note, self._sha256, self._offset, self._etag, parts_now)

    # -- several connections ------------------------------------------------------------------------------------------------

    def _receive_parts(self, url: Url, connection: Connection, end: int, connections: int) -> None:
        """Receive the part at the front over a connection that is open, and others over further ones.

        A further connection that fails leaves its part to the others. The download fails with the connection that was opened
        first, while no other was. Return when all is there, or when one request can ask for the rest.
        """
        if self._parts.front() != self._offset:
            self._parts = Parts.beginning(self._size, self._offset)
        patience = self._f.patience(self.present)
        ranges, more_at_s = Ranges(self._f._http, Source(url, self._size, self._etag)), 0.0
        with self._f._blobs.open_parts(self._sha256, self._parts) as file, Flusher(file.flush) as flusher:
            flusher.finish(self._noting(scattered=True))
            ranges.begin(self._offset // parts.PART_BYTES, self._offset, end, connection)
            try:
                while self._offset < self._size and not (self._alone and not ranges.busy and self._unbroken()):
                    further = not self._alone and time.monotonic() >= more_at_s
                    self._begin_more(ranges, connections if further else 1)
                    part, news = ranges.take(self._cancelled)
                    if isinstance(news, bytes):
                        self._take_in(file, flusher, part, news)
                    elif news is not None:
                        more_at_s = max(more_at_s, time.monotonic() + self._tolerate(news, part, ranges, patience))
            finally:
                ranges.stop()
            flusher.finish(self._noting(scattered=True))
        self._guard = StallGuard(self._f.config, url)  # each part had one of its own

    def _unbroken(self) -> bool:
        """Return whether nothing is there behind the first gap."""
        return self._parts.total <= self._offset

    def _begin_more(self, ranges: Ranges, most: int) -> None:
        """Ask for parts that nobody has asked for, the first ones first: what is far ahead would wait long to be scanned."""
        first = self._offset // parts.PART_BYTES
        for part in range(first, min(first + 2 * most, len(self._parts.there))):
            if len(ranges.busy) >= most:
                return
            start, end = self._parts.reached(part), self._parts.end(part)
            if part not in ranges.busy and start < end:
                ranges.begin(part, start, end)

    def _take_in(self, file: PartsFile, flusher: Flusher, part: int, data: bytes) -> None:
        self._received.add(len(data))
        file.write(part, data)
        self._move_to(self._parts.front(self._offset))
        self._f._blobs.fs.point("fetch.chunk")
        flusher.wrote(len(data), self._noting(scattered=True))
        self._on_progress(self.present())
        self._f._bandwidth.spend(len(data), self._cancelled)

    def _tolerate(self, error: Exception, part: int, ranges: Ranges, patience: Patience) -> float:
        """Return how long no further connection is opened [s]; raise what is the download's failure."""
        if not isinstance(error, FetchError):
            raise error
        if error.code == "CONTENT_RANGE_INVALID":
            self._in_parts = False
            raise error
        further = part in ranges.further
        if not ranges.busy and not further:
            raise error
        if further and not error.retryable:
            self._alone = True
            _log.info("one connection from now on: %s", error)
            return 0.0
        wait_s = patience.backoff_s(error) if further else patience.wait_s(error)
        _log.info("fewer connections for %.1f s: %s", wait_s, error)
        return wait_s

    def _restart(self, *, in_parts: bool = False) -> None:
        """Begin anew; by default with one connection: a server did not do as asked, or what is there cannot be trusted."""
        self._arrival.close()
        self._offset, self._etag = 0, ""
        self._arrival = Arrival(self._f._blobs.partial(self._sha256), self._size)
        self._parts, self._in_parts = Parts.beginning(self._size, 0), in_parts

    def _move_to(self, offset: int) -> None:
        """Say up to where everything is there now."""
        self._offset = offset
        self._arrival.reached(offset)
