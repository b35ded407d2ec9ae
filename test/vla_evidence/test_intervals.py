# SPDX-License-Identifier: Apache-2.0
"""A confidence sequence holds the rate at every look at once, as often as promised; an interval for one look does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln

from vla_evidence.sequential.bounds import proportion_lower_bound
from vla_evidence.sequential.intervals import clopper_pearson_interval, confidence_sequence, wilson_interval

RUNS, LOOKS, CONFIDENCE = 1000, 400, 0.95


def counts(rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    outcomes = np.random.default_rng(seed).random((RUNS, LOOKS)) < rate
    return np.cumsum(outcomes, axis=1), np.arange(1, LOOKS + 1)


@pytest.mark.parametrize("rate", [0.03, 0.5, 0.87, 1.0])
def test_the_rate_is_inside_at_every_one_of_400_looks_in_95_percent_of_runs(rate: float) -> None:
    k, n = counts(rate, 1)
    low, high = confidence_sequence(k, n, CONFIDENCE)
    missed = float(((low > rate) | (high < rate)).any(axis=1).mean())
    error = math.sqrt(0.05 * 0.95 / RUNS)  # Monte-Carlo standard error: 0.007
    assert missed <= 0.05 + 3 * error


def test_the_same_looks_break_the_promise_of_an_interval_for_one_look() -> None:
    """Not a property that we want: it shows that the test above could fail."""
    k, n = counts(0.87, 2)
    p = k / n
    centre, half = (p + 1.92 / n) / (1 + 3.84 / n), 1.96 * np.sqrt(p * (1 - p) / n + 0.96 / n**2) / (1 + 3.84 / n)
    missed = float(((centre - half > 0.87) | (centre + half < 0.87)).any(axis=1).mean())
    assert missed > 0.2


def test_its_ends_are_where_the_mixture_martingale_reaches_its_threshold() -> None:
    for k, n in ((0, 1), (3, 7), (50, 60), (435, 500), (1, 100_000), (8_700_000, 10_000_000)):
        low, high = (float(end) for end in confidence_sequence(k, n, CONFIDENCE))
        mixture = float(betaln(1 + k, 1 + n - k) - betaln(1, 1))
        for end in (low, high):
            if 0.0 < end < 1.0:
                log_m = mixture - k * math.log(end) - (n - k) * math.log1p(-end)
                assert log_m == pytest.approx(math.log(20.0), abs=1e-5)
        assert low <= k / n <= high
        assert (low == 0.0) == (k == 0) and (high == 1.0) == (k == n)


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.5, 0.999))
def test_it_moves_with_the_data_and_is_wider_than_an_exact_interval_for_one_look(
    k: int, failures: int, c: float
) -> None:
    n = k + failures
    low, high = (float(end) for end in confidence_sequence(k, n, c))
    more_low, more_high = (float(end) for end in confidence_sequence(k + 1, n + 1, c))
    assert more_low >= low - 1e-9
    less_low, less_high = (float(end) for end in confidence_sequence(k, n + 1, c))
    assert less_high <= high + 1e-9
    assert less_low <= more_low + 1e-9 and less_high <= more_high + 1e-9
    wider = confidence_sequence(k, n, 1 - (1 - c) / 10)
    assert float(wider[0]) <= low + 1e-9 and float(wider[1]) >= high - 1e-9
    if n >= 20:
        exact_low, exact_high = clopper_pearson_interval(k, n, c)
        assert high - low >= exact_high - exact_low - 1e-9


def test_no_data_is_no_knowledge() -> None:
    assert tuple(float(end) for end in confidence_sequence(0, 0)) == (0.0, 1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_ten_million_episodes_leave_a_finite_narrow_interval() -> None:
    low, high = confidence_sequence(8_700_000, 10_000_000)
    assert 0.8690 < float(low) < 0.87 < float(high) < 0.8710


def test_wilson_is_the_formula() -> None:
    low, high = wilson_interval(435, 500, 0.95)
    z, n, p = 1.959964, 500, 0.87
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (low + high) / 2 == pytest.approx((p + z * z / (2 * n)) / (1 + z * z / n), abs=1e-7)
    assert (high - low) / 2 == pytest.approx(half, abs=1e-7)
    assert wilson_interval(0, 30)[0] == 0.0 and wilson_interval(30, 30)[1] == 1.0


def test_clopper_pearson_is_the_exact_interval() -> None:
    low, high = clopper_pearson_interval(435, 500, 0.95)
    assert low == pytest.approx(proportion_lower_bound(435, 500, 0.975), abs=1e-9)
    assert high == pytest.approx(1.0 - proportion_lower_bound(65, 500, 0.975), abs=1e-9)
    assert clopper_pearson_interval(0, 9)[0] == 0.0 and clopper_pearson_interval(9, 9)[1] == 1.0
