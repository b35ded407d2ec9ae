# SPDX-License-Identifier: Apache-2.0
"""Episodes of a rollout that were assigned and whose outcome is waited for; handed on in the order of their assignment.

Messages may be delivered twice. A name is taken while its episode is in the queue and for one deadline after it has left it;
an assignment whose own time lies a deadline back is refused as well. So nothing counts twice if what is sent again keeps its
time; and if it gets a new one, nothing that is sent again within a deadline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vla_evidence.assignment_queue import AssignedEpisode, AssignmentQueue
from vla_evidence.errors import InputError, check_name, check_probability, check_time
from vla_evidence.sequential.two_sample import check_group


@dataclass(kw_only=True)
class OpenUnit(AssignedEpisode):
    """An assigned episode.

    Attributes:
        episode: its name.
        group, probability, stage: what runs it, with which probability of the canary, and in which stage it was assigned.
        outcomes: of each thing that is judged, success first, in [0, 1]; empty while there is none.
        blocks: of each source of scores: how many it told of.
    """

    episode: str
    group: int
    probability: float
    stage: int
    outcomes: tuple[float, ...] = ()
    blocks: tuple[int, ...] = ()

    def is_closed(self, now_s: float) -> bool:
        """Whether nothing more may come."""
        return not self.is_open(now_s)


class OpenUnits(AssignmentQueue[OpenUnit]):
    """The queue of a rollout.

    Args:
        deadline_s: after its assignment an episode without an outcome is silent: a failure [s].
        things, sources: how many outcomes an episode has, and of how many sources of scores it tells blocks.
    """

    def __init__(self, deadline_s: float, things: int, sources: int) -> None:
        super().__init__(deadline_s)
        self._things, self._sources = things, sources
        self._by_name: dict[str, OpenUnit] = {}
        self._left: dict[str, float] = {}  # names of those that left the queue, and until when they are taken

    def __len__(self) -> int:
        return len(self._units)

    @property
    def waiting(self) -> int:
        """Of the queue, those that have ended and wait for one that was assigned before them."""
        return sum(unit.done for unit in self._units)

    def of_stage(self, stage: int) -> list[OpenUnit]:
        """Return what of the queue was assigned in this stage."""
        return [unit for unit in self._units if unit.stage == stage]

    def check(self, episode: str, robot: str, group: int, probability: float) -> None:
        """Refuse what :meth:`assign` cannot take.

        Raises:
            InputError: an unknown group, a probability not strictly between 0 and 1, no name, or one that is taken.
        """
        check_group(group)
        check_probability("probability", probability)
        check_name("episode", episode)
        check_name("robot", robot)
        if episode in self._by_name or episode in self._left:
            raise InputError("INPUT_VALUE", "episode", f"{episode!r} was assigned before")

    def assign(self, episode: str, robot: str, group: int, probability: float, stage: int) -> None:
        """Add an episode, now; raises as :meth:`check`."""
        self.check(episode, robot, group, probability)
        self._push(
            OpenUnit(
                robot=robot,
                due_s=self._now_s + self._deadline_s,
                episode=episode,
                group=int(group),
                probability=probability,
                stage=stage,
            )
        )

    def _push(self, unit: OpenUnit) -> None:
        self._units.append(unit)
        self._by_name[unit.episode] = unit

    def finish(self, episode: str, outcomes: tuple[float, ...], blocks: tuple[int, ...]) -> bool:
        """Note an outcome; false if the episode is not open."""
        unit = self._by_name.get(episode)
        if unit is None or not unit.is_open(self._now_s):
            return False
        unit.done, unit.outcomes, unit.blocks = True, outcomes, blocks
        return True

    def ready(self) -> Iterator[OpenUnit]:
        """See :class:`AssignmentQueue`; one that is not ``done`` was silent, and has failed in everything."""
        for unit in super().ready():
            del self._by_name[unit.episode]
            self._left[unit.episode] = self._now_s + self._deadline_s
            if not unit.done:
                unit.outcomes, unit.blocks = (0.0,) * self._things, (0,) * self._sources
            yield unit
        while self._left and next(iter(self._left.values())) <= self._now_s:
            del self._left[next(iter(self._left))]

    def to_json(self) -> dict[str, Any]:
        """Return the queue for :meth:`restore`."""
        return {"units": [asdict(unit) for unit in self._units], "left": [list(item) for item in self._left.items()]}

    def restore(self, state: Mapping[str, Any], stage: int, now_s: float) -> None:
        """Take over another queue, of this stage and time.

        Raises:
            InputError, KeyError, TypeError, ValueError: it cannot be one.
        """
        self._units.clear()
        self._by_name, self._left, self._now_s = {}, {}, now_s
        latest = now_s + self._deadline_s
        for name, until in state["left"]:
            if not isinstance(name, str) or name in self._left or not _is_time(until, now_s, latest):
                raise InputError("INPUT_VALUE", "open", f"{name!r} until {until!r}")
            self._left[name] = float(until)
        due_s = now_s
        for row in state["units"]:
            unit = OpenUnit(**row)
            self.check(unit.episode, unit.robot, unit.group, unit.probability)
            unit.outcomes, unit.blocks = tuple(map(float, unit.outcomes)), tuple(unit.blocks)
            possible = (
                type(unit.group) is type(unit.stage) is int
                and type(unit.done) is bool
                and 0 <= unit.stage <= stage
                and _is_time(unit.due_s, due_s, latest)
                and all(0.0 <= value <= 1.0 for value in unit.outcomes)
                and all(type(value) is int and value >= 0 for value in unit.blocks)
                and len(unit.outcomes) == (self._things if unit.done else 0)
                and len(unit.blocks) == (self._sources if unit.done else 0)
            )
            if not possible:
                raise InputError("INPUT_VALUE", "open", f"{row!r} is no open episode")
            due_s = unit.due_s
            self._push(unit)


def _is_time(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= check_time("open", value) <= high
