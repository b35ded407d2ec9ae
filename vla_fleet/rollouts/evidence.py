# SPDX-License-Identifier: Apache-2.0
"""Outcomes to the judge, and the judge's log in the database.

The robot draws the version of an episode, or runs one for long; the server hears of an episode when it has ended. So each outcome
is checked to be what the judge would have drawn, then the episode is chosen and ended at once. What the judge adds to its log is
stored in the transaction that notes which outcomes were taken in: neither can be there without the other.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_evidence.assignment import arm, cohort
from vla_evidence.canary.config import Stage, Unit
from vla_evidence.errors import InputError as EvidenceInputError
from vla_evidence.log.records import NewLines
from vla_evidence.log.rollout import Rollout
from vla_fleet import protocol
from vla_fleet.rollouts.reconcile import Robot
from vla_fleet.storage.tables import OutcomeRow, RolloutLineRow, RolloutOutcomeRow, RolloutRow

_AT_ONCE = 2000
"""Outcomes that one transaction takes in."""
_SETTLED_S = 60.0
"""So long after it was received, no outcome with a lower id can appear any more."""
_HISTORY = 5000
"""Outcomes of the incumbent, the newest ones, from which the judge's settings follow."""


class Fate(str, Enum):
    """What a rollout made of an outcome."""

    COUNTED = "counted"
    UNKNOWN = "unknown"
    """Nobody knows whether it succeeded: a failure of its version."""
    MIXED = "mixed"
    """The version changed in mid-episode: a failure of the one that was drawn."""
    NOT_DRAWN = "not drawn"
    """It began before the robot took part in this stage, or after."""
    OTHER_VERSION = "other version"
    """It ran neither what was drawn nor what the robot came from."""
    REPEATED = "repeated"
    """An episode of this name was taken in before."""


@dataclass
class Judged:
    """The judge of one rollout, with what it has added to its log since it was stored."""

    rollout: Rollout
    new: NewLines
    lines: int
    """How many are stored."""


class Judges:
    """Keeps the judges of active rollouts; any that is not here is made anew from its log."""

    def __init__(self) -> None:
        self._known: dict[str, Judged] = {}

    async def open(self, session: AsyncSession, row: RolloutRow) -> Judged:
        """Return a rollout's judge as the stored log leaves it."""
        judged = self._known.get(row.id)
        if judged is None or judged.lines != row.lines:
            query = select(RolloutLineRow.line).where(RolloutLineRow.rollout == row.id).order_by(RolloutLineRow.number)
            lines = [line.encode() for line in await session.scalars(query)]
            new = NewLines()
            rollout = await asyncio.to_thread(Rollout.resume, lines, new, f"rollout {row.id}")
            judged = self._known[row.id] = Judged(rollout, new, len(lines))
        return judged

    def store(self, session: AsyncSession, row: RolloutRow, judged: Judged) -> None:
        """Append what the judge has added; the caller commits it or calls :meth:`forget`."""
        for line in judged.new.take():
            session.add(RolloutLineRow(rollout=row.id, number=row.lines, line=line.decode()))
            row.lines += 1
        judged.lines = row.lines

    def forget(self, rollout: str) -> None:
        """Drop a judge that may know more than its log."""
        self._known.pop(rollout, None)


@dataclass(frozen=True)
class Stand:
    """What is needed to judge an outcome: the stage that the judge has begun, and who has the version in it."""

    row: RolloutRow
    stage: Stage
    unit: Unit
    holders: frozenset[str]
    update: protocol.ModelUpdate

    def between(self, robot: Robot) -> tuple[float, float]:
        """Return from when until when episodes of a robot were drawn as this stage says, by the robot's clock [s]."""
        if self.unit is Unit.ROBOT:
            if robot.name not in self.holders:
                return self.row.judged_since_s, math.inf
            update = robot.last(self.update)
            done = update is not None and update.state == "DONE"
            return (max(update.robot_s, self.row.judged_since_s), math.inf) if update and done else (math.inf, math.inf)
        start = math.inf
        for given in robot.given:
            if isinstance(given.order, protocol.Assign) and given.state == "DONE":
                if start < math.inf:
                    return start, given.robot_s
                if given.order.versions and given.order.probability == self.stage.probability:
                    start = given.robot_s
        return start, math.inf

    def drawn(self, robot: Robot, episode: str) -> int:
        """Return which version an episode was to run: 0 the robot's own, 1 the new one."""
        if self.unit is Unit.ROBOT:
            return int(robot.name in self.holders)
        return arm(self.row.id, robot.name, episode, self.stage.probability)

    def fate(self, outcome: OutcomeRow, robot: Robot) -> Fate:
        """Say what an outcome is before the judge sees it."""
        start, end = self.between(robot)
        if not start <= outcome.time_s - outcome.duration_s < end:
            return Fate.NOT_DRAWN
        drawn = self.drawn(robot, outcome.episode_id)
        if self.unit is Unit.EPISODE and outcome.arm != "AB"[drawn]:
            return Fate.NOT_DRAWN
        if outcome.mixed:
            return Fate.MIXED
        if outcome.version != (robot.origin, self.row.version)[drawn]:
            return Fate.OTHER_VERSION
        return Fate.COUNTED if outcome.known else Fate.UNKNOWN


