# SPDX-License-Identifier: Apache-2.0
"""Moves rollouts on. One step of one rollout is one transaction, so a server that is killed anywhere goes on where it was.

::

    INSTALLING ──► JUDGING ──ADVANCE──► INSTALLING of the next stage … ──► DONE
                      │  ▲
                     ASK │ the judge, or a person, goes on
                      ▼  │
                    ASKING
    any of them ──harm, or a person──► ROLLING_BACK ──► ROLLED_BACK
    any of them ──a person: stay──► ABORTED
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.orm.exc import StaleDataError

from vla_evidence.assignment import uniform
from vla_evidence.canary.config import Stage, Unit
from vla_evidence.errors import EvidenceError
from vla_evidence.log.records import to_json
from vla_evidence.log.rollout import Rollout
from vla_evidence.verdict import Decision
from vla_fleet import protocol
from vla_fleet.clock import Clock
from vla_fleet.robots.claims import claim, claimed, release
from vla_fleet.robots.commands import Commands
from vla_fleet.rollouts.evidence import Stand, config_of, holders, take_in
from vla_fleet.rollouts.settings import RolloutRequest
from vla_fleet.rollouts.windows import is_open, zone_of
from vla_fleet.steering import evidence, loop
from vla_fleet.steering.evidence import Judged, Judges
from vla_fleet.steering.members import ManifestUrl, Online, expire, read_robots, robot_of, updates
from vla_fleet.steering.reconcile import Course, Limits, Look, Robot, Standing, arrived, backward, forward
from vla_fleet.storage.database import Database, moved_on
from vla_fleet.storage.tables import RobotRow, RolloutRobotRow, RolloutRow

SERVER = "vla-fleet"
"""Who decided, when the judge did."""
_JUDGE_EVERY_S = 60.0
_CATCH_UP_S = 30 * 86400.0
"""So long an order waits for a robot that was away when its rollout ended [s]."""


class State(str, Enum):
    """How far a rollout is."""

    INSTALLING = "INSTALLING"
    JUDGING = "JUDGING"
    ASKING = "ASKING"
    ROLLING_BACK = "ROLLING_BACK"
    DONE = "DONE"
    ROLLED_BACK = "ROLLED_BACK"
    ABORTED = "ABORTED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self in (State.DONE, State.ROLLED_BACK, State.ABORTED)


@dataclass(frozen=True)
class Member:
    """A robot of a rollout: its row, and what is known of it."""

    row: RolloutRobotRow
    robot: Robot


@dataclass(frozen=True)
class Whole:
    """A rollout as one step sees it."""

    row: RolloutRow
    request: RolloutRequest
    stages: tuple[Stage, ...]
    course: Course
    members: tuple[Member, ...]
    horizon: int
    """Outcomes up to this id were stored before the orders were read: a robot answers an order before it goes on."""

    @property
    def stage(self) -> Stage:
        """The one that is installed or judged."""
        return self.stages[self.row.stage]

    @property
    def last(self) -> bool:
        """Whether every robot is to have the version now."""
        return self.row.stage == len(self.stages) - 1

    def fleet(self, stage: int) -> list[str]:
        """Return the robots that a stage is about."""
        return [member.robot.name for member in self.members if member.row.joined <= stage]

    def wanted(self, member: Member) -> tuple[protocol.Order, ...]:
        """Return what a robot is to be ordered, in the sequence."""
        if State(self.row.state) in (State.ROLLING_BACK, State.ROLLED_BACK):
            return self.course.back(member.robot, self.row.stage_since_s)
        if self.row.state == State.ABORTED.value:
            return self.course.stay(member.robot)
        if member.row.wanted is None or member.row.wanted > self.row.stage:
            return ()
        if self.stage.probability < 1.0:
            return self.course.draw(member.robot, self.stage.probability)
        return self.course.run(member.robot)

    def looks(self, now_s: float) -> list[tuple[Robot, Look]]:
        """Return how every robot stands."""
        back = State(self.row.state) in (State.ROLLING_BACK, State.ROLLED_BACK, State.ABORTED)
        times_s = self.row.stage_since_s, now_s, self.request.deadline_s
        return [
            (member.robot, (backward if back else forward)(member.robot, self.wanted(member), *times_s))
            for member in self.members
        ]


class Engine:
    """Steps rollouts.

    Args:
        database, commands, clock: of the server.
        url: of a version's manifest, by name and version.
        online: whether a robot that was seen then is connected.
    """

    def __init__(
        self,
        database: Database,
        commands: Commands,
        clock: Clock,
        url: ManifestUrl,
        online: Online,
    ) -> None:
        self._database, self._commands, self._clock, self._url, self._online = database, commands, clock, url, online
        self.judges = Judges(Rollout)

    async def step(self, rollout: str) -> None:
        """Move one rollout on."""
        try:
            async with self._database.begin(snapshot=True) as session:
                whole = await self.load(session, rollout)
                if State(whole.row.state).ended:
                    return
                back = whole.row.state == State.ROLLING_BACK.value
                hints = await (self.go_back(session, whole) if back else self._go_on(session, whole))
                if hints:
                    flag_modified(whole.row, "state")  # of two servers that give the same orders, one is refused
        except BaseException as e:
            self.judges.forget(rollout)
            if isinstance(e, (StaleDataError, IntegrityError)) or moved_on(e):
                return  # another server has moved it on
            raise
        await self._commands.hint(hints)

    async def load(self, session: AsyncSession, rollout: str) -> Whole:
        """Return all that a step needs to know."""
        row = await session.get_one(RolloutRow, rollout)
        horizon = await evidence.newest(session)
        url = self._url(row.name, row.version)
        update = protocol.ModelUpdate(name=row.name, version=row.version, manifest_url=url, manifest_sha256=row.digest)
        members = await self._members(session, row)
        homes = await updates(session, row.name, {member.robot.origin for member in members}, self._url)
        course = Course(row.id, update, by(row), homes)
        return Whole(row, RolloutRequest.model_validate(row.settings), config_of(row.stages), course, members, horizon)

    async def _members(self, session: AsyncSession, row: RolloutRow) -> tuple[Member, ...]:
        mine = RolloutRobotRow.rollout == row.id
        robots = await read_robots(session, by(row), select(RolloutRobotRow.robot).where(mine), self._online)
        rows = await session.scalars(select(RolloutRobotRow).where(mine))
        found = [Member(member, replace(robots[member.robot], origin=_origin(row, member, robots))) for member in rows]
        return tuple(sorted(found, key=lambda member: (uniform(row.id, member.robot.name), member.robot.name)))

    # -- forward ------------------------------------------------------------------------------------------------------------

    async def _go_on(self, session: AsyncSession, whole: Whole) -> list[str]:
        row, now_s = whole.row, self._clock.now()
        if whole.last:
            looks = whole.looks(now_s)
            if all(look.settled for _, look in looks) and not row.paused:
                await self.end(session, whole, State.DONE, SERVER, _counted(looks))
                return await self._leave_orders(session, whole, looks)
            return await self._order(session, whole, looks)
        judged = await self.judges.open(session, row)
        counted = await self._take_in(session, whole, judged)
        looks = whole.looks(now_s)
        decision = await self._judge(whole, judged, counted, looks, now_s)
        if decision is Decision.ROLLBACK and whole.request.auto_rollback:
            self.judges.store(session, row, judged)
            return await self.begin_back(session, whole, SERVER, str(row.verdict["message"]))
        if not row.paused:
            if row.judged_stage < row.stage:
                self._begin_judging(session, whole, judged, looks)
            elif decision is Decision.ADVANCE:
                await self.next_stage(session, whole, judged, SERVER, str(row.verdict["message"]))
                looks = []
            elif decision is not None:
                self._wait(session, whole, decision)
        self.judges.store(session, row, judged)
        return await self._order(session, whole, looks)

    async def _order(self, session: AsyncSession, whole: Whole, looks: Sequence[tuple[Robot, Look]]) -> list[str]:
        """Give the orders that may be given now; return to whom."""
        request, now_s = whole.request, self._clock.now()
        if whole.row.verdict.get("decision") == Decision.ROLLBACK.value:
            return []  # a person is asked what to do about harm
        if whole.row.paused or not is_open(request.maintenance(), zone_of(request.time_zone), now_s):
            return []
        orders = Limits(request.max_concurrent, request.per_minute).allow(looks, now_s)[: loop.MOST_ORDERS]
        for robot, order in orders:
            await self._commands.add(session, robot, order, by(whole.row))
        self._keep_origins(whole, {robot for robot, _ in orders})
        return [robot for robot, _ in orders]

    @staticmethod
    def _keep_origins(whole: Whole, ordered: Collection[str]) -> None:
        """Note what robots run that are about to leave it."""
        for member in whole.members:
            if member.robot.name in ordered:
                member.row.origin = member.robot.origin

    async def _leave_orders(
        self, session: AsyncSession, whole: Whole, looks: Sequence[tuple[Robot, Look]]
    ) -> list[str]:
        """Leave orders for robots that are away at the end; they get them when they come."""
        silent = {robot.name for robot, look in looks if look.standing is Standing.SILENT}
        expires_s = self._clock.now() + _CATCH_UP_S
        for member in whole.members:
            if member.robot.name in silent:
                for order in whole.wanted(member):
                    if member.robot.last(order) is None:
                        name = member.robot.name
                        await self._commands.add(session, name, order, by(whole.row), expires_s=expires_s)
        self._keep_origins(whole, silent)
        return sorted(silent)

    async def _take_in(self, session: AsyncSession, whole: Whole, judged: Judged[Rollout]) -> bool:
        """Give the judge what robots did; return whether there was anything."""
        row, now_s = whole.row, self._clock.now()
        if row.judged_stage < 0:
            return False
        stage, fleet = whole.stages[row.judged_stage], whole.fleet(row.judged_stage)
        robots = {member.robot.name: member.robot for member in whole.members}
        who = select(RolloutRobotRow.robot).where(
            RolloutRobotRow.rollout == row.id, RolloutRobotRow.joined <= row.judged_stage
        )
        outcomes = await evidence.waiting(session, row, who, whole.horizon)
        stand = Stand(row, stage, Unit(row.unit), holders(row.id, fleet, stage), whole.course.update)
        fates = await asyncio.to_thread(take_in, judged.judgement, stand, outcomes, robots, now_s - row.created_s)
        await evidence.note(session, row, outcomes, [fate.value for fate in fates], whole.horizon, now_s)
        failed = [m for m in whole.members if not m.row.reported_failed and _failed_by_itself(m.robot, whole.course)]
        if failed:
            judged.judgement.robots_changed(now_s - row.created_s, failed=[m.robot.name for m in failed])
            for member in failed:
                member.row.reported_failed = True
        return bool(outcomes or failed)

    async def _judge(
        self, whole: Whole, judged: Judged[Rollout], news: bool, looks: Sequence[tuple[Robot, Look]], now_s: float
    ) -> Decision | None:
        """Ask the judge, if it may know something new; None: not asked."""
        row = whole.row
        if row.judged_stage < 0:
            return None
        every_s = min(_JUDGE_EVERY_S, whole.stages[row.judged_stage].duration_s / 100.0)
        if now_s - row.verdict_s < every_s and not (news and not row.verdict):
            return None
        verdict = await asyncio.to_thread(judged.judgement.verdict, now_s - row.created_s)
        row.verdict, row.verdict_s = to_json(verdict), now_s
        if verdict.decision is Decision.HOLD and row.judged_stage == row.stage and _nobody(looks):
            message = f"no robot has the version: {_counted(looks)}; a person decides"
            row.verdict = {**row.verdict, "decision": Decision.ASK.value, "message": message, "missing": [message]}
            return Decision.ASK
        return verdict.decision

    def _begin_judging(
        self, session: AsyncSession, whole: Whole, judged: Judged[Rollout], looks: Sequence[tuple[Robot, Look]]
    ) -> None:
        row, now_s = whole.row, self._clock.now()
        if not arrived(looks):
            return
        try:
            self._begin(whole, judged, now_s)
        except EvidenceError as e:  # it has become weaker while the stage was installed
            if row.state != State.ASKING.value:
                row.verdict = {**row.verdict, "decision": Decision.ASK.value, "missing": [e.reason]}
                self._set(session, row, State.ASKING, SERVER, e.reason)
            return
        row.verdict, row.verdict_s = {}, now_s
        self._set(session, row, State.JUDGING, SERVER, f"{whole.stage.name}: {_counted(looks)}")

    def _begin(self, whole: Whole, judged: Judged[Rollout], now_s: float) -> None:
        row = whole.row
        past = {name: tuple(counts) for name, counts in row.history.items()} if row.stage == 0 else None
        judged.judgement.begin_stage(row.stage, whole.fleet(row.stage), now_s - row.created_s, past)
        row.judged_stage, row.judged_since_s = row.stage, now_s

    def _wait(self, session: AsyncSession, whole: Whole, decision: Decision) -> None:
        state = State.JUDGING if decision is Decision.HOLD else State.ASKING
        if whole.row.state != state.value:
            self._set(session, whole.row, state, SERVER, str(whole.row.verdict["message"]))

    async def next_stage(
        self, session: AsyncSession, whole: Whole, judged: Judged[Rollout], who: str, why: str
    ) -> None:
        """Begin to install the next stage."""
        row = whole.row
        row.stage, row.stage_since_s = row.stage + 1, self._clock.now()
        await self.join(session, whole)
        if whole.last:
            self._begin(whole, judged, self._clock.now())
        self._set(session, row, State.INSTALLING, who, why, stage=whole.stage.name)

    async def join(self, session: AsyncSession, whole: Whole) -> None:
        """Let robots that came since take part from this stage on, and say who gets the version in it."""
        row, request = whole.row, whole.request
        members, new = {member.robot.name: member.row for member in whole.members}, []
        taken, mine = await claimed(session), by(row)
        query = select(RobotRow.name, RobotRow.group, RobotRow.tags, RobotRow.status)
        for name, group, tags, status in await session.execute(query):
            if name in members or taken.get(name, mine) != mine or not request.means(group, tags):
                continue
            robot = robot_of(name, status)
            if (
                robot.runs(whole.course.update)
                or robot.adapted == row.digest
                or (whole.stage.probability < 1.0 and not can_draw(status))
            ):
                continue
            members[name] = RolloutRobotRow(
                rollout=row.id, robot=name, origin=robot.committed, joined=row.stage, wanted=None, reported_failed=False
            )
            new.append(members[name])
        await claim(session, [member.robot for member in new if member.robot not in taken], mine)
        session.add_all(new)
        for name in holders(row.id, list(members), whole.stage):
            if members[name].wanted is None:
                members[name].wanted = row.stage

    # -- back and out -------------------------------------------------------------------------------------------------------

    async def begin_back(self, session: AsyncSession, whole: Whole, who: str, why: str) -> list[str]:
        """Order every robot back; return to whom orders went."""
        self._set(session, whole.row, State.ROLLING_BACK, who, why)
        whole.row.stage_since_s = self._clock.now()
        await expire(session, by(whole.row))
        return await self.go_back(session, whole)

    async def go_back(self, session: AsyncSession, whole: Whole) -> list[str]:
        """Give orders that lead back, and end when they are carried out."""
        looks = whole.looks(self._clock.now())
        orders = [(robot.name, order) for robot, look in looks for order in look.orders][: loop.MOST_ORDERS]
        for name, order in orders:
            await self._commands.add(session, name, order, by(whole.row))
        if all(look.settled for _, look in looks):
            await self.end(session, whole, State.ROLLED_BACK, SERVER, _counted(looks))
        return [name for name, _ in orders]

    async def stay(self, session: AsyncSession, whole: Whole, who: str, why: str) -> list[str]:
        """End a rollout where it is: robots keep what they have committed, and draw no more."""
        whole.row.stage_since_s = self._clock.now()
        await expire(session, by(whole.row))
        await self.end(session, whole, State.ABORTED, who, why)
        robots = []
        for member in whole.members:
            for order in whole.course.stay(member.robot):
                await self._commands.add(session, member.robot.name, order, by(whole.row))
                robots.append(member.robot.name)
        return robots

    async def end(self, session: AsyncSession, whole: Whole, state: State, who: str, why: str) -> None:
        """End a rollout."""
        await release(session, by(whole.row))
        whole.row.active, whole.row.ended_s = None, self._clock.now()
        self._set(session, whole.row, state, who, why)
        self.judges.forget(whole.row.id)

    def _set(self, session: AsyncSession, row: RolloutRow, state: State, who: str, why: str, **more: Any) -> None:
        row.state = state.value
        detail = {"model": row.name, "version": row.version, "why": why, **more}
        self._database.log(session, who, f"rollout.{state.value.lower()}", row.id, **detail)


def by(row: RolloutRow) -> str:
    """Return whose orders a rollout's are."""
    return f"rollout {row.id}"


