# SPDX-License-Identifier: Apache-2.0
"""Two policies by robots that run one of them each: the exact randomisation test.

The judge looks when a ``looks``-th part of the planned episodes has come in, and not between: so it may be asked at any time.
Robots are compared by as many episodes each, spread evenly over all that they ran: of different numbers the means are not
exchangeable, and the first ones of a fast robot would be of the morning, where the others' are of the whole day. Exact only
if when a robot joins, and how many episodes it runs, says nothing about how they go, and if who joins does not depend on the
policy.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_evidence.ab.judge import DEADLINE_S, ABJudge, decide
from vla_evidence.assignment import B, arm
from vla_evidence.episodes import Episode
from vla_evidence.errors import InputError
from vla_evidence.sequential.randomisation_test import (
    DRAWS,
    ICC,
    Look,
    RandomisationTest,
    bernoulli_column,
    cohort_assignments,
    common_number,
    spread,
)
from vla_evidence.sequential.spending import spending_of
from vla_evidence.verdict import Decision


@dataclass
class _Robots:
    """Per robot: column of assignments, and outcomes in their order (latency: logarithm; NaN: unknown, or no success)."""

    index: dict[str, int] = field(default_factory=dict)
    in_b: list[bool] = field(default_factory=list)
    columns: list[NDArray[np.bool_]] = field(default_factory=list)
    outcomes: list[bytearray] = field(default_factory=list)
    log_latencies: list[array[float]] = field(default_factory=list)

    def add(self, robot: str, in_b: bool, column: NDArray[np.bool_]) -> None:
        self.index[robot] = len(self.index)
        self.in_b.append(in_b)
        self.columns.append(column)
        self.outcomes.append(bytearray())
        self.log_latencies.append(array("d"))


class UnpairedABJudge(ABJudge):
    """Judge of robots that run one policy each. Memory: up to 9 bytes an episode, and for each robot two bytes a draw.

    Args:
        planned_episodes: of all robots together, after which it ends.
        alpha, experiment, confidence, deadline_s: see :class:`ABJudge`.
        two_sided, spending: as for :class:`~vla_evidence.ab.pairs.PairedABJudge`.
        arms: robot → 0 (A) or 1 (B) for the whole fleet, if it is known beforehand: assignments with as many robots of each are
            compared. None: robots come as they come, each in B with probability ``split`` on its own.
        split: probability of B; unused with ``arms``.
        looks: how many, evenly spaced.
        draws: how many assignments the real one is compared with.
        icc: correlation expected between episodes of one robot.
    """

    def __init__(
        self,
        planned_episodes: int,
        alpha: float = 0.05,
        *,
        experiment: str = "ab",
        two_sided: bool = True,
        spending: str = "linear",
        arms: Mapping[str, int] | None = None,
        split: float = 0.5,
        looks: int = 20,
        draws: int = DRAWS,
        icc: float = ICC,
        confidence: float = 0.95,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        super().__init__(experiment, alpha, deadline_s, confidence)
        self._planned, self._looks = planned_episodes, min(looks, planned_episodes)
        self._draws, self._split = draws, split
        f = spending_of(spending)
        self._success = RandomisationTest(alpha, spending=f, two_sided=two_sided, icc=icc)
        self._latency = RandomisationTest(alpha, spending=f, icc=icc)
        self._robots = _Robots()
        self._fixed = arms is not None
        if arms is not None:
            in_b = {robot: arms[robot] == B for robot in sorted(arms)}
            for column, (robot, value) in zip(cohort_assignments(in_b, experiment, draws).T, in_b.items(), strict=True):
                self._robots.add(robot, value, column)
        self._done = self._used = self._first = 0
        self._last: Look | None = None

    @property
    def decision(self) -> Decision:
        """What is decided so far; final unless CONTINUE."""
        return decide(self._success.decision, self._done >= self._looks)

    def record(self, robot: str, success: bool, latency_s: float | None = None) -> Decision:
        """Take in one episode that has ended, for callers who miss no outcome and report none twice."""
        version = self._draw(robot, "")
        self._add(robot, version, bool(success), latency_s, lost=False)
        return self.decision

    def _draw(self, robot: str, episode: str) -> int:
        index = self._robots.index.get(robot)
        if index is not None:
            return int(self._robots.in_b[index])
        if self._fixed:
            raise InputError("INPUT_ARM", "robot", f"{robot!r} is not one of the experiment's robots")
        version = arm(self.experiment, robot, None, self._split)
        column = bernoulli_column(self.experiment, robot, self._split, version == B, self._draws)
        self._robots.add(robot, version == B, column)
        return version

    def _begin(self, episode: Episode) -> None:
        self._pending.push(episode)

    def _take_in(self) -> None:
        for episode in self._pending.ready():
            self._add(episode.robot, episode.version, episode.success, episode.latency_s, lost=not episode.done)

    def _add(self, robot: str, version: int, success: bool, latency_s: float | None, *, lost: bool) -> None:
        """Take one episode in. After the end only the policies' counts change."""
        self._arms[version].add(success, latency_s, lost=lost)
        if self.decision is not Decision.CONTINUE:
            return
        i = self._robots.index[robot]
        self._robots.outcomes[i].append(success)
        self._robots.log_latencies[i].append(math.log(latency_s) if success and latency_s else math.nan)
        self._used += 1
        if self._used * self._looks >= (self._done + 1) * self._planned:
            self._look()

    def _look(self) -> None:
        self._done += 1
        robots, fraction = self._robots, self._done / self._looks
        self._first = first = common_number([len(o) for o in robots.outcomes], robots.in_b)
        assignments = np.stack(robots.columns, axis=1)
        outcomes = [spread(episodes, first) for episodes in robots.outcomes]
        self._last = self._success.look(assignments, [sum(o) for o in outcomes], [len(o) for o in outcomes], fraction)
        latencies = [np.array(spread(values, first)) for values in robots.log_latencies]
        known = [int(np.isfinite(values).sum()) for values in latencies]
        if any(known):
            self._latency.look(assignments, [float(np.nansum(values)) for values in latencies], known, fraction)

    def _grounds(self) -> tuple[str, dict[str, Any], int]:
        figures = {
            "episodes": self._used,
            "planned": self._planned,
            "look": self._done,
            "p": None if self._last is None else self._last.as_extreme,
        }
        return self._look_words(), figures, -self._latency.decision  # larger is slower

    def _look_words(self) -> str:
        last = self._last
        if last is None:
            return f"first look at {math.ceil(self._planned / self._looks)} episodes, {self._used} so far"
        look, robots = f"look {self._done} of {self._looks}", sum(1 for episodes in self._robots.outcomes if episodes)
        if not self._first:
            return f"{look}: more than a quarter of a policy's robots have no episode yet, so nothing is compared"
        words = (
            f"{look}: {last.as_extreme:.2%} of the assignments that could have been drawn for {robots} robots look like this or"
            f" more so in {self._first} episodes of each"
        )
        if last.smallest > self._success.tail_alpha:
            words += (
                f"; with so few robots no result could be rarer than {last.smallest:.1%}, above the"
                f" {self._success.tail_alpha:.1%} that is asked: more robots are needed, not more episodes"
            )
        return words
