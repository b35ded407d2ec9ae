# SPDX-License-Identifier: Apache-2.0
"""Exact one-sided confidence bounds of a proportion (Clopper and Pearson, Biometrika 26, 1934)."""

from __future__ import annotations

from scipy.special import betaincinv  # type: ignore[import-untyped]


def proportion_lower_bound(events: int, observations: int, confidence: float) -> float:
    """Return a value that the true proportion exceeds with probability >= ``confidence`` (independent observations).

    Raises:
        ValueError: impossible counts or confidence.
    """
    _check(events, observations, confidence)
    if events == 0:
        return 0.0
    return float(betaincinv(events, observations - events + 1, 1.0 - confidence))


def proportion_upper_bound(events: int, observations: int, confidence: float) -> float:
    """Return a value that the true proportion stays below with probability >= ``confidence`` (independent observations).

    Raises:
        ValueError: impossible counts or confidence.
    """
    _check(events, observations, confidence)
    return 1.0 - proportion_lower_bound(observations - events, observations, confidence)


def _check(events: int, observations: int, confidence: float) -> None:
    if not 0 <= events <= observations or not 0.0 < confidence < 1.0:
        raise ValueError(f"{events} of {observations} at confidence {confidence}")
