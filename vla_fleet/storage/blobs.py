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
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from vla_fleet.errors import ConflictError, FullError, InputError, MissingError
from vla_fleet.secret_file import flush_folder

_HEX = re.compile(r"[0-9a-f]{64}")


class BlobStore(Protocol):
    """What the registry needs of a blob store."""

    async def size(self, sha256: str) -> int | None:
        """Return a blob's size [bytes], or None if it is not there."""
        ...

    async def put(self, sha256: str, data: AsyncIterator[bytes]) -> int:
        """Store a blob and return its size [bytes]; BLOB_DIGEST if the bytes are others than the name says."""
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


class LocalBlobs:
    """A blob store in a folder: ``<root>/sha256/<hex>``."""

    def __init__(self, root: Path) -> None:
        self.root = root / "sha256"
        self._aside = root / "incoming"
        self.root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._aside, ignore_errors=True)  # what a crash left half-way
        self._aside.mkdir()

    def path(self, sha256: str) -> Path:
        """Return where a blob is, or would be."""
        if not _HEX.fullmatch(sha256):
            raise InputError("BLOB_NAME", "a blob's name is 64 lower-case hexadecimal digits")
        return self.root / sha256

    async def size(self, sha256: str) -> int | None:
        """Return a blob's size [bytes], or None if it is not there."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    async def put(self, sha256: str, data: AsyncIterator[bytes]) -> int:
        """Store a blob and return its size [bytes]; BLOB_DIGEST if the bytes are others than the name says."""
        target, aside = self.path(sha256), self._aside / secrets.token_hex(8)
        digest = hashlib.sha256()
        try:
            with aside.open("wb") as file:
                async for chunk in data:
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            if digest.hexdigest() != sha256:
                raise ConflictError("BLOB_DIGEST", f"the bytes hash to {digest.hexdigest()}, not to {sha256}")
            size = aside.stat().st_size
            aside.chmod(0o444)
            aside.replace(target)
            flush_folder(self.root)
            return size
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            text = f"blob {sha256} cannot be stored: {e.strerror}; run `vla-fleet gc`, or give the server more room"
            raise FullError("DISK_FULL", text) from e
        finally:
            aside.unlink(missing_ok=True)

    async def sizes(self) -> dict[str, int]:
        """Return every blob's size [bytes]."""
        return await asyncio.to_thread(lambda: {p.name: p.stat().st_size for p in self.root.iterdir()})

    async def remove(self, sha256: str) -> None:
        """Remove a blob; one that is not there is fine."""
        self.path(sha256).unlink(missing_ok=True)

    @asynccontextmanager
    async def folder_of(self, files: Iterable[tuple[str, str]]) -> AsyncIterator[Path]:
        """Give a folder with these files (path, SHA-256) while the context lasts; BLOB_MISSING if one was not uploaded."""
        with tempfile.TemporaryDirectory(dir=self._aside) as name:
            folder = Path(name)
            for path, sha256 in files:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.hardlink_to(self.path(sha256))
                except FileNotFoundError as e:
                    raise MissingError("BLOB_MISSING", f"{path}: blob {sha256} has not been uploaded") from e
            yield folder
