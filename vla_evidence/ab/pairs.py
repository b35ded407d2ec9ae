# SPDX-License-Identifier: Apache-2.0
"""Judge of two policies by pairs of episodes on the same robot: the exact sign test, with words and numbers."""

from __future__ import annotations

from vla_evidence.ab.judge import ABJudge
from vla_evidence.ab.open import DEADLINE_S, GONE_S, ABUnit, Episode, OpenEpisodes
from vla_evidence.ab.verdict import (
    ABDecision,
    ABVerdict,
    ArmSummary,
    as_latency,
    as_success,
    decide,
    decision_words,
    faster_words,
)
from vla_evidence.assignment import A, B
from vla_evidence.sequential.sign_test import ExactSignTest, SignTestDesign
from vla_evidence.sequential.spending import Spending
from vla_evidence.words import listed


class PairedABJudge(ABJudge):
    """Judge of pairs: one episode of each policy on the same robot (:func:`vla_evidence.assignment.arm_in_pair`).

    Pairs count in the order in which their first episodes were assigned; an episode without an outcome by its deadline has
    failed (:mod:`vla_evidence.ab.open`).

    Args:
        max_pairs: after which it ends.
        alpha: P(claiming a difference in success that is not there).
        two_sided: False: asks only whether B is better.
        min_pairs: before which nothing is decided; None: a tenth of ``max_pairs``, at most 20.
        spending: text form of a :class:`vla_evidence.sequential.spending.Spending`.
        latency_alpha: the same for latency (always two-sided); None: ``alpha``.
        confidence: of the intervals shown.
        deadline_s: after its assignment an episode without an outcome has failed [s].
        gone_s: a robot that was not assigned a pair's second episode for so long after the end of the first is away [s]. What was
            assigned later waits until then. Then a pair whose first outcome was told steps aside, and counts when it is whole;
            one whose robot fell silent is lost by the policy that ran on it. So longer than a night, at least.

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
        gone_s: float = GONE_S,
    ) -> None:
        super().__init__(OpenEpisodes(2, deadline_s, gone_s), confidence)
        f = Spending.parse(spending)
        latency_alpha = alpha if latency_alpha is None else latency_alpha
        self._success = ExactSignTest(SignTestDesign(max_pairs, alpha, two_sided, f, min_pairs))
        self._latency = ExactSignTest(SignTestDesign(max_pairs, latency_alpha, True, f, min_pairs))
        self._lost = 0

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

    def _add_unit(self, unit: ABUnit) -> None:
        for episode in unit.episodes[unit.told :]:
            self._arms[episode.arm].add(episode.success, episode.latency, silent=not episode.done)
        if unit.size == 1:
            return  # came after its pair was lost
        if unit.is_whole:
            a, b = sorted(unit.episodes, key=_arm)
            self._pair(a.success, b.success, a.latency, b.latency)
        elif unit.is_lost:
            self._lost += 1
            lost_by_a = unit.episodes[0].arm == A
            self._pair(not lost_by_a, lost_by_a, None, None)

    def _pair(self, a: bool, b: bool, latency_a: float | None, latency_b: float | None) -> ABDecision:
        if not self._success.ended:
            self._success.update(b - a)
            faster = 0
            if a and b and latency_a is not None and latency_b is not None:
                faster = (latency_b < latency_a) - (latency_b > latency_a)
            self._latency.update(faster)
        return self.decision

    def _say(self, a: ArmSummary, b: ArmSummary) -> ABVerdict:
        test, design = self._success, self._success.design
        faster = {1: B, -1: A}.get(self._latency.decision)
        return ABVerdict(
            decision=self.decision,
            reason=f"{decision_words(self.decision, design.alpha)}: success A {a}, B {b}; {_score(test, 'won')}{self._held_up()}",
            a=a,
            b=b,
            faster=faster,
            latency_reason=f"{faster_words(faster, a, b, self._latency.design.alpha)}; {_score(self._latency, 'was faster')}",
            used=test.pairs,
            planned=design.max_pairs,
            alpha=design.alpha,
        )

    def _held_up(self) -> str:
        lost = f"; {self._lost} pairs lost by robots that fell silent and stayed away" if self._lost else ""
        awaited = self._open.awaited()
        return lost + (f"; waiting for the second episode of a pair of {listed(awaited)}" if awaited else "")


def _arm(episode: Episode) -> str:
    return episode.arm


def _score(test: ExactSignTest, verb: str) -> str:
    n, score, boundary = test.discordant, test.score, test.boundary
    wins = f"B {verb} {(n + score) // 2} and A {(n - score) // 2} of {n} pairs that differ"
    text = f"{wins}, after {test.pairs} of at most {test.design.max_pairs} pairs"
    needed = "no lead is enough yet" if boundary is None else f"a lead of {boundary} decides"
    return text if test.decision else f"{text}; {needed}"
