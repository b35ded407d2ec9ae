# SPDX-License-Identifier: Apache-2.0
"""Do scores exceed a limit, or do episodes fail, more often than is tolerated? The tests of one version against a known past.

Both count events against a tolerated rate with :class:`~eprocess.BernoulliEProcess`; they differ in what the rate
comes from. Neither tests "other than the past": a version that is merely different, but stays within the rate, satisfies H0,
and is rolled back with probability <= α however long and however often one looks. Used by the judge of a trial on the
robot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vla_evidence.sequential.eprocess import BernoulliEProcess
from vla_evidence.sequential.quantile import exceedance_limit

_LARGEST_P0 = 0.99
_SMALLEST_P0 = 1e-3
_LARGEST_LOG = 700.0


class ExceedanceTest:
    """H0: P(an observation lies above ``limit`` | all before it) <= ``tolerated``.

    An observation is a block's or an episode's largest score: scores of neighbouring chunks are alike, so that single ones
    would count the same trouble many times.

    Raises:
        ValueError: ``tolerated`` is not strictly between 0 and 1, or the limit is NaN.
    """

    def __init__(self, limit: float, tolerated: float) -> None:
        if math.isnan(limit):
            raise ValueError("the limit is NaN")
        self.limit = float(limit)
        self.process = BernoulliEProcess(tolerated)

    @classmethod
    def calibrated(
        cls, values: Sequence[float], *, quantile: float, tolerated: float, confidence: float
    ) -> ExceedanceTest | None:
        """Return the test whose limit the incumbent's own observations exceed with probability <= ``tolerated``.

        At this confidence, if ``values`` are independent and of the conditions to come. P(an equal version is ever rolled back)
        is then at most ``1 - confidence`` plus the level that the test is used at. None if there are too few values.

        Raises:
            ValueError: a value is not finite, or a probability is not strictly between 0 and 1.
        """
        limit = exceedance_limit(values, quantile, tolerated, confidence)
        return None if limit is None else cls(limit, tolerated)

    def update(self, value: float) -> float:
        """Take one observation in; return ``log_e``. NaN counts as above the limit."""
        return self.process.update(not value <= self.limit)

    def rejects(self, alpha: float) -> bool:
        """Whether too many observations were above the limit, at level ``alpha`` and for good."""
        return self.process.rejects(alpha)

    def describe(self, source: str, what: str, alpha: float) -> str:
        """Return the state of the evidence in words; ``what``: the observations' plural."""
        counted = f"{self.process.events} of {self.process.observations} {what} above {self.limit:.4g}"
        return f"{source}: {counted}, tolerated {self.process.p0:.0%}, {odds(self.process.log_e, alpha)}"

    def to_json(self) -> list[float]:
        """Return what :meth:`restore` takes over."""
        return [self.limit, *_counts(self.process)]

    def restore(self, state: Sequence[float]) -> bool:
        """Take over what another test counted; false, and nothing is taken over, if it had another limit.

        Raises:
            ValueError: impossible counts.
        """
        limit, events, observations, top = state
        if limit == self.limit:
            self.process.restore(int(events), int(observations), top)
        return limit == self.limit


class FailureTest:
    """H0: P(an episode fails | all before it) <= ``tolerated``."""

    def __init__(self, tolerated: float) -> None:
        self.process = BernoulliEProcess(tolerated)

    @classmethod
    def below(cls, rate: float) -> FailureTest | None:
        """Return the test of "succeeds with less than ``rate``"; None where the rate is too low for anything to be below."""
        return cls(max(1.0 - rate, _SMALLEST_P0)) if rate > 1.0 - _LARGEST_P0 else None

    def update(self, success: bool) -> float:
        """Take one episode in; return ``log_e``."""
        return self.process.update(not success)

    def rejects(self, alpha: float) -> bool:
        """Whether too many episodes failed, at level ``alpha`` and for good."""
        return self.process.rejects(alpha)

    def describe(self, alpha: float) -> str:
        """Return the state of the evidence in words."""
        failed = f"{self.process.events} of {self.process.observations} episodes failed"
        return f"success: {failed}, tolerated {self.process.p0:.0%}, {odds(self.process.log_e, alpha)}"

    def to_json(self) -> list[float]:
        """Return what :meth:`restore` takes over."""
        return [self.process.p0, *_counts(self.process)]

    def restore(self, state: Sequence[float]) -> bool:
        """Take over what another test counted; false, and nothing is taken over, if it tolerated something else.

        Raises:
            ValueError: impossible counts.
        """
        p0, events, observations, top = state
        if p0 == self.process.p0:
            self.process.restore(int(events), int(observations), top)
        return p0 == self.process.p0


def odds(log_e: float, alpha: float) -> str:
    """Return evidence in words: how strong it is, and where it decides."""
    return f"evidence {math.exp(min(log_e, _LARGEST_LOG)):.3g}, decides at {1.0 / alpha:.0f}"


def _counts(process: BernoulliEProcess) -> list[float]:
    return [process.events, process.observations, process.max_log_e]
