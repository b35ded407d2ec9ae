# SPDX-License-Identifier: Apache-2.0
"""Episodes that were assigned and whose outcome is waited for; handed on in the order of their assignment.

If outcomes counted as they come, a version whose episodes last longer would be under-represented among them, and the probability
that the next outcome is a canary's would not be the one it was drawn with. Nothing waits longer than the deadline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from vla_evidence.errors import InputError, check_probability
from vla_evidence.two_sample import CANARY, INCUMBENT


@dataclass
class OpenUnit:
    """An assigned episode. ``done``: its outcome is known, or it is silent."""

    episode: str
    robot: str
    group: int
    probability: float
    stage: int
    due_s: float
    done: bool = False
    success: bool = False
    fast: bool = False
    silent: bool = False


class OpenUnits:
    """A queue in the order of assignment; as long as the episodes that run, and those that wait for them.

    Args:
        deadline_s: after its assignment an episode without an outcome is silent: a failure [s].
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._units: dict[str, OpenUnit] = {}  # keeps the order

    def __len__(self) -> int:
        return len(self._units)

    def assign(self, episode: str, robot: str, group: int, probability: float, stage: int, now_s: float) -> None:
        """Add an episode.

        Raises:
            InputError: an unknown group, a probability not strictly between 0 and 1, or a name that is open.
        """
        if group not in (INCUMBENT, CANARY):
            raise InputError(
                "INPUT_ARM", "group", f"{group!r} is neither {INCUMBENT} (incumbent) nor {CANARY} (canary)"
            )
        check_probability("probability", probability)
        if not episode or episode in self._units:
            raise InputError("INPUT_VALUE", "episode", f"{episode!r} is no name, or was assigned before")
        self._units[episode] = OpenUnit(episode, robot, group, probability, stage, now_s + self._deadline_s)

    def finish(self, episode: str, success: bool, fast: bool) -> bool:
        """Note an outcome; false if the episode is not open."""
        unit = self._units.get(episode)
        if unit is None or unit.done:
            return False
        unit.done, unit.success, unit.fast = True, success, fast
        return True

    def expire(self, now_s: float) -> None:
        """Note the failure of those whose deadline has passed."""
        for unit in self._units.values():
            if unit.due_s > now_s:
                break  # later ones are due later: the clock does not go back
            if not unit.done:
                unit.done = unit.silent = True

    def ready(self) -> Iterator[OpenUnit]:
        """Take out and yield those before which nothing is open."""
        while self._units:
            unit = next(iter(self._units.values()))
            if not unit.done:
                return
            del self._units[unit.episode]
            yield unit

    def to_json(self) -> list[list[Any]]:
        """Return the queue for :meth:`restore`."""
        return [list(astuple(unit)) for unit in self._units.values()]

    def restore(self, rows: Sequence[Sequence[Any]]) -> None:
        """Take over another queue.

        Raises:
            TypeError: a row is not of one.
        """
        units = [OpenUnit(*row) for row in rows]
        self._units = {unit.episode: unit for unit in units}
