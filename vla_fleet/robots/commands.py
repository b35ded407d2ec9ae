# SPDX-License-Identifier: Apache-2.0
"""Orders to robots: kept until the robot has said how they ended, delivered again at each connection, carried out once."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, cast

from sqlalchemy import Select, Table, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet import protocol
from vla_fleet.clock import Clock
from vla_fleet.errors import MissingError
from vla_fleet.storage.batches import Batches
from vla_fleet.storage.bus import Bus
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import CommandRow, RobotRow

WAITING = "WAITING"
"""State of a command of which the robot has not said anything; then come the states of ``protocol.AckState``."""


def topic(robot: str) -> str:
    """Return the bus topic on which the robot's connection hears that there is something to send."""
    return f"robot.{robot}.commands"


_AT_ONCE = 1000
"""Robots of one query: databases bound the values of a statement."""


_COMMANDS = cast(Table, CommandRow.__table__)
_ACK = (
    _COMMANDS.update()
    .where(_COMMANDS.c.id == bindparam("command"))
    .values(
        state=bindparam("to"), final=bindparam("ends"), robot_state=bindparam("manager"), version=bindparam("of"),
        error_code=bindparam("code"), message=bindparam("text"), updated_s=bindparam("now"), robot_time_s=bindparam("said_s"),
    )
)  # fmt: skip


def _open(robots: Sequence[str]) -> Select[CommandRow]:
    query = select(CommandRow).where(CommandRow.robot.in_(robots), CommandRow.final.is_(False))
    return query.order_by(CommandRow.number)


class Commands:
    """Issues orders and follows them."""

    def __init__(self, database: Database, bus: Bus, clock: Clock) -> None:
        self._database, self._bus, self._clock = database, bus, clock
        self._looks = Batches(database, self._open_of)

    async def issue(
        self, robots: Sequence[str], order: protocol.Order, who: str, *, expires_s: float = 0.0
    ) -> list[CommandRow]:
        """Order the same of several robots. A robot that was ordered the same and is not done gets no second command."""
        async with self._database.begin() as session:
            last = await self._last_open(session, robots)
            rows = [self._add(session, last.get(robot), robot, order, who, expires_s) for robot in robots]
            await session.flush()
        await self.hint(robots)
        return rows

    async def add(
        self, session: AsyncSession, robot: str, order: protocol.Order, who: str, *, expires_s: float = 0.0
    ) -> CommandRow:
        """Order something of a robot within a transaction; the caller gives the :meth:`hint` after it."""
        last = await self._last_open(session, [robot])
        return self._add(session, last.get(robot), robot, order, who, expires_s)

    def _add(
        self,
        session: AsyncSession,
        last: CommandRow | None,
        robot: str,
        order: protocol.Order,
        who: str,
        expires_s: float,
    ) -> CommandRow:
        now, body = self._clock.now(), order.model_dump(mode="json")
        if last is not None and last.order == body:
            return last
        row = CommandRow(
            id=f"c-{secrets.token_hex(8)}", robot=robot, order=body, created_s=now, created_by=who,
            expires_s=expires_s, state=WAITING, updated_s=now,
        )  # fmt: skip
        session.add(row)
        self._database.log(session, who, order.type.lower(), robot, command=row.id, order=body)
        return row

    async def hint(self, robots: Iterable[str]) -> None:
        """Let the robots' connections look for orders."""
        for robot in robots:
            await self._bus.publish(topic(robot))

    async def unheard(self) -> list[str]:
        """Return the robots for which something waits that their connections may not have heard of.

        A server that is killed between the database and the bus has stored an order, and told nobody.
        """
        waiting = select(CommandRow.robot).where(CommandRow.final.is_(False), CommandRow.state == WAITING)
        ending = select(RobotRow.name).where(or_(RobotRow.rotate, RobotRow.revoked))
        async with self._database.begin() as session:
            return list((await session.scalars(waiting.union(ending))).all())

    async def open_for(self, robot: str) -> list[CommandRow]:
        """Return what the robot has not finished, oldest first."""
        return await self._looks.do(robot)

    @staticmethod
    async def _open_of(session: AsyncSession, robots: Sequence[str]) -> list[list[CommandRow]]:
        found = defaultdict(list)
        for row in await session.scalars(_open(robots)):
            found[row.robot].append(row)
        return [found[robot] for robot in robots]

    async def latest(self, robot: str, limit: int) -> list[CommandRow]:
        """Return what a robot was ordered, newest first."""
        query = select(CommandRow).where(CommandRow.robot == robot).order_by(CommandRow.number.desc()).limit(limit)
        async with self._database.begin() as session:
            return list((await session.scalars(query)).all())

    @staticmethod
    async def _last_open(session: AsyncSession, robots: Sequence[str]) -> dict[str, CommandRow]:
        """Return the newest open order of each robot that has one."""
        parts = (robots[first : first + _AT_ONCE] for first in range(0, len(robots), _AT_ONCE))
        return {row.robot: row for part in parts for row in await session.scalars(_open(part))}

    async def find(self, ids: Sequence[str]) -> list[CommandRow]:
        """Return commands by id."""
        async with self._database.begin() as session:
            rows = (await session.scalars(select(CommandRow).where(CommandRow.id.in_(ids)))).all()
        if len(rows) != len(set(ids)):
            raise MissingError("COMMAND_NOT_FOUND", "no such command")
        return sorted(rows, key=lambda row: row.number)

    async def take(self, session: AsyncSession, acks: Sequence[tuple[str, protocol.Ack]]) -> None:
        """Note what robots say of commands. A word about another robot's command, or after the end, changes nothing."""
        if not acks:
            return
        known = select(CommandRow.id, CommandRow.robot).where(
            CommandRow.id.in_({ack.command_id for _, ack in acks}), CommandRow.final.is_(False)
        )
        open_of = {id: robot for id, robot in await session.execute(known)}
        newest: dict[str, dict[str, Any]] = {}
        for robot, ack in acks:
            if open_of.get(ack.command_id) != robot:
                continue
            if ack.state.final:
                del open_of[ack.command_id]
            newest[ack.command_id] = {
                "command": ack.command_id, "now": self._clock.now(), "to": ack.state.value, "ends": ack.state.final,
                "manager": ack.robot_state, "of": ack.version, "code": ack.error_code, "text": ack.message, "said_s": ack.time_s,
            }  # fmt: skip
        if newest:
            await session.execute(_ACK, list(newest.values()))
