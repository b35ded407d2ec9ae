# SPDX-License-Identifier: Apache-2.0
"""Judge of two policies by robots that run one of them each: the exact randomisation test, with words and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vla_evidence.ab_verdict import (
    ABDecision,
    ABVerdict,
    ArmCounter,
    as_arm,
    as_latency,
    as_success,
    decide,
    decision_words,
    faster_words,
)
from vla_evidence.assignment import A, B
from vla_evidence.errors import InputError, check_probability
from vla_evidence.randomisation_test import DRAWS, Look, RandomisationTest, bernoulli_column, cohort_assignments
from vla_evidence.spending import Spending


@dataclass
class _Robots:
    """Per robot: column of assignments, and sums."""

    index: dict[str, int] = field(default_factory=dict)
    in_b: list[bool] = field(default_factory=list)
    columns: list[NDArray[np.bool_]] = field(default_factory=list)
    successes: list[int] = field(default_factory=list)
    episodes: list[int] = field(default_factory=list)
    log_latency: list[float] = field(default_factory=list)
    latencies: list[int] = field(default_factory=list)

    def add(self, robot: str, in_b: bool, column: NDArray[np.bool_]) -> None:
        self.index[robot] = len(self.index)
        self.in_b.append(in_b)
        self.columns.append(column)
        for sums in (self.successes, self.episodes, self.latencies):
            sums.append(0)
        self.log_latency.append(0.0)


class UnpairedABJudge:
    """Judge of robots that run one policy each.

    It looks at the data when a ``looks``-th part of the planned episodes has come in, and not between: so it may be asked at any
    time. Memory grows with the robots, not with the episodes.

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
    ) -> None:
        for name, value, least in (
            ("planned_episodes", planned_episodes, 1),
            ("looks", looks, 1),
            ("draws", draws, 19),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError("INPUT_COUNT", name, f"{value!r} is no integer from {least}")
        self._planned, self._looks = planned_episodes, min(looks, planned_episodes)
        self._draws, self._seed = draws, seed
        self._split = check_probability("split", split)
        f = Spending.parse(spending)
        self._success = RandomisationTest(alpha, spending=f, two_sided=two_sided, icc=icc)
        self._latency = RandomisationTest(alpha if latency_alpha is None else latency_alpha, spending=f, icc=icc)
        self._confidence = check_probability("confidence", confidence)
        self._arms = {A: ArmCounter(), B: ArmCounter()}
        self._robots = _Robots()
        self._fixed = arms is not None
        if arms is not None:
            in_b = {robot: as_arm(arms[robot]) == B for robot in sorted(arms)}
            for column, (robot, value) in zip(cohort_assignments(in_b, seed, draws).T, in_b.items(), strict=True):
                self._robots.add(robot, value, column)
        self._done = 0
        self._used = 0
        self._last: Look | None = None

    @property
    def decision(self) -> ABDecision:
        """What is decided so far; final unless CONTINUE."""
        return decide(self._success.decision, self._done >= self._looks)

    def record(self, robot: str, arm: str, success: bool, latency: float | None = None) -> ABDecision:
        """Take one episode in. After the end only the arms' counts change.

        Args:
            robot: its name.
            arm: "A" or "B", the same for all of the robot's episodes.
            success: whether it succeeded.
            latency: positive, in any unit that is the same for all; None: unknown.

        Raises:
            InputError: INPUT_ARM: no such arm, not this robot's, or a robot that is not in ``arms``; INPUT_VALUE.
        """
        won, slow, i = as_success(success), as_latency(latency), self._index(robot, as_arm(arm) == B)
        self._arms[arm].add(won, slow)
        if self.decision is not ABDecision.CONTINUE:
            return self.decision
        robots = self._robots
        robots.successes[i] += won
        robots.episodes[i] += 1
        if slow is not None:
            robots.log_latency[i] += math.log(slow)
            robots.latencies[i] += 1
        self._used += 1
        if self._used * self._looks >= (self._done + 1) * self._planned:
            self._look()
        return self.decision

    def verdict(self) -> ABVerdict:
        """Return the decision with what it rests on.

        Raises:
            EvidenceError: ANALYSIS_MISSING: statsmodels (Wilson) is not installed.
        """
        a, b = (self._arms[arm].summary(self._confidence) for arm in (A, B))
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

    def _index(self, robot: str, in_b: bool) -> int:
        robots = self._robots
        if not isinstance(robot, str) or not robot:
            raise InputError("INPUT_VALUE", "robot", f"{robot!r} is no name")
        if robot not in robots.index:
            if self._fixed:
                raise InputError("INPUT_ARM", "robot", f"{robot!r} is not one of the experiment's robots")
            robots.add(robot, in_b, bernoulli_column(self._seed, robot, self._split, in_b, self._draws))
        i = robots.index[robot]
        if robots.in_b[i] != in_b:
            raise InputError("INPUT_ARM", "arm", f"robot {robot!r} is in {B if robots.in_b[i] else A}")
        return i

    def _look(self) -> None:
        self._done += 1
        robots, fraction = self._robots, self._done / self._looks
        assignments = np.stack(robots.columns, axis=1)
        self._last = self._success.look(assignments, robots.successes, robots.episodes, fraction)
        if any(robots.latencies):
            self._latency.look(assignments, robots.log_latency, robots.latencies, fraction)

    def _look_words(self) -> str:
        last = self._last
        if last is None:
            return f"first look at {math.ceil(self._planned / self._looks)} episodes, {self._used} so far"
        robots = sum(1 for episodes in self._robots.episodes if episodes)
        words = (
            f"look {self._done} of {self._looks}: {last.as_extreme:.2%} of the assignments that could have been drawn for"
            f" {robots} robots look like this or more so"
        )
        if last.smallest > self._success.tail_alpha:
            words += (
                f"; with so few robots no result could be rarer than {last.smallest:.1%}, above the"
                f" {self._success.tail_alpha:.1%} that is asked: more robots are needed, not more episodes"
            )
        return words
