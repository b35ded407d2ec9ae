# SPDX-License-Identifier: Apache-2.0
"""One step of every experiment: take robots' answers in, order what comes next, take outcomes in, end what is over.

Each step looks at the database and does what is missing there, in transactions that end whole or not at all. So it makes no
difference where a server was killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet import protocol
from vla_fleet.clock import Clock
from vla_fleet.errors import ConflictError
from vla_fleet.experiments.design import Design, Unit
from vla_fleet.experiments.evidence import Judgement, Robot, State, conclusion, why_apart
from vla_fleet.experiments.orders import ManifestUrl, holds, to_join, to_leave
from vla_fleet.protocol import AckState
from vla_fleet.registry.registry import Registry, Version
from vla_fleet.robots.claims import claim, release
from vla_fleet.robots.commands import Commands
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import (
    CommandRow,
    ExperimentLineRow,
    ExperimentRobotRow,
    ExperimentRow,
    OutcomeRow,
    RobotRow,
)

log = structlog.get_logger("vla_fleet")

_AT_ONCE = 2000
"""Outcomes in one transaction."""
_PAST_ALL = 9
"""A step behind every order: one that was done is enough to leave."""
_LONG_AGO_S = 1.0
_FORGOTTEN_S = 60.0
"""So long after it was taken on, a robot's status must name the experiment."""


def holder(experiment: ExperimentRow) -> str:
    """Return how claims name an experiment."""
    return f"experiment {experiment.id}"


