# SPDX-License-Identifier: Apache-2.0
"""Episodes that were assigned and whose outcome is waited for; handed on in the order of their assignment.

If outcomes counted as they come, a version whose episodes last longer would be under-represented among them, and the probability
that the next outcome is a canary's would not be the one it was drawn with. Nothing waits longer than the deadline.

Messages may be delivered twice. A name is taken while its episode is in the queue and for one deadline after it has left it;
an assignment whose own time lies a deadline back is refused as well. So nothing counts twice if what is sent again keeps its
time; and if it gets a new one, nothing that is sent again within a deadline.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from vla_evidence.errors import InputError, check_probability
from vla_evidence.two_sample import CANARY, INCUMBENT


@dataclass
class OpenUnit:
    """An assigned episode. ``done``: its outcomes (success first, each in [0, 1]) are known, or it is silent."""

    episode: str
    robot: str
    group: int
    probability: float
    stage: int
    due_s: float
    done: bool = False
    outcomes: tuple[float, ...] = ()
    silent: bool = False


class OpenUnits:
    """A queue in the order of assignment; as long as the episodes that run, and those that wait for them.

    Args:
        deadline_s: after its assignment an episode without an outcome is silent: a failure [s].
        things: how many outcomes an episode has.
    """

    def __init__(self, deadline_s: float, things: int) -> None:
        self._deadline_s, self._things = deadline_s, things
        self._units: dict[str, OpenUnit] = {}  # keeps the order
        self._left: dict[str, float] = {}  # names of those that left the queue, and until when they are taken

    def __len__(self) -> int:
        return len(self._units)

    @property
    def waiting(self) -> int:
        """Of the queue, those that have ended and wait for one that was assigned before them."""
        return sum(unit.done for unit in self._units.values())

    def check(self, episode: str, robot: str, group: int, probability: float) -> None:
        """Refuse what :meth:`assign` cannot take.

        Raises:
            InputError: an unknown group, a probability not strictly between 0 and 1, or a name that is taken.
        """
        if isinstance(group, str) or group not in (INCUMBENT, CANARY):
            raise InputError(
                "INPUT_ARM", "group", f"{group!r} is neither {INCUMBENT} (incumbent) nor {CANARY} (canary)"
            )
        check_probability("probability", probability)
        for field, name in (("episode", episode), ("robot", robot)):
            if not isinstance(name, str) or not name:
                raise InputError("INPUT_VALUE", field, f"{name!r} is no name")
        if episode in self._units or episode in self._left:
            raise InputError("INPUT_VALUE", "episode", f"{episode!r} was assigned before")

    def assign(self, episode: str, robot: str, group: int, probability: float, stage: int, now_s: float) -> None:
        """Add an episode; raises as :meth:`check`."""
        self.check(episode, robot, group, probability)
        self._units[episode] = OpenUnit(episode, robot, int(group), probability, stage, now_s + self._deadline_s)

    def finish(self, episode: str, outcomes: tuple[float, ...]) -> OpenUnit | None:
        """Note outcomes and return the episode; None if it is not open."""
        unit = self._units.get(episode)
        if unit is None or unit.done:
            return None
        unit.done, unit.outcomes = True, outcomes
        return unit

    def expire(self, now_s: float) -> None:
        """Note the failure of those whose deadline has passed, and forget names that are free again."""
        for unit in self._units.values():
            if unit.due_s > now_s:
                break  # later ones are due later: the clock does not go back
            if not unit.done:
                unit.done, unit.silent, unit.outcomes = True, True, (0.0,) * self._things
        while self._left and next(iter(self._left.values())) <= now_s:
            del self._left[next(iter(self._left))]

    def ready(self, now_s: float) -> Iterator[OpenUnit]:
        """Take out and yield those before which nothing is open."""
        while self._units:
            unit = next(iter(self._units.values()))
            if not unit.done:
                return
            del self._units[unit.episode]
            self._left[unit.episode] = now_s + self._deadline_s
            yield unit

    def to_json(self) -> dict[str, Any]:
        """Return the queue for :meth:`restore`."""
        rows = [[*astuple(unit)[:-2], list(unit.outcomes), unit.silent] for unit in self._units.values()]
        return {"units": rows, "left": [[name, until] for name, until in self._left.items()]}

    def restore(self, state: Mapping[str, Any], stage: int, now_s: float) -> None:
        """Take over another queue, of this stage and time.

        Raises:
            InputError, KeyError, TypeError, ValueError: it cannot be one.
        """
        self._units, self._left = {}, {}
        latest = now_s + self._deadline_s
        for name, until in state["left"]:
            if not isinstance(name, str) or name in self._left or not _is_time(until, now_s, latest):
                raise InputError("INPUT_VALUE", "open", f"{name!r} until {until!r}")
            self._left[name] = float(until)
        due_s = now_s
        for row in state["units"]:
            unit = OpenUnit(*row)
            self.check(unit.episode, unit.robot, unit.group, unit.probability)
            unit.outcomes = tuple(float(value) for value in unit.outcomes)
            possible = (
                type(unit.group) is type(unit.stage) is int
                and type(unit.done) is type(unit.silent) is bool
                and 0 <= unit.stage <= stage
                and _is_time(unit.due_s, due_s, latest)
                and all(0.0 <= value <= 1.0 for value in unit.outcomes)
                and len(unit.outcomes) == (self._things if unit.done else 0)
                and not unit.silent  # those have left
            )
            if not possible:
                raise InputError("INPUT_VALUE", "open", f"{row!r} is no open episode")
            due_s = unit.due_s
            self._units[unit.episode] = unit


def _is_time(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high
