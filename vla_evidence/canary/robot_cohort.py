# SPDX-License-Identifier: Apache-2.0
"""The robots of one stage, and what each of them had at the looks of the stage.

Robots are looked at a few times, by the clock (:data:`LOOKS`), each time by all of their episodes that are over by then. So all
robots are judged by the same span of time: were each judged by its first m episodes, conditions that change for everybody would
be held against the version that takes longer, and what it does after them would not be seen.

What is over at a look: all episodes that were assigned before, but not the one that a robot runs just then, unless it is its
first. Of what was *assigned* up to some moment the last is more likely a long one, so a version whose failures take longer would
look worse than it is. But how many are over says nothing about each of them if a robot's episodes are exchangeable and follow
each other: given that n are, each of these n is as likely to have succeeded as the first. (A robot that waits after a failure,
for somebody to set it right, shows that failure as its last one for as long: if that differs between the versions, tell an
outcome when the robot is ready again.) A look waits for the outcomes that were not told by then, for a deadline at most.

Each look is an e-process by itself (:mod:`robot_units`) and begins with a part of the stage's stake, so that all of
them together convict an equal canary with probability <= the stake times α.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vla_evidence.assignment import uniform
from vla_evidence.errors import MAX_COUNT, InputError, check_rate, is_integer, shown
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT

LOOKS = ((0.125, 0.1), (0.25, 0.1), (0.5, 0.1), (1.0, 0.7))
"""When robots are looked at, as a share of the stage's time, and with which part of its stake."""
_HEARD, _SILENT, _FIRST = range(3)
"""Of a robot's sums: episodes with an outcome, without; then of each thing that is judged."""


class RobotUnit(NamedTuple):
    """One robot at a look.

    Attributes:
        group: :data:`INCUMBENT` or :data:`CANARY`.
        means: of each thing over its episodes, one without an outcome a failure.
        worst: mean of the first thing if the worst is assumed of all episodes that were not heard of, or that it owes: the
            canary's failed, the incumbent's succeeded. A proof of "not worse" may rest on nothing else.
        probability: with which it is a canary, given those before it.
    """

    group: int
    means: list[float]
    worst: float
    probability: float


class Tallies:
    """Sums of robots' episodes.

    Args:
        things: how many are judged.
    """

    def __init__(self, things: int) -> None:
        self.things = things
        self.sums: dict[str, list[float]] = {}

    def add(self, robot: str, ys: Sequence[float], *, silent: bool) -> None:
        """Take one episode in: a value in [0, 1] for each thing; a silent one has failed in all.

        Raises:
            InputError: a value outside [0, 1], or not as many.
        """
        if len(ys) != self.things:
            raise InputError("INPUT_COUNT", "ys", f"{len(ys)} values of {self.things} things")
        values = [0.0 if silent else check_rate("y", y) for y in ys]
        sums = self.sums.setdefault(robot, [0.0] * (_FIRST + self.things))
        sums[_SILENT if silent else _HEARD] += 1.0
        for index, value in enumerate(values, start=_FIRST):
            sums[index] += value

    def copy(self) -> Tallies:
        """Return an independent copy."""
        other = Tallies(self.things)
        other.sums = {robot: list(sums) for robot, sums in self.sums.items()}
        return other

    @staticmethod
    def from_json(document: Mapping[str, Any], robots: Mapping[str, int], things: int) -> Tallies:
        """Read ``sums`` of these robots.

        Raises:
            InputError, TypeError, ValueError, AttributeError: they cannot be.
        """
        tallies = Tallies(things)
        for robot, sums in document.items():
            possible = robot in robots and len(sums) == _FIRST + things
            if not (possible and all(type(v) in (int, float) and 0.0 <= v <= MAX_COUNT for v in sums)):
                raise InputError("INPUT_VALUE", "sums", f"{robot!r}: {shown(sums)}")
            heard, silent, *values = sums
            whole = float(heard).is_integer() and float(silent).is_integer()
            if not (whole and heard + silent >= 1.0 and max(values) <= heard):
                raise InputError("INPUT_VALUE", "sums", f"{robot!r}: {shown(sums)} are no sums of a robot")
            tallies.sums[robot] = [float(value) for value in sums]
        return tallies


