# SPDX-License-Identifier: Apache-2.0
"""Where does a success rate lie? At one look (Wilson) or at every look (a confidence sequence).

A 95 % interval of the usual kind holds at one look that was fixed beforehand. Whoever looks after every episode, and stops when
it suits, needs a confidence *sequence*: P(the rate is ever outside) <= 1 - confidence. For outcomes whose success probability
given the past is p, and any density w on (0, 1),

    M_n(p) = ∫ θ^k (1-θ)^(n-k) w(θ) dθ / (p^k (1-p)^(n-k))

is a non-negative martingale that starts at 1 (a likelihood ratio against a mixture), so by Ville's inequality
P(M_n(p) >= 1/α for any n) <= α. With w = Beta(a, b) the integral is B(a+k, b+n-k) / B(a, b); the p with M_n(p) < 1/α form an
interval around k/n, for log M_n is convex in p with its minimum there; its ends are found by bisection. For outcomes anywhere in
[0, 1] with mean p given the past (k is then their sum) M_n(p) is a supermartingale, and the same holds.

Robbins, Annals of Mathematical Statistics 41 (1970); Howard et al., Annals of Statistics 49 (2021), section 4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, xlog1py, xlogy  # type: ignore[import-untyped]

from vla_evidence.analysis import analysis_packages
from vla_evidence.errors import InputError, check_counts, check_probability

_BISECTIONS = 64


def wilson_interval(successes: float, observations: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of Wilson (1927) for one look at independent observations; (0, 1) without any.

    Raises:
        InputError: impossible counts or confidence.
        EvidenceError: ANALYSIS_MISSING: statsmodels is not installed.
    """
    check_counts("successes", successes, observations)
    check_probability("confidence", confidence)
    with analysis_packages():
        from statsmodels.stats.proportion import proportion_confint
    if observations == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, observations, alpha=1.0 - confidence, method="wilson")
    return (float(low) if successes else 0.0), (
        float(high) if successes < observations else 1.0
    )  # exactly, at the ends


def confidence_sequence(
    successes: ArrayLike, observations: ArrayLike, confidence: float = 0.95, *, prior: tuple[float, float] = (1.0, 1.0)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of intervals that *all* hold the rate at once with probability >= ``confidence``.

    Args:
        successes, observations: counts so far at each look, shapes that broadcast.
        confidence: of the whole sequence, two-sided.
        prior: a, b of Beta(a, b): where the interval shall be narrowest; any choice is valid if it was made before the data.

    Returns:
        low, high: of the counts' shape; 0 and 1 where there is no observation.

    Raises:
        InputError: impossible counts, confidence or prior.
    """
    alpha = 1.0 - check_probability("confidence", confidence)
    a, b = prior
    if not (math.isfinite(a) and math.isfinite(b) and a > 0.0 and b > 0.0):
        raise InputError("INPUT_VALUE", "prior", f"({a}, {b}) is no Beta distribution")
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(observations, dtype=np.float64))
    if not bool(((k >= 0.0) & (k <= n) & np.isfinite(n)).all()):
        raise InputError("INPUT_COUNT", "successes", "not all lie between 0 and the observations")
    log_mixture = betaln(a + k, b + n - k) - betaln(a, b)
    threshold = log_mixture + math.log(alpha)  # outside: log-likelihood at p <= this
    with np.errstate(invalid="ignore"):
        rate = np.where(n > 0.0, k / np.where(n > 0.0, n, 1.0), 0.5)
    low = _end(np.zeros_like(rate), rate, k, n, threshold)
    high = _end(np.ones_like(rate), rate, k, n, threshold)
    return np.where(k > 0.0, low, 0.0), np.where(k < n, high, 1.0)


def _end(outside: Any, inside: Any, k: Any, n: Any, threshold: Any) -> NDArray[np.float64]:
    """Return the end of the interval between 0 or 1 and the observed rate: bisection; the log-likelihood is monotone there."""
    for _ in range(_BISECTIONS):
        middle = 0.5 * (outside + inside)
        excluded = xlogy(k, middle) + xlog1py(n - k, -middle) <= threshold
        outside, inside = np.where(excluded, middle, outside), np.where(excluded, inside, middle)
    return np.asarray(outside)


class RateSequence:
    """The confidence sequence of one rate, episode by episode: its interval only ever shrinks (running intersection).

    It holds for a success probability that stays the same whatever happened before. If the rate drifts, the intersection may
    become empty, which is itself proof (at this confidence) that it did: then ``interval`` is None.

    Raises:
        InputError: impossible confidence or prior.
    """

    def __init__(self, confidence: float = 0.95, *, prior: tuple[float, float] = (1.0, 1.0)) -> None:
        self._confidence = check_probability("confidence", confidence)
        self._prior = prior
        self.successes = 0.0
        self.observations = 0
        self._low, self._high = 0.0, 1.0
        confidence_sequence(0, 0, confidence, prior=prior)  # refuses a prior that is none

    @property
    def interval(self) -> tuple[float, float] | None:
        """Low and high end so far; None if the rate cannot have been constant."""
        return (self._low, self._high) if self._low <= self._high else None

    def update(self, successes: float, units: int = 1) -> tuple[float, float] | None:
        """Take in the outcomes of one or more units; return the interval.

        Raises:
            InputError: impossible counts.
        """
        check_counts("successes", successes, units)
        self.successes += successes
        self.observations += units
        low, high = confidence_sequence(self.successes, self.observations, self._confidence, prior=self._prior)
        self._low, self._high = max(self._low, float(low)), min(self._high, float(high))
        return self.interval
