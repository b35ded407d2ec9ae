# SPDX-License-Identifier: Apache-2.0
"""Files by their SHA-256 in an object store, which several servers share: S3, or what speaks its protocol."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions
from obstore.store import S3Store

from vla_fleet.errors import InputError, MissingError, UnavailableError
from vla_fleet.storage.blobs import Spool, check_name

if TYPE_CHECKING:
    from obstore.store import RetryConfig

_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
_LINK_VALID = timedelta(hours=1)
"""A download that has begun goes on beyond it; one that is taken up again gets another link."""
_UNREACHABLE = (exceptions.GenericError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)


class ObjectBlobs:
    """A blob store below ``<url>/<place>/<hex>``. An object gets its name when all of it is there.

    Args:
        url: ``s3://BUCKET/PREFIX``; where the service is and the credentials are in the environment (``AWS_…``).
        place: folder below the prefix.
        aside: folder on this machine for what is on its way.

    Raises:
        InputError: BLOBS_URL.
    """

    def __init__(self, url: str, place: str, aside: Path) -> None:
        if not url.startswith("s3://"):
            raise InputError("BLOBS_URL", "the object store's URL cannot be read; write s3://BUCKET/PREFIX")
        try:
            self._store = S3Store.from_url(f"{url.rstrip('/')}/{place}", retry_config=_RETRIES)
        except exceptions.BaseError as e:
            raise InputError("BLOBS_URL", f"the object store cannot be used: {_first_line(e)}") from e
        self._url, self._spool = url, Spool(aside)

    def path(self, sha256: str) -> None:
        """Return nothing: no blob is on this machine."""

    async def size(self, sha256: str) -> int | None:
        """Return a blob's size [bytes], or None if it is not there."""
        with self._reached():
            try:
                return int((await obstore.head_async(self._store, check_name(sha256)))["size"])
            except (FileNotFoundError, exceptions.NotFoundError):
                return None

    async def put(self, sha256: str, data: AsyncIterator[bytes]) -> int:
        """Store a blob and return its size [bytes]; BLOB_DIGEST if the bytes are others than the name says."""
        async with self._spool.received(check_name(sha256), data) as file:
            await self.put_file(sha256, file)
            return file.stat().st_size

    async def put_file(self, sha256: str, file: Path) -> None:
        """Store a file whose bytes were hashed before."""
        with self._reached():
            await obstore.put_async(self._store, check_name(sha256), file)

    async def read(self, sha256: str, begin: int, end: int) -> AsyncIterator[bytes]:
        """Give a blob's bytes from ``begin`` to before ``end``."""
        if begin == end:
            return
        with self._reached():
            found = await obstore.get_async(self._store, check_name(sha256), options={"range": (begin, end)})
            async for chunk in found.stream():
                yield bytes(chunk)

    async def link(self, sha256: str) -> str:
        """Return a URL at which whoever has it can fetch a blob for an hour, at the ``AWS_ENDPOINT_URL`` of this server."""
        with self._reached():
            return str(await obstore.sign_async(self._store, "GET", check_name(sha256), _LINK_VALID))

    async def sizes(self) -> dict[str, int]:
        """Return every blob's size [bytes]."""
        with self._reached():
            return {str(item["path"]): int(item["size"]) async for page in obstore.list(self._store) for item in page}

    async def remove(self, sha256: str) -> None:
        """Remove a blob; one that is not there is fine."""
        with self._reached(), suppress(FileNotFoundError, exceptions.NotFoundError):
            await obstore.delete_async(self._store, check_name(sha256))

    @asynccontextmanager
    async def folder_of(self, files: Iterable[tuple[str, str]]) -> AsyncIterator[Path]:
        """Give a folder with these files (path, SHA-256) while the context lasts; BLOB_MISSING if one was not uploaded."""
        with tempfile.TemporaryDirectory(dir=self._spool.root) as name:
            for path, sha256 in files:
                await self._fetch(sha256, path, Path(name) / path)
            yield Path(name)

    async def _fetch(self, sha256: str, path: str, target: Path) -> None:
        size = await self.size(sha256)
        if size is None:
            raise MissingError("BLOB_MISSING", f"{path}: blob {sha256} has not been uploaded")
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._spool.room(sha256), target.open("wb") as file:
            async for chunk in self.read(sha256, 0, size):
                await asyncio.to_thread(file.write, chunk)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except _UNREACHABLE as e:
            text = f"{self._url}: {_first_line(e)}; is it running, and are --blobs and AWS_… right?"
            raise UnavailableError("BLOBS_UNREACHABLE", text) from e


def _first_line(error: Any) -> str:
    return str(error).strip().split("\n")[0][:300]
