# SPDX-License-Identifier: Apache-2.0
"""Bounds of a proportion and of a quantile for one look, and how many observations they take: what the robot calibrates with.

A proportion: exact (Clopper and Pearson, Biometrika 26, 1934). A quantile: distribution-free, from order statistics (Wilks 1941;
David and Nagaraja, Order Statistics, 7.1). For independent observations of a continuous distribution F, F(X_(k)) of n is
Beta(k, n-k+1); so P(F(X_(k)) >= q) = P(Binomial(n, q) <= k-1). Ties make it larger: the bound stays valid for discrete scores.

Without scipy: its import would take a fifth of a second of every start of a robot's manager.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def proportion_lower_bound(events: int, observations: int, confidence: float) -> float:
    """Return a value that the true proportion exceeds with probability >= ``confidence`` (independent observations).

    Raises:
        ValueError: impossible counts or confidence.
    """
    if not 0 <= events <= observations or not 0.0 < confidence < 1.0:
        raise ValueError(f"{events} of {observations} at confidence {confidence}")
    if events == 0:
        return 0.0
    log_counts = _log_counts(observations)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:  # until no number lies between: P(Binomial >= events) rises with p
        if _probabilities(log_counts, middle)[events:].sum() <= 1.0 - confidence:
            low = middle
        else:
            high = middle
    return low


def quantile_upper_bound(values: Sequence[float], quantile: float, confidence: float) -> float | None:
    """Return the smallest order statistic that lies above the ``quantile`` with probability >= ``confidence``.

    None if there are too few observations for any.

    Raises:
        ValueError: a value is not finite, or a probability is not strictly between 0 and 1.
    """
    if not (0.0 < quantile < 1.0 and 0.0 < confidence < 1.0):
        raise ValueError(f"quantile {quantile} at confidence {confidence}")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not np.isfinite(ordered).all():
        raise ValueError("a value is not finite")
    if len(ordered) < observations_needed(quantile, confidence):
        return None
    covered = np.cumsum(_probabilities(_log_counts(len(ordered)), quantile))[:-1]  # of k-1 = 0 … n-1
    return float(ordered[int(np.argmax(covered >= confidence))])


def observations_needed(quantile: float, confidence: float) -> int:
    """Return how many observations it takes until the largest one bounds the ``quantile``: 1 - quantile^n >= confidence."""
    return max(1, math.ceil(math.log1p(-confidence) / math.log(quantile) - 1e-9))


def exceedance_limit(values: Sequence[float], quantile: float, tolerated: float, confidence: float) -> float | None:
    """Return a limit that scores of the same distribution exceed with probability <= ``tolerated``, at this confidence.

    It is the sample's ``quantile`` if that is safe enough, else the smallest order statistic that is. With
    ``quantile`` above ``1 - tolerated`` there is room left for a harmless shift. None if there are too few observations.

    Raises:
        ValueError: a value is not finite, or a probability is not strictly between 0 and 1.
    """
    safe = quantile_upper_bound(values, 1.0 - tolerated, confidence)
    if safe is None:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    rank = min(len(ordered), math.ceil(quantile * (len(ordered) + 1)))
    return max(safe, float(ordered[rank - 1]))


def _log_counts(n: int) -> NDArray[np.float64]:
    """Return the logarithms of the binomial coefficients n over 0 … n."""
    log_factorials = np.cumsum(np.log(np.maximum(np.arange(n + 1), 1)))
    return np.asarray(log_factorials[-1] - log_factorials - log_factorials[::-1])


def _probabilities(log_counts: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """Return the probabilities of 0 … n events among n of probability ``p``, strictly between 0 and 1."""
    n = len(log_counts) - 1
    events = np.arange(n + 1)
    return np.asarray(np.exp(log_counts + events * math.log(p) + (n - events) * math.log1p(-p)))
