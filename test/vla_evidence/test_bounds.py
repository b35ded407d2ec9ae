# SPDX-License-Identifier: Apache-2.0
"""Confidence bounds hold what they promise, by exact probabilities or by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import bdtr, betaincinv

from vla_evidence import observations_needed, proportion_lower_bound
from vla_evidence.sequential.bounds import exceedance_limit, quantile_upper_bound


@pytest.mark.parametrize("n", [1, 7, 50])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.87, 0.99])
def test_the_lower_bound_of_a_proportion_is_too_high_at_most_as_often_as_allowed(n: int, p: float) -> None:
    probabilities = np.diff(bdtr(np.arange(n + 1.0), n, p), prepend=0.0)
    wrong = sum(probabilities[k] for k in range(n + 1) if proportion_lower_bound(k, n, 0.95) > p)
    assert wrong <= 0.05 + 1e-12


def test_known_bounds_of_a_proportion() -> None:
    assert proportion_lower_bound(10, 10, 0.95) == pytest.approx(0.05 ** (1 / 10))
    assert proportion_lower_bound(0, 10, 0.95) == 0.0
    assert proportion_lower_bound(0, 0, 0.95) == 0.0
    for k, n in ((1, 1), (1, 9), (870, 1000), (999, 1000), (4999, 5000)):
        assert proportion_lower_bound(k, n, 0.95) == pytest.approx(betaincinv(k, n - k + 1, 0.05), rel=1e-9)
    for arguments in ((3, 2, 0.9), (-1, 2, 0.9), (1, 2, 1.0)):
        with pytest.raises(ValueError):
            proportion_lower_bound(*arguments)


def test_the_bound_of_a_quantile_covers_it_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    runs = 3000
    true = 1.6448536269514722  # the normal distribution's 95 % quantile
    covered = [quantile_upper_bound(rng.normal(size=120), 0.95, 0.9) >= true for _ in range(runs)]
    assert np.mean(covered) >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / runs)


def test_too_few_observations_bound_nothing() -> None:
    assert observations_needed(0.95, 0.95) == 59
    assert quantile_upper_bound([0.0] * 58, 0.95, 0.95) is None
    assert quantile_upper_bound([*range(59)], 0.95, 0.95) == 58.0
    assert exceedance_limit([*range(59)], 0.95, 0.15, 0.95) == 56.0  # rank 57 of 59: the 95 % quantile itself
    assert exceedance_limit([3.0, 1.0] * 10, 0.95, 0.15, 0.95) == 3.0
    assert exceedance_limit([1.0] * 5, 0.95, 0.15, 0.95) is None
    assert exceedance_limit([], 0.95, 0.15, 0.95) is None


def test_scores_that_are_not_finite_calibrate_nothing() -> None:
    with pytest.raises(ValueError):
        quantile_upper_bound([1.0] * 99 + [math.nan], 0.95, 0.9)
