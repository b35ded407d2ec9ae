# SPDX-License-Identifier: Apache-2.0
"""The database behind the server: SQLite beside the data by default, or PostgreSQL, which several servers share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from vla_fleet.clock import Clock
from vla_fleet.errors import InputError, UnavailableError
from vla_fleet.storage.tables import Base, LogRow, SecretRow

MIGRATIONS = Path(__file__).with_name("migrations")
_CONNECT_S, _ANSWER_S = 5.0, 60.0
_CONNECTIONS, _MORE_AT_TIMES = 10, 10
_ONE_MIGRATES = 7_621_044
"""Key of the advisory lock under which tables are brought up to date."""
_SERIALIZATION_FAILURE, _DEADLOCK = "40001", "40P01"
_NO_CONNECTION = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, PoolTimeoutError, DBAPIError)


class Database:
    """Sessions on one database.

    Args:
        url: ``sqlite+aiosqlite:////var/lib/vla_fleet/fleet.db``, ``postgresql://user:password@host/name``.
        clock: stamps the log.

    Raises:
        InputError: DATABASE_URL.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self.url, self._clock = _parsed(url), clock
        self.engine = _engine(self.url)
        self.shared = self.engine.dialect.name == "postgresql"
        """Whether other servers may work on it at the same time."""
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    async def migrate(self) -> None:
        """Bring the tables up to date."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._reached():
            async with self.engine.begin() as connection:
                if self.shared:
                    await connection.execute(text(f"SELECT pg_advisory_xact_lock({_ONE_MIGRATES})"))
                await connection.run_sync(lambda sync: _upgrade(config, sync))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    @asynccontextmanager
    async def begin(self, *, snapshot: bool = False) -> AsyncIterator[AsyncSession]:
        """Give a session whose changes are committed together at the end, or not at all if the block raises.

        Args:
            snapshot: everything that is read is of one moment (PostgreSQL). A change of what another server has changed
                since is refused (:func:`moved_on`).

        Raises:
            UnavailableError: DATABASE_UNREACHABLE; whether the changes were committed is not known if it comes at the end.
        """
        try:
            async with self._sessions.begin() as session:
                if self.shared:
                    with self._reached():
                        level = "REPEATABLE READ" if snapshot else "READ COMMITTED"
                        await session.connection(execution_options={"isolation_level": level})
                yield session
        except DBAPIError as e:
            if e.connection_invalidated:
                raise self._unreachable(e) from e
            raise

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Say in one line that the database cannot be reached, if it is one that is reached."""
        try:
            yield
        except _NO_CONNECTION as e:
            if not self.shared:
                raise
            raise self._unreachable(e) from e

    def _unreachable(self, error: Exception) -> UnavailableError:
        why = str(error.orig if isinstance(error, DBAPIError) else error).strip().split("\n")[0]
        text = f"{self.url.render_as_string()}: {why or type(error).__name__}; is it running, and is --database right?"
        return UnavailableError("DATABASE_UNREACHABLE", text)

    def log(self, session: AsyncSession, who: str, action: str, subject: str, **detail: Any) -> None:
        """Add a line to the log, in the same transaction as what it tells of."""
        row = LogRow(time_s=self._clock.now(), who=who, action=action, subject=subject, detail=detail)
        session.add(row)


async def put(session: AsyncSession, table: type[Base], key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Insert a row or change it, in one statement: of two servers that do so at once, both succeed."""
    made = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(table).values(**key, **values)
    await session.execute(made.on_conflict_do_update(index_elements=list(key), set_=dict(values)))


async def shared_secret(database: Database, name: str, own: bytes) -> bytes:
    """Return the secret that every server on this database has; the first one's ``own`` becomes it."""
    async with database.begin() as session:
        row = {"name": name, "secret": own.decode()}
        await session.execute(postgresql.insert(SecretRow).values(row).on_conflict_do_nothing())
        return (await session.get_one(SecretRow, name)).secret.encode()


def moved_on(error: BaseException) -> bool:
    """Whether a change was refused because another server had changed the same since it was read."""
    code = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(error, DBAPIError) and code in (_SERIALIZATION_FAILURE, _DEADLOCK)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as e:
        raise InputError("DATABASE_URL", "the database's URL cannot be read; write postgresql://USER@HOST/NAME") from e
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+asyncpg")
    if parsed.drivername not in ("postgresql+asyncpg", "sqlite+aiosqlite"):
        raise InputError("DATABASE_URL", f"{parsed.drivername}: is not supported; write postgresql://USER@HOST/NAME")
    return parsed


def _engine(url: URL) -> AsyncEngine:
    if url.drivername.startswith("postgresql"):
        return create_async_engine(
            url,
            pool_size=_CONNECTIONS,
            max_overflow=_MORE_AT_TIMES,
            pool_pre_ping=True,  # the database may have been started again since the connection was last used
            connect_args={"timeout": _CONNECT_S, "command_timeout": _ANSWER_S},
        )
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
