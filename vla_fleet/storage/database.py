# SPDX-License-Identifier: Apache-2.0
"""The database behind the server: SQLite beside the data by default, any that SQLAlchemy speaks to by URL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from vla_fleet.clock import Clock
from vla_fleet.storage.tables import LogRow

MIGRATIONS = Path(__file__).with_name("migrations")


class Database:
    """Sessions on one database.

    Args:
        url: as SQLAlchemy writes it, with an asyncio driver, for example ``sqlite+aiosqlite:////var/lib/vla_fleet/fleet.db``.
        clock: stamps the log.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self.url, self._clock = url, clock
        self.engine = _engine(url)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    async def migrate(self) -> None:
        """Bring the tables up to date."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        async with self.engine.begin() as connection:
            await connection.run_sync(lambda sync: _upgrade(config, sync))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """Give a session whose changes are committed together at the end, or not at all if the block raises."""
        async with self._sessions.begin() as session:
            yield session

    def log(self, session: AsyncSession, who: str, action: str, subject: str, **detail: Any) -> None:
        """Add a line to the log, in the same transaction as what it tells of."""
        row = LogRow(time_s=self._clock.now(), who=who, action=action, subject=subject, detail=detail)
        session.add(row)


def _engine(url: str) -> AsyncEngine:
    engine = create_async_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine.sync_engine, "connect")
        def _configure(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    return engine


def _upgrade(config: Config, connection: Any) -> None:
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
