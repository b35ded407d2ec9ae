# SPDX-License-Identifier: Apache-2.0
"""Is the new version worse by less than a margin, on the same episodes? The score test of Tango, for one look at a planned end.

Both versions run n episodes with the same start, so each gives a pair; b pairs only the new version wins, c only the old one.
H0: p₁ - p₀ <= -margin. With q̃ the maximum-likelihood estimate of P(only the old one wins) under p₁ - p₀ = -margin =: δ,

    Z = (b - c - n δ) / √(n (2 q̃ + δ (1 - δ)))

is about normal. It needs fewer episodes than :mod:`~vla_evidence.sequential.score_test`, which knows nothing of pairs. Without a
margin it is McNemar's test.

Tango, Statistics in Medicine 17 (1998), 891-908.
"""

from __future__ import annotations

import math

from vla_evidence.errors import check_counts, check_margin

_BISECTIONS = 40


def paired_score_p_value(wins: int, losses: int, pairs: int, margin: float) -> float:
    """Return the one-sided p-value of "the new version is worse by the margin or more".

    Args:
        wins: pairs in which only the new version succeeded.
        losses: pairs in which only the old one did.
        pairs: all of them.
        margin: of the success rate, 0 (asks for an improvement) to below 1.

    Returns:
        p: 1 without a pair, or if without a margin no pair differs.

    Raises:
        InputError: INPUT_COUNT, INPUT_MARGIN.
    """
    check_counts("wins and losses", wins + losses, pairs)
    check_margin("margin", margin)
    delta = -margin
    variance = pairs * (2.0 * _losses_rate(wins, losses, pairs, delta) + delta * (1.0 - delta)) if pairs else 0.0
    if variance <= 1e-12:
        return 1.0
    z = (wins - losses - pairs * delta) / math.sqrt(variance)
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def _losses_rate(wins: int, losses: int, pairs: int, delta: float) -> float:
    """Return the most likely P(only the old version wins) if the new one's rate is higher by ``delta``: a root of a parabola."""
    a = 2.0 * pairs
    b = -(wins + losses) + (2.0 * pairs - wins + losses) * delta
    c = -losses * delta * (1.0 - delta)
    return float((math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a))


def excluded_drop(wins: int, losses: int, pairs: int, alpha: float) -> float:
    """Return the smallest drop of the success rate that the test excludes; 1 if it excludes none, 0: an improvement is shown."""
    if paired_score_p_value(wins, losses, pairs, 0.0) <= alpha:
        return 0.0
    low, high = 0.0, 1.0 - 1e-9
    if paired_score_p_value(wins, losses, pairs, high) > alpha:
        return 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if paired_score_p_value(wins, losses, pairs, middle) <= alpha else (middle, high)
    return high
