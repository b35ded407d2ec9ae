# SPDX-License-Identifier: Apache-2.0
"""From a robot's bytes to a row. A row means: the file is whole, was checked, and is under its final name.

An upload becomes a row in this sequence, so that a kill at any point loses nothing and leaves nothing half::

    bytes in the part ──► hash ──► read through ──► final name beside the part ──► row committed ──► part removed

In an object store the final name comes to be where the file is read through and the row is not there yet.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.clock import Clock
from vla_fleet.errors import InputError
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import AdapterRow, EpisodeRow
from vla_fleet.uploads.files import OffsetError, UploadFiles

MAX_UPLOAD_BYTES = 1 << 30
"""As much as the reader of episodes takes (``vla_learning.episodes.container``)."""
_CHECKS_AT_ONCE = 2

Row = TypeVar("Row", EpisodeRow, AdapterRow)


@dataclass(frozen=True)
class Standing:
    """How an upload stands."""

    received_bytes: int
    complete: bool


class UploadStore(ABC, Generic[Row]):
    """Takes files of one kind in and keeps a row of each."""

    table: type[Row]

    def __init__(self, database: Database, files: UploadFiles, clock: Clock) -> None:
        self._database, self.files, self._clock = database, files, clock
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self._finishing: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        """Clear up after a crash."""
        async with self._database.begin() as session:
            known = set((await session.scalars(select(self.table.sha256))).all())
        await asyncio.to_thread(self.files.sweep, known)

    async def standing(self, robot: str, sha256: str) -> Standing:
        """Return how much of an upload is here."""
        row = await self._row(sha256)
        return Standing(row.size_bytes, True) if row else Standing(self.files.received(robot, sha256), False)

    async def receive(self, robot: str, sha256: str, offset: int, total: int, data: AsyncIterator[bytes]) -> Standing:
        """Take in a piece of a file; with the last one it gets its row.

        Raises:
            FleetError: UPLOAD_OFFSET, UPLOAD_DIGEST, DISK_FULL, INPUT_INVALID, or what :meth:`_summarize` raises.
        """
        if row := await self._row(sha256):
            return Standing(row.size_bytes, True)
        received = await self.files.append(robot, sha256, offset, total, data)
        if received < total:
            return Standing(received, False)
        lock = self._finishing.setdefault(sha256, asyncio.Lock())
        try:
            async with lock:
                if await self._row(sha256) is None:
                    await self._finish(robot, sha256)
        finally:
            self._finishing.pop(sha256, None)
        return Standing(received, True)

    @abstractmethod
    def _summarize(self, part: Path, sha256: str) -> dict[str, Any]:
        """Read a file that has arrived through and through, in a thread; return the columns of its row.

        Raises InputError if it is none of this kind: it is thrown away.
        """

    @abstractmethod
    async def _surplus(self, session: AsyncSession, robot: str, newest: str) -> Sequence[str]:
        """Return which of a robot's files are too many."""

    def _check(self, part: Path, sha256: str) -> dict[str, Any]:
        self.files.check_hash(part, sha256)
        return self._summarize(part, sha256)

    async def _finish(self, robot: str, sha256: str) -> None:
        part = self.files.part(robot, sha256)
        async with self._checks:
            try:
                columns = await asyncio.to_thread(self._check, part, sha256)
            except (InputError, OffsetError):
                self.files.drop_part(part)
                raise
        await self.files.upload(part, sha256)
        surplus: Sequence[str] = ()
        try:
            async with self._database.begin() as session:
                session.add(self.table(**columns | {"robot": robot, "received_s": self._clock.now()}))
                await session.flush()
                self.files.name(part, sha256)
                surplus = await self._surplus(session, robot, sha256)
                await session.execute(delete(self.table).where(self.table.sha256.in_(surplus)))
        except IntegrityError:  # another server was faster
            if await self._row(sha256) is None:
                raise
        for old in surplus:
            await self.files.discard(old)
        self.files.drop_part(part)

    async def _row(self, sha256: str) -> Row | None:
        async with self._database.begin() as session:
            return await session.scalar(select(self.table).where(self.table.sha256 == sha256))