class RobotCohort:
    """The robots of one stage, in an order that tells nothing of their groups: that of a salted SHA-256 of the names.

    Args:
        groups: group by robot. The canaries must have been drawn at random.
        episodes: what each robot owes where "not worse" is to be proven.
        salt: of this experiment and stage, other than the one that the canaries were drawn with.

    Raises:
        InputError: an unknown group, no robot, or no episodes.
    """

    def __init__(self, groups: Mapping[str, int], episodes: int, salt: str) -> None:
        if not groups or not all(is_integer(group) and group in (INCUMBENT, CANARY) for group in groups.values()):
            raise InputError("INPUT_ARM", "groups", f"no robots, or some are neither {INCUMBENT} nor {CANARY}")
        if episodes < 1:
            raise InputError("INPUT_COUNT", "episodes", f"{episodes} is not positive")
        self.groups, self.episodes = {robot: int(group) for robot, group in groups.items()}, episodes
        self._order = sorted(groups, key=lambda robot: (uniform(f"{salt}/order", robot), robot))

    @property
    def canaries(self) -> int:
        """How many of the robots are."""
        return sum(self.groups.values())

    @property
    def largest_log_e(self) -> float:
        """Logarithm of the number of ways to draw this cohort: no evidence of harm can exceed it."""
        n, k = len(self.groups), self.canaries
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    def heard(self, tallies: Tallies) -> Iterator[RobotUnit]:
        """Yield the robots of which an episode is over: those of which none is tell nothing about harm."""
        return self._units(tallies, [robot for robot in self._order if robot in tallies.sums])

    def all(self, tallies: Tallies) -> Iterator[RobotUnit]:
        """Yield every robot: one that is not heard of owes all of its episodes."""
        return self._units(tallies, self._order)

    def _units(self, tallies: Tallies, robots: Sequence[str]) -> Iterator[RobotUnit]:
        canaries = sum(self.groups[robot] for robot in robots)
        for index, robot in enumerate(robots):
            group, probability = self.groups[robot], canaries / (len(robots) - index)
            canaries -= group
            sums = tallies.sums.get(robot, [0.0] * (_FIRST + tallies.things))
            over = sums[_HEARD] + sums[_SILENT]
            owed = max(float(self.episodes), over)
            unheard = owed - sums[_HEARD] if group == INCUMBENT else 0.0
            means = [value / max(over, 1.0) for value in sums[_FIRST:]]
            yield RobotUnit(group, means, min(1.0, (sums[_FIRST] + unheard) / owed), probability)

    def short(self, tallies: Tallies) -> tuple[int, int]:
        """Return how many robots of the incumbent and of the canary have not all that they owe."""
        heard = {robot: sums[_HEARD] for robot, sums in tallies.sums.items()}
        groups = [group for robot, group in self.groups.items() if heard.get(robot, 0.0) < self.episodes]
        return groups.count(INCUMBENT), groups.count(CANARY)

    def unheard_of(self, tallies: Tallies) -> tuple[int, int]:
        """Return of how many robots of the incumbent and of the canary no episode is over."""
        groups = [group for robot, group in self.groups.items() if robot not in tallies.sums]
        return groups.count(INCUMBENT), groups.count(CANARY)

    def silent(self, tallies: Tallies) -> tuple[bool, bool]:
        """Return whether no outcome of any robot of the incumbent, of the canary, was ever told."""
        told = {self.groups[robot] for robot, sums in tallies.sums.items() if sums[_HEARD] > 0.0}
        return INCUMBENT not in told, CANARY not in told

    def counts(self, tallies: Tallies) -> list[list[float]]:
        """Return, of the incumbent and of the canary, (successes, episodes heard of, all episodes)."""
        counts = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        for robot, sums in tallies.sums.items():
            for index, value in enumerate((sums[_FIRST], sums[_HEARD], sums[_HEARD] + sums[_SILENT])):
                counts[self.groups[robot]][index] += value
        return counts
