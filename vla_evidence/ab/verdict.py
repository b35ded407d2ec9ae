# SPDX-License-Identifier: Apache-2.0
"""What an A/B test says, and what both of its judges need to say it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from vla_evidence.assignment import A, B
from vla_evidence.errors import InputError, check_number, shown
from vla_evidence.sequential.intervals import wilson_interval


class ABDecision(str, Enum):
    """What an A/B test says."""

    A_BETTER = "A_BETTER"
    B_BETTER = "B_BETTER"
    NO_DIFFERENCE_SHOWN = "NO_DIFFERENCE_SHOWN"
    """All planned data are there. It does not say that there is no difference: see the intervals."""
    CONTINUE = "CONTINUE"


_LONGEST = 1e100
_BY_SIGN = {1: ABDecision.B_BETTER, -1: ABDecision.A_BETTER}


@dataclass(frozen=True)
class ArmSummary:
    """One arm so far; ``rate`` and ``latency`` are None without episodes, the interval is then (0, 1).

    Attributes:
        successes, episodes, rate, interval: Wilson's, of the episodes that count.
        latency: mean of those that succeeded.
        silent: of the failures, those without an outcome by their deadline.
        waiting: assigned, without an outcome, and not yet counted.
    """

    successes: int
    episodes: int
    rate: float | None
    interval: tuple[float, float]
    latency: float | None
    silent: int = 0
    waiting: int = 0

    def __str__(self) -> str:
        more = [f"{n} {what}" for n, what in ((self.silent, "silent"), (self.waiting, "waited for")) if n]
        text = "no episode"
        if self.rate is not None:
            low, high = self.interval
            text = f"{self.successes} of {self.episodes} = {self.rate:.1%} [{low:.1%}, {high:.1%}]"
        return f"{text} ({', '.join(more)})" if more else text


@dataclass(frozen=True)
class ABVerdict:
    """A decision and what it rests on.

    Attributes:
        decision: about success.
        reason: in words and numbers.
        a, b: the arms so far.
        faster: the arm shown to be faster, or None.
        latency_reason: in words and numbers.
        used, planned: pairs (paired) or episodes (unpaired) that the decision rests on, and after how many the test ends.
        alpha: P(a difference is claimed, if there is none) is at most this.
    """

    decision: ABDecision
    reason: str
    a: ArmSummary
    b: ArmSummary
    faster: str | None
    latency_reason: str
    used: int
    planned: int
    alpha: float


@dataclass
class ArmCounter:
    """Sums of one arm: bounded memory whatever the number of episodes."""

    successes: int = 0
    episodes: int = 0
    latency_sum: float = 0.0
    latencies: int = 0
    silent: int = 0

    def add(self, success: bool, latency: float | None, *, silent: bool = False) -> None:
        """Take one episode in; its latency only if it succeeded: to fail fast is not to be fast."""
        self.successes += success
        self.episodes += 1
        self.silent += silent
        if latency is not None and success:
            self.latency_sum += latency
            self.latencies += 1

    def summary(self, confidence: float, waiting: int = 0) -> ArmSummary:
        """Return the sums with Wilson's interval at ``confidence``; ``waiting``: episodes without an outcome."""
        return ArmSummary(
            self.successes,
            self.episodes,
            self.successes / self.episodes if self.episodes else None,
            wilson_interval(self.successes, self.episodes, confidence),
            self.latency_sum / self.latencies if self.latencies else None,
            self.silent,
            waiting,
        )


def decide(sign: int, ended: bool) -> ABDecision:
    """Return the decision of a test with this sign (+1: B)."""
    return _BY_SIGN.get(sign, ABDecision.NO_DIFFERENCE_SHOWN if ended else ABDecision.CONTINUE)


def decision_words(decision: ABDecision, alpha: float) -> str:
    """Return the decision in words."""
    return {
        ABDecision.A_BETTER: f"A is better (claimed wrongly in at most {alpha:.1%} of such tests)",
        ABDecision.B_BETTER: f"B is better (claimed wrongly in at most {alpha:.1%} of such tests)",
        ABDecision.NO_DIFFERENCE_SHOWN: "no difference was shown with all that was planned; there may be one",
        ABDecision.CONTINUE: "not decided yet",
    }[decision]


def faster_words(faster: str | None, a: ArmSummary, b: ArmSummary, alpha: float) -> str:
    """Return the finding about latency in words."""
    if a.latency is None or b.latency is None:
        return "latency was not recorded for successes of both arms"
    means = f"mean latency of successes A {a.latency:.4g}, B {b.latency:.4g}"
    if faster is None:
        return f"no difference in latency shown; {means}"
    return f"{faster} is faster (claimed wrongly in at most {alpha:.1%} of such tests); {means}"


def as_arm(arm: object) -> str:
    """Return ``arm`` if there is such an arm."""
    if arm not in (A, B):
        raise InputError("INPUT_ARM", "arm", f"{shown(arm)} is neither {A!r} nor {B!r}")
    return str(arm)


def as_success(value: object) -> bool:
    """Return a success as a bool."""
    if value is True or value is False or (isinstance(value, (int, float, np.bool_, np.integer)) and value in (0, 1)):
        return bool(value)
    raise InputError("INPUT_VALUE", "success", f"{shown(value)} is neither 0 nor 1")


def as_latency(value: float | None) -> float | None:
    """Return a latency that can be, or None."""
    if value is None:
        return None
    number = check_number("latency", value)
    if not 0.0 < number <= _LONGEST:
        raise InputError("INPUT_VALUE", "latency", f"{shown(value)} does not lie above 0 and up to {_LONGEST:g}")
    return number
