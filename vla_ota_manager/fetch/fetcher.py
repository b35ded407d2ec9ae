# SPDX-License-Identifier: Apache-2.0
"""Manifests into memory, blobs into the store: resumed, bounded, hashed while they arrive, never fetched twice."""

from __future__ import annotations

import functools
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from vla_checkpoint.arrival import ArrivalDigest
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import CancelledError, FetchError, RefusedFetchError
from vla_ota_manager.fetch.flushing import Flusher
from vla_ota_manager.fetch.http import Cancelled, Connection, Http, Reply
from vla_ota_manager.fetch.source import Url, parse_mirror, parse_url
from vla_ota_manager.store.blobs import BlobStore

_T = TypeVar("_T")
_HASH_BYTES = 1 << 20
_MIRROR_REST_S = 60.0
"""A mirror that failed is not asked for so long."""
_log = logging.getLogger("vla_ota_manager")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass
class Received:
    """Payload bytes of one update, counted as they arrive; ``on_change`` hears of them now and then."""

    count: int = 0
    on_change: Callable[[], None] = field(default=lambda: None)

    def add(self, count: int) -> None:
        """Count bytes received over the network (or from a file URL)."""
        self.count += count
        self.on_change()


class Bandwidth:
    """Holds a mean rate by waiting; shared by all downloads of a manager."""

    def __init__(self, bytes_s: int) -> None:
        self._bytes_s = bytes_s
        self._free_at = time.monotonic()

    def spend(self, count: int, cancelled: Cancelled) -> None:
        """Wait until ``count`` more bytes may be taken."""
        if not self._bytes_s:
            return
        self._free_at = max(self._free_at, time.monotonic()) + count / self._bytes_s
        pause(self._free_at - time.monotonic(), cancelled)


class StallGuard:
    """Raises when too little arrives in a window of time, however regularly it trickles."""

    def __init__(self, config: OtaConfig, url: Url) -> None:
        self._config, self._url = config, url
        rate = config.bandwidth_bytes_s
        self._least = (
            min(config.stall_min_bytes, int(rate * config.stall_window_s / 2)) if rate else config.stall_min_bytes
        )
        self._begun, self._count = time.monotonic(), 0

    def add(self, count: int) -> None:
        """Count bytes that arrived."""
        self._count += count
        now = time.monotonic()
        if now - self._begun < self._config.stall_window_s:
            return
        if self._count < self._least:
            what = f"{self._count} bytes in {self._config.stall_window_s:g} s, at least {self._least} expected"
            raise FetchError("STALLED", what, self._url.text, retryable=True)
        self._begun, self._count = now, 0


def pause(duration_s: float, cancelled: Cancelled) -> None:
    """Sleep, but not through a cancellation."""
    deadline = time.monotonic() + duration_s
    while (left := deadline - time.monotonic()) > 0:
        if cancelled():
            raise CancelledError("CANCELLED", "stopped on request")
        time.sleep(min(left, 0.1))


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
        self.arrived: dict[str, str] = {}
        """SHA-256 of every safetensors file that was fetched and hashed → SHA-256 of its header, for ``verify_bundle``."""

    def check(self, url: Url) -> None:
        """Raise ``FetchError`` unless the URL is below an allowed source."""
        self._http.allowed.check(url)

    def manifest(self, url: Url, received: Received, cancelled: Cancelled, most_bytes: int = 0) -> bytes:
        """Fetch a manifest, or another file into memory, of at most ``most_bytes`` (0: ``max_manifest_bytes``).

        Raises:
            FetchError, CancelledError: see :meth:`Http.open`; MANIFEST_TOO_LARGE.
        """
        limit = most_bytes or self.config.max_manifest_bytes
        attempt = functools.partial(self._small, url, received, cancelled, limit)
        return self._with_retries(attempt, cancelled, lambda: 0, self.config.retries)

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
        download = _Download(self, sha256, size, received, on_progress, cancelled)
        if self._by_mirror(download, urls[0], cancelled):
            return
        for index, url in enumerate(urls):
            try:
                attempt = functools.partial(download.attempt, url)
                self._with_retries(attempt, cancelled, lambda: download.offset, self.config.retries)
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
            self._with_retries(lambda: download.attempt(mirrored), cancelled, lambda: download.offset, retries=1)
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

    def _with_retries(
        self, attempt: Callable[[], _T], cancelled: Cancelled, progress: Callable[[], int], retries: int
    ) -> _T:
        """Repeat ``attempt`` with exponential backoff and full jitter; progress of ``stall_min_bytes`` begins the count anew."""
        failures, mark = 0, progress()
        while True:
            try:
                return attempt()
            except FetchError as e:
                if progress() - mark >= self.config.stall_min_bytes:
                    failures, mark = 0, progress()
                if not e.retryable or failures >= retries:
                    raise
                ceiling = min(self.config.backoff_s * 2 ** min(failures, 30), self.config.backoff_max_s)
                failures += 1
                pause(max(self._rng.uniform(0.0, ceiling), e.retry_after_s), cancelled)


