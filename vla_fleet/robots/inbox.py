# SPDX-License-Identifier: Apache-2.0
"""What robots say, into the database: each kept message once, however often it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Table, bindparam, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet import protocol
from vla_fleet.clock import Clock
from vla_fleet.robots.commands import Commands
from vla_fleet.storage.batches import Batches
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import EventRow, OutcomeRow, RobotRow

Kept = protocol.Event | protocol.Outcome | protocol.Ack
_ON_THE_WAY = 64
_GATHER_S = 0.02
"""A transaction costs about as much as storing ten messages in it, and is flushed to the disk."""
_ROBOTS = cast(Table, RobotRow.__table__)
_EVENTS, _OUTCOMES = cast(Table, EventRow.__table__), cast(Table, OutcomeRow.__table__)
_ROBOT = _ROBOTS.update().where(_ROBOTS.c.name == bindparam("robot"))
_HELLO = _ROBOT.values(last_seen_s=bindparam("now"), outbox_id=bindparam("outbox"), software=bindparam("runs"))
_STATUS = _ROBOT.values(last_seen_s=bindparam("now"), status=bindparam("about"))
_STORED = _ROBOT.values(last_seen_s=bindparam("now"), outbox_seq=bindparam("seq"))
"""Made once: what SQLAlchemy knows a statement by takes longer than to run it if each has its values in it."""


@dataclass(frozen=True)
class Greeted:
    """What a robot's line has to know when it begins."""

    stored: int
    """Up to this ``seq`` the robot's kept messages are stored."""
    rotates: bool
    """The robot is to get a new token."""


@dataclass(frozen=True)
class _News:
    """What a robot said since the last time, from one outbox."""

    outbox_id: str
    kept: Sequence[Kept]
    status: protocol.Status | None
    """The newest, if there is one."""


@dataclass
class _Outbox:
    """What the database knows of a robot's outbox."""

    id: str
    seq: int
    rotates: bool


_Said = tuple[str, protocol.Hello | _News]
"""A robot, and what it said."""


class Inbox:
    """Stores messages of robots that have been authenticated, those of one moment in one transaction."""

    def __init__(self, database: Database, commands: Commands, clock: Clock) -> None:
        self._commands, self._clock = commands, clock
        self._batches = Batches(database, self._store, _GATHER_S)

    async def hello(self, robot: str, message: protocol.Hello) -> Greeted:
        """Note that a robot has connected."""
        return await self._batches.do((robot, message))

    async def news(
        self, robot: str, outbox_id: str, kept: Sequence[Kept], status: protocol.Status | None = None
    ) -> int:
        """Store kept messages and the newest status, all or nothing, each once; return up to which ``seq`` all are stored.

        Kept messages of an outbox that the robot does not have any more are those of an old line; none of them is stored.
        """
        return (await self._batches.do((robot, _News(outbox_id, kept, status)))).stored

    async def _store(self, session: AsyncSession, items: Sequence[_Said]) -> list[Greeted]:
        outboxes = await _outboxes(session, {robot for robot, _ in items})
        hellos: dict[str, dict[str, Any]] = {}
        statuses: dict[str, dict[str, Any]] = {}
        stored: dict[str, dict[str, Any]] = {}
        new: list[tuple[str, Kept]] = []
        results = []
        for robot, said in items:
            outbox, about = outboxes[robot], {"robot": robot, "now": self._clock.now()}
            if isinstance(said, protocol.Hello):
                if outbox.id != said.outbox_id:
                    outbox.id, outbox.seq = said.outbox_id, 0
                hellos[robot] = about | {"outbox": outbox.id, "runs": said.software}
                stored[robot] = about | {"seq": outbox.seq}
                results.append(Greeted(outbox.seq, outbox.rotates))
                continue
            if said.status is not None:
                statuses[robot] = about | {"about": said.status.model_dump(mode="json", exclude={"type"})}
            mine = outbox.id == said.outbox_id
            if mine and said.kept:
                for message in said.kept:
                    if message.seq > outbox.seq:
                        outbox.seq = message.seq
                        new.append((robot, message))
                stored[robot] = about | {"seq": outbox.seq}
            results.append(Greeted(outbox.seq if mine else 0, outbox.rotates))
        await self._keep(session, new)
        for statement, rows in ((_HELLO, hellos), (_STATUS, statuses), (_STORED, stored)):
            if rows:
                await session.execute(statement, list(rows.values()))
        return results

    async def _keep(self, session: AsyncSession, new: Sequence[tuple[str, Kept]]) -> None:
        """Store messages that were not stored before, in their sequence."""
        now = self._clock.now()
        events = [_row(robot, now, m, {"type", "seq"}) for robot, m in new if isinstance(m, protocol.Event)]
        if events:
            await session.execute(insert(_EVENTS), events)
        outcomes = [
            _row(robot, now, m, {"type", "seq", "generation"}) for robot, m in new if isinstance(m, protocol.Outcome)
        ]
        if outcomes:
            known = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(_OUTCOMES)
            await session.execute(known.on_conflict_do_nothing(index_elements=["robot", "episode_id"]), outcomes)
        await self._commands.take(session, [(robot, m) for robot, m in new if isinstance(m, protocol.Ack)])


