# SPDX-License-Identifier: Apache-2.0
"""What robots say, into the database: each kept message once, however often it is sent."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet import protocol
from vla_fleet.clock import Clock
from vla_fleet.robots.commands import Commands
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import EventRow, OutcomeRow, RobotRow
from vla_fleet.storage.writer import Writer

_UNSEEN = {"synchronize_session": False}
"""No session of the inbox reads what such a statement changes."""


class Inbox:
    """Stores messages of robots that have been authenticated, those of one moment in one transaction."""

    def __init__(self, database: Database, commands: Commands, clock: Clock) -> None:
        self._writer, self._commands, self._clock = Writer(database), commands, clock

    async def hello(self, robot: str, message: protocol.Hello) -> int:
        """Note that a robot has connected; return up to which ``seq`` its kept messages are stored."""

        async def work(session: AsyncSession) -> int:
            row = await session.get_one(RobotRow, robot)
            if row.outbox_id != message.outbox_id:
                row.outbox_id, row.outbox_seq = message.outbox_id, 0
            row.software, row.last_seen_s = message.software, self._clock.now()
            return row.outbox_seq

        return await self._writer.write(work)

    async def status(self, robot: str, message: protocol.Status) -> None:
        """Keep the newest status."""
        about = message.model_dump(mode="json", exclude={"type"})
        changed = update(RobotRow).where(RobotRow.name == robot).values(last_seen_s=self._clock.now(), status=about)
        await self._writer.write(lambda session: session.execute(changed, execution_options=_UNSEEN))

    async def kept(self, robot: str, message: protocol.Event | protocol.Outcome | protocol.Ack) -> None:
        """Store a kept message; one that is stored already changes nothing."""
        await self._writer.write(lambda session: self._kept(session, robot, message))

    async def _kept(
        self, session: AsyncSession, robot: str, message: protocol.Event | protocol.Outcome | protocol.Ack
    ) -> None:
        now = self._clock.now()
        is_next = RobotRow.name == robot, RobotRow.outbox_seq < message.seq
        changed = update(RobotRow).where(*is_next).values(outbox_seq=message.seq, last_seen_s=now)
        if not (await session.execute(changed.returning(RobotRow.name), execution_options=_UNSEEN)).first():
            return
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
