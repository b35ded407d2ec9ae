# SPDX-License-Identifier: Apache-2.0
"""A database of an earlier release is brought up to date with all that is in it, and then is what the sources say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import text

from vla_fleet.clock import SystemClock
from vla_fleet.storage.database import MIGRATIONS, Database
from vla_fleet.storage.tables import Base

ROWS = (
    "INSERT INTO robots VALUES ('arm', 'hash', 'default', '[]', 1.0, 2.0, 'box', 7, '', '{}')",
    "INSERT INTO api_keys VALUES ('hash', 'ada', 'admin', 1.0)",
    "INSERT INTO versions VALUES ('pick', '1.0.0', 'digest', '{}', 10, 1.0, 'ada')",
    "INSERT INTO events VALUES (1, 'arm', 1.0, 2.0, 'c-1', 'TRIAL', 'COMMITTED', '1.0.0', '', '')",
    "INSERT INTO commands VALUES (1, 'c-1', 'arm', '{\"type\": \"ROLLBACK\"}', 1.0, 'ada', 0.0, 'DONE', 1, '', '', '', '', 2.0)",
)


def test_an_older_database_keeps_its_rows_and_gets_the_tables_that_the_sources_name(tmp_path: Path) -> None:
    async def work() -> None:
        database = Database(f"sqlite+aiosqlite:///{tmp_path / 'fleet.db'}", SystemClock())

        async def sync(do: Callable[[Any], Any]) -> Any:
            async with database.engine.begin() as connection:
                return await connection.run_sync(do)

        def first_release(connection: Any) -> None:
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(MIGRATIONS))
            command.upgrade(config, "0001")
            for row in ROWS:
                connection.execute(text(row))

        await sync(first_release)
        await database.migrate()
        await database.migrate()  # a second start changes nothing
        counts = await sync(
            lambda c: [c.execute(text(f"SELECT count(*) FROM {row.split()[2]}")).scalar() for row in ROWS]
        )
        assert counts == [1] * len(ROWS)
        differences = await sync(lambda c: compare_metadata(MigrationContext.configure(c), Base.metadata))
        assert not differences
        await database.close()

    asyncio.run(work())
