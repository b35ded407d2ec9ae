# SPDX-License-Identifier: Apache-2.0
"""The e-process errs no more often than it promises, finds what is bad, and survives any number of observations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_evidence import proportion_lower_bound
from vla_evidence.sequential.exceedance import BernoulliEProcess

ALPHA = 0.05


def running_log_e(events: np.ndarray, p0: float) -> np.ndarray:
    """Return ``log_e`` after each observation for rows of outcomes [runs, time], as the class computes it for one."""
    alternatives = p0 + (1.0 - p0) * (np.arange(64) + 0.5) / 64
    counts, n = np.cumsum(events, axis=1), np.arange(1, events.shape[1] + 1)
    log_e = np.full(events.shape, -np.inf)
    for p in alternatives:
        log_e = np.logaddexp(log_e, counts * math.log(p / p0) + (n - counts) * (math.log1p(-p) - math.log1p(-p0)))
    return log_e - math.log(64)


def share_rejected(events: np.ndarray, p0: float) -> float:
    return float((running_log_e(events, p0).max(axis=1) >= -math.log(ALPHA)).mean())


def test_the_vectorised_form_is_the_class() -> None:
    events = np.random.default_rng(0).random((3, 200)) < 0.3
    expected = running_log_e(events, 0.2)
    for row, values in zip(events, expected, strict=True):
        process = BernoulliEProcess(0.2)
        assert np.allclose([process.update(bool(event)) for event in row], values)
        assert process.max_log_e == pytest.approx(max(0.0, values.max()))


@pytest.mark.parametrize("p0", [0.02, 0.15, 0.5, 0.9])
def test_under_the_null_it_rejects_at_most_alpha_of_runs(p0: float) -> None:
    runs = 1500
    rng = np.random.default_rng(1)
    for p in (p0, 0.7 * p0):
        share = share_rejected(rng.random((runs, 250)) < p, p0)
        standard_error = math.sqrt(ALPHA * (1 - ALPHA) / runs)
        assert share <= ALPHA + 3 * standard_error


def test_the_null_holds_also_for_dependent_observations() -> None:
    """After each event the next one is rarer, after each quiet one as likely as allowed: never above p0 given the past."""
    runs, p0 = 1500, 0.15
    rng = np.random.default_rng(2)
    events = np.zeros((runs, 300), dtype=bool)
    for t in range(300):
        p = np.where(events[:, t - 1] if t else False, 0.02, p0)
        events[:, t] = rng.random(runs) < p
    assert share_rejected(events, p0) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_the_mean_of_e_never_exceeds_one_under_the_null() -> None:
    """Exactly, by summing over all outcomes of n observations at p = p0."""
    p0, n = 0.3, 12
    total = 0.0
    for events in range(n + 1):
        process = BernoulliEProcess(p0)
        process.restore(events, n, 0.0)
        total += math.comb(n, events) * p0**events * (1 - p0) ** (n - events) * math.exp(process.log_e)
    assert total == pytest.approx(1.0, abs=1e-9)


def test_what_is_bad_is_found_soon() -> None:
    rng = np.random.default_rng(3)
    log_e = running_log_e(rng.random((1000, 60)) < 0.6, 0.15)
    found = log_e >= -math.log(ALPHA)
    assert found.any(axis=1).mean() > 0.99
    assert np.median(found.argmax(axis=1) + 1) <= 12


@given(st.lists(st.booleans(), max_size=60), st.floats(0.01, 0.99))
def test_an_event_never_lowers_the_evidence_and_a_quiet_observation_never_raises_it(
    events: list[bool], p0: float
) -> None:
    process = BernoulliEProcess(p0)
    for event in events:
        before, top = process.log_e, process.max_log_e
        after = process.update(event)
        assert after >= before - 1e-9 if event else after <= before + 1e-9
        assert process.max_log_e >= top


def test_it_is_finite_after_ten_million_observations_and_recovers() -> None:
    process = BernoulliEProcess(0.15)
    process.restore(0, 10_000_000, 0.0)
    assert math.isfinite(process.log_e) and process.log_e < -1000
    process.restore(9_000_000, 10_000_000, 0.0)
    assert math.isfinite(process.log_e) and process.rejects(1e-9)


def test_impossible_arguments_are_refused() -> None:
    for p0 in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError):
            BernoulliEProcess(p0)
    for counts in ((2, 1, 0.0), (-1, 1, 0.0), (0, 1, math.inf)):
        with pytest.raises(ValueError):
            BernoulliEProcess(0.5).restore(*counts)


def test_a_success_rate_against_an_uncertain_incumbent_keeps_alpha() -> None:
    """The bound of the incumbent's rate is part of the test: few incumbent episodes cost power, not validity."""
    rng = np.random.default_rng(5)
    runs, rate = 1500, 0.87
    lower = [proportion_lower_bound(k, 60, 1 - ALPHA / 2) for k in range(61)]
    incumbent = rng.binomial(60, rate, runs)
    rejected = {}
    for candidate in (rate, 0.4):
        failures = rng.random((runs, 150)) >= candidate
        hits = [
            running_log_e(failures[incumbent == k], 1 - lower[k]).max(axis=1) >= -math.log(ALPHA / 2)
            for k in set(incumbent.tolist())
        ]
        rejected[candidate] = float(np.concatenate(hits).mean())
    assert rejected[rate] <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert rejected[0.4] >= 0.95
