# SPDX-License-Identifier: Apache-2.0
"""Episodes that were assigned and whose outcome is awaited: one queue for rollouts and A/B tests.

Outcomes count in the order in which episodes were *assigned*. In the order of ending, a version whose episodes last longer is
under-represented among the first outcomes, and one that fails slowly looks better than it is. An episode without an outcome by
its deadline has failed: a policy that hangs sends none, and its failures must not vanish.

An episode's name counts once. The queue knows a name until one deadline after the episode has left it, and refuses an assignment
whose own time lies a deadline back. So a message that is sent again with its original time never counts twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from vla_evidence.errors import InputError


class Fate(str, Enum):
    """What became of an outcome."""

    COUNTED = "counted"
    LATE = "late"
    """After the episode's deadline: it has failed already."""
    REPEATED = "repeated"
    UNKNOWN = "unknown"
    """It was never assigned, or long ago."""


@dataclass(slots=True)
class Episode:
    """An episode that was assigned.

    Attributes:
        name, robot, version: what runs where; version 0 is the incumbent (A), 1 the canary (B).
        assigned_s: when [s].
        due_s: an outcome at this time or after it comes too late [s].
        stage: of the rollout.
        drawn: a draw decided the version; other episodes are not compared.
        done: the outcome is known.
        success, latency_s: the outcome.
        values: success and the other endpoints, each in [0, 1]; empty while unknown.
        blocks: how many blocks each judged score source reported.
        over_s: since when the robot is free again, by the outcome or the deadline [s].
    """

    name: str
    robot: str
    version: int
    assigned_s: float
    due_s: float
    stage: int = 0
    drawn: bool = True
    done: bool = False
    success: bool = False
    latency_s: float | None = None
    values: tuple[float, ...] = ()
    blocks: tuple[int, ...] = ()
    over_s: float = math.inf

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """The episode itself: it is a unit of one."""
        return (self,)

    def is_open(self, now_s: float) -> bool:
        """Whether the outcome may still come."""
        return not self.done and now_s < self.due_s

    def is_closed(self, now_s: float) -> bool:
        """Whether nothing more may come."""
        return not self.is_open(now_s)


class Unit(Protocol):
    """What counts together: an episode or a pair."""

    @property
    def episodes(self) -> tuple[Episode, ...] | list[Episode]:
        """Those that were assigned."""

    def is_closed(self, now_s: float) -> bool:
        """Whether nothing more may come."""


_Unit = TypeVar("_Unit", bound=Unit)


class Pending(Generic[_Unit]):
    """The queue, with a deadline and a clock; as long as what is open and what waits for that.

    Args:
        deadline_s: an episode without an outcome for so long has failed [s].
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.now_s = -math.inf
        self._units: deque[_Unit] = deque()
        self._open: dict[str, Episode] = {}
        self._left: dict[str, tuple[float, Episode]] = {}  # until when a name is known after its episode has left

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Episodes that have ended and wait for one that was assigned before them."""
        return sum(episode.done for episode in self._open.values())

    def open_of(self, version: int) -> int:
        """Return how many episodes of a version have no outcome yet."""
        return sum(episode.version == version and not episode.done for episode in self._open.values())

    def open_before(self, assigned_s: float) -> int:
        """Return how many episodes that were assigned before this time still wait for their outcome, or for another's."""
        return sum(episode.assigned_s < assigned_s for episode in self._open.values())

    def advance(self, now_s: float) -> None:
        """Let time pass; a clock that goes back counts as one that stands."""
        self.now_s = max(self.now_s, now_s)

    def known(self, name: str, robot: str) -> Episode | None:
        """Return the episode of this name, if it was assigned before."""
        found = self._open.get(name) or self._left.get(name, (0.0, None))[1]
        if found is not None and found.robot != robot:
            raise InputError("INPUT_VALUE", "episode", f"{name!r} was assigned to {found.robot!r} before")
        return found

    def check_time(self, now_s: float) -> None:
        """Refuse an assignment that lies a deadline back: its own deadline has passed."""
        if now_s <= self.now_s - self.deadline_s:
            reason = f"{now_s} lies {self.now_s - now_s:.6g} s back, more than the deadline of {self.deadline_s:g} s"
            raise InputError("INPUT_VALUE", "now_s", reason)

    def assign(self, name: str, robot: str, version: int, *, stage: int = 0, drawn: bool = True) -> Episode:
        """Return a new episode, assigned now; the caller puts it into a unit and that into the queue."""
        due_s = self.now_s + self.deadline_s
        episode = Episode(name, robot, version, self.now_s, due_s, stage, drawn, over_s=due_s)
        self._open[name] = episode
        return episode

    def push(self, unit: _Unit) -> None:
        """Put a unit at the end of the queue."""
        self._units.append(unit)

    def finish(
        self, name: str, success: bool, latency_s: float | None, values: tuple[float, ...], blocks: tuple[int, ...]
    ) -> Fate:
        """Note an outcome that came now."""
        episode = self._open.get(name)
        if episode is None:
            until = self._left.get(name)
            return Fate.UNKNOWN if until is None else Fate.REPEATED if until[1].done else Fate.LATE
        if not episode.is_open(self.now_s):
            return Fate.REPEATED if episode.done else Fate.LATE
        episode.done, episode.success, episode.latency_s, episode.over_s = True, success, latency_s, self.now_s
        episode.values, episode.blocks = values, blocks
        return Fate.COUNTED

    def ready(self) -> Iterator[_Unit]:
        """Take out and yield the units before which nothing is open; an episode that is not ``done`` was silent."""
        while self._units and self._units[0].is_closed(self.now_s):
            unit = self._units.popleft()
            for episode in unit.episodes:
                if self._open.pop(episode.name, None) is not None:
                    self._left[episode.name] = self.now_s + self.deadline_s, episode
            yield unit
        while self._left and next(iter(self._left.values()))[0] <= self.now_s:
            del self._left[next(iter(self._left))]
