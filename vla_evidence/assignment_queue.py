# SPDX-License-Identifier: Apache-2.0
"""What was assigned and does not count yet, in the order of assignment.

If outcomes counted as they come, a version whose episodes last longer would be under-represented among them: a canary's next
outcome would not have the probability that it was drawn with, and who fails slowly would look better for as long. So nothing
counts before all that was assigned before it, and an outcome that does not come by its deadline is a failure: a policy that hangs
sends none, and left out its failures would vanish.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from vla_evidence.errors import InputError, check_time


@dataclass
class AssignedEpisode:
    """An episode that was assigned.

    Attributes:
        robot: which runs it.
        due_s: from then on an outcome comes too late [s].
        done: its outcome is known.
    """

    robot: str
    due_s: float
    done: bool = False

    def is_open(self, now_s: float) -> bool:
        """Whether its outcome may still come."""
        return not self.done and now_s < self.due_s


class _Waiting(Protocol):
    def is_closed(self, now_s: float) -> bool:
        """Whether nothing that belongs to it may still come."""


_Unit = TypeVar("_Unit", bound=_Waiting)


class AssignmentQueue(Generic[_Unit]):
    """A queue with deadlines and a clock; as long as what is open, and what waits for that.

    Args:
        deadline_s: after its assignment an episode without an outcome has failed [s].

    Raises:
        InputError: INPUT_VALUE: a deadline that is not positive.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = check_time("deadline_s", deadline_s)
        if self._deadline_s <= 0.0:
            raise InputError("INPUT_VALUE", "deadline_s", f"{deadline_s!r} is no time to wait")
        self._units: deque[_Unit] = deque()
        self._now_s = -math.inf

    def advance(self, now_s: float) -> None:
        """Let time pass; a clock that goes back counts as one that stands.

        Raises:
            InputError: INPUT_VALUE: no time.
        """
        self._now_s = self._later(now_s)

    def _later(self, now_s: float) -> float:
        """Return the later of ``now_s`` and all times before."""
        return max(self._now_s, check_time("now_s", now_s))

    def ready(self) -> Iterator[_Unit]:
        """Take out and yield the units before which nothing is open."""
        while self._units and self._units[0].is_closed(self._now_s):
            yield self._units.popleft()
