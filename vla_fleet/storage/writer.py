# SPDX-License-Identifier: Apache-2.0
"""Short writes that come at the same time share a transaction: a thousand robots that speak at once cost tens of commits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.storage.database import Database

_T = TypeVar("_T")
_Work = Callable[[AsyncSession], Awaitable[Any]]
_TOGETHER = 256
"""Most writes of one transaction: nobody waits long, and nobody else is kept from writing for long."""


class Writer:
    """Runs writes one after the other, in the sequence in which they were asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[_Work, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self, work: Callable[[AsyncSession], Awaitable[_T]]) -> _T:
        """Return what ``work`` returns, once it is committed. What it raises undoes its own changes and no other's.

        ``work`` may be called twice: again, alone, when another write of its transaction has failed.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()
        self._waiting.append((work, done))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await done

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
                if not await self._commit(batch):
                    for one in batch:
                        await self._commit([one], last=True)
        finally:
            self._task = None

    async def _commit(self, batch: list[tuple[_Work, asyncio.Future[Any]]], *, last: bool = False) -> bool:
        """Commit writes together; false if they have to be tried one by one."""
        batch = [(work, done) for work, done in batch if not done.done()]  # who asked may have gone
        try:
            async with self._database.begin() as session:
                results = [await work(session) for work, _ in batch]
        except Exception as error:
            if last:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
            return last
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)
        return True