def can_draw(status: Mapping[str, Any]) -> bool:
    """Whether a robot can draw the version of each episode: it can hold two, and has one."""
    return bool(status.get("episode_arms") and status.get("committed_version"))


def unit_of(statuses: Iterable[Mapping[str, Any]]) -> Unit:
    """Return what is drawn: episodes, if every robot that has a version can; one that has none waits for the last stage."""
    drawing = [can_draw(status) for status in statuses if status.get("committed_version")]
    return Unit.EPISODE if drawing and all(drawing) else Unit.ROBOT


def _origin(row: RolloutRow, member: RolloutRobotRow, robots: Mapping[str, Robot]) -> str:
    """Return what a robot leaves for the new version: what it runs when it is its turn, for a person may have changed that."""
    robot = robots[member.robot]
    turn = member.wanted is not None and member.wanted <= row.stage
    left = any(isinstance(g.order, protocol.Assign) or getattr(g.order, "activate", False) for g in robot.given)
    return member.origin if left or not turn or robot.committed in ("", row.version) else robot.committed


def _failed_by_itself(robot: Robot, course: Course) -> bool:
    update = robot.last(course.update)
    rolled_back = update is not None and (update.state, update.robot_state) == ("FAILED", "ROLLED_BACK")
    return rolled_back or course.update.version in robot.blocked


def _nobody(looks: Sequence[tuple[Robot, Look]]) -> bool:
    """Whether no robot has the version or will have it soon."""
    return all(look.standing in (Standing.OUTSIDE, Standing.FAILED, Standing.SILENT) for _, look in looks)


def _counted(looks: Sequence[tuple[Robot, Look]]) -> str:
    counts = {standing: sum(look.standing is standing for _, look in looks) for standing in Standing}
    return ", ".join(f"{number} {standing.value}" for standing, number in counts.items() if number)
