# SPDX-License-Identifier: Apache-2.0
"""Judge of two policies by pairs of episodes on the same robot: the exact sign test, with words and numbers."""

from __future__ import annotations

from collections.abc import Hashable

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
from vla_evidence.sign_test import ExactSignTest, SignTestDesign
from vla_evidence.spending import Spending


class PairedABJudge:
    """Judge of pairs: one episode of each policy on the same robot (:func:`vla_evidence.assignment.arm_in_pair`).

    Args:
        max_pairs: after which it ends.
        alpha: P(claiming a difference in success that is not there).
        two_sided: False: asks only whether B is better.
        min_pairs: before which nothing is decided; None: a tenth of ``max_pairs``, at most 20.
        spending: text form of a :class:`vla_evidence.spending.Spending`.
        latency_alpha: the same for latency (always two-sided); None: ``alpha``.
        confidence: of the intervals shown.

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
    ) -> None:
        f = Spending.parse(spending)
        latency_alpha = alpha if latency_alpha is None else latency_alpha
        self._success = ExactSignTest(SignTestDesign(max_pairs, alpha, two_sided, f, min_pairs))
        self._latency = ExactSignTest(SignTestDesign(max_pairs, latency_alpha, True, f, min_pairs))
        self._confidence = check_probability("confidence", confidence)
        self._arms = {A: ArmCounter(), B: ArmCounter()}
        self._waiting: dict[Hashable, tuple[str, bool, float | None]] = {}

    @property
    def decision(self) -> ABDecision:
        """What is decided so far; final unless CONTINUE."""
        return decide(self._success.decision, self._success.ended)

    @property
    def waiting(self) -> int:
        """Episodes whose partner has not come: no evidence. A robot that went silent has failed: record that."""
        return len(self._waiting)

    def update(self, a: bool, b: bool, latency_a: float | None = None, latency_b: float | None = None) -> ABDecision:
        """Take one pair in. After the end only the arms' counts change.

        Args:
            a, b: whether A's and B's episode succeeded.
            latency_a, latency_b: positive, in any unit that is the same for all; None: unknown.

        Raises:
            InputError: INPUT_VALUE: a success that is neither 0 nor 1, a latency that cannot be.
        """
        won_a, won_b = as_success(a), as_success(b)
        slow_a, slow_b = as_latency(latency_a), as_latency(latency_b)
        self._arms[A].add(won_a, slow_a)
        self._arms[B].add(won_b, slow_b)
        if not self._success.ended:
            self._success.update(won_b - won_a)
            known = slow_a is not None and slow_b is not None
            self._latency.update((slow_b < slow_a) - (slow_b > slow_a) if known else 0)  # type: ignore[operator]
        return self.decision

    def record(self, pair: Hashable, arm: str, success: bool, latency: float | None = None) -> ABDecision:
        """Take one episode in; it counts when the other one of its pair is there.

        Args:
            pair: name of the pair, for instance (robot, number).
            arm: "A" or "B".
            success, latency: as for :meth:`update`.

        Raises:
            InputError: INPUT_ARM: no such arm, or this pair has one of it already; INPUT_VALUE.
        """
        entry = (as_arm(arm), as_success(success), as_latency(latency))
        other = self._waiting.get(pair)
        if other is None:
            self._waiting[pair] = entry
            return self.decision
        if other[0] == arm:
            raise InputError("INPUT_ARM", "arm", f"pair {pair!r} has an episode of {arm} already")
        del self._waiting[pair]
        a, b = (other, entry) if arm == B else (entry, other)
        return self.update(a[1], b[1], a[2], b[2])

    def verdict(self) -> ABVerdict:
        """Return the decision with what it rests on.

        Raises:
            EvidenceError: ANALYSIS_MISSING: statsmodels (Wilson) is not installed.
        """
        a, b = (self._arms[arm].summary(self._confidence) for arm in (A, B))
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


def _score(test: ExactSignTest, verb: str) -> str:
    n, score, boundary = test.discordant, test.score, test.boundary
    wins = f"B {verb} {(n + score) // 2} and A {(n - score) // 2} of {n} pairs that differ"
    text = f"{wins}, after {test.pairs} of at most {test.design.max_pairs} pairs"
    needed = "no lead is enough yet" if boundary is None else f"a lead of {boundary} decides"
    return text if test.decision else f"{text}; {needed}"
