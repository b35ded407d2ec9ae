# SPDX-License-Identifier: Apache-2.0
"""Writes that share a transaction: each is whole or not at all, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.clock import SystemClock
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import LogRow
from vla_fleet.storage.writer import Writer


def test_a_write_that_fails_undoes_itself_alone_and_the_others_are_stored_in_sequence(tmp_path: Path) -> None:
    async def scene() -> tuple[list[object], list[str], int]:
        database = Database(f"sqlite+aiosqlite:///{tmp_path / 'fleet.db'}", SystemClock())
        await database.migrate()
        writer, transactions = Writer(database), set()

        def adds(number: int) -> Callable[[AsyncSession], Awaitable[int]]:
            async def work(session: AsyncSession) -> int:
                transactions.add(id(session.sync_session.get_transaction()))
                database.log(session, "test", "write", str(number))
                if number == 7:
                    raise ValueError("seven")
                return number

            return work

        whole = await asyncio.gather(*(writer.write(adds(n)) for n in range(5)))
        together = len(transactions)
        results = await asyncio.gather(*(writer.write(adds(n)) for n in range(5, 10)), return_exceptions=True)
        async with database.begin() as session:
            stored = list(await session.scalars(select(LogRow.subject).order_by(LogRow.id)))
        await database.close()
        return [*whole, *results], stored, together

    results, stored, together = asyncio.run(scene())
    assert [r if isinstance(r, int) else str(r) for r in results] == [0, 1, 2, 3, 4, 5, 6, "seven", 8, 9]
    assert stored == ["0", "1", "2", "3", "4", "5", "6", "8", "9"]
    assert together == 1
