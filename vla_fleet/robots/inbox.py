# SPDX-License-Identifier: Apache-2.0
"""What robots say, into the database: each kept message once, however often it is sent."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from sqlalchemy import Table, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet import protocol
from vla_fleet.clock import Clock
from vla_fleet.robots.commands import Commands
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import EventRow, OutcomeRow, RobotRow
from vla_fleet.storage.writer import Writer

Kept = protocol.Event | protocol.Outcome | protocol.Ack
_ON_THE_WAY = 64
_ROBOTS = cast(Table, RobotRow.__table__)
_ROBOT = _ROBOTS.update().where(_ROBOTS.c.name == bindparam("robot"))
_STATUS = _ROBOT.values(last_seen_s=bindparam("now"), status=bindparam("about"))
_STORED = _ROBOT.values(last_seen_s=bindparam("now"), outbox_seq=bindparam("seq"))
"""Made once: what SQLAlchemy knows a statement by takes longer than to run it if each has its values in it."""


class Inbox:
    """Stores messages of robots that have been authenticated, those of one moment in one transaction."""

    def __init__(self, database: Database, commands: Commands, clock: Clock) -> None:
        self._writer, self._commands, self._clock = Writer(database), commands, clock

    async def hello(self, robot: str, message: protocol.Hello) -> int:
        """Note that a robot has connected; return up to which ``seq`` its kept messages are stored."""

        async def work(session: AsyncSession) -> int:
            row = await session.get_one(RobotRow, robot, with_for_update={"key_share": True})
            if row.outbox_id != message.outbox_id:
                row.outbox_id, row.outbox_seq = message.outbox_id, 0
            row.software, row.last_seen_s = message.software, self._clock.now()
            return row.outbox_seq

        return await self._writer.write(work)

    async def status(self, robot: str, message: protocol.Status) -> None:
        """Keep the newest status."""
        about = message.model_dump(mode="json", exclude={"type"})
        changed = {"robot": robot, "now": self._clock.now(), "about": about}
        await self._writer.write(lambda session: session.execute(_STATUS, changed))

    async def kept(self, robot: str, outbox_id: str, messages: Sequence[Kept]) -> int:
        """Store kept messages, all or none, each once; return up to which ``seq`` all are stored.

        Messages of an outbox that the robot does not have any more are those of an old line; none of them is stored.
        """
        return await self._writer.write(lambda session: self._kept(session, robot, outbox_id, messages))

    async def _kept(self, session: AsyncSession, robot: str, outbox_id: str, messages: Sequence[Kept]) -> int:
        now = self._clock.now()
        # the robot's old line may store the same on another server at the same moment: one of both waits here
        query = select(RobotRow.outbox_id, RobotRow.outbox_seq).where(RobotRow.name == robot)
        current, stored = (await session.execute(query.with_for_update(key_share=True))).one()
        if current != outbox_id:
            return 0
        for message in messages:
            if message.seq <= stored:
                continue
            stored = message.seq
            if isinstance(message, protocol.Ack):
                await self._commands.take(session, robot, message)
            elif isinstance(message, protocol.Event):
                fields = message.model_dump(exclude={"type", "seq"})
                session.add(EventRow(robot=robot, received_s=now, **fields))
            else:
                await self._outcome(session, robot, message, now)
        await session.execute(_STORED, {"robot": robot, "now": now, "seq": stored})
        return stored

    async def _outcome(self, session: AsyncSession, robot: str, message: protocol.Outcome, now: float) -> None:
        same = OutcomeRow.robot == robot, OutcomeRow.episode_id == message.episode_id
        if await session.scalar(select(OutcomeRow.id).where(*same)) is None:
            fields = message.model_dump(exclude={"type", "seq", "generation"})
            session.add(OutcomeRow(robot=robot, received_s=now, **fields))


class Intake:
    """What one robot says on one connection, stored in its sequence; what comes while something is stored shares a transaction.

    Args:
        inbox: where it goes.
        robot: its name.
        outbox_id: of the outbox that its kept messages are from.
        confirm: is called with the ``seq`` up to which everything is stored.
    """

    def __init__(self, inbox: Inbox, robot: str, outbox_id: str, confirm: Callable[[int], Awaitable[None]]) -> None:
        self._inbox, self._robot, self._outbox_id, self._confirm = inbox, robot, outbox_id, confirm
        self._waiting: asyncio.Queue[protocol.Status | Kept] = asyncio.Queue(_ON_THE_WAY)

    async def put(self, message: protocol.Status | Kept) -> None:
        """Take a message in; wait while too many are not stored yet."""
        await self._waiting.put(message)

    async def run(self) -> None:
        """Store until cancelled."""
        while True:
            messages = [await self._waiting.get()]
            while not self._waiting.empty():
                messages.append(self._waiting.get_nowait())
            for is_status, group in itertools.groupby(messages, lambda m: isinstance(m, protocol.Status)):
                await self._store(list(group), is_status=is_status)

    async def _store(self, messages: list[Any], *, is_status: bool) -> None:
        if is_status:
            await self._inbox.status(self._robot, messages[-1])
        else:
            await self._confirm(await self._inbox.kept(self._robot, self._outbox_id, messages))
