# SPDX-License-Identifier: Apache-2.0
"""Episodes of an A/B test that were assigned: each counts once, in the order of assignment, and silence is a failure.

A robot's episodes are numbered 0, 1, …: none is left out, none counts twice. Of pairs (numbers 2k and 2k + 1 of one robot), the
order is that in which their first episodes were assigned, and each episode has a deadline of its own. So how long either takes
says nothing about who wins: a pair waits for its second episode, however late it is assigned.

A robot that was not assigned it for so long, counted from the end of the first, is away. If the first one's outcome was told, the
pair steps out of the queue, and counts when it is whole: it is mostly a slow policy's episode after which robots stop, at the end
of a shift or of the test. If the robot fell silent and stays away, the pair is lost by the policy that ran on it, as if the other
one had succeeded: who breaks robots must not get away with half of it.

What nobody assigned cannot be missed: a robot that a policy breaks for good is charged with one failure, and no more, unless it
is still assigned the episodes that it was to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vla_evidence.ab.verdict import as_arm, as_latency, as_success
from vla_evidence.assignment_queue import AssignedEpisode, AssignmentQueue
from vla_evidence.errors import InputError, check_name, check_time, is_integer, shown

DEADLINE_S = 3600.0
GONE_S = 24 * 3600.0


@dataclass(kw_only=True)
class Episode(AssignedEpisode):
    """An assigned episode; ``number``: on its robot; ``over_s``: since when that is free, by outcome or deadline [s]."""

    number: int
    arm: str
    over_s: float
    success: bool = False
    latency: float | None = None


@dataclass
class ABUnit:
    """What counts together: an episode or a pair.

    Attributes:
        size: how many episodes belong to it.
        gone_s: for how long a pair waits for its second episode after the end of the first [s].
        episodes: those that were assigned.
        told: how many of them were handed on before, with the pair not whole.
    """

    size: int
    gone_s: float
    episodes: list[Episode] = field(default_factory=list)
    told: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether no episode is missing."""
        return len(self.episodes) == self.size

    @property
    def is_lost(self) -> bool:
        """Whether it is a pair whose first episode ended in silence, if nothing more comes."""
        return not self.is_whole and not self.episodes[0].done

    def is_closed(self, now_s: float) -> bool:
        """Whether every episode is over, and none is missing or its robot is away."""
        if any(episode.is_open(now_s) for episode in self.episodes):
            return False
        return self.is_whole or now_s >= self.episodes[-1].over_s + self.gone_s


class OpenEpisodes(AssignmentQueue[ABUnit]):
    """A queue of units in the order of their assignment; memory grows with open episodes and with robots.

    Args:
        size: episodes of a unit: 1, or 2 for pairs.
        deadline_s: after its assignment an episode without an outcome has failed [s].
        gone_s: after the end of a pair's first episode, a robot that was not assigned the other one is away [s].

    Raises:
        InputError: INPUT_VALUE: a time that is not positive.
    """

    def __init__(self, size: int, deadline_s: float = DEADLINE_S, gone_s: float = GONE_S) -> None:
        super().__init__(deadline_s)
        self._size, self._gone_s = size, check_time("gone_s", gone_s)
        if self._gone_s <= 0.0:
            raise InputError("INPUT_VALUE", "gone_s", f"{gone_s!r} is no time to wait")
        self._next: dict[str, int] = {}
        self._half: dict[str, ABUnit] = {}  # by robot: a pair without its second episode
        self._open: dict[tuple[str, int], Episode] = {}

    def waiting(self, arm: str) -> int:
        """Return how many episodes of an arm have no outcome yet."""
        return sum(episode.arm == arm and not episode.done for unit in self._units for episode in unit.episodes)

    def awaited(self) -> list[str]:
        """Return the robots whose pair waits for its second episode to be assigned."""
        return [robot for robot, unit in self._half.items() if not unit.episodes[0].is_open(self._now_s)]

    def assign(self, robot: str, episode: int, arm: str, now_s: float) -> None:
        """Announce a robot's next episode; nothing is changed if it is refused.

        Raises:
            InputError: INPUT_VALUE: no name, not the robot's next number (0, 1, …), or no time; INPUT_ARM: no such arm, or the
                pair has one of it already.
        """
        expected = self._next.get(check_name("robot", robot), 0)
        as_arm(arm)
        if not is_integer(episode) or episode != expected:
            raise InputError(
                "INPUT_VALUE", "episode", f"{shown(episode)} of robot {robot!r} is not its next one, {expected}"
            )
        now, unit = self._later(now_s), self._half.get(robot)
        if unit is not None and unit.is_lost and unit.is_closed(now):
            unit = None  # the robot is back, but too late: its episode counts alone
        if unit is not None and unit.episodes[0].arm == arm:
            raise InputError("INPUT_ARM", "arm", f"the pair of robot {robot!r} has an episode of {arm} already")
        self._now_s, self._next[robot] = now, expected + 1
        self._half.pop(robot, None)
        due_s = now + self._deadline_s
        found = self._open[robot, episode] = Episode(robot=robot, due_s=due_s, number=episode, arm=arm, over_s=due_s)
        if unit is None:
            pair = self._size == 2 and episode % 2 == 0
            unit = ABUnit(2 if pair else 1, self._gone_s)
            if pair:
                self._half[robot] = unit
            self._units.append(unit)
        elif unit.told:
            self._units.append(unit)  # it had stepped out
        unit.episodes.append(found)

    def finish(self, robot: str, episode: int, success: bool, now_s: float, latency: float | None = None) -> bool:
        """Note an outcome; false, and ignored, if the episode is not open (told twice, or after its deadline: it has failed).

        Raises:
            InputError: INPUT_VALUE: never assigned, no time, neither success nor failure, or a latency that cannot be.
        """
        won, slow, now = as_success(success), as_latency(latency), self._later(now_s)
        numbered = is_integer(episode) and isinstance(robot, str)
        if not numbered or not 0 <= episode < self._next.get(robot, 0):
            raise InputError("INPUT_VALUE", "episode", f"{shown(episode)} of robot {shown(robot)} was not assigned")
        self._now_s = now
        found = self._open.get((robot, episode))
        if found is None or not found.is_open(now):
            return False
        found.done, found.success, found.latency, found.over_s = True, won, slow, now
        return True

    def ready(self) -> Iterator[ABUnit]:
        """See :class:`AssignmentQueue`; an episode that is not ``done`` was silent, and has failed.

        A pair that is not whole is either lost, or comes again when it is.
        """
        for unit in super().ready():
            for episode in unit.episodes[unit.told :]:
                del self._open[episode.robot, episode.number]
            if unit.is_lost:
                self._half.pop(unit.episodes[0].robot, None)
            yield unit
            unit.told = len(unit.episodes)
