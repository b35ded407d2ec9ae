# SPDX-License-Identifier: Apache-2.0
"""Short work that comes at the same time shares a transaction and its statements: thousands of robots cost tens of both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.errors import UnavailableError
from vla_fleet.storage.database import Database

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_TOGETHER = 256
"""Most items of one transaction: nobody waits long, and nobody else is kept from writing for long."""


Work = Callable[[AsyncSession], Awaitable[_Result]]
"""Does something within a transaction. It may be called twice: again, alone, when another one of its transaction has failed."""


async def each(session: AsyncSession, works: Sequence[Work[Any]]) -> list[Any]:
    """Do one after the other."""
    return [await work(session) for work in works]


class Batches(Generic[_Item, _Result]):
    """Works on items in the sequence in which they come; those that wait at the same moment share a transaction.

    Args:
        database: where.
        work: gets a session and the items of one transaction; returns a result for each. What it raises undoes the transaction;
            then it is called again for each item alone, unless the database is away.
        gather_s: so long a transaction waits for more items, unless it is full [s].
    """

    def __init__(
        self,
        database: Database,
        work: Callable[[AsyncSession, Sequence[_Item]], Awaitable[Sequence[_Result]]],
        gather_s: float = 0.0,
    ) -> None:
        self._database, self._work, self._gather_s = database, work, gather_s
        self._waiting: list[tuple[_Item, asyncio.Future[_Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def do(self, item: _Item) -> _Result:
        """Return the result of an item once its transaction is committed; raise what ``work`` raised for it alone."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Result] = loop.create_future()
        self._waiting.append((item, done))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await done

    async def _run(self) -> None:
        try:
            while self._waiting:
                if len(self._waiting) < _TOGETHER:
                    await asyncio.sleep(self._gather_s)
                batch, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
                if not await self._commit(batch):
                    for one in batch:
                        await self._commit([one], last=True)
        finally:
            self._task = None

    async def _commit(self, batch: list[tuple[_Item, asyncio.Future[_Result]]], *, last: bool = False) -> bool:
        """Commit items together; false if they have to be tried one by one."""
        batch = [(item, done) for item, done in batch if not done.done()]  # who asked may have gone
        if not batch:
            return True
        try:
            async with self._database.begin() as session:
                results = await self._work(session, [item for item, _ in batch])
                answers = list(zip(batch, results, strict=True))
        except Exception as error:
            if last := last or isinstance(error, UnavailableError):  # it is not there for any one of them
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
            return last
        for (_, done), result in answers:
            if not done.done():
                done.set_result(result)
        return True
