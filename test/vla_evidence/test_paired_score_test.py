# SPDX-License-Identifier: Apache-2.0
"""Pairs on the same episodes: the p-value keeps its level at the margin, and comes from the likelihood that it claims."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_evidence.errors import InputError
from vla_evidence.sequential.paired_score_test import excluded_drop, paired_score_p_value


@pytest.mark.parametrize(("losses_rate", "pairs"), [(0.06, 100), (0.1, 100), (0.12, 200)])
def test_a_version_that_is_worse_by_the_margin_seldom_passes(losses_rate: float, pairs: int) -> None:
    """Exactly: the sum over every outcome that there can be."""
    from scipy.stats import multinomial  # a second that few tests need

    margin, alpha = 0.05, 0.05
    rates = losses_rate - margin, losses_rate
    passes = 0.0
    for wins in range(pairs + 1):
        for losses in range(pairs + 1 - wins):
            if paired_score_p_value(wins, losses, pairs, margin) <= alpha:
                counts = [wins, losses, pairs - wins - losses]
                passes += multinomial.pmf(counts, pairs, [*rates, 1.0 - sum(rates)])
            elif losses > wins + 10:
                break
    assert 0.02 < passes < 0.065


@pytest.mark.parametrize(("wins", "losses", "pairs", "margin"), [(3, 5, 60, 0.1), (0, 2, 40, 0.05), (7, 4, 100, 0.0)])
def test_the_variance_is_that_of_the_most_likely_rates_at_the_margin(
    wins: int, losses: int, pairs: int, margin: float
) -> None:
    from scipy.optimize import minimize_scalar

    def unlikely(q: float) -> float:
        p = q - margin
        if not 0.0 < p < 1.0 or p + q >= 1.0:
            return math.inf
        return -(wins * math.log(p) + losses * math.log(q) + (pairs - wins - losses) * math.log(1.0 - p - q))

    q = float(minimize_scalar(unlikely, bounds=(margin + 1e-9, 0.5), method="bounded", options={"xatol": 1e-12}).x)
    z = (wins - losses + pairs * margin) / math.sqrt(pairs * (2.0 * q - margin - margin**2))
    expected = 0.5 * math.erfc(z / math.sqrt(2.0))
    assert paired_score_p_value(wins, losses, pairs, margin) == pytest.approx(expected, rel=1e-3)


def test_the_excluded_drop_is_the_margin_at_which_the_answer_turns() -> None:
    drop = excluded_drop(2, 5, 100, 0.05)
    assert paired_score_p_value(2, 5, 100, drop + 1e-6) <= 0.05 < paired_score_p_value(2, 5, 100, drop - 1e-6)
    assert excluded_drop(30, 2, 100, 0.05) == 0.0 and excluded_drop(0, 0, 0, 0.05) == 1.0
    assert excluded_drop(0, 0, 200, 0.05) < excluded_drop(0, 0, 50, 0.05) < 0.06
    assert np.isclose(paired_score_p_value(9, 4, 80, 0.0), 0.5 * math.erfc(5 / math.sqrt(2 * 13)))  # McNemar


def test_impossible_counts_and_margins_are_refused() -> None:
    for arguments in ((3, 5, 7, 0.1), (-1, 0, 4, 0.1), (1, 1, 4, 1.0)):
        with pytest.raises(InputError):
            paired_score_p_value(*arguments)
