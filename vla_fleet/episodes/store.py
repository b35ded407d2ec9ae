# SPDX-License-Identifier: Apache-2.0
"""Which episodes there are. A row means: the file is whole, was checked, and is under its final name.

A robot's upload becomes an episode in this sequence, so that a kill at any point loses nothing and leaves nothing half::

    bytes in the part ──► hash ──► read through ──► final name beside the part ──► row committed ──► part removed

In an object store the final name comes to be where the file is read through and the row is not there yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import case, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.clock import Clock
from vla_fleet.episodes.files import EpisodeFiles, OffsetError
from vla_fleet.errors import FleetError, InputError, MissingError
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import EpisodeRow

if TYPE_CHECKING:
    from vla_learning.episodes.summary import EpisodeSummary

MAX_EPISODE_BYTES = 1 << 30
"""As much as the reader takes (``vla_learning.episodes.container``)."""
_CHECKS_AT_ONCE = 2

OUTCOMES = {"success": True, "failure": False, "unknown": None}


@dataclass(frozen=True)
class Standing:
    """How an upload stands."""

    received_bytes: int
    complete: bool


@dataclass(frozen=True)
class Filter:
    """Which episodes are meant; empty means any."""

    robot: str = ""
    policy: str = ""
    version: str = ""
    outcome: str = ""
    """``success``, ``failure`` or ``unknown``."""
    corrected: bool = False
    """Only those with corrections."""
    before: int = 0
    """Only those with a smaller number; 0: the newest."""


class EpisodeStore:
    """Takes episodes in and finds them.

    Args:
        database: of the rows.
        files: of the bytes.
        clock: stamps the rows.
        max_per_robot: episodes of one robot that are kept. Beyond it go, the oldest first, successes, then episodes whose
            outcome nobody said, then failures, then those with corrections.
    """

    def __init__(self, database: Database, files: EpisodeFiles, clock: Clock, max_per_robot: int) -> None:
        self._database, self._clock, self._max_per_robot = database, clock, max_per_robot
        self.files = files
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self._finishing: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        """Clear up after a crash."""
        async with self._database.begin() as session:
            known = set((await session.scalars(select(EpisodeRow.sha256))).all())
        await asyncio.to_thread(self.files.sweep, known)

    # -- uploads ------------------------------------------------------------------------------------------------------------

    async def standing(self, robot: str, sha256: str) -> Standing:
        """Return how much of an upload is here."""
        row = await self._row(sha256)
        return Standing(row.size_bytes, True) if row else Standing(self.files.received(robot, sha256), False)

    async def receive(self, robot: str, sha256: str, offset: int, total: int, data: AsyncIterator[bytes]) -> Standing:
        """Take in a piece of a file; with the last one it becomes an episode.

        Raises:
            FleetError: EPISODE_OFFSET, EPISODE_DIGEST, EPISODE_INVALID, DISK_FULL or INPUT_INVALID.
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

    async def _finish(self, robot: str, sha256: str) -> None:
        part = self.files.part(robot, sha256)
        async with self._checks:
            try:
                summary = await asyncio.to_thread(_check, self.files, part, sha256)
            except (InputError, OffsetError):
                self.files.drop_part(part)
                raise
        await self.files.upload(part, sha256)
        evicted: Sequence[str] = ()
        try:
            async with self._database.begin() as session:
                session.add(self._new_row(robot, summary))
                await session.flush()
                self.files.name(part, sha256)
                evicted = await self._evict(session, robot, sha256)
        except IntegrityError:  # another server was faster
            if await self._row(sha256) is None:
                raise
        for old in evicted:
            await self.files.discard(old)
        self.files.drop_part(part)

    def _new_row(self, robot: str, summary: EpisodeSummary) -> EpisodeRow:
        fields = asdict(summary) | {"robot": robot, "instructions": list(summary.instructions)}
        return EpisodeRow(**fields, received_s=self._clock.now())

    async def _evict(self, session: AsyncSession, robot: str, newest: str) -> Sequence[str]:
        """Remove the rows that are too many; return whose files go with them."""
        own = EpisodeRow.robot == robot
        count = await session.scalar(select(func.count()).where(own)) or 0
        if count <= self._max_per_robot:
            return ()
        worth = case(
            (EpisodeRow.corrections > 0, 3),
            (EpisodeRow.success.is_(True), 0),
            (EpisodeRow.success.is_(False), 2),
            else_=1,
        )
        least = select(EpisodeRow.sha256).where(own, EpisodeRow.sha256 != newest).order_by(worth, EpisodeRow.number)
        doomed = (await session.scalars(least.limit(count - self._max_per_robot))).all()
        await session.execute(delete(EpisodeRow).where(EpisodeRow.sha256.in_(doomed)))
        return doomed

    # -- looking ------------------------------------------------------------------------------------------------------------

    async def list(self, wanted: Filter, limit: int) -> Sequence[EpisodeRow]:
        """Return episodes, the newest first."""
        query = select(EpisodeRow).order_by(EpisodeRow.number.desc()).limit(limit)
        for column in (EpisodeRow.robot, EpisodeRow.policy, EpisodeRow.version):
            if value := getattr(wanted, column.key):
                query = query.where(column == value)
        if wanted.outcome:
            query = query.where(EpisodeRow.success.is_(OUTCOMES[wanted.outcome]))
        if wanted.corrected:
            query = query.where(EpisodeRow.corrections > 0)
        if wanted.before:
            query = query.where(EpisodeRow.number < wanted.before)
        async with self._database.begin() as session:
            return (await session.scalars(query)).all()

    async def find(self, prefix: str) -> EpisodeRow:
        """Return the episode whose SHA-256 begins with ``prefix``; EPISODE_NOT_FOUND if there is none, or several."""
        query = select(EpisodeRow).where(EpisodeRow.sha256.startswith(prefix)).limit(2)
        async with self._database.begin() as session:
            rows = (await session.scalars(query)).all()
        if len(rows) != 1:
            several = "several episodes begin" if rows else "no episode begins"
            raise MissingError("EPISODE_NOT_FOUND", f"{several} with {prefix!r}; see `vla-fleet episodes list`")
        return rows[0]

    async def _row(self, sha256: str) -> EpisodeRow | None:
        async with self._database.begin() as session:
            return await session.scalar(select(EpisodeRow).where(EpisodeRow.sha256 == sha256))


def _check(files: EpisodeFiles, part: Path, sha256: str) -> EpisodeSummary:
    """Read a file that has arrived through and through."""
    from vla_learning.episodes.summary import summarize  # numpy and Pillow: the server starts without them
    from vla_learning.errors import EpisodeError

    try:
        found = files.hash(part)
    except FileNotFoundError as e:  # another request found it to be no episode, or a newer upload took its place
        raise OffsetError("EPISODE_OFFSET", "nothing is here; send the episode again", 0) from e
    if found != sha256:
        text = f"the bytes hash to {found}, not to {sha256}; they were thrown away, send the episode again"
        raise OffsetError("EPISODE_DIGEST", text, 0)
    try:
        return summarize(part)
    except EpisodeError as e:
        if e.code == "EPISODE_UNREADABLE":  # this machine's fault, not the file's
            raise FleetError("EPISODE_UNREADABLE", e.reason) from e
        raise InputError("EPISODE_INVALID", f"the file is no episode: {e}") from e
