# SPDX-License-Identifier: Apache-2.0
"""The mirror's blobs: each fetched once from the origin, however many robots ask for it, and read while it still arrives.

::

    <folder>/sha256/<hex>      complete and verified
    <folder>/incoming/<hex>    on its way; a restart goes on behind what is there
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import structlog

from vla_fleet.clock import Clock
from vla_fleet.errors import ConflictError, FleetError, FullError, UpstreamError
from vla_fleet.mirror.origin import Origin

_MIN_FREE_BYTES = 1 << 30
"""So much of the disk stays free."""
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 6
_BACKOFF_S = 0.5
log = structlog.get_logger()


class Fill:
    """A blob on its way. ``arrived`` bytes of ``size`` are in ``path``; readers wait for more."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size, self.arrived = path, size, 0
        self.failure: FleetError | None = None
        self._news = asyncio.Event()

    def tell(self, arrived: int, failure: FleetError | None = None) -> None:
        """Wake whoever waits for bytes."""
        self.arrived, self.failure = arrived, failure
        self._news.set()
        self._news = asyncio.Event()

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` to before ``end`` as they arrive; raise what kept them away if they do not."""
        return self._read(self.path.open("rb"), start, end)  # stays readable when the blob gets its name, or is removed

    async def _read(self, file: BinaryIO, start: int, end: int) -> AsyncIterator[bytes]:
        with file:
            file.seek(start)
            while start < end:
                while self.arrived <= start:
                    if self.failure is not None:
                        raise self.failure
                    await self._news.wait()
                data = file.read(min(_CHUNK_BYTES, self.arrived - start, end - start))
                start += len(data)
                yield data


class Cache:
    """Blobs of at most ``max_bytes``; those that nobody asked for longest are removed first.

    Args:
        folder: made if missing.
        max_bytes: of complete blobs.
        origin: where blobs come from.
        clock: of the pauses between attempts.
    """

    def __init__(self, folder: Path, max_bytes: int, origin: Origin, clock: Clock) -> None:
        self._blobs, self._incoming = folder / "sha256", folder / "incoming"
        for made in (self._blobs, self._incoming):
            made.mkdir(parents=True, exist_ok=True)
        self._max_bytes, self._origin, self._clock = max_bytes, origin, clock
        self._fills: dict[str, Fill] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, sha256: str) -> Path | Fill | None:
        """Return a complete blob's file, which then is the last to be removed, or the fill that is under way."""
        if sha256 in self._fills:
            return self._fills[sha256]
        path = self._blobs / sha256
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def sizes(self) -> dict[str, int]:
        """Return every complete blob's size [bytes]."""
        return {path.name: path.stat().st_size for path in self._blobs.iterdir()}

    def fill(self, sha256: str, size: int, path: str, authorization: str) -> Fill:
        """Return the blob's fill, begun now unless it is under way; ``path`` and ``authorization`` are the origin's.

        Raises:
            FullError: MIRROR_FULL.
        """
        if sha256 in self._fills:
            return self._fills[sha256]
        self._make_room(size)
        fill = self._fills[sha256] = Fill(self._incoming / sha256, size)
        fill.path.touch()
        task = asyncio.create_task(self._fetch(fill, sha256, path, authorization))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return fill

    async def close(self) -> None:
        """Stop what is under way; a later start goes on with it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _make_room(self, size: int) -> None:
        oldest_first = sorted(self._blobs.iterdir(), key=lambda path: path.stat().st_mtime)
        held = size + sum(fill.size for fill in self._fills.values()) + sum(p.stat().st_size for p in oldest_first)
        to_come = size + sum(fill.size - fill.arrived for fill in self._fills.values())
        while held > self._max_bytes or shutil.disk_usage(self._blobs).free - to_come < _MIN_FREE_BYTES:
            if not oldest_first or size > self._max_bytes:
                what = f"{size} bytes do not fit; give the mirror's disk more room, or raise --max-gb"
                raise FullError("MIRROR_FULL", what)
            path = oldest_first.pop(0)
            held -= path.stat().st_size
            path.unlink()
            log.info("removed", blob=path.name)

    async def _fetch(self, fill: Fill, sha256: str, path: str, authorization: str) -> None:
        failure: FleetError | None = None
        try:
            for attempt in range(_ATTEMPTS):
                if failure is not None:
                    log.warning("fetch interrupted", blob=sha256, reason=failure.message)
                    await self._clock.sleep(_BACKOFF_S * 2**attempt)
                try:
                    await self._attempt(fill, sha256, path, authorization)
                    log.info("fetched", blob=sha256, size=fill.size)
                    return
                except UpstreamError as e:
                    failure = e
        except FleetError as e:  # what another attempt cannot change
            failure = e
        except OSError as e:
            failure = UpstreamError("MIRROR_FULL", f"blob {sha256} cannot be written: {e.strerror or e}")
        finally:
            del self._fills[sha256]
            if not (self._blobs / sha256).exists():
                fill.tell(fill.arrived, failure or UpstreamError("MIRROR_ORIGIN", "the mirror is stopping"))
        log.error("not fetched", blob=sha256, reason=failure.message if failure else "")

    async def _attempt(self, fill: Fill, sha256: str, path: str, authorization: str) -> None:
        with fill.path.open("r+b") as file:
            digest = await asyncio.to_thread(hashlib.file_digest, file, "sha256")
            resumed = file.tell()
            fill.tell(resumed)
            if fill.arrived < fill.size:
                async for data in self._origin.read(path, authorization, fill.arrived, fill.size):
                    digest.update(data)
                    file.write(data)
                    file.flush()
                    fill.tell(fill.arrived + len(data))
            if digest.hexdigest() != sha256:
                file.truncate(0)
                fill.tell(0)
                what = f"the origin's bytes hash to {digest.hexdigest()}, not to {sha256}"
                raise UpstreamError("MIRROR_ORIGIN", what) if resumed else ConflictError("BLOB_DIGEST", what)
            await asyncio.to_thread(os.fsync, file.fileno())
        with suppress(OSError):
            fill.path.chmod(0o444)
        fill.path.replace(self._blobs / sha256)
