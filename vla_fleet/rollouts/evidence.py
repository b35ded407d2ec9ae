# SPDX-License-Identifier: Apache-2.0
"""Outcomes to a rollout's judge.

The robot draws the version of an episode, or runs one for long; the server hears of an episode when it has ended. So each outcome
is checked to be what the judge would have drawn, then the episode is chosen and ended at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from vla_evidence.assignment import arm, cohort
from vla_evidence.canary.config import Stage, Unit
from vla_evidence.errors import InputError as EvidenceInputError
from vla_evidence.log.rollout import Rollout
from vla_fleet import protocol
from vla_fleet.steering.reconcile import Robot
from vla_fleet.storage.tables import OutcomeRow, RolloutRow


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
    rollout: Rollout, stand: Stand, outcomes: Sequence[OutcomeRow], robots: Mapping[str, Robot], now_s: float
) -> list[Fate]:
    """Give outcomes to the judge, in their sequence; return what became of each. ``now_s``: since the rollout was created."""
    return [_take(rollout, stand, outcome, robots[outcome.robot], now_s) for outcome in outcomes]


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
        rollout.outcome(outcome.episode_id, outcome.succeeded, now_s, outcome.duration_s or None)
    return fate


def holders(rollout: str, robots: Sequence[str], stage: Stage) -> frozenset[str]:
    """Return the robots that hold the version in a stage, as the judge will say it."""
    return frozenset(cohort(rollout, robots, stage.share)) if robots else frozenset()


def config_of(stages: Sequence[Mapping[str, object]]) -> tuple[Stage, ...]:
    """Return stages from JSON."""
    return tuple(Stage(**stage) for stage in stages)  # type: ignore[arg-type]