async def _outboxes(session: AsyncSession, robots: Iterable[str]) -> dict[str, _Outbox]:
    """Return the outboxes of robots. Until the end of the transaction, another server's line of one of these robots waits."""
    columns = RobotRow.name, RobotRow.outbox_id, RobotRow.outbox_seq, RobotRow.rotate
    # in one sequence on all servers, so that no two wait for each other
    query = select(*columns).where(RobotRow.name.in_(sorted(robots))).order_by(RobotRow.name)
    rows = await session.execute(query.with_for_update(key_share=True))
    return {name: _Outbox(outbox_id, seq, rotates) for name, outbox_id, seq, rotates in rows}


def _row(robot: str, now_s: float, message: protocol.Event | protocol.Outcome, without: set[str]) -> dict[str, Any]:
    return {"robot": robot, "received_s": now_s, **message.model_dump(exclude=without)}


class Intake:
    """What one robot says on one connection, stored in its sequence; what comes while something is stored shares a transaction.

    A status says how the robot stands behind the messages before it: both are stored together.

    Args:
        inbox: where it goes.
        robot: its name.
        outbox_id: of the outbox that its kept messages are from.
        confirm: is called with the ``seq`` up to which everything is stored.
        start: runs the storing in a task, which lasts while there is something to store: at rest a robot costs none.
    """

    __slots__ = "_confirm", "_inbox", "_outbox_id", "_robot", "_room", "_start", "_storing", "_waiting"

    def __init__(
        self,
        inbox: Inbox,
        robot: str,
        outbox_id: str,
        confirm: Callable[[int], Awaitable[None]],
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._inbox, self._robot, self._outbox_id, self._confirm, self._start = inbox, robot, outbox_id, confirm, start
        self._waiting: list[protocol.Status | Kept] = []
        self._room: asyncio.Future[None] | None = None
        self._storing: asyncio.Task[None] | None = None

    async def put(self, message: protocol.Status | Kept) -> None:
        """Take a message in; wait while too many are not stored yet."""
        self._waiting.append(message)
        if self._storing is None:
            self._storing = self._start(self._store_all())
        if len(self._waiting) >= _ON_THE_WAY:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def _store_all(self) -> None:
        while self._waiting:
            messages, self._waiting = self._waiting, []
            if self._room is not None and not self._room.done():
                self._room.set_result(None)
            kept = [message for message in messages if not isinstance(message, protocol.Status)]
            status = next((message for message in reversed(messages) if isinstance(message, protocol.Status)), None)
            stored = await self._inbox.news(self._robot, self._outbox_id, kept, status)
            if kept:
                await self._confirm(stored)
        self._storing = None

    async def stored(self) -> None:
        """Wait until everything that was taken in is stored, or cannot be."""
        if self._storing is not None:
            await asyncio.wait([self._storing])
