# SPDX-License-Identifier: Apache-2.0
"""Files of one kind: ``<root>/<sha256><suffix>`` once they are whole, ``<root>/incoming/<robot>/<sha256>`` while they arrive.

With an object store, whole files are there. What is arriving is on the server that it arrives at: a robot that goes on at another
one hears that nothing is there, and begins again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from vla_fleet.errors import ConflictError, FullError, InputError
from vla_fleet.secret_file import flush_folder
from vla_fleet.storage.object_blobs import ObjectBlobs

MIN_FREE_BYTES = 1 << 30
"""An upload that would leave less than this free is refused, so that the database can go on."""
_MOST_PARTS = 4
"""Of one robot; a robot uploads one at a time, and forgets one that it has thrown away."""


class OffsetError(ConflictError):
    """UPLOAD_OFFSET, UPLOAD_DIGEST: the robot goes on at ``received_bytes``."""

    def __init__(self, code: str, message: str, received_bytes: int) -> None:
        super().__init__(code, message)
        self.received_bytes = received_bytes


class UploadFiles:
    """Takes files in piece by piece. What arrived stays, whatever ends the request or the server."""

    def __init__(self, root: Path, suffix: str, objects: ObjectBlobs | None = None) -> None:
        self.root, self._incoming, self.suffix, self.objects = root, root / "incoming", suffix, objects
        self._incoming.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where a whole file is, or would be."""
        return self.root / (sha256 + self.suffix)

    def part(self, robot: str, sha256: str) -> Path:
        """Return where a file is while it arrives."""
        return self._incoming / robot / sha256

    def received(self, robot: str, sha256: str) -> int:
        """Return how much of a file has arrived [bytes]."""
        try:
            return self.part(robot, sha256).stat().st_size
        except FileNotFoundError:
            return 0

    async def append(self, robot: str, sha256: str, offset: int, total: int, data: AsyncIterator[bytes]) -> int:
        """Write what comes behind what is there; return how much has arrived now [bytes].

        When two send at once, the first to write goes on; the other gets the offset at which the file ends by then.

        Raises:
            FleetError: UPLOAD_OFFSET, INPUT_INVALID (more than ``total``), DISK_FULL.
        """
        part = self.part(robot, sha256)
        if offset > total:
            raise InputError("INPUT_INVALID", f"query.offset: is beyond total_bytes, {total}")
        try:
            if shutil.disk_usage(self.root).free - (total - offset) < MIN_FREE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            part.parent.mkdir(exist_ok=True)
            if offset == 0:
                self._make_room(part)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                async for chunk in data:
                    _write_at(descriptor, chunk, offset, total)
                    offset += len(chunk)
                size = os.fstat(descriptor).st_size
                if size != offset:  # nothing came, so nothing was compared
                    raise _elsewhere(size)
                return size
            finally:
                os.close(descriptor)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise FullError("DISK_FULL", f"{sha256} cannot be stored: {e.strerror}; give the server room") from e

    def check_hash(self, part: Path, sha256: str) -> None:
        """Make a file that has arrived durable.

        Raises:
            OffsetError: UPLOAD_DIGEST if it hashes to something else, UPLOAD_OFFSET if another request has removed it.
        """
        try:
            with part.open("rb") as file:
                os.fsync(file.fileno())
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as e:
            raise OffsetError("UPLOAD_OFFSET", "nothing is here; send it again", 0) from e
        if found != sha256:
            text = f"the bytes hash to {found}, not to {sha256}; they were thrown away, send them again"
            raise OffsetError("UPLOAD_DIGEST", text, 0)

    async def upload(self, part: Path, sha256: str) -> None:
        """Bring a file that was checked to the object store, if there is one."""
        if self.objects is not None:
            await self.objects.put_file(sha256, part)

    def name(self, part: Path, sha256: str) -> None:
        """Give a file its final name, if there is no object store; the part keeps its own until :meth:`drop_part`."""
        if self.objects is not None:
            return
        with contextlib.suppress(FileExistsError):
            self.path(sha256).hardlink_to(part)
        flush_folder(self.root)

    def drop_part(self, part: Path) -> None:
        """Remove a part."""
        part.unlink(missing_ok=True)

    def remove(self, sha256: str) -> None:
        """Remove a whole file."""
        self.path(sha256).unlink(missing_ok=True)

    async def discard(self, sha256: str) -> None:
        """Remove a whole file from wherever it is."""
        if self.objects is not None:
            await self.objects.remove(sha256)
        else:
            self.remove(sha256)

    def sweep(self, known: Collection[str]) -> None:
        """Remove what a crash left: names whose row was not committed, and parts whose row was.

        A name without a row and without a part is left alone: the database may be an older one than the files.
        """
        for part in self._incoming.glob("*/*"):
            if part.name in known:
                part.unlink()
            else:
                self.remove(part.name)

    def _make_room(self, part: Path) -> None:
        """Forget the robot's oldest parts before another one begins."""
        parts = sorted(
            (path for path in part.parent.iterdir() if path != part), key=lambda path: path.stat().st_mtime_ns
        )
        for old in parts[: max(0, len(parts) - _MOST_PARTS + 1)]:
            old.unlink(missing_ok=True)


def _write_at(descriptor: int, chunk: bytes, offset: int, total: int) -> None:
    size = os.fstat(descriptor).st_size  # nothing is awaited from here to the write: nobody writes between
    if size != offset:
        raise _elsewhere(size)
    if offset + len(chunk) > total:
        raise InputError("INPUT_INVALID", f"query.total_bytes: more than {total} bytes were sent")
    view = memoryview(chunk)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset, view = offset + written, view[written:]


def _elsewhere(size: int) -> OffsetError:
    return OffsetError("UPLOAD_OFFSET", f"{size} bytes are here; go on from there", size)
