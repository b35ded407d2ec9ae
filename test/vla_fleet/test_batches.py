# SPDX-License-Identifier: Apache-2.0
"""Items that share a transaction: each is whole or not at all, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.clock import SystemClock
from vla_fleet.errors import UnavailableError
from vla_fleet.storage.batches import Batches
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import LogRow


def test_an_item_that_fails_undoes_itself_alone_and_the_others_are_stored_in_sequence(tmp_path: Path) -> None:
    async def scene() -> tuple[list[object], list[str], list[int]]:
        database = Database(f"sqlite+aiosqlite:///{tmp_path / 'fleet.db'}", SystemClock())
        await database.migrate()
        sizes: list[int] = []

        async def work(session: AsyncSession, numbers: Sequence[int]) -> Sequence[int]:
            sizes.append(len(numbers))
            for number in numbers:
                database.log(session, "test", "write", str(number))
                if number == 7:
                    raise ValueError("seven")
            return numbers

        batches = Batches(database, work)
        whole = await asyncio.gather(*(batches.do(n) for n in range(5)))
        results = await asyncio.gather(*(batches.do(n) for n in range(5, 10)), return_exceptions=True)
        async with database.begin() as session:
            stored = list(await session.scalars(select(LogRow.subject).order_by(LogRow.id)))
        await database.close()
        return [*whole, *results], stored, sizes

    results, stored, sizes = asyncio.run(scene())
    assert [r if isinstance(r, int) else str(r) for r in results] == [0, 1, 2, 3, 4, 5, 6, "seven", 8, 9]
    assert stored == ["0", "1", "2", "3", "4", "5", "6", "8", "9"]
    assert sizes == [5, 5, 1, 1, 1, 1, 1]


def test_when_the_database_is_away_all_are_told_at_once(tmp_path: Path) -> None:
    async def scene() -> tuple[list[object], list[int]]:
        database = Database(f"sqlite+aiosqlite:///{tmp_path / 'fleet.db'}", SystemClock())
        sizes: list[int] = []

        async def work(_: AsyncSession, numbers: Sequence[int]) -> Sequence[int]:
            sizes.append(len(numbers))
            raise UnavailableError("DATABASE_UNREACHABLE", "it is away")

        batches = Batches(database, work)
        results = await asyncio.gather(*(batches.do(n) for n in range(5)), return_exceptions=True)
        await database.close()
        return results, sizes

    results, sizes = asyncio.run(scene())
    assert [str(result) for result in results] == ["DATABASE_UNREACHABLE: it is away"] * 5
    assert sizes == [5]
