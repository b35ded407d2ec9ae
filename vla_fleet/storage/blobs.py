# SPDX-License-Identifier: Apache-2.0
"""Files by their SHA-256. A blob that exists is complete: it gets its name after its bytes were hashed and flushed."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from enum import Enum
from pathlib import Path
from typing import Protocol

from vla_fleet.errors import ConflictError, FullError, InputError, MissingError
from vla_fleet.secret_file import flush_folder

_HEX = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


class FilesBy(str, Enum):
    """Who sends the bytes of the files of versions, once the server has said that somebody may have them."""

    SERVER = "server"
    LINKS = "links"
    """The object store: the server answers with a link that is good for an hour."""
    X_ACCEL = "x-accel"
    """The nginx in front of the server, from the server's folder."""


class BlobStore(Protocol):
    """What the registry needs of a blob store."""

    def path(self, sha256: str) -> Path | None:
        """Return where a blob is on this machine, or would be; None: it is elsewhere."""
        ...

    async def size(self, sha256: str) -> int | None:
        """Return a blob's size [bytes], or None if it is not there."""
        ...

    async def put(self, sha256: str, data: AsyncIterator[bytes]) -> int:
        """Store a blob and return its size [bytes]; BLOB_DIGEST if the bytes are others than the name says."""
        ...

    def read(self, sha256: str, begin: int, end: int) -> AsyncIterator[bytes]:
        """Give a blob's bytes from ``begin`` to before ``end``."""
        ...

    async def sizes(self) -> dict[str, int]:
        """Return every blob's size [bytes]."""
        ...

    async def remove(self, sha256: str) -> None:
        """Remove a blob; one that is not there is fine."""
        ...

    def folder_of(self, files: Iterable[tuple[str, str]]) -> AbstractAsyncContextManager[Path]:
        """Give a folder with these files (path, SHA-256) while the context lasts; BLOB_MISSING if one was not uploaded."""
        ...


def check_name(sha256: str) -> str:
    """Return a blob's name.

    Raises:
        InputError: BLOB_NAME.
    """
    if not _HEX.fullmatch(sha256):
        raise InputError("BLOB_NAME", "a blob's name is 64 lower-case hexadecimal digits")
    return sha256


class Spool:
    """A folder for what is on its way. Nothing in it survives a start."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.rmtree(root, ignore_errors=True)  # what a crash left half-way
        root.mkdir(parents=True)

    @asynccontextmanager
    async def received(self, sha256: str, data: AsyncIterator[bytes]) -> AsyncIterator[Path]:
        """Give a file with these bytes, flushed, while the context lasts.

        Raises:
            FleetError: BLOB_DIGEST, DISK_FULL.
        """
        aside, digest = self.root / secrets.token_hex(8), hashlib.sha256()
        try:
            with self.room(sha256):
                with aside.open("wb") as file:
                    async for chunk in data:
                        digest.update(chunk)
                        file.write(chunk)
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
                if digest.hexdigest() != sha256:
                    raise ConflictError("BLOB_DIGEST", f"the bytes hash to {digest.hexdigest()}, not to {sha256}")
                yield aside
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def room(self, sha256: str) -> Iterator[None]:
        """Say so if this machine has no room for a blob."""
        try:
            yield
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            text = f"blob {sha256} cannot be stored: {e.strerror}; run `vla-fleet gc`, or give the server more room"
            raise FullError("DISK_FULL", text) from e


class LocalBlobs:
    """A blob store in a folder: ``<root>/sha256/<hex>``."""

    def __init__(self, root: Path) -> None:
        self.root = root / "sha256"
        self.root.mkdir(parents=True, exist_ok=True)
        self._spool = Spool(root / "incoming")

    def path(self, sha256: str) -> Path:
        """Return where a blob is, or would be."""
        return self.root / check_name(sha256)

    async def size(self, sha256: str) -> int | None:
        """Return a blob's size [bytes], or None if it is not there."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    async def put(self, sha256: str, data: AsyncIterator[bytes]) -> int:
        """Store a blob and return its size [bytes]; BLOB_DIGEST if the bytes are others than the name says."""
        target = self.path(sha256)
        async with self._spool.received(sha256, data) as aside:
            size = aside.stat().st_size
            aside.chmod(0o444)
            aside.replace(target)
            flush_folder(self.root)
            return size

    async def read(self, sha256: str, begin: int, end: int) -> AsyncIterator[bytes]:
        """Give a blob's bytes from ``begin`` to before ``end``."""
        with self.path(sha256).open("rb") as file:
            file.seek(begin)
            while begin < end:
                chunk = await asyncio.to_thread(file.read, min(_CHUNK_BYTES, end - begin))
                begin += len(chunk)
                yield chunk

    async def sizes(self) -> dict[str, int]:
        """Return every blob's size [bytes]."""
        return await asyncio.to_thread(lambda: {p.name: p.stat().st_size for p in self.root.iterdir()})

    async def remove(self, sha256: str) -> None:
        """Remove a blob; one that is not there is fine."""
        self.path(sha256).unlink(missing_ok=True)

    @asynccontextmanager
    async def folder_of(self, files: Iterable[tuple[str, str]]) -> AsyncIterator[Path]:
        """Give a folder with these files (path, SHA-256) while the context lasts; BLOB_MISSING if one was not uploaded."""
        with tempfile.TemporaryDirectory(dir=self._spool.root) as name:
            folder = Path(name)
            for path, sha256 in files:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.hardlink_to(self.path(sha256))
                except FileNotFoundError as e:
                    raise MissingError("BLOB_MISSING", f"{path}: blob {sha256} has not been uploaded") from e
            yield folder