class _Download:
    """A blob on its way: its partial file and the hash of it, kept over attempts."""

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
        self._etag = info.etag
        self.offset = info.size
        self._resumed = self.offset > 0
        self._hash = self._hash_partial()

    def attempt(self, url: Url) -> None:
        """Ask for what is missing; a server may answer with a part of it, then for the rest."""
        guard = StallGuard(self._f.config, url)
        while self.offset < self._size:
            self._request(url, guard)
        with self._f._blobs.fs.append(self._f._blobs.partial(self._sha256), self.offset) as file:
            file.flush()
        actual = self._hash.hexdigest()
        if actual != self._sha256:
            # bytes of an earlier attempt may be damaged, or of another copy: once more from the beginning
            resumed, self._resumed = self._resumed, False
            self._restart()
            self._f._blobs.discard(self._sha256)
            what = f"hashes to {actual}, promised {self._sha256}"
            raise RefusedFetchError("BLOB_DIGEST_MISMATCH", what, url.text, retryable=resumed)
        if self._hash.header:
            self._f.arrived[self._sha256] = self._hash.header
        self._f._blobs.finish(self._sha256)

    def _request(self, url: Url, guard: StallGuard) -> None:
        headers = {}
        if self.offset:
            headers["Range"] = f"bytes={self.offset}-"
            if self._etag:
                headers["If-Range"] = self._etag
        connection, reply = self._f._http.open(url, headers, self._cancelled)
        try:
            end = self._check_head(url, reply)
            self._receive(url, connection, end, guard)
        finally:
            connection.__exit__()

    def _check_head(self, url: Url, reply: Reply) -> int:
        """Decide from where to where in the blob the body counts; return its end. Refuse a body that is not the blob's."""
        if reply.status == 416:
            self._refuse_range(url, reply)
        if reply.status == 206:
            end = self._check_range(url, reply)
            self._resumed = True
        else:
            end = self._size
            self._resumed = False
            self._restart()  # the server ignored the range, or its copy has changed since
        etag = reply.headers.get("etag", "")
        self._etag = etag if etag.startswith('"') else ""
        length = reply.headers.get("content-length")
        if length is not None and (not length.isdigit() or int(length) != end - self.offset):
            self._refuse_length(url, f"{length} bytes announced, {end - self.offset} of {self._size} expected", end)
        return end

    def _refuse_length(self, url: Url, what: str, end: int) -> None:
        """Refuse a body of another length: of the whole rest it is the bundle's fault, of a part the server's."""
        self._restart()
        if end == self._size:
            raise RefusedFetchError("SIZE_MISMATCH", what, url.text)
        raise FetchError("CONTENT_RANGE_INVALID", what, url.text, retryable=True)

    def _refuse_range(self, url: Url, reply: Reply) -> None:
        announced = reply.headers.get("content-range", "")
        if self.offset and announced in ("", f"bytes */{self._size}"):
            self._restart()  # a server that cannot do what was asked: once more from the beginning
            raise FetchError("CONTENT_RANGE_INVALID", "the server refuses the range", url.text, retryable=True)
        raise RefusedFetchError("SIZE_MISMATCH", f"{announced!r} announced, {self._size} bytes expected", url.text)

    def _check_range(self, url: Url, reply: Reply) -> int:
        """Return the end of the part that is sent: it may be shorter than what was asked for (RFC 9110, 15.3.7)."""
        announced = reply.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(announced)
        if match is not None and match[3] not in ("*", str(self._size)):
            raise RefusedFetchError("SIZE_MISMATCH", f"{announced!r} announced, {self._size} bytes expected", url.text)
        if match is None or not self.offset or not (self.offset == int(match[1]) <= int(match[2]) < self._size):
            what = f"{announced!r} instead of bytes from {self.offset} on"
            self._restart()
            raise FetchError("CONTENT_RANGE_INVALID", what, url.text, retryable=True)
        return int(match[2]) + 1

    def _receive(self, url: Url, connection: Connection, end: int, guard: StallGuard) -> None:
        blobs = self._f._blobs
        with blobs.fs.append(blobs.partial(self._sha256), self.offset) as file, Flusher(file.flush) as flusher:
            blobs.note(self._sha256, self.offset, self._etag)
            while chunk := connection.read():
                self._received.add(len(chunk))
                guard.add(len(chunk))
                if len(chunk) > end - self.offset:
                    self._refuse_length(url, f"more arrives than the bytes up to {end} of {self._size}", end)
                file.write(chunk)
                self._hash.update(chunk)
                self.offset += len(chunk)
                blobs.fs.point("fetch.chunk")
                flusher.wrote(len(chunk), functools.partial(blobs.note, self._sha256, self.offset, self._etag))
                self._on_progress(self.offset)
                self._f._bandwidth.spend(len(chunk), self._cancelled)
            flusher.finish(functools.partial(blobs.note, self._sha256, self.offset, self._etag))
        if self.offset < end:
            raise FetchError("TRUNCATED", f"ended after {self.offset} of {self._size} bytes", url.text, retryable=True)

    def _restart(self) -> None:
        self.offset, self._etag, self._hash = 0, "", ArrivalDigest()

    def _hash_partial(self) -> ArrivalDigest:
        """Hash what is already there, once."""
        digest, left = ArrivalDigest(), self.offset
        if left:
            with self._f._blobs.partial(self._sha256).open("rb") as file:
                while left and (data := file.read(min(left, _HASH_BYTES))):
                    digest.update(data)
                    left -= len(data)
                    if self._cancelled():
                        raise CancelledError("CANCELLED", "stopped on request")
        return digest