def take_in(
    judged: Judged, stand: Stand, outcomes: Sequence[OutcomeRow], robots: Mapping[str, Robot], now_s: float
) -> list[Fate]:
    """Give outcomes to the judge, in their sequence; return what became of each. ``now_s``: since the rollout was created."""
    return [_take(judged.rollout, stand, outcome, robots[outcome.robot], now_s) for outcome in outcomes]


def _take(rollout: Rollout, stand: Stand, outcome: OutcomeRow, robot: Robot, now_s: float) -> Fate:
    fate = stand.fate(outcome, robot)
    if fate in (Fate.NOT_DRAWN, Fate.OTHER_VERSION):
        return fate
    try:
        if rollout.knows(robot.name, outcome.episode_id):
            return Fate.REPEATED
        version = rollout.choose(robot.name, outcome.episode_id, now_s)
    except EvidenceInputError:  # the name is another robot's episode
        return Fate.REPEATED
    if version != stand.drawn(robot, outcome.episode_id):
        return Fate.NOT_DRAWN  # harm was found: the judge draws the new version no more
    if fate is Fate.COUNTED:
        rollout.outcome(outcome.episode_id, outcome.success, now_s, outcome.duration_s or None)
    return fate


async def waiting(session: AsyncSession, row: RolloutRow, robots: Sequence[str], horizon: int) -> list[OutcomeRow]:
    """Return outcomes of these robots up to an id that the rollout has not looked at, oldest first."""
    seen = select(RolloutOutcomeRow.outcome).where(
        RolloutOutcomeRow.rollout == row.id, RolloutOutcomeRow.outcome == OutcomeRow.id
    )
    between = OutcomeRow.id > row.taken, OutcomeRow.id <= horizon
    query = select(OutcomeRow).where(*between, OutcomeRow.robot.in_(robots), ~seen.exists())
    return list(await session.scalars(query.order_by(OutcomeRow.id).limit(_AT_ONCE)))


async def note(
    session: AsyncSession, row: RolloutRow, outcomes: Sequence[OutcomeRow], fates: Sequence[Fate], now_s: float
) -> None:
    """Note what became of outcomes, and up to which every one has been looked at."""
    for outcome, fate in zip(outcomes, fates, strict=True):
        session.add(RolloutOutcomeRow(rollout=row.id, outcome=outcome.id, fate=fate.value))
    settled = [outcome.id for outcome in outcomes if outcome.received_s < now_s - _SETTLED_S]
    row.taken = max([row.taken, *settled])


async def counts(session: AsyncSession, rollout: str) -> dict[str, int]:
    """Return how many outcomes had each fate."""
    query = select(RolloutOutcomeRow.fate, func.count()).where(RolloutOutcomeRow.rollout == rollout)
    rows = await session.execute(query.group_by(RolloutOutcomeRow.fate))
    return {fate: number for fate, number in rows}


@dataclass(frozen=True)
class History:
    """What the incumbents did before a rollout: ``by_robot`` (successes, episodes), and how long episodes took [s]."""

    by_robot: dict[str, tuple[int, int]]
    latencies_s: list[float]
    per_hour: float | None
    """Episodes that a robot does an hour; None: too few to say."""

    @property
    def successes(self) -> int:
        """Of all."""
        return sum(successes for successes, _ in self.by_robot.values())

    @property
    def episodes(self) -> int:
        """Of all."""
        return sum(episodes for _, episodes in self.by_robot.values())


async def history(session: AsyncSession, origins: Mapping[str, str], now_s: float) -> History:
    """Return what robots did with the versions that they run: the newest outcomes."""
    query = select(OutcomeRow).where(OutcomeRow.robot.in_(origins), OutcomeRow.known, ~OutcomeRow.mixed)
    rows = list(await session.scalars(query.order_by(OutcomeRow.id.desc()).limit(_HISTORY)))
    own = [row for row in rows if row.version == origins[row.robot]]
    episodes, successes = Counter(row.robot for row in own), Counter(row.robot for row in own if row.success)
    by_robot = {robot: (successes[robot], number) for robot, number in episodes.items()}
    hours = (now_s - min((row.time_s for row in own), default=now_s)) / 3600.0
    per_hour = len(own) / hours / len(origins) if hours > 0.0 else None
    return History(by_robot, [row.duration_s for row in own if row.duration_s > 0.0], per_hour)


def holders(rollout: str, robots: Sequence[str], stage: Stage) -> frozenset[str]:
    """Return the robots that hold the version in a stage, as the judge will say it."""
    return frozenset(cohort(rollout, robots, stage.share)) if robots else frozenset()


def config_of(stages: Sequence[Mapping[str, object]]) -> tuple[Stage, ...]:
    """Return stages from JSON."""
    return tuple(Stage(**stage) for stage in stages)  # type: ignore[arg-type]
