# SPDX-License-Identifier: Apache-2.0
"""What the judges of A against B share: episodes come in when they are assigned and when they end, verdicts go out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from vla_evidence.ab.open import ABUnit, OpenEpisodes
from vla_evidence.ab.verdict import ABDecision, ABVerdict, ArmCounter, ArmSummary
from vla_evidence.assignment import A, B
from vla_evidence.errors import check_probability


class ABJudge(ABC):
    """A judge that counts each episode once, in the order of assignment (:mod:`vla_evidence.ab.open`).

    Args:
        queue: of the episodes that are open.
        confidence: of the intervals shown.
    """

    def __init__(self, queue: OpenEpisodes, confidence: float) -> None:
        self._open = queue
        self._confidence = check_probability("confidence", confidence)
        self._arms = {A: ArmCounter(), B: ArmCounter()}

    @property
    @abstractmethod
    def decision(self) -> ABDecision:
        """What is decided so far; final unless CONTINUE."""

    def assign(self, robot: str, episode: int, arm: str, now_s: float) -> ABDecision:
        """A robot begins its next episode; :meth:`finish` tells its outcome, or its deadline passes.

        Args:
            robot: its name.
            episode: its number on this robot, 0, 1, …; where episodes are paired, 2k and 2k + 1 are a pair.
            arm: "A" or "B"; one of each in a pair, or always the robot's own.
            now_s: when [s], by one steady clock: going back counts as standing still, a jump lets deadlines pass.

        Raises:
            InputError: INPUT_VALUE: not the robot's next number, no name, or no time; INPUT_ARM: no such arm, the pair has it
                already, or not this robot's.
        """
        self._open.assign(robot, episode, arm, now_s)
        return self._take_in()

    def finish(self, robot: str, episode: int, success: bool, now_s: float, latency: float | None = None) -> bool:
        """An episode ended; false, and ignored, if it is not open (told twice, or after its deadline: it has failed then).

        Args:
            robot, episode: as assigned.
            success: whether it succeeded.
            now_s: when [s].
            latency: positive, in any unit that is the same for all; None: unknown. It counts if the episode succeeded.

        Raises:
            InputError: INPUT_VALUE: never assigned, no time, a success that is neither 0 nor 1, or a latency that cannot be.
        """
        known = self._open.finish(robot, episode, success, now_s, latency)
        self._take_in()
        return known

    def _take_in(self) -> ABDecision:
        for unit in self._open.ready():
            self._add_unit(unit)
        return self.decision

    @abstractmethod
    def _add_unit(self, unit: ABUnit) -> None:
        """Take one in before which nothing is open."""

    def verdict(self, now_s: float | None = None) -> ABVerdict:
        """Return the decision with what it rests on.

        Args:
            now_s: time [s]; None: none has passed since the last call.

        Raises:
            InputError: INPUT_VALUE: no time.
            EvidenceError: ANALYSIS_MISSING: statsmodels (Wilson) is not installed.
        """
        if now_s is not None:
            self._open.advance(now_s)
            self._take_in()
        a, b = (self._arms[arm].summary(self._confidence, self._open.waiting(arm)) for arm in (A, B))
        return self._say(a, b)

    @abstractmethod
    def _say(self, a: ArmSummary, b: ArmSummary) -> ABVerdict:
        """Return the verdict on these arms."""
