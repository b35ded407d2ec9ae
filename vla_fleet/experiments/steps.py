# SPDX-License-Identifier: Apache-2.0
"""One step of an experiment: order robots what comes next, take outcomes in, end what is over; all in one transaction.

Each step looks at the database and does what is missing there. So it makes no difference where a server was killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.orm.exc import StaleDataError

from vla_evidence.ab.judge import ABJudge
from vla_evidence.log.records import to_json
from vla_evidence.log.replay import LoggedJudgement
from vla_evidence.verdict import Decision
from vla_fleet import protocol
from vla_fleet.clock import Clock
from vla_fleet.experiments.design import Design, Unit
from vla_fleet.experiments.evidence import Fate, Robot, State, conclusion, fate_of, take_in
from vla_fleet.robots.claims import claim, claimed, release
from vla_fleet.robots.commands import Commands
from vla_fleet.steering import evidence, loop, reconcile
from vla_fleet.steering.evidence import Judged, Judges
from vla_fleet.steering.members import ManifestUrl, Online, expire, read_robots, updates
from vla_fleet.steering.reconcile import Course, Look, Standing
from vla_fleet.storage.database import Database, moved_on
from vla_fleet.storage.tables import ExperimentRobotRow, ExperimentRow, RobotRow

_VERDICT_EVERY_S, _IDLE_VERDICT_EVERY_S = 60.0, 3600.0
_NO_DEADLINE_S = float("inf")
"""A robot that is away is waited for as long as the experiment takes; episodes of the others count meanwhile."""

_Members = list[tuple[ExperimentRobotRow, reconcile.Robot]]


def holder(experiment: ExperimentRow) -> str:
    """Return how claims and orders name an experiment."""
    return f"experiment {experiment.id}"


class Steps:
    """Carries experiments out."""

    def __init__(self, database: Database, commands: Commands, clock: Clock, url: ManifestUrl, online: Online) -> None:
        self._database, self._commands, self._clock, self._url, self._online = database, commands, clock, url, online
        self._judges = Judges(LoggedJudgement)
        self._last_verdicts: dict[str, tuple[float, int]] = {}
        """When one was logged, and how long the log was then."""

    async def open_ones(self) -> list[str]:
        """Return the experiments that are not over and done with."""
        leaving = select(ExperimentRobotRow.experiment).where(ExperimentRobotRow.state == Robot.LEAVING.value)
        query = select(ExperimentRow.id).where(
            (ExperimentRow.state == State.RUNNING.value) | ExperimentRow.id.in_(leaving)
        )
        async with self._database.begin() as session:
            return list(await session.scalars(query))

    async def step(self, name: str) -> None:
        """Take one step of an experiment."""
        try:
            async with self._database.begin(snapshot=True) as session:
                row = await session.get_one(ExperimentRow, name)
                horizon = await evidence.newest(session)
                await self._invite(session, row)
                members = await self._members(session, row)
                ordered = await self._order(session, row, members)
                await self._judge(session, row, [robot for robot, _ in members], horizon)
                if ordered:
                    flag_modified(row, "state")  # of two servers that give the same orders, one is refused
        except BaseException as e:
            self._judges.forget(name)
            if isinstance(e, (StaleDataError, IntegrityError)) or moved_on(e):
                return  # another server has moved it on
            raise
        await self._commands.hint(ordered)

    async def end(self, session: AsyncSession, row: ExperimentRow, state: State, reason: str, who: str) -> None:
        """End an experiment and send its robots home; those that failed too, for they may still run what they should not."""
        await expire(session, holder(row))
        row.state, row.reason, row.ended_s = state.value, reason, self._clock.now()
        for robot in await session.scalars(select(ExperimentRobotRow).where(ExperimentRobotRow.experiment == row.id)):
            robot.state, robot.orders_since_s = Robot.LEAVING.value, row.ended_s
        if state is State.WIN_B:  # for its rollout; robots carry out first what ends this
            await release(session, holder(row))
        self._database.log(session, who, "experiment.end", row.id, state=state.value, why=reason)
        self._judges.forget(row.id)

    # -- robots -------------------------------------------------------------------------------------------------------------

    async def _invite(self, session: AsyncSession, row: ExperimentRow) -> None:
        """Let robots that came to the group or got the tag take part, if each episode is drawn: by robot the arms are fixed."""
        design = Design(**row.design)
        if row.state != State.RUNNING or design.unit is Unit.ROBOT or not (design.group or design.tag):
            return
        query = select(RobotRow.name, RobotRow.group, RobotRow.tags, RobotRow.status)
        query = query.where(RobotRow.name.not_in(_names(row)))
        if design.group:
            query = query.where(RobotRow.group == design.group)
        able = [
            robot.name
            for robot in await session.execute(query)
            if robot.status.get("episode_arms") and design.invites(robot.group, robot.tags)
        ]
        if able and (free := set(able) - (await claimed(session)).keys()):
            await claim(session, free, holder(row))
            session.add_all(joining(row, robot, "", self._clock.now()) for robot in sorted(free))
            await session.flush()

    async def _members(self, session: AsyncSession, row: ExperimentRow) -> _Members:
        known = await read_robots(session, holder(row), _names(row), self._online)
        rows = await session.scalars(select(ExperimentRobotRow).where(ExperimentRobotRow.experiment == row.id))
        return [(robot, replace(known[robot.robot], origin=row.a)) for robot in rows]

    async def _order(self, session: AsyncSession, row: ExperimentRow, members: _Members) -> list[str]:
        """Take in how robots stand, and give the orders that come next; return to whom."""
        installs = await updates(session, row.model, (row.a, row.b), self._url)
        course = Course(row.id, installs[row.b], f"experiment {row.id} ended: {row.state}", {row.a: installs[row.a]})
        ordered: list[str] = []
        for member, robot in members:
            look = self._look(row, member, robot, course)
            if look.standing is Standing.FAILED:
                member.detail = look.detail
            for order in look.orders[: loop.MOST_ORDERS - len(ordered)]:
                await self._commands.add(session, robot.name, order, holder(row))
                ordered.append(robot.name)
            if member.state == Robot.LEAVING and look.settled:
                member.state = Robot.LEFT.value
                await release(session, holder(row), robot.name)
            elif look.standing is Standing.FAILED:
                member.state = Robot.FAILED.value
            elif member.state == Robot.JOINING and look.standing is Standing.INSTALLED:
                member.state, member.since_s = Robot.RUNNING.value, look.robot_s
        return ordered

    def _look(self, row: ExperimentRow, member: ExperimentRobotRow, robot: reconcile.Robot, course: Course) -> Look:
        """Return how a robot stands on its way into the experiment, in it, or out of it."""
        now_s = self._clock.now()
        if member.state == Robot.LEAVING:
            stays = not member.arm or member.arm == "A" or row.state == State.WIN_B
            wanted = course.stay(robot) if stays else course.back(robot, member.orders_since_s)
            return reconcile.backward(robot, wanted, member.orders_since_s, now_s, _NO_DEADLINE_S)
        joins = _to_join(member, course)
        if member.state == Robot.RUNNING:
            lost = reconcile.lost_by(robot, joins[-1], member.since_s)
            if not lost:
                return Look(Standing.INSTALLED)
            if member.arm:
                return Look(Standing.FAILED, lost)
            member.state, member.orders_since_s = Robot.JOINING.value, now_s  # it has forgotten what it draws
        if member.state != Robot.JOINING:
            return Look(Standing.OUTSIDE)
        robot = replace(robot, given=tuple(g for g in robot.given if g.created_s >= member.orders_since_s))
        wanted = tuple(
            order
            for order in joins
            if robot.last(order) or not (isinstance(order, protocol.ModelUpdate) and robot.runs(order))
        )
        if not wanted:
            return Look(Standing.INSTALLED, robot_s=robot.status_s)
        return reconcile.forward(robot, wanted, member.orders_since_s, now_s, _NO_DEADLINE_S)

    # -- evidence -----------------------------------------------------------------------------------------------------------

    async def _judge(
        self, session: AsyncSession, row: ExperimentRow, members: Sequence[ExperimentRobotRow], horizon: int
    ) -> None:
        """Take outcomes in, and end the experiment if it is over."""
        outcomes, now_s = await evidence.waiting(session, row, _names(row), horizon), self._clock.now()
        by_name = {robot.robot: robot for robot in members}
        fates = [fate_of(row, by_name[outcome.robot], outcome) for outcome in outcomes]
        await evidence.note(session, row, outcomes, [fate.value for fate in fates], horizon, now_s)
        if row.state != State.RUNNING:
            return
        judged = await self._judges.open(session, row)
        counted = [outcome for outcome, fate in zip(outcomes, fates, strict=True) if fate is Fate.COUNTED]
        await asyncio.to_thread(take_in, judged.judgement, counted, now_s)
        self._judges.store(session, row, judged)
        self._verdict(session, row, judged, now_s)
        end = conclusion(row, Design(**row.design), members, now_s)
        if end is not None:
            await self.end(session, row, *end, who="the stop rule")

    def _verdict(
        self, session: AsyncSession, row: ExperimentRow, judged: Judged[LoggedJudgement], now_s: float
    ) -> None:
        """Look at the evidence. A final verdict is logged, and others at times: each minute, or each hour if nothing came."""
        last_s, lines = self._last_verdicts.get(row.id, (0.0, 0))
        every_s = _IDLE_VERDICT_EVERY_S if lines == row.lines else _VERDICT_EVERY_S
        judge = judged.judgement.judge
        assert isinstance(judge, ABJudge)
        found = judge.verdict()  # time passes for the judge only with what is logged, else a replay would differ
        if found.decision is not Decision.CONTINUE or now_s - last_s >= every_s:
            found = judged.judgement.verdict(now_s)
            self._judges.store(session, row, judged)
            self._last_verdicts[row.id] = now_s, row.lines
        row.verdict = to_json(found)


def joining(row: ExperimentRow, robot: str, arm: str, now_s: float) -> ExperimentRobotRow:
    """Return a robot that is to take part."""
    return ExperimentRobotRow(
        experiment=row.id, robot=robot, arm=arm, state=Robot.JOINING.value, orders_since_s=now_s, since_s=0.0
    )


def _to_join(member: ExperimentRobotRow, course: Course) -> tuple[protocol.Order, ...]:
    """Return the orders that bring a robot into the experiment, in their sequence."""
    a = next(iter(course.homes.values()))
    if member.arm:
        return (a if member.arm == "A" else course.update,)
    return a, *course.draw(reconcile.Robot(member.robot, origin=a.version), 0.5)


def _names(row: ExperimentRow) -> Select[Any]:
    return select(ExperimentRobotRow.robot).where(ExperimentRobotRow.experiment == row.id)
