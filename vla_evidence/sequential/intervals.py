# SPDX-License-Identifier: Apache-2.0
"""Where does a success rate lie? At one look (Wilson, Clopper-Pearson) or at every look (a confidence sequence).

A 95 % interval of the usual kind holds at one look that was fixed beforehand. Whoever looks after every episode, and stops
when it suits, needs a confidence *sequence*: P(the rate is ever outside) <= 1 - confidence. For outcomes whose success
probability given the past is p, and any density w on (0, 1),

    M_n(p) = ∫ θ^k (1-θ)^(n-k) w(θ) dθ / (p^k (1-p)^(n-k))

is a non-negative martingale that starts at 1, so by Ville's inequality P(M_n(p) >= 1/α for any n) <= α. With w = 1 the
integral is B(1+k, 1+n-k); the p with M_n(p) < 1/α form an interval around k/n, for log M_n is convex in p with its minimum
there; its ends are found by bisection. It assumes one rate that does not drift.

Robbins, Annals of Mathematical Statistics 41 (1970); Howard et al., Annals of Statistics 49 (2021), section 4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BISECTIONS = 64


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of Wilson (1927), approximate at one look; (0, 1) without an episode."""
    return _proportion_ci(successes, episodes, confidence, "wilson")


def clopper_pearson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of Clopper and Pearson (1934) at one look; (0, 1) without an episode."""
    return _proportion_ci(successes, episodes, confidence, "exact")


def _proportion_ci(successes: int, episodes: int, confidence: float, method: str) -> tuple[float, float]:
    if episodes == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # takes a second: not on a robot

    ends = binomtest(successes, episodes).proportion_ci(confidence, method)
    return (float(ends.low) if successes else 0.0), (float(ends.high) if successes < episodes else 1.0)


def confidence_sequence(
    successes: ArrayLike, observations: ArrayLike, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of intervals that *all* hold the rate at once with probability >= ``confidence``.

    Args:
        successes, observations: counts so far at each look, shapes that broadcast.
        confidence: of the whole sequence, two-sided.

    Returns:
        low, high: of the counts' shape; 0 and 1 where there is no observation.
    """
    from scipy.special import betaln  # type: ignore[import-untyped]  # a third of a second of every start of a server

    k, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(observations, dtype=np.float64))
    threshold = betaln(1.0 + k, 1.0 + n - k) + math.log(1.0 - confidence)  # outside: log-likelihood at p <= this
    rate = np.where(n > 0.0, k / np.where(n > 0.0, n, 1.0), 0.5)
    low = _end(np.zeros_like(rate), rate, k, n, threshold)
    high = _end(np.ones_like(rate), rate, k, n, threshold)
    return np.where(k > 0.0, low, 0.0), np.where(k < n, high, 1.0)


def _end(outside: Any, inside: Any, k: Any, n: Any, threshold: Any) -> NDArray[np.float64]:
    """Return the end of the interval between 0 or 1 and the observed rate: bisection; the log-likelihood is monotone there."""
    from scipy.special import xlog1py, xlogy

    for _ in range(_BISECTIONS):
        middle = 0.5 * (outside + inside)
        excluded = xlogy(k, middle) + xlog1py(n - k, -middle) <= threshold
        outside, inside = np.where(excluded, middle, outside), np.where(excluded, inside, middle)
    return np.asarray(outside)