class Steps:
    """Carries experiments out. ``lock`` is held while one is changed."""

    def __init__(
        self, database: Database, registry: Registry, commands: Commands, clock: Clock, url: ManifestUrl
    ) -> None:
        self._database, self._registry, self._commands, self._clock, self._url = (
            database, registry, commands, clock, url
        )  # fmt: skip
        self._judgements: dict[str, Judgement] = {}
        self.lock = asyncio.Lock()

    async def take(self) -> None:
        """Take one step of every experiment that is not over and done with."""
        async with self._database.begin() as session:
            leaving = select(ExperimentRobotRow.experiment).where(ExperimentRobotRow.state == Robot.LEAVING.value)
            open_ones = (ExperimentRow.state == State.RUNNING.value) | ExperimentRow.id.in_(leaving)
            names = (await session.scalars(select(ExperimentRow.id).where(open_ones))).all()
            newest = await session.scalar(select(func.max(OutcomeRow.id))) or 0
        for name in names:
            try:
                async with self.lock:
                    await self._invite(name)
                    await self._order(name)
                    async with self._database.begin() as session:
                        await self._judge(session, await session.get_one(ExperimentRow, name), newest)
            except Exception:
                self._judgements.pop(name, None)  # it knows what is not in the database
                log.exception("a step of an experiment failed; it is tried again", experiment=name)

    async def end(self, session: AsyncSession, row: ExperimentRow, state: State, reason: str, who: str) -> None:
        """End an experiment and send its robots home; those that failed too, for they may still run what they should not."""
        unfinished = select(CommandRow).where(CommandRow.created_by == holder(row), CommandRow.final.is_(False))
        for command in await session.scalars(unfinished):
            command.expires_s = _LONG_AGO_S  # a robot refuses it if it has not begun
        row.state, row.reason, row.ended_s = state.value, reason, self._clock.now()
        for robot in await _robots(session, row):
            robot.state, robot.step, robot.command = Robot.LEAVING.value, 0, ""
            if state is State.WIN_B:  # for its rollout; robots carry out first what ends this
                await release(session, robot.robot, holder(row))
        self._database.log(session, who, "experiment.end", row.id, state=state.value, why=reason)

    # -- robots -------------------------------------------------------------------------------------------------------------

    async def _invite(self, name: str) -> None:
        """Let robots that came to the group or got the tag take part, if each episode is drawn: by robot the arms are fixed."""
        async with self._database.begin() as session:
            row = await session.get_one(ExperimentRow, name)
            design = Design(**row.design)
            if row.state != State.RUNNING or design.unit is Unit.ROBOT or not (design.group or design.tag):
                return
            members = {robot.robot for robot in await _robots(session, row)}
            known = (await session.scalars(select(RobotRow))).all()
        for robot in known:
            able = robot.status.get("episode_arms") and design.invites(robot.group, robot.tags)
            if robot.name in members or not able:
                continue
            with suppress(ConflictError):  # it takes part in something else
                async with self._database.begin() as session:
                    await claim(session, [robot.name], holder(row))
                    joined = ExperimentRobotRow(experiment=name, robot=robot.name, arm="", state=Robot.JOINING.value)
                    session.add(joined)

    async def _order(self, name: str) -> None:
        """Take in how orders ended, and give those that come next."""
        ordered = []
        async with self._database.begin() as session:
            row = await session.get_one(ExperimentRow, name)
            versions = {arm: await self._version(row, number) for arm, number in (("A", row.a), ("B", row.b))}
            for robot, status, command in await _standing(session, row):
                if command is not None and command.final:
                    _follow(robot, command)
                order = self._next(row, robot, versions, status)
                if order is not None and not robot.command:
                    given = await self._commands.add(session, robot.robot, order, holder(row))
                    robot.command = given.id
                    ordered.append(robot.robot)
                elif order is None and robot.state == Robot.LEAVING:
                    robot.state = Robot.LEFT.value
                    await release(session, robot.robot, holder(row))
                elif order is None and robot.state == Robot.JOINING:
                    robot.state = Robot.RUNNING.value
                    robot.since_s = command.robot_time_s if command is not None else self._clock.now()
        await self._commands.hint(ordered)

    async def _version(self, row: ExperimentRow, number: str) -> Version:
        return await self._registry.find(f"{row.model}@{number}")

    def _next(
        self, row: ExperimentRow, robot: ExperimentRobotRow, versions: dict[str, Version], status: dict[str, object]
    ) -> protocol.Order | None:
        """Return the order that a robot is to carry out now; None: none is left."""
        if robot.state == Robot.LEAVING:
            orders = to_leave(row, robot, versions, self._url)
        elif robot.state == Robot.JOINING:
            orders = to_join(row, robot, versions, self._url)
        elif robot.state == Robot.RUNNING and self._has_forgotten(row, robot, status):
            robot.state, robot.step, robot.command = Robot.JOINING.value, 0, ""
            return self._next(row, robot, versions, status)
        else:
            return None
        while robot.step < len(orders) and not robot.command and holds(orders[robot.step], status):
            robot.step += 1
        return orders[robot.step] if robot.step < len(orders) else None

    def _has_forgotten(self, row: ExperimentRow, robot: ExperimentRobotRow, status: dict[str, object]) -> bool:
        late = self._clock.now() - robot.since_s > _FORGOTTEN_S
        return not robot.arm and late and status.get("experiment") != row.id

    # -- evidence -----------------------------------------------------------------------------------------------------------

    async def _judge(self, session: AsyncSession, row: ExperimentRow, newest: int) -> None:
        """Take outcomes in, and end the experiment if it is over; all in one transaction.

        Outcomes up to ``newest``: they were there before answers to orders were read, so what came before them is known.
        """
        members = {robot.robot: robot for robot in await _robots(session, row)}
        new = OutcomeRow.id > row.taken, OutcomeRow.id <= newest, OutcomeRow.robot.in_(members)
        query = select(OutcomeRow).where(*new)
        outcomes = (await session.scalars(query.order_by(OutcomeRow.id).limit(_AT_ONCE))).all()
        judgement, now_s = await self._judgement(session, row), self._clock.now()
        for outcome in outcomes:
            why = why_apart(row, members[outcome.robot], outcome)
            if why is None:
                judgement.outcome(outcome, now_s)
                row.heard += 1
            elif why != "outside":
                row.apart = {**row.apart, why: row.apart.get(why, 0) + 1}
            row.taken = outcome.id
        if row.state == State.RUNNING:
            row.verdict = judgement.verdict(now_s)
            end = conclusion(row, Design(**row.design), list(members.values()), now_s)
            if end is not None:
                await self.end(session, row, *end, who="the stop rule")
        session.add_all(judgement.new_lines())
        row.lines = judgement.lines

    async def _judgement(self, session: AsyncSession, row: ExperimentRow) -> Judgement:
        known = self._judgements.get(row.id)
        if known is None or known.lines != row.lines:
            query = select(ExperimentLineRow.line).where(ExperimentLineRow.experiment == row.id)
            lines = (await session.scalars(query.order_by(ExperimentLineRow.number))).all()
            known = self._judgements[row.id] = await asyncio.to_thread(Judgement, lines)
        return known


def _follow(robot: ExperimentRobotRow, command: CommandRow) -> None:
    """Take in how an order ended."""
    robot.command = ""
    if command.state == AckState.DONE:
        robot.step += 1 if robot.state == Robot.JOINING else _PAST_ALL
        return
    robot.error_code, robot.message = command.error_code, command.message
    if robot.state == Robot.LEAVING:
        robot.step += 1  # the next order is another way to the same end
    else:
        robot.state = Robot.FAILED.value


async def _robots(session: AsyncSession, row: ExperimentRow) -> Sequence[ExperimentRobotRow]:
    query = select(ExperimentRobotRow).where(ExperimentRobotRow.experiment == row.id)
    return (await session.scalars(query.order_by(ExperimentRobotRow.robot))).all()


async def _standing(
    session: AsyncSession, row: ExperimentRow
) -> list[tuple[ExperimentRobotRow, dict[str, object], CommandRow | None]]:
    """Return each robot with its newest status and the order that it is working on."""
    query = (
        select(ExperimentRobotRow, RobotRow.status, CommandRow)
        .join(RobotRow, RobotRow.name == ExperimentRobotRow.robot)
        .outerjoin(CommandRow, CommandRow.id == ExperimentRobotRow.command)
        .where(ExperimentRobotRow.experiment == row.id)
        .order_by(ExperimentRobotRow.robot)
    )
    return [(robot, status, command) for robot, status, command in await session.execute(query)]
