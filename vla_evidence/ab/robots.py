# SPDX-License-Identifier: Apache-2.0
"""Judge of two policies by robots that run one of them each: the exact randomisation test, with words and numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_evidence.ab.judge import ABJudge
from vla_evidence.ab.open import DEADLINE_S, ABUnit, OpenEpisodes
from vla_evidence.ab.verdict import (
    ABDecision,
    ABVerdict,
    ArmSummary,
    as_arm,
    as_latency,
    as_success,
    decide,
    decision_words,
    faster_words,
)
from vla_evidence.assignment import A, B
from vla_evidence.errors import MAX_COUNT, InputError, check_name, check_probability, is_integer, shown
from vla_evidence.sequential.randomisation_test import (
    DRAWS,
    Look,
    RandomisationTest,
    bernoulli_column,
    cohort_assignments,
)
from vla_evidence.sequential.spending import Spending

_MOST_LOOKS, _MOST_DRAWS = 1_000, 100_000
"""Beyond, memory and time for nothing: a p-value is known to 1e-5."""


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

    def common(self) -> int:
        """Return how many episodes three quarters of the robots of either arm have at least."""
        arms = ([len(o) for o, b in zip(self.outcomes, self.in_b, strict=True) if b is in_b] for in_b in (True, False))
        return min((sorted(counts)[(len(counts) - 1) // 4] for counts in arms if counts), default=0)


def spread(values: Any, number: int) -> Any:
    """Return ``number`` of the values, evenly spread over them; all of them if there are no more."""
    n = len(values)
    if n <= number:
        return values
    return [values[(2 * i + 1) * n // (2 * number)] for i in range(number)]


class UnpairedABJudge(ABJudge):
    """Judge of robots that run one policy each.

    It looks at the data when a ``looks``-th part of the planned episodes has come in, and not between: so it may be asked at any
    time. Episodes count in the order in which they were assigned; one without an outcome by its deadline has failed
    (:mod:`vla_evidence.ab.open`). Robots are compared by m episodes each, m the number that three quarters of the robots of
    either arm have: else a policy that only works faster, whose robots' means are then less noisy and weigh more, would be called
    different too often. Of a robot that has more they are spread evenly over all: its first ones would be of the morning, where
    the other arm's are of the whole day. Exact only if when a robot joins, and how many episodes it runs, says nothing about how
    they go, and if who joins does not depend on the arm.

    Memory: up to 9 bytes an episode, up to the planned ones, and for each robot two bytes a draw.

    Args:
        planned_episodes: of all robots together, after which it ends.
        alpha, two_sided, spending, latency_alpha, confidence: as for :class:`PairedABJudge`.
        arms: robot → "A" or "B" for the whole fleet, if it is known beforehand: assignments with as many robots in each arm are
            compared. None: robots come as they come, each in B with probability ``split`` on its own.
        split: probability of B; unused with ``arms``.
        seed: of the draws that the real assignment is compared with; the experiment's name, for instance.
        looks: how many, evenly spaced.
        draws: how many assignments.
        icc: correlation expected between episodes of one robot.
        deadline_s: after its assignment an episode without an outcome has failed [s].

    Raises:
        InputError: one of these cannot be.
    """

    def __init__(
        self,
        planned_episodes: int,
        alpha: float = 0.05,
        *,
        two_sided: bool = True,
        spending: str = "linear",
        latency_alpha: float | None = None,
        arms: Mapping[str, str] | None = None,
        split: float = 0.5,
        seed: str = "",
        looks: int = 20,
        draws: int = DRAWS,
        icc: float = 0.05,
        confidence: float = 0.95,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        super().__init__(OpenEpisodes(1, deadline_s), confidence)
        for name, value, least, most in (
            ("planned_episodes", planned_episodes, 1, MAX_COUNT),
            ("looks", looks, 1, _MOST_LOOKS),
            ("draws", draws, 19, _MOST_DRAWS),
        ):
            if not is_integer(value) or not least <= value <= most:
                raise InputError("INPUT_COUNT", name, f"{shown(value)} is no integer from {least} to {most}")
        self._planned, self._looks = planned_episodes, min(looks, planned_episodes)
        self._draws, self._seed = draws, seed
        self._split = check_probability("split", split)
        f = Spending.parse(spending)
        self._success = RandomisationTest(alpha, spending=f, two_sided=two_sided, icc=icc)
        self._latency = RandomisationTest(alpha if latency_alpha is None else latency_alpha, spending=f, icc=icc)
        self._robots = _Robots()
        self._fixed = arms is not None
        if arms is not None:
            in_b = {robot: as_arm(arms[robot]) == B for robot in sorted(arms)}
            for column, (robot, value) in zip(cohort_assignments(in_b, seed, draws).T, in_b.items(), strict=True):
                self._robots.add(robot, value, column)
        self._done = self._used = self._first = 0
        self._last: Look | None = None

    @property
    def decision(self) -> ABDecision:
        """What is decided so far; final unless CONTINUE."""
        return decide(self._success.decision, self._done >= self._looks)

    def assign(self, robot: str, episode: int, arm: str, now_s: float) -> ABDecision:
        """See :class:`ABJudge`. A robot that is not in ``arms`` is refused (INPUT_ARM)."""
        self._check(robot, as_arm(arm) == B)
        self._open.assign(robot, episode, arm, now_s)
        self._index(robot, arm == B)
        return self._take_in()

    def record(self, robot: str, arm: str, success: bool, latency: float | None = None) -> ABDecision:
        """Take in one episode that has ended, for callers who miss no outcome and tell none twice.

        Raises:
            InputError: as :meth:`assign` and :meth:`finish`.
        """
        won, slow = as_success(success), as_latency(latency)
        self._check(robot, as_arm(arm) == B)
        self._add(self._index(robot, arm == B), arm, won, slow, silent=False)
        return self.decision

    def _add_unit(self, unit: ABUnit) -> None:
        (episode,) = unit.episodes
        i = self._robots.index[episode.robot]
        self._add(i, episode.arm, episode.success, episode.latency, silent=not episode.done)

    def _add(self, i: int, arm: str, success: bool, latency: float | None, *, silent: bool) -> None:
        """Take one episode in. After the end only the arms' counts change."""
        self._arms[arm].add(success, latency, silent=silent)
        if self.decision is not ABDecision.CONTINUE:
            return
        self._robots.outcomes[i].append(success)
        self._robots.log_latencies[i].append(math.log(latency) if success and latency is not None else math.nan)
        self._used += 1
        if self._used * self._looks >= (self._done + 1) * self._planned:
            self._look()

    def _say(self, a: ArmSummary, b: ArmSummary) -> ABVerdict:
        faster = {1: A, -1: B}.get(self._latency.decision)  # larger is slower
        return ABVerdict(
            decision=self.decision,
            reason=f"{decision_words(self.decision, self._success.alpha)}: success A {a}, B {b}; {self._look_words()}",
            a=a,
            b=b,
            faster=faster,
            latency_reason=faster_words(faster, a, b, self._latency.alpha),
            used=self._used,
            planned=self._planned,
            alpha=self._success.alpha,
        )

    def _check(self, robot: str, in_b: bool) -> None:
        """Refuse a robot that cannot be in this arm."""
        i = self._robots.index.get(check_name("robot", robot))
        if i is None and self._fixed:
            raise InputError("INPUT_ARM", "robot", f"{robot!r} is not one of the experiment's robots")
        if i is not None and self._robots.in_b[i] != in_b:
            raise InputError("INPUT_ARM", "arm", f"robot {robot!r} is in {A if in_b else B}")

    def _index(self, robot: str, in_b: bool) -> int:
        if robot not in self._robots.index:
            self._robots.add(robot, in_b, bernoulli_column(self._seed, robot, self._split, in_b, self._draws))
        return self._robots.index[robot]

    def _look(self) -> None:
        self._done += 1
        robots, fraction = self._robots, self._done / self._looks
        self._first = first = robots.common()
        assignments = np.stack(robots.columns, axis=1)
        outcomes = [spread(episodes, first) for episodes in robots.outcomes]
        self._last = self._success.look(assignments, [sum(o) for o in outcomes], [len(o) for o in outcomes], fraction)
        latencies = [np.array(spread(values, first)) for values in robots.log_latencies]
        known = [int(np.isfinite(values).sum()) for values in latencies]
        if any(known):
            self._latency.look(assignments, [float(np.nansum(values)) for values in latencies], known, fraction)

    def _look_words(self) -> str:
        last = self._last
        if last is None:
            return f"first look at {math.ceil(self._planned / self._looks)} episodes, {self._used} so far"
        look, robots = f"look {self._done} of {self._looks}", sum(1 for episodes in self._robots.outcomes if episodes)
        if not self._first:
            return f"{look}: more than a quarter of the robots of an arm have no episode yet, so nothing is compared"
        words = (
            f"{look}: {last.as_extreme:.2%} of the assignments that could have been drawn for"
            f" {robots} robots look like this or more so in {self._first} episodes of each"
        )
        if last.smallest > self._success.tail_alpha:
            words += (
                f"; with so few robots no result could be rarer than {last.smallest:.1%}, above the"
                f" {self._success.tail_alpha:.1%} that is asked: more robots are needed, not more episodes"
            )
        return words
