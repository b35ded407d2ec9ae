# SPDX-License-Identifier: Apache-2.0
"""The score test's estimates are the likelihood's maximum, and its error at the margin is the level that was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_evidence.sequential.score_test import constrained_rates, excluded_drop, score_p_value

COUNTS = st.tuples(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))


@given(COUNTS, st.floats(0.0, 0.9))
def test_its_rates_are_the_most_likely_ones_that_differ_by_the_margin(counts: tuple, margin: float) -> None:
    n0, n1, share0, share1 = counts
    x0, x1 = round(share0 * n0), round(share1 * n1)
    p0, p1 = (float(rate) for rate in constrained_rates((x0, x1), (n0, n1), margin))
    assert p1 == pytest.approx(p0 - margin, abs=1e-12) and -1e-12 <= p1 <= p0 <= 1.0
    grid = np.linspace(margin, 1.0, 2001)

    def log_likelihood(rate: np.ndarray) -> np.ndarray:
        low, high = 1e-12, 1.0 - 1e-12
        first, second = np.clip(rate, low, high), np.clip(rate - margin, low, high)
        old = x0 * np.log(first) + (n0 - x0) * np.log1p(-first)
        return old + x1 * np.log(second) + (n1 - x1) * np.log1p(-second)

    assert float(log_likelihood(np.array(p0))) >= float(log_likelihood(grid).max()) - 1e-4


@pytest.mark.parametrize(("n0", "n1", "margin"), [(6840, 360, 0.10), (900, 300, 0.05), (400, 400, 0.02)])
def test_the_error_at_the_margin_is_the_level(n0: int, n1: int, margin: float) -> None:
    """Exactly, by summing over all counts that are not very unlikely."""
    from scipy.stats import binom  # a second that few tests need

    total, rate = 0.0, 0.87
    (low0, high0), (low1, high1) = (binom.interval(1 - 1e-9, n, p) for n, p in ((n0, rate), (n1, rate - margin)))
    x0, x1 = np.arange(low0, high0 + 1), np.arange(low1, high1 + 1)
    p = score_p_value((x0[:, None], x1[None, :]), (n0, n1), margin)
    weight = binom.pmf(x0, n0, rate)[:, None] * binom.pmf(x1, n1, rate - margin)[None, :]
    total = float(weight[p <= 0.025].sum())
    assert 0.015 < total <= 0.027


@given(COUNTS)
def test_the_drop_that_is_excluded_is_the_smallest_one_and_better_data_exclude_more(counts: tuple) -> None:
    n0, n1, share0, share1 = counts
    x0, x1 = round(share0 * n0), round(share1 * n1)
    drop = excluded_drop((x0, x1), (n0, n1), 0.05)
    if drop < 1.0:
        assert score_p_value((x0, x1), (n0, n1), drop) <= 0.05 + 1e-9
    if 1e-6 < drop < 1.0:
        assert score_p_value((x0, x1), (n0, n1), drop - 1e-6) > 0.05
    if x1 < n1:
        assert excluded_drop((x0, x1 + 1), (n0, n1), 0.05) <= drop + 1e-9


def test_no_data_and_no_variation_show_nothing() -> None:
    assert excluded_drop((0, 0), (0, 50), 0.05) == excluded_drop((50, 50), (50, 0), 0.05) == 1.0
    assert float(score_p_value((10, 10), (10, 10), 0.0)) == 1.0
    assert excluded_drop((0, 100), (100, 100), 0.05) == 0.0
    assert math.isfinite(float(score_p_value((1e7, 1e7), (1.1e7, 1.1e7), 0.02)))
