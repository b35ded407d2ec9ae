# SPDX-License-Identifier: Apache-2.0
"""Which episodes there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.clock import Clock
from vla_fleet.errors import FleetError, InputError, MissingError
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import EpisodeRow
from vla_fleet.uploads.files import UploadFiles
from vla_fleet.uploads.store import UploadStore

OUTCOMES = {"success": True, "failure": False, "unknown": None}


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


class EpisodeStore(UploadStore[EpisodeRow]):
    """Takes episodes in and finds them.

    Args:
        database: of the rows.
        files: of the bytes.
        clock: stamps the rows.
        max_per_robot: episodes of one robot that are kept. Beyond it go, the oldest first, successes, then episodes whose
            outcome nobody said, then failures, then those with corrections.
    """

    table = EpisodeRow

    def __init__(self, database: Database, files: UploadFiles, clock: Clock, max_per_robot: int) -> None:
        super().__init__(database, files, clock)
        self._max_per_robot = max_per_robot

    def _summarize(self, part: Path, sha256: str) -> dict[str, Any]:
        from vla_learning.episodes.summary import summarize  # numpy and Pillow: the server starts without them
        from vla_learning.errors import EpisodeError

        try:
            summary = summarize(part)
        except EpisodeError as e:
            if e.code == "EPISODE_UNREADABLE":  # this machine's fault, not the file's
                raise FleetError("EPISODE_UNREADABLE", e.reason) from e
            raise InputError("EPISODE_INVALID", f"the file is no episode: {e}") from e
        return asdict(summary) | {"instructions": list(summary.instructions)}

    async def _surplus(self, session: AsyncSession, robot: str, newest: str) -> Sequence[str]:
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
        return (await session.scalars(least.limit(count - self._max_per_robot))).all()

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
