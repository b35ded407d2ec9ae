# SPDX-License-Identifier: Apache-2.0
"""Do scores exceed a limit, or do episodes fail, more often than is tolerated? The tests of one version against a known past.

Both count events against a tolerated rate p0 by an e-process, which may be looked at after every observation. H0:
P(event | everything before) <= p0, whatever the dependence between observations otherwise. For an alternative p > p0 the
product of ``(p/p0)^x ((1-p)/(1-p0))^(1-x)`` is a non-negative supermartingale under H0: its factor's conditional mean
``θ p/p0 + (1-θ)(1-p)/(1-p0)`` grows with θ and is 1 at θ = p0. So is every mixture of such products over p (here: 64 values
evenly spread over (p0, 1)), and by Ville's inequality P(it ever reaches 1/α) <= α.

Neither tests "other than the past": a version that is merely different, but stays within the rate, satisfies H0, and is
rolled back with probability <= α however long and however often one looks. Used by the judge of a trial on the robot.

Turner and Grünwald, Statistics and Probability Letters 198 (2023); Ville, Étude critique de la notion de collectif (1939);
Ramdas et al., Statistical Science 38 (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vla_evidence.sequential.bounds import exceedance_limit

_GRID = 64
_LARGEST_P0 = 0.99
_SMALLEST_P0 = 1e-3
_LARGEST_LOG = 700.0


class BernoulliEProcess:
    """E-process against H0: P(event) <= ``p0``, computed in logarithms from two counts: stable for any number of observations.

    Raises:
        ValueError: ``p0`` is not strictly between 0 and 1.
    """

    def __init__(self, p0: float) -> None:
        if not 0.0 < p0 < 1.0:
            raise ValueError(f"p0 = {p0} is not between 0 and 1")
        self.p0 = p0
        self.events = 0
        self.observations = 0
        self.max_log_e = 0.0
        """Largest ``log_e`` so far; the test rejects when this reaches log(1/α), and that is final."""
        alternatives = p0 + (1.0 - p0) * (np.arange(_GRID) + 0.5) / _GRID
        self._log_event = np.log(alternatives / p0)
        self._log_none = np.log1p(-alternatives) - math.log1p(-p0)

    def update(self, event: bool) -> float:
        """Take one observation in; return ``log_e``."""
        self.observations += 1
        self.events += bool(event)
        log_e = self.log_e
        self.max_log_e = max(self.max_log_e, log_e)
        return log_e

    @property
    def log_e(self) -> float:
        """Logarithm of the evidence against H0; 0 = none, negative = the data speak for H0."""
        exponents = self.events * self._log_event + (self.observations - self.events) * self._log_none
        top = float(exponents.max())
        return top + math.log(float(np.exp(exponents - top).mean()))

    def rejects(self, alpha: float) -> bool:
        """Whether H0 is rejected at level ``alpha`` (for good, whenever it is asked)."""
        return self.max_log_e >= -math.log(alpha)

    def restore(self, events: int, observations: int, max_log_e: float) -> None:
        """Take over what another process of the same ``p0`` had counted.

        Raises:
            ValueError: the counts are impossible.
        """
        if not (0 <= events <= observations) or not math.isfinite(max_log_e):
            raise ValueError(f"{events} events in {observations} observations, evidence {max_log_e}")
        self.events, self.observations = events, observations
        self.max_log_e = max(0.0, max_log_e, self.log_e)


class _EventTest:
    """Counts events against a tolerated rate; ``key``: tests with the same one count the same events."""

    def __init__(self, tolerated: float, key: float) -> None:
        self.process = BernoulliEProcess(tolerated)
        self._key = key

    def rejects(self, alpha: float) -> bool:
        """Whether there were too many events, at level ``alpha`` and for good."""
        return self.process.rejects(alpha)

    def to_json(self) -> list[float]:
        """Return what :meth:`restore` takes over."""
        return [self._key, self.process.events, self.process.observations, self.process.max_log_e]

    def restore(self, state: Sequence[float]) -> bool:
        """Take over what another test counted; false, and nothing is taken over, if it counted other events.

        Raises:
            ValueError: impossible counts.
        """
        key, events, observations, top = state
        if key == self._key:
            self.process.restore(int(events), int(observations), top)
        return key == self._key

    def _odds(self, alpha: float) -> str:
        """Return how strong the evidence is, and where it decides."""
        evidence = math.exp(min(self.process.log_e, _LARGEST_LOG))
        return f"tolerated {self.process.p0:.0%}, evidence {evidence:.3g}, decides at {1.0 / alpha:.0f}"


class ExceedanceTest(_EventTest):
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
        super().__init__(tolerated, self.limit)

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

    def describe(self, source: str, what: str, alpha: float) -> str:
        """Return the state of the evidence in words; ``what``: the observations' plural."""
        counted = f"{self.process.events} of {self.process.observations} {what} above {self.limit:.4g}"
        return f"{source}: {counted}, {self._odds(alpha)}"


class FailureTest(_EventTest):
    """H0: P(an episode fails | all before it) <= ``tolerated``."""

    def __init__(self, tolerated: float) -> None:
        super().__init__(tolerated, tolerated)

    @classmethod
    def below(cls, rate: float) -> FailureTest | None:
        """Return the test of "succeeds with less than ``rate``"; None where the rate is too low for anything to be below."""
        return cls(max(1.0 - rate, _SMALLEST_P0)) if rate > 1.0 - _LARGEST_P0 else None

    def update(self, success: bool) -> float:
        """Take one episode in; return ``log_e``."""
        return self.process.update(not success)

    def describe(self, alpha: float) -> str:
        """Return the state of the evidence in words."""
        failed = f"{self.process.events} of {self.process.observations} episodes failed"
        return f"success: {failed}, {self._odds(alpha)}"
