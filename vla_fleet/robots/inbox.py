# SPDX-License-Identifier: Apache-2.0
"""What robots say, into the database: each kept message once, however often it is sent."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet import protocol
from vla_fleet.clock import Clock
from vla_fleet.robots.commands import Commands
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import EventRow, OutcomeRow, RobotRow


class Inbox:
    """Stores messages of robots that have been authenticated."""

    def __init__(self, database: Database, commands: Commands, clock: Clock) -> None:
        self._database, self._commands, self._clock = database, commands, clock

    async def hello(self, robot: str, message: protocol.Hello) -> int:
        """Note that a robot has connected; return up to which ``seq`` its kept messages are stored."""
        async with self._database.begin() as session:
            row = await session.get_one(RobotRow, robot)
            if row.outbox_id != message.outbox_id:
                row.outbox_id, row.outbox_seq = message.outbox_id, 0
            row.software, row.last_seen_s = message.software, self._clock.now()
            return row.outbox_seq

    async def status(self, robot: str, message: protocol.Status) -> None:
        """Keep the newest status."""
        async with self._database.begin() as session:
            row = await session.get_one(RobotRow, robot)
            row.last_seen_s = self._clock.now()
            row.status = message.model_dump(mode="json", exclude={"type"})

    async def kept(self, robot: str, message: protocol.Event | protocol.Outcome | protocol.Ack) -> None:
        """Store a kept message; one that is stored already changes nothing."""
        now = self._clock.now()
        async with self._database.begin() as session:
            row = await session.get_one(RobotRow, robot)
            row.last_seen_s = now
            if message.seq <= row.outbox_seq:
                return
            row.outbox_seq = message.seq
            if isinstance(message, protocol.Ack):
                await self._commands.take(session, robot, message)
            elif isinstance(message, protocol.Event):
                fields = message.model_dump(exclude={"type", "seq"})
                session.add(EventRow(robot=robot, received_s=now, **fields))
            else:
                await self._outcome(session, robot, message, now)

    async def _outcome(self, session: AsyncSession, robot: str, message: protocol.Outcome, now: float) -> None:
        same = OutcomeRow.robot == robot, OutcomeRow.episode_id == message.episode_id
        if await session.scalar(select(OutcomeRow.id).where(*same)) is None:
            fields = message.model_dump(exclude={"type", "seq", "generation"})
            session.add(OutcomeRow(robot=robot, received_s=now, **fields))
