# SPDX-License-Identifier: Apache-2.0
"""What ran where, and who decided it.

A robot's bridge sends an event ``ACTIVE`` whenever another version acts, with the robot's time; the outbox keeps it through hours
without a network, and the server stores each once, in the robot's sequence, and changes none. What ran at a moment follows from
these events, who decided it from the commands that they name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet import protocol
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import CommandRow, EventRow, OutcomeRow, RobotRow

_BY_ITSELF = ("ROLLED_BACK", "ROLLING_BACK")


@dataclass(frozen=True)
class Run:
    """One version at work on one robot."""

    robot: str
    version: str
    """Empty: nothing acted, or nobody on the robot knew what did."""
    digest: str
    begin_s: float
    """Robot's time [s since 1970 UTC]."""
    end_s: float | None
    """None: it still acted when the robot was last heard."""
    known_until_s: float
    """Up to here the server knows what the robot did; later the robot may have done anything."""
    cause: str
    """UPDATE, EXPERIMENT, ROLLBACK, LEASE_EXPIRED, WORKER_LOST, or FOUND (the bridge began to look); empty: not known."""
    command_id: str
    """The order or update that it belongs to."""
    ordered_by: str
    """The person or program that gave the order; empty: nobody did here, so the robot or somebody at it decided."""
    ended_by: str
    """``ordered_by`` of what came after."""
    ended_cause: str
    """``cause`` of what came after."""
    error_code: str
    """Why the robot itself ended it."""


@dataclass(frozen=True)
class Success:
    """What a robot did with a version, without episodes in whose midst the version changed."""

    version: str
    episodes: int
    successes: int
    unknown: int
    """Nobody knows how they ended; they count as failures."""
    interventions: int
    """Somebody took over in them; they count as failures."""
    duration_s: float | None
    """Mean of those that succeeded [s]."""
    last_s: float


@dataclass(frozen=True)
class Events:
    """Which events are looked for; what is empty does not matter."""

    robot: str = ""
    version: str = ""
    to_state: str = ""
    errors: bool = False
    """Only those with an error code."""
    before: int = 0
    """Only those with a lower id."""


class History:
    """Reads the record."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def runs(self, robot: RobotRow, at_s: float | None, limit: int) -> list[Run]:
        """Return what ran on a robot, newest first; with ``at_s`` the one run of that moment, or nothing."""
        mine = EventRow.robot == robot.name, EventRow.to_state == protocol.ACTIVE
        async with self._database.begin() as session:
            query = select(EventRow).where(*mine)
            if at_s is None:
                events = (await session.scalars(query.order_by(EventRow.id.desc()).limit(limit + 1))).all()[::-1]
            else:
                events = await self._around(session, robot.name, at_s)
            runs = await self._runs(session, robot, events)
        if at_s is not None:
            return [run for run in runs if run.begin_s <= at_s and (run.end_s is None or at_s < run.end_s)][-1:]
        return runs[::-1][:limit]

    async def success(self, robot: str) -> list[Success]:
        """Return what a robot did with each version, the one that it ran last first."""
        succeeded = OutcomeRow.success & OutcomeRow.known & ~OutcomeRow.intervention
        took = case((succeeded & (OutcomeRow.duration_s > 0.0), OutcomeRow.duration_s))
        columns = (
            OutcomeRow.version, func.count(), _number(succeeded), _number(~OutcomeRow.known), _number(OutcomeRow.intervention),
            func.avg(took), func.max(OutcomeRow.time_s).label("last_s"),
        )  # fmt: skip
        query = select(*columns).where(OutcomeRow.robot == robot, ~OutcomeRow.mixed).group_by(OutcomeRow.version)
        async with self._database.begin() as session:
            return [Success(*row) for row in await session.execute(query.order_by(func.max(OutcomeRow.time_s).desc()))]

    async def events(self, wanted: Events, limit: int) -> list[EventRow]:
        """Return what happened on robots, newest first."""
        query = select(EventRow).order_by(EventRow.id.desc()).limit(limit)
        for column in ("robot", "version", "to_state"):
            if value := getattr(wanted, column):
                query = query.where(getattr(EventRow, column) == value)
        if wanted.errors:
            query = query.where(EventRow.error_code != "")
        if wanted.before:
            query = query.where(EventRow.id < wanted.before)
        async with self._database.begin() as session:
            return list((await session.scalars(query)).all())

    async def _around(self, session: AsyncSession, robot: str, at_s: float) -> list[EventRow]:
        """Return the last event up to a moment, in the robot's sequence, and the one after it."""
        query = select(EventRow).where(EventRow.robot == robot, EventRow.to_state == protocol.ACTIVE)
        first = await session.scalar(query.where(EventRow.time_s <= at_s).order_by(EventRow.id.desc()).limit(1))
        if first is None:
            return []
        after = await session.scalar(query.where(EventRow.id > first.id).order_by(EventRow.id).limit(1))
        return [first] if after is None else [first, after]

    async def _runs(self, session: AsyncSession, robot: RobotRow, events: Sequence[EventRow]) -> list[Run]:
        ids = {event.update_id for event in events}
        commands = {row.id: row for row in await session.scalars(select(CommandRow).where(CommandRow.id.in_(ids)))}
        ends = await session.scalars(
            select(EventRow).where(
                EventRow.robot == robot.name, EventRow.update_id.in_(ids - {""}), EventRow.to_state.in_(_BY_ITSELF)
            )
        )
        codes = {(event.update_id, event.version): event.error_code for event in ends if event.error_code}
        known_s = await self._known_until(session, robot)
        followed = itertools.zip_longest(events, events[1:])
        return [_run(event, after, commands, codes, known_s) for event, after in followed if event is not None]

    @staticmethod
    async def _known_until(session: AsyncSession, robot: RobotRow) -> float:
        """Return up to when the record is complete: the last kept message, or the last status behind which none waited."""
        last = await session.scalar(select(func.max(EventRow.time_s)).where(EventRow.robot == robot.name)) or 0.0
        status = robot.status
        return max(last, status.get("time_s", 0.0)) if status.get("unsent", 1) == 0 else last


def _number(what: Any) -> ColumnElement[int]:
    """Return how many rows of a group are so."""
    return func.coalesce(func.sum(case((what, 1), else_=0)), 0)


def _run(
    event: EventRow,
    after: EventRow | None,
    commands: dict[str, CommandRow],
    codes: dict[tuple[str, str], str],
    known_s: float,
) -> Run:
    return Run(
        robot=event.robot,
        version=event.version,
        digest=event.digest,
        begin_s=event.time_s,
        end_s=None if after is None else after.time_s,
        known_until_s=known_s if after is None else after.time_s,
        cause=event.cause,
        command_id=event.update_id,
        ordered_by=_by(event, commands),
        ended_by="" if after is None else _by(after, commands),
        ended_cause="" if after is None else after.cause,
        error_code=codes.get((event.update_id, event.version), ""),
    )


def _by(event: EventRow, commands: dict[str, CommandRow]) -> str:
    """Return who ordered what an event tells of. That an update was undone was not ordered by whoever ordered the update."""
    command = commands.get(event.update_id)
    if command is None or command.robot != event.robot:
        return ""
    ordered = command.order["type"]
    undone = ordered == "MODEL_UPDATE" and event.cause not in ("UPDATE", "FOUND", "")
    return "" if undone else command.created_by
