# SPDX-License-Identifier: Apache-2.0
"""Judge of two policies by pairs of episodes on the same robot: the exact sign test, with words and numbers."""

from __future__ import annotations

from vla_evidence.ab_open import DEADLINE_S, Episode, OpenEpisodes, missing_partner
from vla_evidence.ab_verdict import (
    ABDecision,
    ABVerdict,
    ArmCounter,
    as_latency,
    as_success,
    decide,
    decision_words,
    faster_words,
)
from vla_evidence.assignment import A, B
from vla_evidence.errors import check_probability
from vla_evidence.sign_test import ExactSignTest, SignTestDesign
from vla_evidence.spending import Spending


class PairedABJudge:
    """Judge of pairs: one episode of each policy on the same robot (:func:`vla_evidence.assignment.arm_in_pair`).

    Pairs count in the order in which they were assigned; an episode without an outcome by its deadline has failed
    (:mod:`vla_evidence.ab_open`).

    Args:
        max_pairs: after which it ends.
        alpha: P(claiming a difference in success that is not there).
        two_sided: False: asks only whether B is better.
        min_pairs: before which nothing is decided; None: a tenth of ``max_pairs``, at most 20.
        spending: text form of a :class:`vla_evidence.spending.Spending`.
        latency_alpha: the same for latency (always two-sided); None: ``alpha``.
        confidence: of the intervals shown.
        deadline_s: after its assignment an episode without an outcome has failed, and a pair is not completed any more [s].

    Raises:
        InputError: one of these cannot be.
    """

    def __init__(
        self,
        max_pairs: int,
        alpha: float = 0.05,
        *,
        two_sided: bool = True,
        min_pairs: int | None = None,
        spending: str = "linear",
        latency_alpha: float | None = None,
        confidence: float = 0.95,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        f = Spending.parse(spending)
        latency_alpha = alpha if latency_alpha is None else latency_alpha
        self._success = ExactSignTest(SignTestDesign(max_pairs, alpha, two_sided, f, min_pairs))
        self._latency = ExactSignTest(SignTestDesign(max_pairs, latency_alpha, True, f, min_pairs))
        self._confidence = check_probability("confidence", confidence)
        self._arms = {A: ArmCounter(), B: ArmCounter()}
        self._open = OpenEpisodes(2, deadline_s)

    @property
    def decision(self) -> ABDecision:
        """What is decided so far; final unless CONTINUE."""
        return decide(self._success.decision, self._success.ended)

    def update(self, a: bool, b: bool, latency_a: float | None = None, latency_b: float | None = None) -> ABDecision:
        """Take in one pair that is whole, for callers who miss no outcome. After the end only the arms' counts change.

        Args:
            a, b: whether A's and B's episode succeeded.
            latency_a, latency_b: positive, in any unit that is the same for all; None: unknown. They count if both succeeded.

        Raises:
            InputError: INPUT_VALUE: a success that is neither 0 nor 1, a latency that cannot be.
        """
        won_a, won_b = as_success(a), as_success(b)
        slow_a, slow_b = as_latency(latency_a), as_latency(latency_b)
        self._arms[A].add(won_a, slow_a)
        self._arms[B].add(won_b, slow_b)
        return self._pair(won_a, won_b, slow_a, slow_b)

    def assign(self, robot: str, episode: int, arm: str, now_s: float) -> ABDecision:
        """A robot begins its next episode; :meth:`finish` tells its outcome, or its deadline passes.

        Args:
            robot: its name.
            episode: its number on this robot, 0, 1, …; 2k and 2k + 1 are a pair.
            arm: "A" or "B".
            now_s: when [s]; a clock that goes back counts as one that stands.

        Raises:
            InputError: INPUT_VALUE: not the robot's next number, no name, or no time; INPUT_ARM: no such arm, or the pair has it.
        """
        self._open.assign(robot, episode, arm, now_s)
        return self._take_in()

    def finish(self, robot: str, episode: int, success: bool, now_s: float, latency: float | None = None) -> bool:
        """An episode ended; false, and ignored, if it is not open (told twice, or after its deadline: it has failed then).

        Raises:
            InputError: INPUT_VALUE: never assigned, no time, a success that is neither 0 nor 1, or a latency that cannot be.
        """
        known = self._open.finish(robot, episode, success, now_s, latency)
        self._take_in()
        return known

    def _take_in(self) -> ABDecision:
        for unit in self._open.ready():
            for episode in unit:
                self._arms[episode.arm].add(episode.success, episode.latency, silent=episode.silent)
            both = unit if len(unit) == 2 else [*unit, missing_partner(unit)]
            a, b = sorted(both, key=_arm)
            self._pair(a.success, b.success, a.latency, b.latency)
        return self.decision

    def _pair(self, a: bool, b: bool, latency_a: float | None, latency_b: float | None) -> ABDecision:
        if not self._success.ended:
            self._success.update(b - a)
            faster = 0
            if a and b and latency_a is not None and latency_b is not None:
                faster = (latency_b < latency_a) - (latency_b > latency_a)
            self._latency.update(faster)
        return self.decision

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
        test, design = self._success, self._success.design
        faster = {1: B, -1: A}.get(self._latency.decision)
        return ABVerdict(
            decision=self.decision,
            reason=f"{decision_words(self.decision, design.alpha)}: success A {a}, B {b}; {_score(test, 'won')}",
            a=a,
            b=b,
            faster=faster,
            latency_reason=f"{faster_words(faster, a, b, self._latency.design.alpha)}; {_score(self._latency, 'was faster')}",
            used=test.pairs,
            planned=design.max_pairs,
            alpha=design.alpha,
        )


def _arm(episode: Episode) -> str:
    return episode.arm


def _score(test: ExactSignTest, verb: str) -> str:
    n, score, boundary = test.discordant, test.score, test.boundary
    wins = f"B {verb} {(n + score) // 2} and A {(n - score) // 2} of {n} pairs that differ"
    text = f"{wins}, after {test.pairs} of at most {test.design.max_pairs} pairs"
    needed = "no lead is enough yet" if boundary is None else f"a lead of {boundary} decides"
    return text if test.decision else f"{text}; {needed}"
