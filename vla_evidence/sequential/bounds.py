# SPDX-License-Identifier: Apache-2.0
"""Exact one-sided confidence bound of a proportion (Clopper and Pearson, Biometrika 26, 1934)."""

from __future__ import annotations

from scipy.special import betaincinv  # type: ignore[import-untyped]


def proportion_lower_bound(events: int, observations: int, confidence: float) -> float:
    """Return a value that the true proportion exceeds with probability >= ``confidence`` (independent observations).

    Raises:
        ValueError: impossible counts or confidence.
    """
    if not 0 <= events <= observations or not 0.0 < confidence < 1.0:
        raise ValueError(f"{events} of {observations} at confidence {confidence}")
    if events == 0:
        return 0.0
    return float(betaincinv(events, observations - events + 1, 1.0 - confidence))
