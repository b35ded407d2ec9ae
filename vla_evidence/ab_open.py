# SPDX-License-Identifier: Apache-2.0
"""Episodes of an A/B test that were assigned: each counts once, in the order of assignment, and silence is a failure.

An outcome that never comes is no accident: a policy that hangs sends none. Left out, its failures would vanish. So an episode is
announced when it is assigned, fails if its deadline passes, and nothing behind it counts before it does; else a policy whose
failures take longer would look better for as long. A robot's episodes are numbered 0, 1, …: none is left out, none counts twice.

Of a pair whose second episode was never assigned, the missing one is taken for a success: so a policy that breaks the robot loses
the pair also if it came first. Which policy comes first is a fair coin, so this favours neither if they are alike, also in time:
the deadline of a pair runs from its first episode's assignment, and a policy that is slow or hangs keeps the other from its turn.

What nobody assigned cannot be missed: a robot that a policy breaks for good is charged with one failure, and no more, unless it
is still assigned the episodes that it was to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from vla_evidence.ab_verdict import as_arm, as_latency, as_success
from vla_evidence.assignment import A, B
from vla_evidence.errors import InputError, is_integer

DEADLINE_S = 3600.0


@dataclass
class Episode:
    """An assigned episode; ``done``: its outcome is known, or it is silent."""

    robot: str
    arm: str
    due_s: float
    done: bool = False
    success: bool = False
    latency: float | None = None
    silent: bool = False


@dataclass
class _Unit:
    """One episode, or a pair of them (``size`` 2), by number."""

    size: int
    episodes: dict[int, Episode] = field(default_factory=dict)

    @property
    def due_s(self) -> float:
        return max(episode.due_s for episode in self.episodes.values())

    @property
    def whole(self) -> bool:
        return len(self.episodes) == self.size and all(episode.done for episode in self.episodes.values())


class OpenEpisodes:
    """A queue of units in the order of their assignment; memory grows with open episodes and with robots.

    Args:
        size: episodes of a unit: 1, or 2 for pairs (numbers 2k and 2k + 1 of one robot).
        deadline_s: after its assignment an episode without an outcome has failed, and a pair is not completed any more [s].

    Raises:
        InputError: INPUT_VALUE: a deadline that is not positive.
    """

    def __init__(self, size: int, deadline_s: float = DEADLINE_S) -> None:
        if not (_is_finite(deadline_s) and deadline_s > 0.0):
            raise InputError("INPUT_VALUE", "deadline_s", f"{deadline_s!r} is no time to wait")
        self._size, self._deadline_s = size, float(deadline_s)
        self._next: dict[str, int] = {}
        self._units: dict[tuple[str, int], _Unit] = {}  # keeps the order
        self._now_s = -math.inf

    def waiting(self, arm: str) -> int:
        """Return how many episodes of an arm have no outcome yet."""
        return sum(e.arm == arm and not e.done for unit in self._units.values() for e in unit.episodes.values())

    def assign(self, robot: str, episode: int, arm: str, now_s: float) -> None:
        """Announce a robot's next episode; nothing is changed if it is refused.

        Raises:
            InputError: INPUT_VALUE: no name, not the robot's next number (0, 1, …), or no time; INPUT_ARM: no such arm, or the
                pair has one of it already.
        """
        if not isinstance(robot, str) or not robot:
            raise InputError("INPUT_VALUE", "robot", f"{robot!r} is no name")
        as_arm(arm)
        expected = self._next.get(robot, 0)
        if not is_integer(episode) or episode != expected:
            raise InputError(
                "INPUT_VALUE", "episode", f"{episode!r} of robot {robot!r} is not its next one, {expected}"
            )
        key = robot, episode // self._size
        unit, now = self._units.get(key), self._time(now_s)
        if unit is not None and arm in (e.arm for e in unit.episodes.values()):
            raise InputError("INPUT_ARM", "arm", f"pair {key[1]} of robot {robot!r} has an episode of {arm} already")
        self._now_s, self._next[robot] = now, expected + 1
        if unit is None and episode % self._size:
            return  # its pair has ended without it
        if unit is None:
            unit = self._units[key] = _Unit(self._size)
        elif unit.due_s < now:
            return  # is too late for its pair
        unit.episodes[episode] = Episode(robot, arm, now + self._deadline_s)

    def finish(self, robot: str, episode: int, success: bool, now_s: float, latency: float | None = None) -> bool:
        """Note an outcome; false, and ignored, if the episode is not open (told twice, or after its deadline: it has failed).

        Raises:
            InputError: INPUT_VALUE: never assigned, no time, neither success nor failure, or a latency that cannot be.
        """
        won, slow, now = as_success(success), as_latency(latency), self._time(now_s)
        numbered = is_integer(episode) and isinstance(robot, str)
        if not numbered or not 0 <= episode < self._next.get(robot, 0):
            raise InputError("INPUT_VALUE", "episode", f"{episode!r} of robot {robot!r} was not assigned")
        self._now_s = now
        unit = self._units.get((robot, episode // self._size))
        found = unit.episodes.get(episode) if unit is not None else None
        if found is None or found.done or found.due_s < now:
            return False
        found.done, found.success, found.latency = True, won, slow
        return True

    def advance(self, now_s: float) -> None:
        """Let time pass.

        Raises:
            InputError: INPUT_VALUE: no time.
        """
        self._now_s = self._time(now_s)

    def ready(self) -> Iterator[list[Episode]]:
        """Take out and yield the episodes of units before which nothing is open."""
        while self._units:
            key, unit = next(iter(self._units.items()))
            if not unit.whole and unit.due_s >= self._now_s:
                return
            del self._units[key]
            for episode in unit.episodes.values():
                episode.silent = not episode.done
            yield list(unit.episodes.values())

    def _time(self, now_s: float) -> float:
        """Return the later of ``now_s`` and all times before."""
        if not _is_finite(now_s):
            raise InputError("INPUT_VALUE", "now_s", f"{now_s!r} is no time")
        return max(self._now_s, float(now_s))


def _is_finite(value: object) -> bool:
    """Whether it is a finite number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def missing_partner(unit: list[Episode]) -> Episode:
    """Return what stands for the episode that a pair never got: a success of the other arm."""
    return Episode(unit[0].robot, A if unit[0].arm == B else B, unit[0].due_s, done=True, success=True)
